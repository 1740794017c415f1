"""Made-up spot markets from a seed: for demonstrations and tests, and for forecasts where no recorded trace is at hand.

`synthetic_trace` has spells from an exponential distribution, which is kinder to a policy than recorded markets are: the age of
a spell says nothing there. `drawn_trace` is drawn from what recorded markets did. Neither is for judging policies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from orchestrator.policy.capacity.recorded import EDGES_SECONDS, RECORDED
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


def drawn_trace(seed: int, *, hours: float, gap_seconds: float = 300.0) -> Trace:
    """A market like one of those that were recorded, drawn by the seed: its spells end at the rates that this market's had at
    their ages, so that young ones are often short and old ones last. One machine, there or not."""
    chance = random.Random(seed)
    name, *counts = RECORDED[chance.randrange(len(RECORDED))]
    down = [(ends + 0.5) / (watched + 1.0) for ends, watched in zip(counts[0], counts[1], strict=True)]
    up = [(ends + 0.5) / (watched + 1.0) for ends, watched in zip(counts[2], counts[3], strict=True)]
    share = sum(counts[3]) / max(1e-9, sum(counts[1]) + sum(counts[3]))
    ticks = max(1, round(hours * 3600 / gap_seconds))
    found: list[int] = []
    state = chance.random() < share
    while len(found) < ticks:
        length = max(1, round(_spell_seconds(chance, up if state else down) / gap_seconds))
        found += [int(state)] * min(length, ticks - len(found))
        state = not state
    return Trace(f"drawn-{seed}-{name}", gap_seconds, tuple(found))


def _spell_seconds(chance: random.Random, rates: Sequence[float]) -> float:
    """Length of a spell whose rate of ending, an hour, is constant within each class of age."""
    due, began = chance.expovariate(1.0), 0.0
    for edge, rate in zip((*EDGES_SECONDS, math.inf), rates, strict=True):
        seconds = due / rate * 3600
        if began + seconds <= edge:
            return began + seconds
        due -= (edge - began) / 3600 * rate
        began = edge
    raise AssertionError("the last class has no end")
