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
    """A further attempt, or a further world of this one, forms after a loss or an error."""
    RESIZING = "Resizing"
    """The gang leaves one world for another on purpose: a machine was announced to go, a worker joins, a size was wished."""
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
    RESIZE = "resize"
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


KEPT_DISRUPTIONS = 20


@dataclass(frozen=True, slots=True)
class Disruption:
    """One time that training was broken off and, if it was, taken up again."""

    at_ns: int
    """When it was known."""
    reason: str
    """A termination reason, or why the gang changed on purpose: `Notice`, `Joined`, `Resized`."""
    voluntary: bool
    attempt: int
    generation: int
    """The world that was lost or left; 0 where the engine tells of no worlds."""
    began_ns: int
    """When training stopped."""
    step: int
    """Newest step of that world."""
    workers_before: int
    workers_after: int | None = None
    """None until the next world is formed."""
    back_ns: int | None = None
    """When the next world's first step began; None while there is none."""
    steps_redone: int | None = None
    """None until it is known which step was taken up."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A job's life so far. `attempt` is 0 until the first attempt is started, then counts from 1."""

    phase: Phase
    submitted_ns: int
    phase_since_ns: int
    workers: int
    """The number that is wished for; an elastic job may have fewer."""
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
    """The step that the present attempt, or the present world of it, started from."""
    stopping: str | None = None
    """The termination reason for which the gang is being stopped: `Cancelled`, `Suspended`, or one that ends the job."""
    application_restarts: int = 0
    preemption_restarts: int = 0
    progressed: bool = False
    """Whether the present attempt brought a step beyond the newest known before, or a checkpoint beyond the newest
    settled step. A step that is redone is no progress."""
    fruitless_attempts: int = 0
    """Consecutive attempts that were lost without progress."""
    elastic: bool = False
    """Whether workers may come and go, each machine held for as long as its slot is there."""
    generation: int = 0
    """Newest world of the present attempt that was heard of; 0 before the first."""
    lost_generation: int = 0
    """Newest world of the present attempt that is known to be lost or left."""
    world_workers: int | None = None
    """Workers of the newest world of the present attempt; None when the engine told of none."""
    world_progressed: bool = False
    """As `progressed`, of the present world."""
    fruitless_worlds: int = 0
    """Consecutive worlds of the present attempt that were lost or left without progress."""
    worlds_lost: int = 0
    """Worlds that were lost inside attempts, all attempts together."""
    resizes: int = 0
    """Worlds that were left on purpose, all attempts together."""
    disruptions: tuple[Disruption, ...] = ()
    """The newest ones, oldest first."""
    interruptions: int = 0
    """Attempts that trained something new and were then lost with a machine or process, and worlds of which memory kept
    nothing: what saving more often would have made cheaper."""
    ran_ns: int = 0
    """Time in phase Running before the present spell of it, all attempts together."""
    budget_nanodollars: int | None = None
    """What the job may cost, as raised by a resume; None: as the job file says."""
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
            world_progressed=self.world_progressed or step > self.step,
        )

    def disrupted(self, disruption: Disruption) -> JobState:
        """The same state with one more disruption; the oldest is let go when there are too many."""
        return replace(self, disruptions=(*self.disruptions, disruption)[-KEPT_DISRUPTIONS:])

    def mended(self, **facts: Any) -> JobState:
        """The same state with `facts` told of the disruptions that have none yet. `step` stands for what was taken up."""
        return replace(self, disruptions=tuple(_told(each, facts) for each in self.disruptions))

    def to_document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> JobState:
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in document.items() if name in known}
        words = {field.name for field in fields(Disruption)}
        disruptions = tuple(
            Disruption(**{name: value for name, value in each.items() if name in words})
            for each in document.get("disruptions", ())
        )
        return cls(**(values | {"phase": Phase(document["phase"]), "disruptions": disruptions}))


def _told(disruption: Disruption, facts: dict[str, Any]) -> Disruption:
    if disruption.back_ns is not None:
        return disruption
    if "step" in facts:
        return replace(disruption, steps_redone=max(0, disruption.step - facts["step"]))
    return replace(disruption, **{k: v for k, v in facts.items() if getattr(disruption, k) is None})
