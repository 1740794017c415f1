"""The learning rate and the batch arithmetic of a run: pure functions of the step, so nothing of them needs saving."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.training.errors import config_invalid

LARGEST_AUTOMATIC_MICRO_BATCH = 32


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Steps of warm-up: a whole number as it is, a fraction of all steps below 1 rounded up."""
    return math.ceil(warmup * total_steps) if 0 < warmup < 1 else int(warmup)


def learning_rate(peak: float, schedule: str, step: int, total_steps: int, warmup: int) -> float:
    """The rate for step `step` (from 0): a linear rise over the warm-up, then linear, cosine or constant.

    linear and cosine reach zero after the last step.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    match schedule:
        case "linear":
            return peak * (1 - done)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case "constant":
            return peak
    raise config_invalid(f"training.schedule {schedule!r} is not known", "use linear, cosine or constant")


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How a global batch is computed: `world_size` ranks, each at most `accumulation` micro-batches of `micro_batch`."""

    global_batch: int
    world_size: int
    micro_batch: int
    accumulation: int


def plan_batch(global_batch: int, world_size: int, micro_batch: int | str) -> BatchPlan:
    """Fit a global batch on the ranks exactly; a rank's shares differ by at most one sample.

    Auto takes the fewest micro-batches of at most 32 samples, and makes them equal.
    """
    if global_batch < world_size:
        raise config_invalid(
            f"training.globalBatchSize {global_batch} is below the {world_size} ranks", "raise it or use fewer workers"
        )
    largest_share = -(-global_batch // world_size)
    limit = min(micro_batch if isinstance(micro_batch, int) else LARGEST_AUTOMATIC_MICRO_BATCH, largest_share)
    accumulation = -(-largest_share // limit)
    return BatchPlan(global_batch, world_size, -(-largest_share // accumulation), accumulation)
