"""The learning rate: a pure function of the step, so that a scheduler has no state to save."""

from __future__ import annotations

import math

from orchestrator.training.errors import config_invalid


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
