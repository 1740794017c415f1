"""What can happen to a job. Every event carries its time; events of an attempt carry the attempt's number, and those that
only mean something in one world of it the world's generation (1 where an engine has one world an attempt)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    at_ns: int


@dataclass(frozen=True, slots=True)
class Submitted(Event):
    workers: int
    suspended: bool = False
    elastic: bool = False


@dataclass(frozen=True, slots=True)
class Queued(Event):
    """The queue looked at the job and there is no room yet. `message` says what it waits for."""

    message: str


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """There is room for the whole gang (of an elastic job: for its smallest size), and it is given to this job."""

    message: str


@dataclass(frozen=True, slots=True)
class TooLargeForCluster(Event):
    message: str


@dataclass(frozen=True, slots=True)
class StartDeadlinePassed(Event):
    message: str


@dataclass(frozen=True, slots=True)
class AttemptEvent(Event):
    attempt: int


@dataclass(frozen=True, slots=True)
class WorldEvent(AttemptEvent):
    generation: int = field(default=1, kw_only=True)


@dataclass(frozen=True, slots=True)
class WorldFormed(WorldEvent):
    """A world is planned, and its ranks are told."""

    workers: int


@dataclass(frozen=True, slots=True)
class WorldLost(WorldEvent):
    """The world of this generation is lost, or is left on purpose; `VOLUNTARY` holds the reasons of the latter. `began_ns`:
    when it stopped training. `target`: workers of the next world as far as is known, 0 when they have to be waited for."""

    reason: str
    message: str
    began_ns: int
    target: int


VOLUNTARY = frozenset({"Notice", "Joined", "Resized", "Regrouped"})


@dataclass(frozen=True, slots=True)
class MemoryTakenUp(WorldEvent):
    """The gang of this world has taken up the state of `step` from memory. `covers_ns`: when that step ended, no later than
    now; None when that is not known."""

    step: int
    covers_ns: int | None


@dataclass(frozen=True, slots=True)
class CheckpointRestored(WorldEvent):
    """The gang of this world stands and has taken up state; `step` 0 and no uri mean a start from the beginning.
    `covers_ns`: the end of the step whose state was taken up, no later than now; None when there is none."""

    step: int
    uri: str | None
    covers_ns: int | None


@dataclass(frozen=True, slots=True)
class FirstStepDone(WorldEvent):
    """The world's first step is done; later steps are progress, not transitions."""

    step: int


@dataclass(frozen=True, slots=True)
class CheckpointCommitted(AttemptEvent):
    """A checkpoint is durable. `covers_ns`: the end of the step whose state it holds."""

    step: int
    uri: str
    covers_ns: int


@dataclass(frozen=True, slots=True)
class CaughtUp(WorldEvent):
    """A world that began before the newest settled step has reached that step again. Comes after its first step."""


@dataclass(frozen=True, slots=True)
class AttemptEnded(AttemptEvent):
    """The gang is gone; `step` is the newest step that was heard of from this attempt (0: none). A `reason` that no
    attempt may end with counts as `ApplicationError`."""

    reason: str
    message: str
    step: int


@dataclass(frozen=True, slots=True)
class StopOverdue(AttemptEvent):
    """A stop was asked for and not obeyed within the grace period. The shell's own observation: nothing was heard."""


@dataclass(frozen=True, slots=True)
class CancelRequested(Event):
    pass


@dataclass(frozen=True, slots=True)
class SuspendRequested(Event):
    pass


@dataclass(frozen=True, slots=True)
class ResumeRequested(Event):
    """`budget_nanodollars`: what the job may cost in all from now on; None leaves the limit as it is."""

    budget_nanodollars: int | None = None


@dataclass(frozen=True, slots=True)
class BudgetReached(Event):
    """The job has cost what it may. `fail`: it ends for good, else it can be resumed; both save first. `message` has the
    amounts."""

    message: str
    fail: bool


@dataclass(frozen=True, slots=True)
class CheckpointRequested(Event):
    pass


@dataclass(frozen=True, slots=True)
class ScaleRequested(Event):
    """Somebody wishes for so many workers."""

    workers: int
