"""Where the shipped prior for spot machines comes from: counts over recorded markets, and the fit.

The counts are of the `preemption` series of the public repository skypilot-org/spot-traces (data of "Can't Be Late", NSDI
2024; AWS April and August 2023, Google Cloud April 2023), in which instances were held until the market took them. Read
anew from a copy of that folder by

    python -m tests.policy.spot_prior FOLDER

which prints the table below and the fit. A gang counts as interrupted when a tick with all its machines is followed by one
with fewer. The fit is the Gamma distribution of rates under which the counts are likeliest (empirical Bayes).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class Count(NamedTuple):
    zone: str
    interruptions: int
    """Of the whole gang."""
    hours: float
    """With the whole gang up."""
    machines: int
    lost: int
    """Machines lost, each counted."""
    machine_hours: float


COUNTS = (
    Count("aws-04-19-2023/us-east-1b_intel_64", 66, 129.2, 1, 66, 129.2),
    Count("aws-04-19-2023/us-east-1d_intel_64", 27, 142.8, 1, 27, 142.8),
    Count("aws-04-22-2023/us-east-1c_v100_1", 41, 55.8, 1, 41, 55.8),
    Count("aws-04-22-2023/us-west-2c_v100_1", 57, 129.7, 1, 57, 129.7),
    Count("gcp-04-30-2023/us-central1-a_c3-88", 0, 45.6, 1, 0, 45.6),
    Count("aws-08-03-2023/us-east-2a_v100_1", 36, 304.6, 4, 75, 1250.1),
    Count("aws-08-03-2023/us-west-2c_v100_1", 90, 337.6, 4, 330, 1395.8),
)
PROBED_TOGETHER = (
    Count("aws-08-27-2023/us-west-2a_v100_1", 91, 165.1, 16, 1473, 2722.7),
    Count("aws-08-27-2023/us-west-2c_v100_1", 81, 163.8, 16, 1366, 2696.4),
)
"""Sixteen machines asked for at once and let go (the `availability` series): for the spread alone."""


def count(zone: str, series: Sequence[int], tick_hours: float) -> Count:
    """Count one series of machines that were up at each tick."""
    machines, pairs = max(series), list(pairwise(series))
    return Count(
        zone,
        sum(before == machines > after for before, after in pairs),
        round(series.count(machines) * tick_hours, 1),
        machines,
        sum(max(0, before - after) for before, after in pairs),
        round(sum(series) * tick_hours, 1),
    )


def spread(counts: Count) -> float:
    """The exponent with which a gang's rate grows from one machine's, in one series."""
    of_gang, of_machine = counts.interruptions / counts.hours, counts.lost / counts.machine_hours
    return math.log(of_gang / of_machine, counts.machines)


def likelihood(shape: float, hours: float, counts: Sequence[Count], exponent: float) -> float:
    """Logarithm of the probability of the counts when rates are Gamma distributed, but for a constant."""
    total = 0.0
    for zone in counts:
        exposure = zone.hours * zone.machines**exponent
        total += math.lgamma(shape + zone.interruptions) - math.lgamma(shape)
        total += shape * math.log(hours / (hours + exposure))
        total += zone.interruptions * math.log(exposure / (hours + exposure))
    return total


def fit(counts: Sequence[Count], exponent: float) -> tuple[float, float]:
    """Shape and hours of the likeliest Gamma distribution, on a grid of 2 %."""
    grid = [math.exp(number / 50) for number in range(-150, 200)]
    best = max((likelihood(shape, hours, counts, exponent), shape, hours) for shape in grid for hours in grid)
    return best[1], best[2]


def main(folder: Path) -> None:
    for file in sorted(folder.rglob("*.json")):
        recorded = json.loads(file.read_text())
        tick_hours = recorded["metadata"]["gap_seconds"] / 3600
        sys.stdout.write(f"{count(f'{file.parent.name}/{file.stem}', recorded['data'], tick_hours)}\n")
    for exponent in (0.0, 0.25, 0.5, 1.0):
        shape, hours = fit(COUNTS, exponent)
        told = f"shape {shape:.2f}, hours {hours:.2f}, likelihood {likelihood(shape, hours, COUNTS, exponent):.2f}"
        sys.stdout.write(f"spread {exponent}: {told}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
