"""What can happen to a job. Every event carries its time; events of an attempt carry the attempt's number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    at_ns: int


@dataclass(frozen=True, slots=True)
class Submitted(Event):
    workers: int
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class Queued(Event):
    """The queue looked at the job and there is no room yet. `message` says what it waits for."""

    message: str


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """There is room for the whole gang and it is given to this job."""

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
class CheckpointRestored(AttemptEvent):
    """The gang of this attempt stands and has taken up state; `step` 0 and no uri mean a start from the beginning.
    `covers_ns`: the end of the step whose state was taken up, no later than now; None when there is none."""

    step: int
    uri: str | None
    covers_ns: int | None


@dataclass(frozen=True, slots=True)
class FirstStepDone(AttemptEvent):
    """The attempt's first step is done; later steps are progress, not transitions."""

    step: int


@dataclass(frozen=True, slots=True)
class CheckpointCommitted(AttemptEvent):
    """A checkpoint is durable. `covers_ns`: the end of the step whose state it holds."""

    step: int
    uri: str
    covers_ns: int


@dataclass(frozen=True, slots=True)
class CaughtUp(AttemptEvent):
    """An attempt that began before the newest settled step has reached that step again. Comes after its first step."""


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
    pass


@dataclass(frozen=True, slots=True)
class CheckpointRequested(Event):
    pass
