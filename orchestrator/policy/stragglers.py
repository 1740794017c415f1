"""Which rank of a gang is slow by itself, and whether the gang is better off without its node.

All ranks of a gang wait for the slowest, so a step's length says nothing of who is slow: what counts is each rank's *own work*,
the time of a step in which it waited for nobody. One sample is the median of a rank's newest `SMOOTHED_STEPS` steps; samples come
once in as many steps.

A rank is slow when in nine of its newest twelve samples its own work was beyond `f` times the median of the others', and the
difference is at least 5 % of the step: what nobody waits for is no harm. f is learned from the gang's own noise, 1 + 4 times how
far samples of the others usually are from their others' median, within 1.25 and 1.6. A rank's own samples do not count for its
own f, so a rank that was always slow does not make itself ordinary. It has recovered when three of the newest twelve at most are
beyond half of that. So a rank that becomes twice as slow is found within `FOUND_WITHIN_STEPS` steps.

Leaving its node out. With n workers now, T the length of a step, x the longest own work on that node, o the longest elsewhere, a
world of k workers on other nodes takes

    T(k) = T - x + o n / k

a step: the batch is the same, so the others' own work grows by n / k, and what the slowest rank does not work by itself
(communication, the optimizer's common part) stays. Such a world is worth (see policy/resize.py, whose l, a, b and T_left these
are)

    A(k) = (s - 1 - (l(k) - l(n)) b) / (l(k) + s / T_left),    s = T / T(k)

seconds of training as it is now. It has to be more than 2 a, to leave the node out and to try it again, and 5 % faster.

Limits: of a gang half of which is slow, nobody is. Other work on one node that lasts shorter than 70 steps is not found, nor
meant to be. The sums are of one kind of machine; that k workers share what the slow node did is not measured before it is so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import mean, median

from orchestrator.policy.durations import seconds
from orchestrator.policy.resize import Situation

SMOOTHED_STEPS = 8
WATCHED = 12
"""Samples."""
SLOW_SAMPLES = 9
RECOVERED_SAMPLES = 3
LEAST_FACTOR = 1.25
MOST_FACTOR = 1.6
SPREADS = 4.0
MATTERS = 0.05
"""Of a step."""
TRANSITIONS = 2.0
FOUND_WITHIN_STEPS = (WATCHED + 1) * SMOOTHED_STEPS


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank's standing among the others changed. Seconds are medians of its newest samples."""

    who: str
    slow: bool
    """False: it was, and is not any more."""
    ratio: float
    """Its own work over the median of the others'."""
    factor: float
    """Beyond which a rank of this gang is slow."""
    own_seconds: float
    others_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """Whether the gang is better off without a node. `target`: workers without it; 0: no allowed size is to be had."""

    pays: bool
    target: int
    faster: float
    """Speed without it over speed with it; 0 where that cannot be had."""
    reason: str


@dataclass(frozen=True, slots=True)
class _Sample:
    ratio: float
    own: float
    others: float


class Stragglers:
    """Who is slower than the others. `who` is a rank and its node, in words. For one world; `clear` for the next."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[_Sample]] = {}
        self._slow: set[str] = set()

    @property
    def slow(self) -> frozenset[str]:
        return frozenset(self._slow)

    def clear(self) -> None:
        self._seen.clear()
        self._slow.clear()

    def observe(self, own_seconds: Mapping[str, float], step_seconds: float | None = None) -> list[Straggler]:
        """One sample of each rank. Returns those whose standing changed. `step_seconds`: a step's usual length, None when not
        known. Who is not named any more is forgotten; one alone has nobody to be slower than."""
        for gone in self._seen.keys() - own_seconds.keys():
            del self._seen[gone]
            self._slow.discard(gone)
        for who, own in own_seconds.items():
            others = [value for other, value in own_seconds.items() if other != who]
            if others and (usual := median(others)) > 0:
                self._seen.setdefault(who, deque(maxlen=WATCHED)).append(_Sample(own / usual, own, usual))
        spreads = {who: mean(abs(each.ratio - 1) for each in seen) for who, seen in self._seen.items()}
        changed = [self._change(who, spreads, step_seconds) for who in self._seen]
        return [change for change in changed if change is not None]

    def _change(self, who: str, spreads: Mapping[str, float], step_seconds: float | None) -> Straggler | None:
        seen = self._seen[who]
        if len(seen) < WATCHED:
            return None
        factor = _factor([spread for other, spread in spreads.items() if other != who])
        own, others = median(each.own for each in seen), median(each.others for each in seen)
        ratio = median(each.ratio for each in seen)
        figures = (
            f"{seconds(own)} of work of its own a step, {ratio:.2f} times the others' {seconds(others)}, over "
            f"{WATCHED * SMOOTHED_STEPS} steps; here {factor:.2f} times is beyond what ranks differ by"
        )
        matters = step_seconds is None or own - others >= MATTERS * step_seconds
        if who not in self._slow:
            if matters and sum(each.ratio >= factor for each in seen) >= SLOW_SAMPLES:
                self._slow.add(who)
                return Straggler(who, True, ratio, factor, own, others, f"{who} is slow: {figures}")
        elif sum(each.ratio > (1 + factor) / 2 for each in seen) <= RECOVERED_SAMPLES:
            self._slow.discard(who)
            return Straggler(who, False, ratio, factor, own, others, f"{who} is slow no more: {figures}")
        return None


def _factor(spreads: Collection[float]) -> float:
    usual = median(spreads) if spreads else 0.0
    return min(MOST_FACTOR, max(LEAST_FACTOR, 1 + SPREADS * usual))


def leaving(
    node: str,
    own_seconds: Mapping[str, float],
    there: Collection[str],
    step_seconds: float | None,
    situation: Situation,
) -> Leaving:
    """Whether to leave `node` out, on which the ranks `there` are. `situation.available`: workers that could train without it."""
    present = situation.present
    elsewhere = [own for who, own in own_seconds.items() if who not in there]
    sizes = [size for size in situation.allowed if size <= min(situation.available, present)]
    if not sizes or not elsewhere or not step_seconds:
        why = "no allowed gang can do without it" if not sizes or not elsewhere else "no step was measured yet"
        return Leaving(False, 0, 0.0, f"{node} is kept: {why}")
    slowest = max(own_seconds[who] for who in there)
    step = max(step_seconds, slowest)
    faster = {size: step / max(step - slowest + max(elsewhere) * present / size, 1e-9) for size in sizes}
    best = max(sizes, key=lambda size: (faster[size], size))
    worth, cost = _worth(situation, best, faster[best]), TRANSITIONS * situation.joining.mean
    told = (
        f"{best} workers without it take {seconds(step / faster[best])} a step instead of {seconds(step)}, worth "
        f"{'-' if worth < 0 else ''}{seconds(abs(worth)) if abs(worth) < 1e12 else 'any time'} of training; to leave it and to "
        f"try it again costs {seconds(cost)}"
    )
    if faster[best] < 1 + MATTERS or worth <= cost:
        return Leaving(False, best, faster[best], f"{node} is kept: {told}")
    return Leaving(True, best, faster[best], f"{node} is left out: {told}")


def _worth(situation: Situation, size: int, faster: float) -> float:
    """A(k) of the module's formula."""
    rates = {each: per_hour / 3600 for each, per_hour in situation.interruptions_per_hour.items()}
    left = situation.work_left_seconds
    if left is not None and left <= 0:
        return 0.0
    gain = faster - 1 - (rates[size] - rates[situation.present]) * situation.losing.mean
    clock = rates[size] + (faster / left if left else 0.0)
    return gain / clock if clock > 0 else gain * 1e15
