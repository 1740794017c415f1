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
    ReleaseSlots,
    SaveCheckpoint,
    SettleWork,
    StartAttempt,
    StopAttempt,
    WishSize,
)
from orchestrator.lifecycle.events import (
    VOLUNTARY,
    Admitted,
    AttemptEnded,
    CancelRequested,
    CaughtUp,
    CheckpointCommitted,
    CheckpointRequested,
    CheckpointRestored,
    Event,
    FirstStepDone,
    MemoryTakenUp,
    Queued,
    ResumeRequested,
    ScaleRequested,
    StartDeadlinePassed,
    StopOverdue,
    Submitted,
    SuspendRequested,
    TooLargeForCluster,
    WorldFormed,
    WorldLost,
)
from orchestrator.lifecycle.limits import Limits, Refusal
from orchestrator.lifecycle.machine import Decision, check_invariants, transition
from orchestrator.lifecycle.reasons import Budget, TerminationReason
from orchestrator.lifecycle.state import Activity, Disruption, JobState, Phase, StoryEntry

__all__ = [
    "VOLUNTARY",
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
    "Disruption",
    "Event",
    "FirstStepDone",
    "HoldMachines",
    "JobState",
    "KillAttempt",
    "Limits",
    "MemoryTakenUp",
    "Phase",
    "Queued",
    "Refusal",
    "ReleaseMachines",
    "ReleaseSlots",
    "ResumeRequested",
    "SaveCheckpoint",
    "ScaleRequested",
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
    "WishSize",
    "WorldFormed",
    "WorldLost",
    "check_invariants",
    "transition",
]
