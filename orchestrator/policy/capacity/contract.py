"""What a capacity policy is asked and what it answers: which places to rent, spot or on demand, how many workers in each.

A policy sees a `Situation` and gives a `Decision`. It is asked when something changes (an offer comes or goes, workers are lost,
a restart is over) and at the latest at `Decision.until_ns`; the same situation gives the same decision. Who carries decisions
out (the simulator, the controller) keeps to this:

* `Offer.count` is how many workers could be held in the place in all, those that are held there among them. Prices are those of
  one worker. An offer that the user forbids (zone, highest price) is not in the situation.
* A change of what is held (a first start, another place, another number of workers) costs the gang one restart overhead: it is
  paid and does no work. An empty target gives everything back and costs nothing.
* A rigid gang (`workers_min == workers_max`) works only when it is whole.
* `SpotHistory` of every zone is told of each change of its spot offer, and of the time when nothing changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.capacity.history import SpotHistory


@dataclass(frozen=True, slots=True)
class Offer:
    """A place where workers can be had now."""

    zone: str
    capacity_type: CapacityType
    price_nanodollars_per_hour: int | None
    """Of one worker; None: nobody could tell, so it is taken only where nothing with a price will do."""
    count: int
    """Workers that could be held there in all, those that are held already among them; 0: sold out."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Workers that are rented in one place, since the first of them was."""

    zone: str
    capacity_type: CapacityType
    workers: int
    since_ns: int


@dataclass(frozen=True, slots=True)
class RestartOverhead:
    """Seconds from a change of what is held until the gang works again: what is expected, and what it may well take."""

    mean_seconds: float
    high_seconds: float


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a policy may know."""

    now_ns: int
    began_ns: int
    """When the job's clock began to run: the deadline was set then."""
    work_seconds: float
    """Of the whole job, by `workers_max` workers that lose no time."""
    work_left_seconds: float
    """What is left of it now (what a preemption has destroyed is left again)."""
    deadline_ns: int | None
    offers: Sequence[Offer]
    held: Sequence[Holding]
    overhead: RestartOverhead
    restarting_since_ns: int | None = None
    """When the restart overhead under way began; None: the gang works, or nothing is held."""
    workers_min: int = 1
    workers_max: int = 1
    speed: Mapping[int, float] | None = None
    """Seconds of work that so many workers do in a second; `workers_max` do 1. None: in proportion to the workers."""
    spent_nanodollars: int = 0
    """On this job's machines until now: what keeps it from costing more than on-demand machines would have."""
    budget_left_nanodollars: int | None = None
    history: Mapping[str, SpotHistory] = field(default_factory=dict)
    """What the spot market of each zone did until now."""

    @property
    def rigid(self) -> bool:
        return self.workers_min == self.workers_max

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline; None without one."""
        return None if self.deadline_ns is None else (self.deadline_ns - self.now_ns) / 1e9

    def speed_of(self, workers: int) -> float:
        """Seconds of work a second."""
        if workers < self.workers_min:
            return 0.0
        workers = min(workers, self.workers_max)
        return workers / self.workers_max if self.speed is None else self.speed.get(workers, 0.0)


@dataclass(frozen=True, slots=True)
class Target:
    """So many workers in one place."""

    zone: str
    capacity_type: CapacityType
    workers: int


class Cause(StrEnum):
    """Why a decision is what it is, for metric labels and events; the sentence is `Decision.reason`."""

    DONE = "done"
    ON_DEMAND_ONLY = "on-demand-only"
    SPOT_OFFERED = "spot-offered"
    SPOT_KEPT = "spot-kept"
    WAITING = "waiting-for-spot"
    BEHIND = "behind-schedule"
    BRIDGING = "bridging-a-gap"
    ON_DEMAND_KEPT = "on-demand-kept"
    SAFETY_NET = "safety-net"
    NOTHING_OFFERED = "nothing-offered"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to hold from now on."""

    targets: tuple[Target, ...]
    """Empty: hold nothing. At most one entry a place."""
    cause: Cause
    reason: str
    """One sentence with the numbers."""
    until_ns: int | None
    """When to be asked again at the latest if nothing changes; None: a change is soon enough."""
    deadline_at_risk: str | None = None
    """Why even on-demand machines from now on would hardly meet the deadline; None: they would."""

    @property
    def workers(self) -> int:
        return sum(target.workers for target in self.targets)


class CapacityPolicy(Protocol):
    """Pure: equal situations get equal decisions. One object may serve many jobs."""

    @property
    def name(self) -> str:
        """As in `spec.capacity.policy`."""
        ...

    def decide(self, situation: Situation) -> Decision:
        """What to hold from now on."""
        ...
