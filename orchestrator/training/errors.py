"""Why a worker ends early, as a reason that the controller's termination table knows."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Classified failures of a worker. The values are fixed: lifecycle maps each to a phase, a retry and a budget."""

    DATA_INVALID = "DataInvalid"
    CONFIG_INVALID = "ConfigInvalid"
    NON_FINITE_LOSS = "NonFiniteLoss"
    OUT_OF_MEMORY = "OutOfMemory"
    STORAGE_FULL = "StorageFull"
    STORAGE_FAILED = "StorageFailed"
    APPLICATION_ERROR = "ApplicationError"


class WorkerFailed(Exception):
    """A failure with a reason. Crosses process borders: `pickle` keeps all three fields."""

    def __init__(self, reason: str, message: str, hint: str | None = None) -> None:
        super().__init__(reason, message, hint)
        self.reason = str(Reason(reason))
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.message}; {self.hint}" if self.hint else self.message
        return f"{self.reason}: {text}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (WorkerFailed, (self.reason, self.message, self.hint))


def data_invalid(message: str, hint: str | None = None) -> WorkerFailed:
    return WorkerFailed(Reason.DATA_INVALID, message, hint)


def config_invalid(message: str, hint: str | None = None) -> WorkerFailed:
    return WorkerFailed(Reason.CONFIG_INVALID, message, hint)
