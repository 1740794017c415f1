"""What to do when a worker ran out of memory: a smaller micro-batch, more accumulation, the same global batch.

The loss curve does not change with it; steps get somewhat slower. A micro-batch that failed at some number of ranks is not
tried again there, nor with fewer ranks: each of them has a larger part of the state beside it. With more ranks the part is
smaller, so nothing is concluded. There is no way back up: what fitted once may fit never again (longer samples came).

Limits: memory that leaks, or that somebody else takes, is not told from a batch that is too large; then the micro-batch shrinks
to 1 and the job ends with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.planning.batch import Batch, divide


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """This micro-batch did not fit at this number of ranks."""

    world_size: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Relief:
    """The batch to go on with; None: there is no smaller one."""

    batch: Batch | None
    reason: str


def largest_untried(failed: Iterable[OutOfMemory], world_size: int) -> int | None:
    """The largest micro-batch of which nothing says that it fails with so many ranks; None: nothing failed yet. 0: all
    do."""
    return min((each.micro_batch - 1 for each in failed if each.world_size >= world_size), default=None)


def relieve(
    failed: Iterable[OutOfMemory], global_batch: int, world_size: int, micro_batch: int | None = None
) -> Relief:
    """The batch for `world_size` ranks after what failed at any. `micro_batch`: the largest that the job wants; None: as
    `divide` takes it. Raises BatchDoesNotDivide when the global batch does not divide among the ranks."""
    record = tuple(failed)
    limit = largest_untried(record, world_size)
    if limit is None:
        batch = divide(global_batch, world_size, micro_batch)
        return Relief(batch, f"{batch}: nothing ran out of memory at this size")
    batch = divide(global_batch, world_size, max_micro_batch=max(1, min(limit, micro_batch or limit)))
    told = ", ".join(
        f"{each.micro_batch} at {each.world_size} rank{'s' if each.world_size > 1 else ''}"
        for each in sorted(set(record), key=lambda each: (each.world_size, each.micro_batch))
    )
    if limit < 1:
        return Relief(
            None,
            f"no micro-batch is smaller than 1; out of memory: {told}; use more workers, a higher deepspeed.stage, shorter "
            "samples or a smaller model",
        )
    return Relief(batch, f"{batch}; out of memory: {told}")
