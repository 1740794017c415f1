"""Every how many steps each rank's shard is copied to a neighbour.

After every step (k = 1) as long as that takes no more than 2 % of a step: then a lost machine costs one step at most. Else k is
the smallest that stays within 2 %, or the one at which overhead and expected redone work together are least, whichever is
smaller. With c the copy on the step path, s the time that shipping takes beside k steps, t the step, and l the rate of
interruptions, k steps cost

    overhead  max(c, c + s - k t) / (k t)     (the copy; and waiting, where shipping takes longer than the steps it has)
    redone    l t (k + 1) / 2                 (1 to k steps are done again, each as likely)

as shares of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.durations import seconds

BUDGET = 0.02
"""Of the step time."""
LARGEST = 256


@dataclass(frozen=True, slots=True)
class Replication:
    """A shard is copied after every `every` steps. `overhead` and `redone` are shares of the time."""

    every: int
    overhead: float
    redone: float
    reason: str


def replicate_every(
    copy_seconds: float,
    ship_seconds: float,
    step_seconds: float,
    interruptions_per_hour: float,
    budget: float = BUDGET,
) -> Replication:
    """k (see the module), from what is measured. `step_seconds` (above 0) is a step without replication."""
    if step_seconds <= 0:
        raise ValueError(f"a step takes time, not {step_seconds} s")
    rate = interruptions_per_hour / 3600

    def overhead(every: int) -> float:
        path = every * step_seconds
        return (copy_seconds + max(0.0, ship_seconds - path)) / path

    def redone(every: int) -> float:
        return rate * step_seconds * (every + 1) / 2

    copied = f"a copy holds up the step for {seconds(copy_seconds)}, a step takes {seconds(step_seconds)}"
    if overhead(1) <= budget:
        return Replication(
            1, overhead(1), redone(1), f"after every step: {copied}, {_percent(overhead(1))} of the time"
        )
    fits = next((every for every in range(2, LARGEST + 1) if overhead(every) <= budget), LARGEST)
    least = min(range(1, LARGEST + 1), key=lambda every: overhead(every) + redone(every))
    every = min(fits, least)
    why = (
        f"the fewest steps that keep it within {_percent(budget)} of the time"
        if every == fits and overhead(every) <= budget
        else f"saving more of it would cost more in redone steps at {interruptions_per_hour:.2g} interruptions an hour"
        if every == least
        else "no more than so many steps are ever put at risk"
    )
    return Replication(
        every,
        overhead(every),
        redone(every),
        f"after every {every} steps: {copied}, and shipping {seconds(ship_seconds)}; {why}; it takes "
        f"{_percent(overhead(every))}, and {_percent(redone(every))} is expected to be done again",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "under 0.1 %"
