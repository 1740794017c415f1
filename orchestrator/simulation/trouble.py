"""What a policy cannot know beforehand, drawn from a seed: restarts that take longer or shorter, on-demand machines sold out, and
work that turns out to be more or less than was thought.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

HOUR_NS = 3_600_000_000_000
CAP = 4.0
"""A restart takes at most so many times the mean: the high estimate that the policy is told."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Nothing of it is the default; then the world is as it was without."""

    seed: int = 0
    overhead_sigma: float = 0.0
    """Of the logarithm of a restart's length; the mean stays, and `CAP` times the mean is the longest."""
    stock_outs_per_day: float = 0.0
    """Times when no further on-demand machines can be rented; those that are held stay."""
    stock_out_hours: float = 0.5
    work_believed: float = 1.0
    """What the policy takes the work to be, as a share of what it is."""
    known_at: float = 0.5
    """Share of the work after which the policy knows how much there is."""

    def overheads(self, mean_ns: int, start_ns: int) -> Iterator[int]:
        """Lengths of one restart after the other of the job that begins at `start_ns`, without end."""
        chance = random.Random(f"{self.seed} overhead {start_ns}")
        while True:
            factor = 1.0
            if self.overhead_sigma:
                factor = min(CAP, math.exp(chance.gauss(-(self.overhead_sigma**2) / 2, self.overhead_sigma)))
            yield round(mean_ns * factor)

    def high_ns(self, mean_ns: int) -> int:
        """The high estimate of a restart."""
        return round(mean_ns * CAP) if self.overhead_sigma else mean_ns

    def stock_outs(self, start_ns: int, until_ns: int) -> list[tuple[int, int]]:
        """(from, until) in order, not overlapping; a job that begins in one is not made."""
        chance = random.Random(f"{self.seed} stock-outs {start_ns}")
        found: list[tuple[int, int]] = []
        now_ns = start_ns
        while self.stock_outs_per_day:
            now_ns += round(chance.expovariate(self.stock_outs_per_day / 24) * HOUR_NS)
            if now_ns >= until_ns:
                break
            found.append((now_ns, now_ns + round(self.stock_out_hours * HOUR_NS)))
            now_ns = found[-1][1]
        return found


NO_TROUBLE = Trouble()
