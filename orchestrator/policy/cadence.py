"""How long to train between two checkpoints.

Too often costs the time that saving takes; too seldom costs the work done since the last checkpoint when a machine goes.
With c the cost of a checkpoint on the step path (the stall, and what steps lose beside the writing), W the time until it is
durable, R the restart and interruptions at rate h, exponentially distributed, a gang that saves after each T of training
keeps in the long run the share

    T h exp(-h (T + W)) / ((1 - exp(-h (T + c))) (1 + h R))

of its time: an interruption at time x after a restart leaves every checkpoint that was durable by then. W and R scale the
whole and do not move the best T, which is where h T = 1 - exp(-h (T + c)). Its first-order solution is sqrt(2 c / h) (Young
1974); Daly (2006) gives the next terms. Here the equation itself is solved: Newton's method from above, since the function is
convex.

Bounds. Not below what keeps the writing to a quarter of the time (a save must be durable well before the next begins), nor
below one step; not above half an hour, so that little money is at risk whatever the estimates say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from orchestrator.policy.hazard import Hazard

FIRST_SECONDS = 60.0
"""Until a checkpoint was measured: soon, so that one is."""
SHORTEST_SECONDS = 10.0
"""Each checkpoint has costs that nobody measures: requests to a store, events, deleting old ones."""
LONGEST_SECONDS = 1_800.0
MOST_WRITING = 0.25
"""Largest share of the time in which a checkpoint is being written."""
MOVED = 0.2
"""Relative change from which a new plan is worth telling."""
REMEMBERED = 5
"""Checkpoints and restarts whose median counts."""
FEWEST_STEPS = 3
"""Steps outside a save, from which the length of a step is known."""


@dataclass(frozen=True, slots=True)
class SaveCost:
    """What one checkpoint cost, in seconds."""

    stall: float
    """The step path stood still."""
    write: float
    """From its begin until it was durable."""
    slowdown: float | None = None
    """The steps beside the writing took this much longer; None: not known."""

    @property
    def on_step_path(self) -> float:
        return self.stall + (self.slowdown or 0.0)


@dataclass(frozen=True, slots=True)
class Plan:
    every_seconds: float
    because: str
    """What is planned; then, after a semicolon, why, with the numbers. A sentence without its full stop."""

    def moved_from(self, every_seconds: float | None) -> bool:
        """Whether this differs from what was planned before by more than is worth ignoring."""
        return every_seconds is None or abs(self.every_seconds - every_seconds) > MOVED * every_seconds


def typical(saves: Sequence[SaveCost]) -> SaveCost:
    """The medians of the newest saves (at least one): one slow disk moment does not change a plan."""
    newest = saves[-REMEMBERED:]
    slowdowns = [save.slowdown for save in newest if save.slowdown is not None]
    return SaveCost(
        median(save.stall for save in newest),
        median(save.write for save in newest),
        max(0.0, median(slowdowns)) if slowdowns else None,
    )


def slowdown_seconds(steps: Sequence[tuple[int, float]], begun_ns: int, save: SaveCost) -> float | None:
    """How much longer than others those of `steps` (each its end in ns and its length in seconds) took that ran while a
    checkpoint was written from `begun_ns` on. Negative by chance, so that the median of several is fair; None when too few
    steps tell. A save that stood in the steps' way all the time slowed none."""
    if save.stall >= save.write:
        return 0.0
    ended_ns = begun_ns + round(save.write * 1e9)
    beside = [seconds for end_ns, seconds in steps if end_ns > begun_ns and end_ns - seconds * 1e9 < ended_ns]
    others = [seconds for end_ns, seconds in steps if end_ns <= begun_ns or end_ns - seconds * 1e9 >= ended_ns]
    if not beside or len(others) < FEWEST_STEPS:
        return None
    return min(save.write, sum(beside) - len(beside) * median(others))


def best_seconds(cost_seconds: float, per_hour: float) -> float:
    """The T that wastes least, without bounds; in seconds, below the mean time between interruptions (see the module)."""
    if cost_seconds <= 0:
        return 0.0
    mean_seconds = 3600 / per_hour
    cost = cost_seconds / mean_seconds
    share = 1.0
    for _ in range(200):
        nearer = share - (share + math.expm1(-(share + cost))) / -math.expm1(-(share + cost))
        if nearer >= share * (1 - 1e-12):
            break
        share = nearer
    return share * mean_seconds


def wasted_share(every_seconds: float, save: SaveCost, per_hour: float, restart_seconds: float) -> float:
    """The share of paid time, in the long run, that becomes no training: saving, work done twice, restarts."""
    rate = per_hour / 3600
    kept = (
        every_seconds
        * rate
        * math.exp(-rate * (every_seconds + save.write))
        / -math.expm1(-rate * (every_seconds + save.on_step_path))
    )
    return 1 - kept / (1 + rate * restart_seconds)


def checkpoint_interval(
    saves: Sequence[SaveCost],
    expected: Hazard,
    *,
    step_seconds: float | None = None,
    restart_seconds: float | None = None,
) -> Plan:
    """The time of training between two checkpoints, from what is measured by now. `saves`: oldest first, perhaps none.
    `restart_seconds` (from an interruption to the next step) is told with the waste and does not change the plan."""
    if not saves:
        return Plan(
            FIRST_SECONDS,
            f"the first checkpoint comes after {_time(FIRST_SECONDS)}, to measure what one costs; interruptions: {expected.because}",
        )
    save = typical(saves)
    best = best_seconds(save.on_step_path, expected.per_hour)
    writing = save.write / MOST_WRITING
    lower = max(SHORTEST_SECONDS, writing, step_seconds or 0.0)
    every, bound = best, ""
    if best > max(lower, LONGEST_SECONDS):
        every, bound = (
            max(lower, LONGEST_SECONDS),
            f"{_time(best)} would cost least, but no more than this is ever put at risk",
        )
    elif best < lower:
        why = {writing: "a save must be durable well before the next begins", step_seconds: "a step is that long"}
        every, bound = lower, f"{_time(best)} would cost least, but {why.get(lower, 'that is the shortest')}"
    restart = restart_seconds or 0.0
    wasted = wasted_share(every, save, expected.per_hour, restart)
    parts = [
        f"a checkpoint after every {_time(every)} of training",
        _cost(save, min(len(saves), REMEMBERED)),
        f"interruptions: {expected.because}",
        *([bound] if bound else []),
        f"so {_percent(wasted)} of the time is lost to saving, redone work and restarts"
        + (f" of {_time(restart_seconds)} each" if restart_seconds is not None else ""),
    ]
    return Plan(every, "; ".join(parts))


def _cost(save: SaveCost, count: int) -> str:
    slowed = "" if not save.slowdown else f" and slows the steps by {_time(save.slowdown)}"
    measured = "measured once" if count == 1 else f"medians of {count}"
    return f"one stalls training for {_time(save.stall)}{slowed}, and is durable after {_time(save.write)} ({measured})"


def _time(seconds: float) -> str:
    """`0.42 s`, `38 s`, `4 min 10 s`, `30 min`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "under 0.1 %"
