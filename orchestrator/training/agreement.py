"""What ranks tell each other outside the gradients: sums, and failures agreed on before the next collective.

A rank that raises alone leaves its peers waiting in a collective for ever. So every step that can fail on one rank only
(reading data, writing a file) ends in `Peers.settle`: all ranks learn of the first failure and raise it together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from orchestrator.training.errors import Reason, WorkerFailed, out_of_memory

T = TypeVar("T")


class Peers:
    """The ranks of one run, over torch's default process group; a lone process needs no group."""

    def __init__(self, torch: Any, rank: int, world_size: int, device: str) -> None:
        self._torch = torch
        self.rank = rank
        self.world_size = world_size
        self.device = device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over the ranks, in float64: exact for counts up to 2**53."""
        if self.world_size == 1:
            return list(values)
        vector = self._torch.tensor(values, dtype=self._torch.float64, device=self.device)
        self._torch.distributed.all_reduce(vector)
        result: list[float] = vector.tolist()
        return result

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        self._torch.distributed.all_gather_object(found, value)
        return found

    def settle(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank; this rank's result. When any rank failed, all raise what the lowest of them raised."""
        failure: WorkerFailed | None = None
        result: T | None = None
        try:
            result = work()
        except WorkerFailed as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - raised again below, on all ranks at once; alone it would hang them
            failure = out_of_memory(error) or WorkerFailed(Reason.APPLICATION_ERROR, f"{type(error).__name__}: {error}")
            failure.__cause__ = error
        problem = next((found for found in self.gather(failure) if found is not None), None)
        if failure is not None:
            raise failure
        if problem is not None:
            raise problem
        return cast(T, result)

    def share(self, work: Callable[[], T]) -> list[T]:
        """Like `settle`, and every rank learns every rank's result. Results must pickle."""
        return self.gather(self.settle(work))

    def first(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 only; every rank gets its result, or its failure."""
        return cast(T, self.share(lambda: work() if self.rank == 0 else None)[0])
