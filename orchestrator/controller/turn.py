"""One turn of the controller: many observations, one commit.

A turn works on an overlay over what is journaled already. Nothing of it is visible to anyone until the commit has
succeeded; then the records are taken over, callers get their answers, and the host is told what to do. If the commit
fails, the overlay is dropped, the ledgers that it touched are read anew, and nothing has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from orchestrator.accounting import Entry, Ledger
from orchestrator.controller import cadence
from orchestrator.controller.journal.base import Commit, JobRecord, StepRow
from orchestrator.domain.offerings import CapacityType
from orchestrator.lifecycle import StoryEntry
from orchestrator.policy import Observed

Key = tuple[str, str]
"""(namespace, name) or (namespace, idempotency key)"""


class Book:
    """All jobs in memory, by uid, by name and by idempotency key, with the ledgers of those that hold machines."""

    def __init__(self, records: Iterable[JobRecord] = ()) -> None:
        self.records: dict[str, JobRecord] = {}
        self.names: dict[Key, str] = {}
        self.keys: dict[Key, str] = {}
        self.active: set[str] = set()
        self.ledgers: dict[str, Ledger] = {}
        self.observed: dict[CapacityType, Observed] = {}
        """What all jobs have seen of interruptions."""
        for record in records:
            self.put(record)

    def put(self, record: JobRecord) -> None:
        if (before := self.records.get(record.uid)) is not None:
            capacity = cadence.capacity_type(before)
            self.observed[capacity] = self.observed[capacity] - cadence.observed(before)
        capacity = cadence.capacity_type(record)
        self.observed[capacity] = self.observed.get(capacity, Observed()) + cadence.observed(record)
        self.records[record.uid] = record
        if record.current:
            self.names[record.namespace, record.name] = record.uid
        if record.idempotency_key is not None:
            self.keys[record.namespace, record.idempotency_key] = record.uid
        if record.state.phase.ended:
            self.active.discard(record.uid)
        else:
            self.active.add(record.uid)


class Turn:
    """The overlay. `actions` are carried out after the commit, in order; so are `replies`."""

    def __init__(self, book: Book, now_ns: int, ledger_of: Callable[[str], Ledger]) -> None:
        self.now_ns = now_ns
        self._ledger_of = ledger_of
        self.commit = Commit()
        self.actions: list[Callable[[], None]] = []
        self.replies: list[Callable[[], None]] = []
        self._book = book
        self._names: dict[Key, str] = {}
        self._keys: dict[Key, str] = {}

    def get(self, uid: str) -> JobRecord | None:
        return self.commit.jobs.get(uid) or self._book.records.get(uid)

    def by_name(self, namespace: str, name: str) -> JobRecord | None:
        return self._found(namespace, name, self._names, self._book.names)

    def by_key(self, namespace: str, key: str) -> JobRecord | None:
        return self._found(namespace, key, self._keys, self._book.keys)

    def _found(self, namespace: str, word: str, fresh: Mapping[Key, str], known: Mapping[Key, str]) -> JobRecord | None:
        uid = fresh.get((namespace, word)) or known.get((namespace, word))
        return self.get(uid) if uid is not None else None

    def put(self, record: JobRecord) -> None:
        self.commit.jobs[record.uid] = record
        if record.current:
            self._names[record.namespace, record.name] = record.uid
        if record.idempotency_key is not None:
            self._keys[record.namespace, record.idempotency_key] = record.uid

    def tell(self, uid: str, entry: StoryEntry) -> None:
        self.commit.story.append((uid, entry))

    def book(self, uid: str, entry: Entry) -> None:
        """Add a ledger entry. The ledger in memory takes it at once; whoever drops the turn reads that ledger anew."""
        self._ledger_of(uid).append(entry)
        self.commit.ledger.append((uid, entry))

    def add_step(self, row: StepRow) -> None:
        self.commit.steps.append(row)

    def observed(self, record: JobRecord) -> Observed:
        """What all jobs on the capacity type of this one have seen of interruptions, with this one as it is now."""
        capacity = cadence.capacity_type(record)
        seen = self._book.observed.get(capacity, Observed()) + cadence.observed(record)
        before = self._book.records.get(record.uid)
        same = before is not None and cadence.capacity_type(before) is capacity
        return seen - cadence.observed(before) if before is not None and same else seen

    def observed_by_all(self) -> Mapping[CapacityType, Observed]:
        """What all jobs have seen of interruptions, as of the last turn."""
        return dict(self._book.observed)

    def ledger(self, uid: str) -> Ledger:
        """The job's ledger with this turn's entries."""
        return self._ledger_of(uid)

    def held_machines(self, uid: str) -> tuple[str, ...]:
        """Machines the job pays for after this turn's entries."""
        return self._ledger_of(uid).held

    def active(self) -> list[JobRecord]:
        """Every job that has not ended, after this turn's changes."""
        uids = dict.fromkeys(self._book.active) | dict.fromkeys(self.commit.jobs)
        records = (self.get(uid) for uid in uids)
        return [record for record in records if record is not None and not record.state.phase.ended]

    def changed(self) -> set[str]:
        """The jobs that the commit is about."""
        told = {uid for uid, _ in self.commit.story} | {uid for uid, _ in self.commit.ledger}
        return told | set(self.commit.jobs) | {row.uid for row in self.commit.steps}

    def settle_costs(self, cost_of: Callable[[JobRecord, Ledger], Mapping[str, object]]) -> None:
        """Give each job that came to rest its final cost. Must be the last change before the commit."""
        for uid in {uid for uid, _ in self.commit.ledger}:
            record = self.get(uid)
            if record is not None:
                at_rest = not record.state.phase.holds_machines
                cost = cost_of(record, self._ledger_of(uid)) if at_rest else None
                self.commit.jobs[uid] = replace(record, cost=cost)
