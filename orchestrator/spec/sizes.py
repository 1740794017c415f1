"""How many workers a gang may have: the numbers within `spec.workers.min` and `max` that `allowedSizes` and the batch allow.

The global batch never changes, so a number of workers is allowed only when the batch comes out exactly on their ranks; a
job whose own function trains has no batch that we know of, and any number will do. Sizes count workers, not ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.spec.models import TrainingJobSpec, Workers

LARGEST_ELASTIC_GANG = 10_000
"""Workers: the largest `max` of a job that may change its size, so that its sizes can be listed."""


def allowed_sizes(spec: TrainingJobSpec) -> tuple[int, ...]:
    """Numbers of workers that a world of this job may have, ascending. Empty when there is none, which the loader refuses."""
    return tuple(size for size in wanted_sizes(spec.workers) if divides(spec, size))


def wanted_sizes(workers: Workers) -> Iterator[int]:
    """What `allowedSizes` names within the bounds, ascending, whatever the batch is."""
    within = range(workers.min, min(workers.max, workers.min + LARGEST_ELASTIC_GANG) + 1)
    if isinstance(workers.allowed_sizes, list):
        yield from sorted({size for size in workers.allowed_sizes if size in within})
    elif workers.allowed_sizes == "PowerOfTwo":
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
