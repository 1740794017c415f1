"""The life of a job as a pure state machine: events in, a new state and commands out, each with a reason.

No clock, no I/O, no Ray, no Kubernetes: the caller gives the time inside the event and carries the commands out. The
shape is that of dask/distributed's worker state machine: typed events, typed commands, one table, and a story that an
illegal transition prints.
"""

from orchestrator.lifecycle.commands import (
    BookActivity,
    Command,
    HoldMachines,
    KillAttempt,
    ReleaseMachines,
    SaveCheckpoint,
    SettleWork,
    StartAttempt,
    StopAttempt,
)
from orchestrator.lifecycle.events import (
    Admitted,
    AttemptEnded,
    CancelRequested,
    CaughtUp,
    CheckpointCommitted,
    CheckpointRequested,
    CheckpointRestored,
    Event,
    FirstStepDone,
    Queued,
    ResumeRequested,
    StartDeadlinePassed,
    StopOverdue,
    Submitted,
    SuspendRequested,
    TooLargeForCluster,
)
from orchestrator.lifecycle.machine import Decision, Limits, Refusal, check_invariants, transition
from orchestrator.lifecycle.reasons import Budget, TerminationReason
from orchestrator.lifecycle.state import Activity, JobState, Phase, StoryEntry

__all__ = [
    "Activity",
    "Admitted",
    "AttemptEnded",
    "BookActivity",
    "Budget",
    "CancelRequested",
    "CaughtUp",
    "CheckpointCommitted",
    "CheckpointRequested",
    "CheckpointRestored",
    "Command",
    "Decision",
    "Event",
    "FirstStepDone",
    "HoldMachines",
    "JobState",
    "KillAttempt",
    "Limits",
    "Phase",
    "Queued",
    "Refusal",
    "ReleaseMachines",
    "ResumeRequested",
    "SaveCheckpoint",
    "SettleWork",
    "StartAttempt",
    "StartDeadlinePassed",
    "StopAttempt",
    "StopOverdue",
    "StoryEntry",
    "Submitted",
    "SuspendRequested",
    "TerminationReason",
    "TooLargeForCluster",
    "check_invariants",
    "transition",
]
