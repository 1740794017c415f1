"""Why an attempt or a job ended. One enum gives the final phase, whether it is tried again, which budget pays, and the
sentence that a person reads; a test asserts that every member has all four."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.errors import ExitCode
from orchestrator.lifecycle.state import Phase


class Budget(StrEnum):
    """Which allowance of `spec.failure` an attempt's end is charged to."""

    NONE = "none"
    APPLICATION = "application"
    """`maxRestarts`: errors of the job's own code."""
    PREEMPTION = "preemption"
    """`maxPreemptions`: machines or processes taken away from under the job."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows from a termination reason."""

    phase: Phase
    """The job's phase when it is not tried again."""
    retried: bool
    budget: Budget
    sentence: str
    exit_code: ExitCode


class TerminationReason(StrEnum):
    """Closed list; the values are those of status, events, metrics and the worker's own reports."""

    COMPLETED = "Completed"
    EARLY_STOPPED = "EarlyStopped"
    STOPPED = "Stopped"
    CANCELLED = "Cancelled"
    SUSPENDED = "Suspended"
    WORKER_LOST = "WorkerLost"
    DRIVER_LOST = "DriverLost"
    ENGINE_LOST = "EngineLost"
    PREEMPTED = "Preempted"
    HUNG = "Hung"
    APPLICATION_ERROR = "ApplicationError"
    DATA_INVALID = "DataInvalid"
    CONFIG_INVALID = "ConfigInvalid"
    NON_FINITE_LOSS = "NonFiniteLoss"
    OUT_OF_MEMORY = "OutOfMemory"
    STORAGE_FULL = "StorageFull"
    STORAGE_FAILED = "StorageFailed"
    NO_CAPACITY = "NoCapacity"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    CRASH_LOOP = "CrashLoop"
    PREEMPTIONS_EXHAUSTED = "PreemptionsExhausted"
    BUDGET_EXCEEDED = "BudgetExceeded"
    BUDGET_SUSPENDED = "BudgetSuspended"

    @property
    def consequence(self) -> Consequence:
        return _CONSEQUENCES[self]


_OK, _FAILED = Phase.SUCCEEDED, Phase.FAILED
_NONE, _APPLICATION, _PREEMPTION = Budget.NONE, Budget.APPLICATION, Budget.PREEMPTION
_JOB_FAILED = ExitCode.JOB_FAILED

_CONSEQUENCES = {
    TerminationReason.COMPLETED: Consequence(_OK, False, _NONE, "All steps are done.", ExitCode.OK),
    TerminationReason.EARLY_STOPPED: Consequence(
        _OK, False, _NONE, "The validation metric stopped improving, so training ended early.", ExitCode.OK
    ),
    TerminationReason.STOPPED: Consequence(
        _FAILED, True, _NONE, "The workers stopped without having been asked by this controller.", _JOB_FAILED
    ),
    TerminationReason.CANCELLED: Consequence(
        Phase.CANCELLED, False, _NONE, "Cancelled on request.", ExitCode.CANCELLED
    ),
    TerminationReason.SUSPENDED: Consequence(Phase.SUSPENDED, False, _NONE, "Suspended on request.", ExitCode.OK),
    TerminationReason.WORKER_LOST: Consequence(
        _FAILED, True, _PREEMPTION, "A worker process was lost.", ExitCode.PREEMPTED_OUT
    ),
    TerminationReason.DRIVER_LOST: Consequence(
        _FAILED, True, _PREEMPTION, "The job's driver was lost.", ExitCode.PREEMPTED_OUT
    ),
    TerminationReason.ENGINE_LOST: Consequence(
        _FAILED, True, _PREEMPTION, "The engine that ran the workers was lost.", ExitCode.PREEMPTED_OUT
    ),
    TerminationReason.PREEMPTED: Consequence(
        _FAILED, True, _PREEMPTION, "The market took a machine back.", ExitCode.PREEMPTED_OUT
    ),
    TerminationReason.HUNG: Consequence(_FAILED, True, _PREEMPTION, "The workers stood still.", ExitCode.PREEMPTED_OUT),
    TerminationReason.APPLICATION_ERROR: Consequence(
        _FAILED, True, _APPLICATION, "The job's own code failed.", _JOB_FAILED
    ),
    TerminationReason.DATA_INVALID: Consequence(
        _FAILED, False, _NONE, "The data cannot be used as the job describes it.", _JOB_FAILED
    ),
    TerminationReason.CONFIG_INVALID: Consequence(
        _FAILED, False, _NONE, "The job cannot run as it is configured.", _JOB_FAILED
    ),
    TerminationReason.NON_FINITE_LOSS: Consequence(
        _FAILED, False, _NONE, "The loss became infinite or not a number.", _JOB_FAILED
    ),
    TerminationReason.OUT_OF_MEMORY: Consequence(_FAILED, False, _NONE, "A worker ran out of memory.", _JOB_FAILED),
    TerminationReason.STORAGE_FULL: Consequence(
        _FAILED, False, _NONE, "There is no room left where the checkpoints go.", _JOB_FAILED
    ),
    TerminationReason.STORAGE_FAILED: Consequence(
        _FAILED, True, _APPLICATION, "Reading or writing a checkpoint failed.", _JOB_FAILED
    ),
    TerminationReason.NO_CAPACITY: Consequence(
        _FAILED, False, _NONE, "This cluster can never hold the job's workers.", ExitCode.NO_CAPACITY
    ),
    TerminationReason.START_DEADLINE_EXCEEDED: Consequence(
        _FAILED, False, _NONE, "No room for the job was found before spec.startDeadline.", ExitCode.NO_CAPACITY
    ),
    TerminationReason.CRASH_LOOP: Consequence(
        _FAILED, False, _NONE, "Again and again the workers were lost without a new step or checkpoint.", _JOB_FAILED
    ),
    TerminationReason.PREEMPTIONS_EXHAUSTED: Consequence(
        _FAILED,
        False,
        _NONE,
        "More machines were lost than spec.failure.maxPreemptions allows.",
        ExitCode.PREEMPTED_OUT,
    ),
    TerminationReason.BUDGET_EXCEEDED: Consequence(
        _FAILED, False, _NONE, "The job has cost what spec.budget allows.", ExitCode.BUDGET
    ),
    TerminationReason.BUDGET_SUSPENDED: Consequence(
        Phase.SUSPENDED, False, _NONE, "Suspended, since the job has cost what spec.budget allows.", ExitCode.BUDGET
    ),
}
