"""What is measured, as values: amounts from a ledger, one sample a job, rollups, and the snapshot of them all.

A counter that falls is taken by Prometheus for a restart and added again whole, so amounts are cut such that they never
fall. A category gets a stretch of time only when it can no longer change: training when a checkpoint settled it, and
the activity that is going on when the next one has begun (its end is known only from a later report, which may lie in
the past). Until then it is `at_risk` or `ongoing`, which are gauges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.accounting import Category, Ledger

_ACTIVITIES = frozenset({Category.PROVISIONING, Category.RESTART, Category.RESIZE, Category.IDLE, Category.SHUTDOWN})
"""What a gang or a machine can be busy with beside training. The other categories are given by settling, for good."""


@dataclass(slots=True)
class Amounts:
    """Sums over machine time, in nano-dollars and nanoseconds. Time of unknown price is in no sum of dollars."""

    cost: Counter[str] = field(default_factory=Counter)
    """By capacity type."""
    settled: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By category and capacity type."""
    list_cost: Counter[str] = field(default_factory=Counter)
    gpu_ns: Counter[str] = field(default_factory=Counter)
    at_risk: int = 0
    ongoing: int = 0
    unpriced_ns: Counter[str] = field(default_factory=Counter)
    """Machine time of unknown price, by capacity type."""
    unlisted_ns: int = 0
    """Machine time of unknown list price."""
    unpriced_machines: int = 0

    def add(self, other: Amounts) -> None:
        for mine, theirs in (
            (self.cost, other.cost),
            (self.list_cost, other.list_cost),
            (self.gpu_ns, other.gpu_ns),
            (self.unpriced_ns, other.unpriced_ns),
        ):
            mine.update(theirs)
        self.settled.update(other.settled)
        self.at_risk += other.at_risk
        self.ongoing += other.ongoing
        self.unlisted_ns += other.unlisted_ns
        self.unpriced_machines += other.unpriced_machines


def amounts_of(ledger: Ledger, until_ns: int) -> Amounts:
    """Amounts of one job's ledger until an instant."""
    statement = ledger.statement(until_ns)
    held = frozenset(ledger.held)
    amounts = Amounts()
    unpriced: set[str] = set()
    for segment in statement.segments:
        capacity, length_ns = segment.capacity_type.value, segment.end_ns - segment.start_ns
        amounts.gpu_ns[capacity] += length_ns * segment.gpus
        if segment.list_cost_nanodollars is None:
            amounts.unlisted_ns += length_ns
        else:
            amounts.list_cost[capacity] += segment.list_cost_nanodollars
        if segment.cost_nanodollars is None:
            unpriced.add(segment.machine)
            amounts.unpriced_ns[capacity] += length_ns
            continue
        amounts.cost[capacity] += segment.cost_nanodollars
        if segment.category is Category.AT_RISK:
            amounts.at_risk += segment.cost_nanodollars
        elif segment.category in _ACTIVITIES and segment.machine in held and segment.end_ns == statement.until_ns:
            amounts.ongoing += segment.cost_nanodollars
        else:
            amounts.settled[segment.category.value, capacity] += segment.cost_nanodollars
    amounts.unpriced_machines = len(unpriced)
    return amounts


@dataclass(frozen=True, slots=True)
class JobSample:
    """One job."""

    namespace: str
    name: str
    uid: str
    team: str
    cost_center: str
    queue: str
    model: str
    zero_stage: str
    instance_type: str
    phase: str
    amounts: Amounts
    per_hour: int | None
    """Nano-dollars an hour for the machines held now; None when a price is unknown."""
    steps: Mapping[str, int]
    samples: int
    preemptions: Mapping[str, int]
    restarts: Mapping[str, int]
    checkpoints: Mapping[str, int]
    last_checkpoint_ns: int | None
    workers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is exported at one moment."""

    version: str
    ready: bool
    jobs: tuple[JobSample, ...]
    phases: Mapping[tuple[str, str], int]
    """Number of jobs by namespace and phase."""
    rollups: Mapping[tuple[str, str], Amounts]
    """By namespace and team, over all jobs ever."""
    last_commit_ns: int | None
    commits: int
    journal_bytes: int | None
