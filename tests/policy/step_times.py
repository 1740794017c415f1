"""Step times as clusters have them, seeded: for the tests and the benchmark of hang limits, and for those of stragglers.

A step is lognormal around a length that may drift and follow the day, with pauses of the interpreter and of disks now and then.
Evaluations and checkpoints are announced, as a worker loop does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from statistics import median

from orchestrator.policy.hangs import HangLimit, Pause
from orchestrator.policy.stragglers import SMOOTHED_STEPS


@dataclass(frozen=True)
class Kind:
    """One job's steps. Seconds, and shares of steps."""

    typical: float
    sigma: float = 0.15
    """Of the logarithm."""
    collections: tuple[float, float] = (0.0, 0.0)
    """Share of steps with a pause, and its mean; exponentially distributed, at most four means."""
    stalls: tuple[float, float] = (0.0, 0.0)
    """The same for disks and networks, in multiples of the typical step; at most three times that."""
    drift: float = 1.0
    """The last steps' length over the first ones'."""
    daily: float = 0.0
    """Amplitude of the day's pattern over 20,000 steps, relative."""
    evaluate_every: int | None = None
    save_every: int | None = None


KINDS = {
    "steady": Kind(0.08),
    "short": Kind(0.005, sigma=0.4, collections=(0.01, 0.15)),
    "noisy": Kind(0.25, sigma=0.5),
    "collections": Kind(0.1, collections=(0.002, 0.4)),
    "stalls": Kind(1.5, sigma=0.2, stalls=(0.003, 1.0)),
    "drift": Kind(0.4, sigma=0.2, drift=12.0),
    "daily": Kind(2.0, sigma=0.1, daily=0.6),
    "evaluations": Kind(0.12, sigma=0.2, evaluate_every=200),
    "saves": Kind(0.6, sigma=0.25, save_every=50, evaluate_every=500),
    "long": Kind(20.0, sigma=0.3, stalls=(0.002, 1.0), save_every=100),
}


def steps(kind: Kind, count: int, random: Random) -> Iterator[tuple[frozenset[Pause], float]]:
    """What is announced for each step, and how long it takes."""
    for number in range(count):
        announced = set()
        length = kind.typical * kind.drift ** (number / count)
        length *= 1 + kind.daily * math.sin(2 * math.pi * number / 20_000)
        seconds = length * random.lognormvariate(0, kind.sigma)
        if random.random() < kind.collections[0]:
            seconds += min(4.0, random.expovariate(1)) * kind.collections[1]
        if random.random() < kind.stalls[0]:
            seconds += min(3.0, random.expovariate(1)) * kind.stalls[1] * length
        if kind.evaluate_every and number % kind.evaluate_every == kind.evaluate_every - 1:
            announced.add(Pause.EVALUATION)
            seconds += length * random.uniform(60, 120)
        if kind.save_every and number % kind.save_every == kind.save_every - 1:
            announced.add(Pause.CHECKPOINT)
            seconds += random.lognormvariate(math.log(2.0), 0.7)
        if number == 0:
            seconds += random.uniform(5, 60)
        yield frozenset(announced), seconds


@dataclass(frozen=True)
class Replay:
    """What a fresh limit made of a job's steps."""

    false_alarms: int
    hangs: int
    unseen: int
    """Hangs that were not seen within the limit and one beat."""
    beyond_formula: tuple[float, ...]
    """For each hang in a step without a pause, after the first thousand: seconds until it was seen, over max(3 s, 5 x p99)."""


BEAT_SECONDS = 0.1


def replay(kind: Kind, count: int, random: Random, hang_every: int = 1_000) -> Replay:
    """Play the steps to a limit. Beside every so many of them, a hang is thought in its place: the age that the beats tell
    grows until it is suspected."""
    limit, alarms, hangs, unseen, beyond = HangLimit(), 0, 0, 0, []
    for number, (announced, seconds) in enumerate(steps(kind, count, random)):
        for pause in announced:
            limit.expect(pause)
        allowed = limit.limit_seconds()
        alarms += limit.suspect(seconds) is not None if seconds > allowed - BEAT_SECONDS else False
        if number % hang_every == hang_every // 2 + 1 and not announced:
            first_beat = random.uniform(0, BEAT_SECONDS)
            seen = first_beat + math.floor((allowed - first_beat) / BEAT_SECONDS + 1) * BEAT_SECONDS
            hangs += 1
            unseen += limit.suspect(seen) is None or seen > allowed + BEAT_SECONDS + 1e-9
            beyond += [seen / limit.formula_seconds()]
        limit.observe(seconds)
    return Replay(alarms, hangs, unseen, tuple(beyond))


def own_work(kind: Kind, ranks: int, samples: int, random: Random, slowed: int = 0) -> Iterator[dict[str, float]]:
    """Samples of each rank's own work: medians of as many steps as an agent takes them of. All ranks drift alike, and each has
    noise, collections and stalls of its own. Pauses are left out, as loops leave them out; those of a rank are `slowed` twofold
    from half of the samples on if it is above 0."""
    count = samples * SMOOTHED_STEPS
    plain = replace(kind, evaluate_every=None, save_every=None)
    each = [steps(plain, count, random) for _ in range(ranks)]
    for number in range(samples):
        found = {}
        for rank, times in enumerate(each):
            mine = median(seconds for _, seconds in islice(times, SMOOTHED_STEPS))
            found[f"rank {rank}"] = mine * (2.0 if 0 < slowed == rank and number >= samples // 2 else 1.0)
        yield found
