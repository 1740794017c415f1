"""The state of a DeepSpeed run as plain ranges of parameters, whatever ZeRO stage and world size hold it.

A fragment is elements [start, end) of the flattened parameter `name`, of one kind: `master` (the float32 weight that the
optimizer steps), the optimizer's own per-element state under its own name, `frozen`, `buffer`. Ranks of any number and any
stage can read what ranks of any other wrote, each only its own ranges; no converter stands between. What is not per
element (step numbers, hyperparameters, counters, scheduler, loss scaler) travels as JSON in `scalars`.

Where the tensors lie is known to `deepspeed_state`; it is checked at `attach`: over all ranks each element of each
parameter is there exactly once, and every master, cast to the model's type, is the weight.

Limits: buffers are rank 0's, as in DeepSpeed's own checkpoints. Tensors must be contiguous. A changed set of trained
parameters, other shapes or other param groups are refused, not adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.storage import Parameter
from orchestrator.training.agreement import Peers
from orchestrator.training.deepspeed_scalars import Step, accept, apply, collect
from orchestrator.training.deepspeed_state import Holder, between_steps, find_layout, flat
from orchestrator.training.errors import config_invalid

if TYPE_CHECKING:
    import torch

TRAINED: Final = "trained"
FROZEN: Final = "frozen"
BUFFER: Final = "buffer"
SHOWN = 3
"""How many differing names a message lists."""


@dataclass(frozen=True, slots=True)
class Local:
    """Elements [start, end) of one kind of one parameter, in this rank's memory."""

    name: str
    kind: str
    dtype: str
    """As torch writes it: float32, bfloat16, int64."""
    start: int
    end: int
    view: torch.Tensor
    """1-D, on the host or the device; shares memory with the engine, so it changes with every step."""


# --- ranges, without torch ---------------------------------------------------------------------------------------------
def cut(sizes: Sequence[int], parts: int, part: int) -> list[tuple[int, int, int]]:
    """(index, start, end) of the ranges that are part number `part` when things of these sizes are laid end to end and cut
    into `parts` parts of nearly equal length. The parts together are everything, once; things of size 0 are in none."""
    total = sum(sizes)
    low, high = total * part // parts, total * (part + 1) // parts
    found, at = [], 0
    for index, size in enumerate(sizes):
        start, end = max(low - at, 0), min(high - at, size)
        if start < end:
            found.append((index, start, end))
        at += size
    return found


def cover_faults(sizes: Mapping[str, int], ranges: Iterable[tuple[str, int, int]]) -> list[str]:
    """What keeps the ranges (name, start, end) from covering every name's [0, size) exactly once; empty when they do."""
    by_name: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    faults = []
    for name, start, end in ranges:
        if name in by_name:
            by_name[name].append((start, end))
        else:
            faults.append(f"{name} is not a parameter")
    for name, parts in by_name.items():
        at = 0
        for start, end in sorted(parts):
            if start != at or end <= start:
                faults.append(f"{name} has {'a gap' if start > at else 'an overlap'} at element {min(start, at)}")
            at = max(at, end)
        if at != sizes[name]:
            faults.append(f"{name} ends at element {at} of {sizes[name]}")
    return faults


def differences(saved: Iterable[Parameter], present: Iterable[Parameter]) -> list[str]:
    """How two models' parameters differ, in words; empty when a checkpoint of the one can be loaded into the other.

    Another dtype is no difference for trained parameters, whose masters are float32 in every precision.
    """
    old, new = ({parameter.name: parameter for parameter in side} for side in (saved, present))
    found = [f"{name} is only in the checkpoint" for name in old.keys() - new.keys()]
    found += [f"{name} is only in the model" for name in new.keys() - old.keys()]
    for name in old.keys() & new.keys():
        before, after = old[name], new[name]
        if before.role != after.role:
            found.append(f"{name} is {before.role} in the checkpoint and {after.role} in the model")
        elif tuple(before.shape) != tuple(after.shape):
            found.append(
                f"{name} has shape {list(before.shape)} in the checkpoint and {list(after.shape)} in the model"
            )
        elif before.dtype != after.dtype and before.role != TRAINED:
            found.append(f"{name} is {before.dtype} in the checkpoint and {after.dtype} in the model")
    return sorted(found)


def refuse_differences(saved: Iterable[Parameter], present: Iterable[Parameter]) -> None:
    """Raises ConfigInvalid, naming the first differing parameters, when `differences` finds any."""
    found = differences(saved, present)
    if found:
        rest = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise config_invalid(
            f"the checkpoint belongs to another model or another set of trained parameters: {_first(found)}{rest}",
            "resume with the model, frozen layers and adapters that wrote it, or use another checkpoint.uri",
        )


def _first(texts: Sequence[str]) -> str:
    return ", ".join(texts[:SHOWN])


# --- the engine's state ------------------------------------------------------------------------------------------------
def attach(engine: Any, peers: Peers, *, deepspeed_version: str) -> EngineState:
    """The state of `engine`, checked. Collective; every rank raises when one must.

    Raises ConfigInvalid for what is not supported, by name, and when the insides of DeepSpeed are not as they are known.
    Makes the optimizer's state where it does not exist yet, equal to what its first step would begin with.
    """
    state = peers.settle(lambda: EngineState(engine, peers, deepspeed_version))
    state.check()
    return state


class EngineState:
    """What must survive of one engine: its parameters, this rank's ranges of them, and everything that is not per element."""

    def __init__(self, engine: Any, peers: Peers, deepspeed_version: str) -> None:
        self._engine = engine
        self._peers = peers
        self._tensors, aliases = _named(engine.module)
        names = {id(tensor): name for name, tensor in self._tensors.items()}
        self._layout = find_layout(engine, names, peers.rank, peers.world_size, deepspeed_version)
        self._holders = self._layout.holders()
        trained = {name for holder in self._holders for name in holder.members}
        self._frozen = [name for name in self._tensors if name not in trained]
        self._owners = _persistent_buffers(engine.module)
        buffers = [(name, self._buffer(name)) for name in self._owners]
        self.parameters: tuple[Parameter, ...] = (
            *(
                Parameter(
                    name,
                    _shape(tensor),
                    _dtype(tensor),
                    TRAINED if name in trained else FROZEN,
                    tuple(aliases.get(name, ())),
                )
                for name, tensor in self._tensors.items()
            ),
            *(Parameter(name, tuple(tensor.shape), _dtype(tensor), BUFFER) for name, tensor in buffers),
        )
        """Parameters by their first name, then persistent buffers; a tied weight is there once, with its other names."""
        self._places = {parameter.name: number for number, parameter in enumerate(self.parameters)}
        self._sizes = {parameter.name: parameter.elements for parameter in self.parameters}
        for holder in self._holders:
            self._layout.state(holder)
        self._saved_views: tuple[tuple[int, ...], list[Local]] | None = None
        self.frozen_moved = False
        """Whether `load` gave this rank other frozen weights than the model was made with."""

    # ---- ranges

    def to_save(self) -> list[Local]:
        """This rank's share. Over all ranks, each element of each kind is there exactly once. No collective.

        Kind by kind, and within a kind in the order of the model, as `to_load` is: so whatever stage and size wrote a file
        and whatever reads it, it is read from its beginning to its end.

        Names, kinds, types and ranges never change during an engine's life, nor does their order, so a plan of a file can
        be kept. The views stay valid across steps and across `load`; they end when tensors are replaced
        (`engine.load_checkpoint`, `engine.offload_states`, moving the module). Calling again is the refresh: the same list
        object comes back while nothing was replaced, a new list of the same ranges otherwise.

        Raises WorkerFailed in the middle of a step's micro-batches.
        """
        problem = between_steps(self._engine)
        if problem is not None:
            raise problem
        places = tuple(tensor.data_ptr() for tensor in self._memory())
        if self._saved_views is None or self._saved_views[0] != places:
            self._saved_views = places, self._in_order(self._share())
        return self._saved_views[1]

    def to_load(self) -> list[Local]:
        """What this rank must fill: its part of a spread state, all of what every rank holds whole."""
        found = [local for holder in self._holders for local in self._trained(holder)]
        for name in self._frozen:
            start, view, _ = self._layout.held(self._tensors[name])
            if len(view):
                found.append(Local(name, FROZEN, _dtype(view), start, start + len(view), view))
        found += self._whole_buffers()
        return self._in_order(found)

    def _in_order(self, found: Iterable[Local]) -> list[Local]:
        kinds = list(self._expected())
        return sorted(found, key=lambda local: (kinds.index(local.kind), self._places[local.name], local.start))

    def _share(self) -> Iterator[Local]:
        ranks, rank = self._peers.world_size, self._peers.rank
        if self._layout.spread:
            for holder in self._holders:
                yield from self._trained(holder)
        else:
            sizes = [holder.tensor.numel() for holder in self._holders]
            for index, start, end in cut(sizes, ranks, rank):
                for local in self._trained(self._holders[index]):
                    yield Local(local.name, local.kind, local.dtype, start, end, local.view[start:end])
        held = [(name, *self._layout.held(self._tensors[name])[:2]) for name in self._frozen]
        if self._layout.spread_frozen:
            for name, start, view in held:
                if len(view):
                    yield Local(name, FROZEN, _dtype(view), start, start + len(view), view)
        else:
            for index, start, end in cut([len(view) for _, _, view in held], ranks, rank):
                name, _, view = held[index]
                yield Local(name, FROZEN, _dtype(view), start, end, view[start:end])
        if rank == 0:
            yield from self._whole_buffers()

    def _trained(self, holder: Holder) -> Iterator[Local]:
        for kind, tensor in self._layout.kinds(holder).items():
            elements, dtype = flat(tensor), _dtype(tensor)
            for piece in holder.pieces:
                view = elements[piece.offset : piece.offset + piece.end - piece.start]
                yield Local(piece.name, kind, dtype, piece.start, piece.end, view)

    def _whole_buffers(self) -> list[Local]:
        views = {name: flat(self._buffer(name)) for name in self._owners if self._sizes[name]}
        return [Local(name, BUFFER, _dtype(view), 0, len(view), view) for name, view in views.items()]

    def _buffer(self, name: str) -> Any:
        """The present tensor: a forward pass may put another in its place."""
        owner, attribute = self._owners[name]
        return _contiguous(name, owner._buffers[attribute])

    def _memory(self) -> Iterator[Any]:
        for holder in self._holders:
            yield from self._layout.kinds(holder).values()
        for name in self._frozen:
            yield self._layout.held(self._tensors[name])[1]
        for name in self._owners:
            yield self._buffer(name)

    # ---- what is checked

    def check(self) -> None:
        """Raise ConfigInvalid, on every rank, unless DeepSpeed's layout is as it is known to be. Collective."""
        mine = self._peers.share(self._ranges)
        faults = [
            fault
            for kind, names in self._expected().items()
            for fault in cover_faults(
                {name: self._sizes[name] for name in names},
                (item for ranges in mine for item in ranges.get(kind, ())),
            )
        ]

        def compare() -> None:
            wrong = faults or [f"{name} is not what its master says" for name in self._unlike_their_masters()]
            if wrong:
                raise config_invalid(
                    f"DeepSpeed keeps the state of this engine otherwise than expected: {_first(wrong)}",
                    "report this with the DeepSpeed configuration; use another ZeRO stage until it is mended",
                )

        self._peers.settle(compare)

    def _expected(self) -> dict[str, list[str]]:
        """The names that must be there of each kind."""
        found: dict[str, list[str]] = {FROZEN: self._frozen, BUFFER: list(self._owners)}
        for holder in self._holders:
            for kind in self._layout.kinds(holder):
                found.setdefault(kind, []).extend(holder.members)
        return found

    def _ranges(self) -> dict[str, list[tuple[str, int, int]]]:
        found: dict[str, list[tuple[str, int, int]]] = {}
        for local in self.to_save():
            found.setdefault(local.kind, []).append((local.name, local.start, local.end))
        return found

    def _unlike_their_masters(self) -> Iterator[str]:
        for holder in self._holders:
            elements = flat(holder.tensor)
            for piece in holder.pieces:
                weight = self._layout.weight(self._tensors[piece.name], piece.start, piece.end)
                master = elements[piece.offset : piece.offset + piece.end - piece.start]
                if not _same_bits(master.to(weight), weight):
                    yield piece.name

    def scalars(self) -> dict[str, Any]:
        """What is not per element; JSON-able, and the same on every rank.

        Raises WorkerFailed in the middle of a step, and for hyperparameters or a scheduler that are not plain values.
        """
        problem = between_steps(self._engine)
        if problem is not None:
            raise problem
        return collect(self._layout, self._holders)

    # ---- loading

    def load(self, saved: Sequence[Parameter], read: Callable[[Local], None], scalars: Mapping[str, Any]) -> None:
        """Take over a checkpoint: `saved` are its parameters, `read` fills one `Local`, `scalars` are its own. Collective.

        Everything that can be refused is refused before anything is changed. A failure of `read` on any rank is raised on
        all; masters that were read before it are overwritten by then, so another checkpoint must be loaded, or the engine
        thrown away.

        Raises ConfigInvalid when the checkpoint does not fit, and what `read` raises.
        """
        steps = self._peers.settle(lambda: self._accept(saved, scalars))
        self._layout.prepare()

        def fill() -> None:
            for local in self.to_load():
                before = local.view.clone() if local.kind == FROZEN and not self.frozen_moved else None
                read(local)
                self.frozen_moved |= before is not None and not _same_bits(before, local.view)
            self._clear_padding()
            apply(self._layout, self._holders, steps, scalars)

        self._peers.settle(fill)
        self._layout.refresh()

    def _accept(self, saved: Sequence[Parameter], scalars: Mapping[str, Any]) -> list[Step]:
        problem = between_steps(self._engine)
        if problem is not None:
            raise problem
        refuse_differences(saved, self.parameters)
        return accept(self._layout, self._holders, scalars)

    def _clear_padding(self) -> None:
        for holder in self._holders:
            gaps = list(holder.gaps())
            for tensor in self._layout.kinds(holder).values() if gaps else ():
                for start, end in gaps:
                    flat(tensor)[start:end].zero_()
        for name in self._frozen:
            _, _, padding = self._layout.held(self._tensors[name])
            if padding is not None:
                padding.zero_()


# --- tensors and values ------------------------------------------------------------------------------------------------
def _named(module: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Parameters by their first name, and the other names of those that are tied."""
    first: dict[int, str] = {}
    found: dict[str, Any] = {}
    aliases: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases.setdefault(first[id(parameter)], []).append(name)
        else:
            first[id(parameter)] = name
            found[name] = _contiguous(name, parameter)
    return found, aliases


def _persistent_buffers(module: Any) -> dict[str, tuple[Any, str]]:
    """Where the buffers are that belong into a state_dict, each once: module and attribute by name."""
    found: dict[str, tuple[Any, str]] = {}
    seen: set[int] = set()
    for prefix, owner in module.named_modules():
        for name, tensor in owner.named_buffers(recurse=False):
            if name not in owner._non_persistent_buffers_set and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{prefix}.{name}" if prefix else name] = owner, name
    return found


def _contiguous(name: str, tensor: Any) -> Any:
    if not tensor.is_contiguous():
        raise config_invalid(
            f"checkpoints are not supported of {name}, which does not lie in one piece in memory",
            "make it contiguous before deepspeed.initialize",
        )
    return tensor


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(getattr(tensor, "ds_shape", tensor.shape))  # ZeRO-3 leaves an empty tensor behind


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _same_bits(first: Any, second: Any) -> bool:
    import torch

    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[second.element_size()]
    return torch.equal(first.view(whole), second.view(whole))
