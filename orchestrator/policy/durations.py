"""How long something takes that happens now and then (a transition, a publish): its mean and its high percentiles, from a
prior and the newest measurements. The prior weighs as much as two measurements in the mean. High percentiles of a few values
cannot be measured: until a hundred are known, the longest with half as much again stands for them, and until eight are, at
least the prior's.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

PRIOR_WEIGHT = 2.0
"""Measurements that the prior mean is worth."""
REMEMBERED = 128
FEW = 8
ENOUGH = 100
BEYOND_THE_LONGEST = 1.5


@dataclass(frozen=True, slots=True)
class Span:
    """What is expected of a duration, in seconds."""

    mean: float
    p95: float
    p99: float
    count: int = 0
    """Measurements behind it; 0: all prior."""

    def __str__(self) -> str:
        """`1.2 s (measured 7 times)`"""
        times = "once" if self.count == 1 else f"{self.count} times"
        return f"{seconds(self.mean)} ({f'measured {times}' if self.count else 'not measured yet'})"


class Durations:
    """The newest measurements of one kind. Bounded."""

    def __init__(self, prior_mean: float, prior_high: float) -> None:
        """Both in seconds; `prior_high` stands for every high percentile."""
        self._prior_mean, self._prior_high = prior_mean, prior_high
        self._newest: deque[float] = deque(maxlen=REMEMBERED)

    def observe(self, seconds: float) -> None:
        """One more. A negative duration (a clock was set) counts as none."""
        self._newest.append(max(0.0, seconds))

    @property
    def span(self) -> Span:
        known = len(self._newest)
        mean = (PRIOR_WEIGHT * self._prior_mean + sum(self._newest)) / (PRIOR_WEIGHT + known)
        return Span(mean, self._high(0.95), self._high(0.99), known)

    def _high(self, share: float) -> float:
        known = sorted(self._newest)
        if len(known) >= ENOUGH:
            return known[math.ceil(share * len(known)) - 1]
        longest = BEYOND_THE_LONGEST * known[-1] if known else 0.0
        return longest if len(known) >= FEW else max(longest, self._prior_high)


def seconds(value: float) -> str:
    """`0.42 s`, `38 s`, `4 min 10 s`, `2 h 5 min`, `12 days`: for reasons."""
    if value < 10:
        return f"{value:.2g} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(value / 60)
    if minutes < 2 * 24 * 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"{minutes / 1440:,.0f} days"
