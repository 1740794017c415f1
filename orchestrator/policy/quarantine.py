"""Which nodes are not trusted for a while, because they fail again and again by themselves.

Only faults that may be the node's own count: a worker that died there while the node stayed, one that hung, one that is slow,
a standby that could not be made. A machine that the market took, an error of the job's code and a lack of memory for the job's
batch do not. Nor does what strikes everybody: a node is put away when its faults, each halved every hour, weigh 2.5 more than
twice the median of the other nodes.

The first time is a minute, and doubles with each time before it; those are halved every six hours. So a node that
is bad for good is tried again some times a day, and one that had a bad hour is soon as good as another. The longest time is
four hours. A node that a gang leaves out because it is slow is put away at once, for ten minutes at least.

A node that is needed is used nevertheless: when too few workers could train without it, the one that would be free soonest is
taken, and it is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median_low

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.policy.durations import seconds


class Fault(StrEnum):
    """What happened at a node. Values are those of events where there is one of that name."""

    WORKER_LOST = "WorkerLost"
    """A worker process died; the node stayed."""
    HUNG = "Hung"
    SLOW = "Slow"
    STANDBY_FAILED = "StandbyFailed"
    NODE_LOST = "NodeLost"
    PREEMPTED = "Preempted"
    APPLICATION_ERROR = "ApplicationError"
    OUT_OF_MEMORY = "OutOfMemory"

    @property
    def weight(self) -> float:
        """As the node's own fault; 0: it is not."""
        return _WEIGHTS.get(self, 0.0)


_WEIGHTS = {Fault.WORKER_LOST: 1.0, Fault.HUNG: 1.0, Fault.STANDBY_FAILED: 1.0, Fault.SLOW: 0.5}
ENOUGH = 2.5
MORE_THAN_OTHERS = 2.0
FAULT_HALF_LIFE_SECONDS = 3_600.0
FIRST_SECONDS = 60.0
LONGEST_SECONDS = 4 * 3_600.0
TIMES_HALF_LIFE_SECONDS = 6 * 3_600.0
SLOW_SECONDS = 600.0
"""At least, for a node that is left out because it is slow: to find that out again takes a while."""
FORGOTTEN = 1e-3
"""Weight below which nothing of a node is kept."""


@dataclass(slots=True)
class _Record:
    weight: float = 0.0
    times: float = 0.0
    as_of_ns: int = 0
    until_ns: int = 0
    faults: dict[str, int] = field(default_factory=dict)

    def faded(self, now_ns: int) -> tuple[float, float]:
        age = max(0.0, (now_ns - self.as_of_ns) / NANOSECONDS_PER_SECOND)
        weight = self.weight * 0.5 ** (age / FAULT_HALF_LIFE_SECONDS)
        return weight, self.times * 0.5 ** (age / TIMES_HALF_LIFE_SECONDS)


@dataclass(frozen=True, slots=True)
class Judged:
    """What follows for a node. `until_ns`: it is not used before; None: it may be used."""

    until_ns: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """The nodes that may be used."""

    nodes: frozenset[str]
    pardoned: frozenset[str]
    """Those among them that are used although they are in quarantine."""
    reason: str


class Quarantine:
    """The nodes' records. Instants are ns of one clock, the caller's."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def fault(self, now_ns: int, node: str, fault: str, nodes: int = 1) -> Judged:
        """Something happened at `node`, one of so many nodes. A word that `Fault` does not know is not held against it."""
        kind = next((each for each in Fault if each.value == fault), None)
        if kind is None or not kind.weight:
            return Judged(self.until_ns(now_ns, node), f"{fault} on {node} is not held against the node")
        record = self._records.setdefault(node, _Record())
        weight, record.times = record.faded(now_ns)
        record.weight, record.as_of_ns = weight + kind.weight, now_ns
        record.faults[kind.value] = record.faults.get(kind.value, 0) + 1
        told = ", ".join(f"{name} {count} times" if count > 1 else name for name, count in record.faults.items())
        self._forget(now_ns)
        others = [each.faded(now_ns)[0] for name, each in self._records.items() if name != node]
        usual = median_low([*others, *[0.0] * max(1 - len(others), nodes - 1 - len(others))])
        if record.weight < ENOUGH:
            return Judged(self.until_ns(now_ns, node), f"{node} is watched: {told}")
        if record.weight < ENOUGH + MORE_THAN_OTHERS * usual:
            return Judged(
                self.until_ns(now_ns, node), f"{node} is watched: {told}; but the other nodes fail nearly as often"
            )
        return self._put_away(now_ns, node, record, FIRST_SECONDS, told)

    def leave_out(self, now_ns: int, node: str) -> Judged:
        """The gang is better off without `node`, which is slow."""
        record = self._records.setdefault(node, _Record())
        weight, record.times = record.faded(now_ns)
        record.weight, record.as_of_ns = weight + Fault.SLOW.weight, now_ns
        record.faults[Fault.SLOW.value] = record.faults.get(Fault.SLOW.value, 0) + 1
        return self._put_away(now_ns, node, record, SLOW_SECONDS, "the gang is faster without it")

    def _put_away(self, now_ns: int, node: str, record: _Record, first_seconds: float, told: str) -> Judged:
        length = min(LONGEST_SECONDS, first_seconds * 2.0**record.times)
        record.times += 1
        record.until_ns = max(record.until_ns, now_ns + round(length * NANOSECONDS_PER_SECOND))
        return Judged(record.until_ns, f"{node} is not used for {seconds(length)}: {told}")

    def until_ns(self, now_ns: int, node: str) -> int | None:
        """When the node may be used again; None: it may now."""
        record = self._records.get(node)
        return record.until_ns if record is not None and record.until_ns > now_ns else None

    def admit(self, now_ns: int, slots: Mapping[str, int], needed: int) -> Admitted:
        """Which of these nodes, each with its slots, may be used by a gang that has to have `needed` workers."""
        held = {node: until for node in slots if (until := self.until_ns(now_ns, node)) is not None}
        admitted = set(slots.keys() - held.keys())
        room, pardoned = sum(slots[node] for node in admitted), set[str]()
        for node in sorted(held, key=lambda each: (held[each], each)):
            if room >= needed:
                break
            pardoned.add(node)
            room += slots[node]
        parts = []
        for node in sorted(held):
            left = seconds((held[node] - now_ns) / NANOSECONDS_PER_SECOND)
            if node in pardoned:
                parts.append(f"{node} is used though in quarantine for {left} more: {needed} workers are needed")
            else:
                parts.append(f"{node} is in quarantine for {left} more")
        return Admitted(
            frozenset(admitted | pardoned), frozenset(pardoned), "; ".join(parts) or "no node is in quarantine"
        )

    def _forget(self, now_ns: int) -> None:
        for node, record in list(self._records.items()):
            if record.until_ns <= now_ns and max(record.faded(now_ns)) < FORGOTTEN:
                del self._records[node]
