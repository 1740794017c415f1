"""Batch arithmetic: one global batch over the ranks, exactly.

micro-batch x accumulation x world size = global batch, always, so that the loss curve does not change with the number
of workers. The arithmetic knows sizes only; whether a micro-batch fits a device's memory is `memory`'s question.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LARGEST_AUTOMATIC_MICRO_BATCH = 32
"""Samples: the largest micro-batch that Auto takes."""


class BatchDoesNotDivide(ValueError):
    """A global batch that cannot be computed exactly; `str` says why and what to do."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what}; {hint}")
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[type[BatchDoesNotDivide], tuple[str, str]]:
        return (type(self), (self.what, self.hint))


@dataclass(frozen=True, slots=True)
class Batch:
    """How one optimizer step is computed. All sizes are in samples but `world_size` (ranks) and `accumulation` (times)."""

    global_batch: int
    world_size: int
    micro_batch: int
    accumulation: int

    def __post_init__(self) -> None:
        if self.micro_batch * self.accumulation * self.world_size != self.global_batch:
            raise ValueError(f"{self.micro_batch} x {self.accumulation} x {self.world_size} is not {self.global_batch}")

    def __str__(self) -> str:
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return f"{self.global_batch} = {ranks} x micro-batch {self.micro_batch} x accumulation {self.accumulation}"


def divide(
    global_batch: int,
    world_size: int,
    micro_batch: int | None = None,
    max_micro_batch: int = LARGEST_AUTOMATIC_MICRO_BATCH,
) -> Batch:
    """The batch for `world_size` ranks. Without `micro_batch`, the largest divisor of a rank's share up to `max_micro_batch`.

    Raises BatchDoesNotDivide when the sizes do not fit exactly, ValueError when one of them is not positive.
    """
    for name, size in (
        ("global_batch", global_batch),
        ("world_size", world_size),
        ("max_micro_batch", max_micro_batch),
    ):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    share, rest = divmod(global_batch, world_size)
    if rest:
        below = global_batch // world_size * world_size
        near = f"{below} or {below + world_size}" if below else f"{world_size}"
        raise BatchDoesNotDivide(
            f"a global batch of {global_batch} does not divide among {world_size} ranks", f"use {near}"
        )
    if micro_batch is None:
        micro_batch = _largest_divisor(share, max_micro_batch)
    elif micro_batch < 1 or share % micro_batch:
        raise BatchDoesNotDivide(
            f"a micro-batch of {micro_batch} does not divide the {share} samples of a rank",
            f"use {_largest_divisor(share, max(1, micro_batch))}",
        )
    return Batch(global_batch, world_size, micro_batch, share // micro_batch)


def allowed_world_sizes(global_batch: int, world_sizes: Iterable[int], micro_batch: int | None = None) -> list[int]:
    """Those of `world_sizes` on which the global batch comes out exactly, in ascending order."""
    step = micro_batch or 1
    return sorted({size for size in world_sizes if size >= 1 and global_batch % (size * step) == 0})


def _largest_divisor(number: int, limit: int) -> int:
    return next(size for size in range(min(number, limit), 0, -1) if number % size == 0)
