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


def out_of_memory(error: BaseException) -> WorkerFailed | None:
    """The failure that stands for an allocation that was refused, by Python, by torch's CPU allocator or by CUDA; else None."""
    text = str(error)
    refused = (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text or "CUDA out of memory" in text
    )
    if not (refused or isinstance(error, MemoryError)):
        return None
    return WorkerFailed(
        Reason.OUT_OF_MEMORY,
        f"memory ran out: {text.splitlines()[0] if text else 'no details'}",
        "lower training.microBatchSize or data.maxLength, raise deepspeed.stage, or use offload",
    )
