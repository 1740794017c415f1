"""What is known of a job's life: an immutable value, small enough to be journaled whole at each transition."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """Where a job stands; one word for users, metrics and the CRD."""

    PENDING = "Pending"
    """Accepted and durable; the queue has not looked at it yet."""
    QUEUED = "Queued"
    """Waits for room."""
    PROVISIONING = "Provisioning"
    """Machines are held, workers start; no step is done yet."""
    RUNNING = "Running"
    RECOVERING = "Recovering"
    """A further attempt starts after a loss or an error."""
    RESIZING = "Resizing"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def ended(self) -> bool:
        return self in _ENDED

    @property
    def holds_machines(self) -> bool:
        return self in _HOLDING


_ENDED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
_HOLDING = frozenset({Phase.PROVISIONING, Phase.RUNNING, Phase.RECOVERING, Phase.RESIZING})


class Activity(StrEnum):
    """What held machines are busy with; the ledger books their time by it."""

    PROVISIONING = "provisioning"
    TRAINING = "training"
    RESTART = "restart"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class StoryEntry:
    """One line of a job's story: when, what happened, what it led to and why."""

    at_ns: int
    event: str
    phase_before: str
    phase_after: str
    reason: str
    """CamelCase word from a closed list: an event or termination reason."""
    message: str

    def __str__(self) -> str:
        arrow = (
            f"{self.phase_before} -> {self.phase_after}" if self.phase_before != self.phase_after else self.phase_after
        )
        return f"{self.at_ns} {self.event}: {arrow} ({self.reason}) {self.message}"


@dataclass(frozen=True, slots=True)
class JobState:
    """A job's life so far. `attempt` is 0 until the first attempt is started, then counts from 1."""

    phase: Phase
    submitted_ns: int
    phase_since_ns: int
    workers: int
    attempt: int = 0
    attempt_seen: bool = False
    """Whether anything was heard from this attempt; an attempt never seen may safely be started again as itself."""
    step: int = 0
    """Newest global step reported by any attempt (a redone step does not lower it)."""
    attempt_step: int = 0
    """Newest global step reported by the present attempt."""
    checkpoint_step: int | None = None
    """Step of the newest checkpoint that the next attempt can continue from, as far as is known."""
    checkpoint_uri: str | None = None
    checkpoint_ns: int | None = None
    """When it was committed, or taken up by an attempt after a newer one was refused."""
    settled_step: int = 0
    """Newest step whose work was settled as useful, by a checkpoint heard of or taken up; never falls."""
    restored_step: int | None = None
    """The step that the present attempt started from."""
    stopping: str | None = None
    """`Cancelled` or `Suspended` while the gang is being stopped for that reason."""
    application_restarts: int = 0
    preemption_restarts: int = 0
    progressed: bool = False
    """Whether the present attempt brought a step beyond the newest known before, or a checkpoint beyond the newest
    settled step. A step that is redone is no progress."""
    fruitless_attempts: int = 0
    """Consecutive attempts that were lost without progress."""
    interruptions: int = 0
    """Attempts that trained something new and were then lost with a machine or process: what saving more often would have
    made cheaper."""
    ran_ns: int = 0
    """Time in phase Running before the present spell of it, all attempts together."""
    started_ns: int | None = None
    """When the first step of the first attempt was done."""
    ended_ns: int | None = None
    reason: str | None = None
    message: str = ""

    def at_step(self, step: int) -> JobState:
        """The same state after the present attempt reported `step`: progress, not a transition."""
        return replace(
            self,
            step=max(self.step, step),
            attempt_step=max(self.attempt_step, step),
            attempt_seen=True,
            progressed=self.progressed or step > self.step,
        )

    def to_document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> JobState:
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in document.items() if name in known}
        return cls(**(values | {"phase": Phase(document["phase"])}))
