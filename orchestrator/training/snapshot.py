"""One rank's part of a checkpoint, copied in one go into memory of its own, so that training goes on while it is written.

The buffer is made once and used for every save: the step path pays for one copy of the rank's state, nothing else. What
never changes (frozen weights) is not copied: it is read where it lies, once, when it is first written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator import storage
from orchestrator.training.errors import Reason, WorkerFailed

if TYPE_CHECKING:
    import torch

    from orchestrator.training.fragments import Local

ALIGNMENT_BYTES = 64
CHUNK_BYTES = 4 * 1024 * 1024
"""What is handed to the writer at a time: one block of a range file."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each fragment lies in a range file."""

    fragments: tuple[storage.Fragment, ...]
    total_bytes: int


def lay_out(plan: Sequence[Local], file: str, alignment: int = ALIGNMENT_BYTES) -> Layout:
    """Fragments one after another, each on a border of so many bytes."""
    fragments, offset = [], 0
    for local in plan:
        fragments.append(
            storage.Fragment(local.name, local.kind, local.dtype, local.start, local.end, file=file, offset=offset)
        )
        offset += _rounded_up(local.view.numel() * local.view.element_size(), alignment)
    return Layout(tuple(fragments), offset)


class Snapshot:
    """A buffer in main memory with the layout of a plan. `take` fills it, `chunks` gives it to a writer.

    Whoever calls must not `take` again while chunks are still read.
    """

    def __init__(self, torch: Any, plan: Sequence[Local], file: str, *, pinned: bool) -> None:
        self._torch = torch
        self._layout = lay_out(plan, file)
        self._buffer = torch.empty(self._layout.total_bytes, dtype=torch.uint8, pin_memory=pinned)
        self._buffer.zero_()  # the pages are there before the first save, whose stall would else contain their faults

    @property
    def fragments(self) -> tuple[storage.Fragment, ...]:
        return self._layout.fragments

    @property
    def nbytes(self) -> int:
        return self._layout.total_bytes

    def take(self, plan: Sequence[Local]) -> None:
        """Copy the present values. `plan` must hold the same fragments in the same order as the one at the start."""
        _refuse_another(plan, self._layout)
        moved = False
        for local, fragment in zip(plan, self.fragments, strict=True):
            values = local.view.detach().view(self._torch.uint8)
            self._buffer[fragment.offset : fragment.offset + values.numel()].copy_(values, non_blocking=True)
            moved = moved or values.is_cuda
        if moved:
            self._torch.cuda.current_stream().synchronize()

    def chunks(self) -> Iterator[memoryview]:
        """The whole buffer in order."""
        whole = self._buffer.numpy().data
        for start in range(0, len(whole), CHUNK_BYTES):
            yield whole[start : start + CHUNK_BYTES]


class Packed:
    """A layout without gaps, in the order of addresses: what lies side by side in memory is copied in one piece.

    An optimizer's flat tensors hold hundreds of parameters side by side, and a copy of each of them alone would cost more
    than the bytes do. For shards in memory, which are written after every step.
    """

    def __init__(self, torch: Any, plan: Sequence[Local], file: str, leave_out: Collection[str]) -> None:
        """`leave_out`: kinds that are not copied."""
        self._torch = torch
        self._leave_out = leave_out
        self._order = sorted(range(len(plan)), key=lambda number: plan[number].view.data_ptr())
        self._plan: Sequence[Local] = ()
        self._runs: list[tuple[torch.Tensor, int]] = []
        self.layout = lay_out(self._packed(plan), file, alignment=1)

    def copy(self, plan: Sequence[Local], buffer: torch.Tensor) -> None:
        """Copy the present values into `buffer`, bytes on the host. `plan` holds the same fragments as the one at the start.

        The same list object again means the same memory. Raises WorkerFailed for a plan that has come to be another one.
        """
        if plan is not self._plan:
            packed = self._packed(plan)
            _refuse_another(packed, self.layout)
            self._runs = list(_runs(self._torch, packed, self.layout))
            self._plan = plan
        moved = False
        for values, offset in self._runs:
            buffer[offset : offset + values.numel()].copy_(values, non_blocking=True)
            moved = moved or values.is_cuda
        if moved:
            self._torch.cuda.current_stream().synchronize()

    def _packed(self, plan: Sequence[Local]) -> list[Local]:
        return [plan[number] for number in self._order if plan[number].kind not in self._leave_out]


def _runs(torch: Any, plan: Sequence[Local], layout: Layout) -> Iterator[tuple[torch.Tensor, int]]:
    """(bytes of a piece of memory, where they belong) for what lies side by side both here and in the layout."""
    begin = end = offset = 0
    storage: Any = None
    for local, fragment in zip(plan, layout.fragments, strict=True):
        values = local.view.detach().view(torch.uint8)
        first = int(values.storage_offset())
        last = first + values.numel()
        same = storage is not None and values.untyped_storage().data_ptr() == storage.data_ptr()
        if same and first == end and fragment.offset == offset + end - begin:
            end = last
            continue
        if storage is not None:
            yield _bytes(torch, storage, begin, end), offset
        storage, begin, end, offset = values.untyped_storage(), first, last, fragment.offset
    if storage is not None:
        yield _bytes(torch, storage, begin, end), offset


def _bytes(torch: Any, storage: Any, begin: int, end: int) -> Any:
    """Bytes [begin, end) of a piece of memory, as a tensor."""
    found = torch.empty(0, dtype=torch.uint8, device=storage.device)
    found.set_(storage, begin, (end - begin,))
    return found


def _refuse_another(plan: Sequence[Local], layout: Layout) -> None:
    """Raises WorkerFailed unless the plan holds the fragments of the layout, in their order."""
    for local, fragment in zip(plan, layout.fragments, strict=True):
        if (local.name, local.kind, local.start, local.end) != (
            fragment.name,
            fragment.kind,
            fragment.start,
            fragment.end,
        ):
            raise WorkerFailed(
                Reason.APPLICATION_ERROR,
                f"the engine's state is cut otherwise than at the start: {local.name} {local.kind}",
                "do not change the model or its parameter groups while it trains",
            )


def chunks_of(torch: Any, plan: Sequence[Local]) -> Iterator[memoryview]:
    """The bytes of a plan as `lay_out` lays them out, straight from the views."""
    for local in plan:
        values = local.view.detach().view(torch.uint8)
        yield values.cpu().numpy().data
        if gap := _rounded_up(values.numel()) - values.numel():
            yield memoryview(bytes(gap))


class Ranges(Protocol):
    """Where slices of parameters can be read from."""

    def read_into(self, name: str, kind: str, start: int, end: int, out: memoryview) -> None:
        """Elements [start, end), in their stored type, into `out`."""
        ...


def read_into(torch: Any, reader: Ranges, local: Local) -> None:
    """Fill a live view from a checkpoint."""
    target = local.view.detach().view(torch.uint8)
    if target.device.type == "cpu":
        reader.read_into(local.name, local.kind, local.start, local.end, target.numpy().data)
        return
    host = torch.empty(target.numel(), dtype=torch.uint8)
    reader.read_into(local.name, local.kind, local.start, local.end, host.numpy().data)
    target.copy_(host)


def _rounded_up(size: int, alignment: int = ALIGNMENT_BYTES) -> int:
    return -(-size // alignment) * alignment
