"""The port to the durable store, and the values it holds.

One writer at a time: a controller opens an epoch when it starts, and every commit checks that this epoch is still the
newest, so that an old controller that comes back to life cannot write. A commit is atomic and durable when it returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from orchestrator.accounting import Entry
from orchestrator.lifecycle import JobState, StoryEntry

SCHEMA_VERSION = 2
"""What this version writes. 2: a ledger may hold machines that turn and the categories `resize` and `idle`, a state the worlds
of an elastic job; tables and rows of 1 are as they were."""
OLDEST_SCHEMA = 1
"""What this version reads besides. Such a journal becomes one of `SCHEMA_VERSION` when a controller opens an epoch on it."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job: what the user wrote, where its life stands, and the newest of what was heard of it."""

    uid: str
    namespace: str
    name: str
    digest: str
    """Digest of the spec and labels; the same name with another digest is a conflict."""
    document: Mapping[str, Any]
    """The resource as submitted, with every default filled in."""
    working_dir: str
    state: JobState
    created_ns: int
    idempotency_key: str | None = None
    current: bool = True
    """False once a newer job has taken the name."""
    driver_id: str | None = None
    """The driver incarnation last heard of, and the newest of its updates that is in the journal."""
    driver_seq: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)
    """Newest step, epoch, loss, metrics, totals: what `status.progress` shows."""
    result: Mapping[str, Any] | None = None
    samples_kept: int = 0
    """Samples trained by the steps up to the newest step, each counted once."""
    cost: Mapping[str, Any] | None = None
    """`status.cost` of a job that holds no machines, so that nobody has to fold its ledger again; None while it holds."""

    def with_state(self, state: JobState) -> JobRecord:
        return replace(self, state=state)


@dataclass(frozen=True, slots=True)
class StepRow:
    """One optimizer step as an attempt reported it."""

    uid: str
    attempt: int
    step: int
    values: Mapping[str, Any]
    """loss, lr, samples, seconds, at_ns, ...: the worker's `step` event without its kind."""


@dataclass(slots=True)
class Commit:
    """What goes into the journal at once. `jobs` are inserted or replaced by uid."""

    jobs: dict[str, JobRecord] = field(default_factory=dict)
    story: list[tuple[str, StoryEntry]] = field(default_factory=list)
    ledger: list[tuple[str, Entry]] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.story or self.ledger or self.steps)


class Journal(Protocol):
    """Durable store. Raises `StorageError` when it cannot read or write (saying which file or address and what to do)
    and `StaleEpoch` when a newer controller has opened the journal."""

    def open_epoch(self) -> int:
        """Become the one writer; returns the new epoch."""
        ...

    def commit(self, commit: Commit) -> None: ...

    def jobs(self) -> list[JobRecord]:
        """Every job, oldest first."""
        ...

    def story(self, uid: str, after: int = 0, limit: int = 1_000) -> list[tuple[int, StoryEntry]]:
        """Story entries of a job numbered from 1 in the order they were committed; those numbered above `after`."""
        ...

    def ledger(self, uid: str, after: int = 0) -> list[Entry]:
        """Ledger entries of a job in the order they were committed, without the first `after`."""
        ...

    def steps(
        self, uid: str, after_step: int = -1, limit: int = 100_000, attempt: int | None = None
    ) -> Sequence[StepRow]:
        """Steps above `after_step`, ordered by step and attempt (a redone step has a row for each attempt)."""
        ...

    def size_bytes(self) -> int: ...

    def close(self) -> None: ...
