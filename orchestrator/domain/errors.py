"""Every error a caller can meet, with the exit code it ends in.

OrchestrateError
 |- UserError: the caller can mend it
 |   |- UsageError (2)      |- InvalidSpec (2)     |- NotFound (3)      |- Conflict (4)
 |   |- AuthError (5)       |- DataError (10)      |- JobFailed (10)    |- JobCancelled (11)
 |- CapacityError: the means do not suffice
 |   |- NoCapacity (7)      |- BudgetExceeded (8)  |- PreemptedOut (12)
 |- PlatformError: something around us failed; trying again may help
 |   |- ControllerUnreachable (6)   |- WrongServer (6)   |- EngineError (1)   |- StaleEpoch (1)
 |   |- StorageError: CorruptCheckpoint (1)
 |- WaitTimeout (124)
 |- InternalError (70): a defect of orchestrate; please report it

An error says what happened, with which values, where, and what to do: `str(error)` is `what`, then `; ` and `hint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit codes of the command line (fixed; programs depend on them)."""

    OK = 0
    PLATFORM = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    AUTH = 5
    UNREACHABLE = 6
    NO_CAPACITY = 7
    BUDGET = 8
    JOB_FAILED = 10
    CANCELLED = 11
    PREEMPTED_OUT = 12
    INTERNAL = 70
    WAIT_TIMEOUT = 124
    INTERRUPTED = 130


class OrchestrateError(Exception):
    """Base of all errors here. `code` is the stable, machine-readable name used in problem+json and logs."""

    exit_code = ExitCode.PLATFORM
    http_status = 500

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    @property
    def code(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(kind: type[OrchestrateError], args: tuple[Any, ...], fields: dict[str, Any]) -> OrchestrateError:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(fields)
    return error


class UserError(OrchestrateError):
    exit_code = ExitCode.USAGE
    http_status = 400


class UsageError(UserError):
    """The command or request itself is wrong."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a job file: where, what, and what to do."""

    path: str
    """Dotted path of the field, such as `spec.workers.min`; empty for the whole document."""
    what: str
    hint: str | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        head = ": ".join(part for part in (place, self.path) if part)
        text = f"{self.what}; {self.hint}" if self.hint else self.what
        return f"{head}: {text}" if head else text


class InvalidSpec(UserError):
    """A job file is wrong; carries every problem of the file, in the order of its lines."""

    http_status = 422

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class NotFound(UserError):
    exit_code = ExitCode.NOT_FOUND
    http_status = 404


class Conflict(UserError):
    exit_code = ExitCode.CONFLICT
    http_status = 409


class AuthError(UserError):
    exit_code = ExitCode.AUTH
    http_status = 401


class DataError(UserError):
    """The training data is missing, empty or mislabelled."""

    exit_code = ExitCode.JOB_FAILED
    http_status = 422


class JobFailed(UserError):
    exit_code = ExitCode.JOB_FAILED


class JobCancelled(UserError):
    exit_code = ExitCode.CANCELLED


class CapacityError(OrchestrateError):
    exit_code = ExitCode.NO_CAPACITY
    http_status = 503


class NoCapacity(CapacityError):
    """No machine could be had, or none of this cluster can ever hold the job."""


class BudgetExceeded(CapacityError):
    exit_code = ExitCode.BUDGET


class PreemptedOut(CapacityError):
    exit_code = ExitCode.PREEMPTED_OUT


class PlatformError(OrchestrateError):
    """Something around us failed; the same call may work later."""


class ControllerUnreachable(PlatformError):
    exit_code = ExitCode.UNREACHABLE
    http_status = 503


class WrongServer(PlatformError):
    """Something answers at the address, but it is not a controller that this version can talk to."""

    exit_code = ExitCode.UNREACHABLE


class StorageError(PlatformError):
    """A disk or object store refused: full, read-only, missing, corrupt."""


class CorruptCheckpoint(StorageError):
    """What was read of a checkpoint is not what was written: another one may do."""


class EngineError(PlatformError):
    """The engine that runs the workers (Ray, or what stands in for it) failed."""


class StaleEpoch(PlatformError):
    """A newer controller owns the journal; this one must stop without writing."""


class WaitTimeout(OrchestrateError):
    exit_code = ExitCode.WAIT_TIMEOUT


class InternalError(OrchestrateError):
    """A defect of orchestrate itself."""

    exit_code = ExitCode.INTERNAL
