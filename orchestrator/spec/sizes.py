"""How many workers a gang may have: the numbers within `spec.workers.min` and `max` that `allowedSizes` and the batch allow.

The global batch never changes, so a number of workers is allowed only when the batch comes out exactly on their ranks; a
job whose own function trains has no batch that we know of, and any number will do. Sizes count workers, not ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from orchestrator.spec.models import TrainingJobSpec, Workers

LARGEST_ELASTIC_GANG = 10_000
"""Workers: the largest `max` of a job that may change its size, so that its sizes can be listed."""


def allowed_sizes(spec: TrainingJobSpec) -> tuple[int, ...]:
    """Numbers of workers that a world of this job may have, ascending. Empty when there is none, which the loader refuses."""
    workers = spec.workers
    allowed = tuple(workers.allowed_sizes) if isinstance(workers.allowed_sizes, list) else workers.allowed_sizes
    batch = None if spec.entrypoint is not None else spec.training.global_batch_size
    return sizes_within(workers.min, workers.max, allowed, batch, batch_unit(spec, 1))


@lru_cache(maxsize=1_024)
def sizes_within(
    least: int, most: int, allowed: str | tuple[int, ...], batch: int | None, unit: int
) -> tuple[int, ...]:
    """The same from plain values: `batch` in samples (None: not ours), `unit` the smallest batch of one worker."""
    return tuple(size for size in _wanted(least, most, allowed) if batch is None or batch % (size * unit) == 0)


def wanted_sizes(workers: Workers) -> Iterator[int]:
    """What `allowedSizes` names within the bounds, ascending, whatever the batch is."""
    return _wanted(workers.min, workers.max, workers.allowed_sizes)


def _wanted(least: int, most: int, allowed: str | Sequence[int]) -> Iterator[int]:
    within = range(least, min(most, least + LARGEST_ELASTIC_GANG) + 1)
    if not isinstance(allowed, str):
        yield from sorted({size for size in allowed if size in within})
    elif allowed == "PowerOfTwo":
        yield from (size for size in within if size & (size - 1) == 0)
    else:
        yield from within


def divides(spec: TrainingJobSpec, size: int) -> bool:
    """Whether the global batch comes out exactly on `size` workers; True where the user's own function trains."""
    return spec.entrypoint is not None or spec.training.global_batch_size % batch_unit(spec, size) == 0


def batch_unit(spec: TrainingJobSpec, size: int) -> int:
    """The smallest global batch, in samples, of `size` workers: one micro-batch a rank. Every larger one is a multiple."""
    micro = spec.training.micro_batch_size
    return size * spec.workers.ranks_per_worker * (micro if isinstance(micro, int) else 1)
