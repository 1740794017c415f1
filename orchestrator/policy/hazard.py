"""How often a gang is interrupted: what is known beforehand, and what was seen here.

Interruptions are taken as a Poisson process whose rate is unknown: a Gamma prior for each capacity type, then a count and
the hours in which it was counted. The mean of the posterior is a ratio of two sums, so it can be said in a sentence.

Machines of a gang may fall one by one or all at once, so a gang of N is interrupted N**spread times as often as one machine:

* on demand, spread 1: nodes fail each for itself. Mean rate from three large clusters: 6.50 and 2.34 failures in a thousand
  node-days (Kokolis et al., HPCA 2025, arXiv 2410.21680) and 419 unexpected interruptions of 2,048 nodes in 54 days (Llama 3,
  arXiv 2407.21783), which is one in 3,700, 10,300 and 6,300 hours; the first paper's mid-sized jobs saw one in 1,000. Shipped:
  one in 4,000. The weight, 8 machine-hours, is a choice: a laptop that is shut at noon is no data centre, so what is
  seen here soon outweighs the papers. Believing too much in interruptions costs a few saves too many, far below one per cent;
  believing too little in them costs work.
* spot, spread 1/4: a zone takes its machines back together. Fitted on recorded markets (`tests/policy/spot_prior.py` holds
  the counts, their origin and the fit). In traces of 4 and 16 machines held at once, a whole gang was broken up 1.0 to 2.0
  times as often as one of its machines was lost, which is a spread of 0 to 0.5.

Limits: one rate for all zones, instance types and hours of the day, and no forgetting. Interruptions by notice are counted
like those without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.domain.offerings import CapacityType


@dataclass(frozen=True, slots=True)
class Prior:
    """Gamma distribution of the rate: as if `interruptions` had been seen in `machine_hours`."""

    interruptions: float
    machine_hours: float
    spread: float


PRIORS: Mapping[CapacityType, Prior] = {
    CapacityType.ON_DEMAND: Prior(0.002, 8.0, 1.0),
    CapacityType.SPOT: Prior(1.05, 3.5, 0.25),
}


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of gangs that trained: interruptions, and hours weighted as `exposure_hours` does."""

    interruptions: int = 0
    machine_hours: float = 0.0

    def __add__(self, other: Observed) -> Observed:
        return Observed(self.interruptions + other.interruptions, self.machine_hours + other.machine_hours)

    def __sub__(self, other: Observed) -> Observed:
        return Observed(self.interruptions - other.interruptions, max(0.0, self.machine_hours - other.machine_hours))


@dataclass(frozen=True, slots=True)
class Hazard:
    """Interruptions an hour to expect of a gang, and where the figure comes from."""

    per_hour: float
    capacity_type: CapacityType
    machines: int
    observed: Observed
    workers: int

    @property
    def because(self) -> str:
        """`1 in 4.1 h expected of 2 spot machines (4 workers share them); seen here: 1 in 3.2 machine-hours`."""
        kind = f"{self.capacity_type.value} machine{'s' if self.machines > 1 else ''}"
        if self.workers > self.machines:
            kind += f" ({self.workers} workers share {'them' if self.machines > 1 else 'it'})"
        hours = self.observed.machine_hours
        seen = f"seen here: {self.observed.interruptions} in {_figure(hours)} machine-hours"
        seen = seen if hours or self.observed.interruptions else "nothing seen here yet"
        return f"1 in {_figure(1 / self.per_hour)} h expected of {self.machines} {kind}; {seen}"


def exposure_hours(capacity_type: CapacityType, machines: int, hours: float) -> float:
    """How many hours of one machine a gang's `hours` are worth, as far as interruptions go."""
    return hours * math.pow(machines, PRIORS[capacity_type].spread)


def hazard(capacity_type: CapacityType, machines: int, observed: Observed, workers: int | None = None) -> Hazard:
    """The posterior mean for a gang on `machines` (at least one) of this capacity type. `workers` that share machines are
    interrupted together; their number (None: as many as machines) is only told."""
    prior = PRIORS[capacity_type]
    machine = (prior.interruptions + observed.interruptions) / (prior.machine_hours + observed.machine_hours)
    rate = machine * math.pow(machines, prior.spread)
    return Hazard(rate, capacity_type, machines, observed, machines if workers is None else workers)


def _figure(value: float) -> str:
    """Two digits or more; what is next to nothing is not written out."""
    if value < 0.01:
        return "under 0.01"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
