"""The micro-batch of each world, after what ran out of memory in this attempt or before.

The rule is the policy's (`orchestrator.policy.memory_pressure`): the same global batch, a smaller micro-batch, more
accumulation. What failed is told to the agents with every plan, so that a driver that takes over knows it, and to the
controller with the world that is lost, so that a later attempt begins with it.

Limits: only for jobs whose batch the engine is told (not for a user's own function, which divides its samples itself).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.planning.batch import Batch, BatchDoesNotDivide, divide
from orchestrator.platforms.engines.native.terms import Terms
from orchestrator.policy.memory_pressure import OutOfMemory, Relief, relieve

OUT_OF_MEMORY = "OutOfMemory"
"""The reason of a worker that ended so, or that the kernel ended for want of memory."""


class Batches:
    """See the module."""

    def __init__(self, terms: Terms) -> None:
        self._global_batch = terms.global_batch
        self._wished = terms.micro_batch
        self._failed = {OutOfMemory(*each) for each in terms.out_of_memory}

    @property
    def failed(self) -> tuple[tuple[int, int], ...]:
        """(ranks, micro-batch) of all that did not fit."""
        return tuple(sorted((each.world_size, each.micro_batch) for each in self._failed))

    def learn(self, failed: Iterable[Sequence[int]]) -> None:
        """What somebody else knows of."""
        self._failed |= {OutOfMemory(int(ranks), int(micro_batch)) for ranks, micro_batch in failed}

    def micro_batch(self, world_size: int) -> int | None:
        """The one that a world of so many ranks is to be told; None: nothing failed, so that it finds its own."""
        if not self._failed or (relief := self._relief(world_size)) is None:
            return None
        return 1 if relief.batch is None else relief.batch.micro_batch

    def ran_out(self, world_size: int) -> Relief | None:
        """A world of so many ranks ran out of memory: with what to go on. None where nothing is known of the batch."""
        tried = self._tried(world_size)
        if tried is None:
            return None
        self._failed.add(OutOfMemory(world_size, tried))
        relief = self._relief(world_size)
        if relief is None or relief.batch is None:
            return relief
        ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
        told = f"out of memory at micro-batch {tried} on {ranks}; going on with {relief.batch.micro_batch}"
        return Relief(relief.batch, told)

    def _tried(self, world_size: int) -> int | None:
        """The micro-batch that a world of so many ranks had by now."""
        if self._global_batch is None:
            return None
        told = self.micro_batch(world_size)
        if told is not None:
            return told
        batch = self._divided(world_size)
        return None if batch is None else batch.micro_batch

    def _divided(self, world_size: int) -> Batch | None:
        assert self._global_batch is not None
        try:
            return divide(self._global_batch, world_size, self._wished)
        except BatchDoesNotDivide:  # the workers say so themselves
            return None

    def _relief(self, world_size: int) -> Relief | None:
        if self._global_batch is None:
            return None
        try:
            return relieve(self._failed, self._global_batch, world_size, self._wished)
        except BatchDoesNotDivide:
            return None
