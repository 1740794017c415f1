"""Made-up spot markets from a seed: for demonstrations and tests, where no recorded trace is at hand.

Spells of up and down have lengths from an exponential distribution, which is kinder to a policy than recorded markets are: the
age of a spell says nothing there. Not for judging policies.
"""

from __future__ import annotations

import random

from orchestrator.simulation.traces import Trace


def synthetic_trace(
    seed: int,
    *,
    hours: float,
    up_hours: float = 3.0,
    down_hours: float = 1.0,
    most: int = 1,
    gap_seconds: float = 300.0,
) -> Trace:
    """A market that has `most` machines in spells of `up_hours` on average, and then a number below for `down_hours`."""
    chance = random.Random(seed)
    ticks = max(1, round(hours * 3600 / gap_seconds))
    counts: list[int] = []
    up = chance.random() < up_hours / (up_hours + down_hours)
    while len(counts) < ticks:
        mean = up_hours if up else down_hours
        length = max(1, round(chance.expovariate(1 / mean) * 3600 / gap_seconds))
        counts += [most if up else chance.randrange(most)] * length
        up = not up
    return Trace(f"synthetic-{seed}", gap_seconds, tuple(counts[:ticks]))
