"""When a running attempt saves of itself: every so many steps, every so much time, or as the controller plans it.

Time is read on rank 0 alone; the others hear of it in the step's all-reduce, so that all ranks save at the same step.
"""

from __future__ import annotations

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock
from orchestrator.spec.models import Checkpoint
from orchestrator.training.link import UNPLANNED_EVERY_SECONDS, Wishes


class Cadence:
    """`checkpoint.every` of one rank, counted from the newest save."""

    def __init__(self, checkpoint: Checkpoint, clock: Clock, rank: int, unsaved_ns: int = 0) -> None:
        """`unsaved_ns`: how long nothing was saved by now, where another world's time counts too."""
        self._checkpoint = checkpoint
        self._clock = clock
        self._rank = rank
        self._since_ns = clock.monotonic_ns() - unsaved_ns

    @property
    def unsaved_ns(self) -> int:
        """Time since the newest save began."""
        return self._clock.monotonic_ns() - self._since_ns

    def time_due(self, wishes: Wishes) -> bool:
        """Whether so much time has passed. Always False on ranks other than 0."""
        if self._rank != 0:
            return False
        every_ns = self._checkpoint.every_ns
        if self._checkpoint.automatic:
            planned = wishes.checkpoint_every_seconds
            every_ns = round((UNPLANNED_EVERY_SECONDS if planned is None else planned) * NANOSECONDS_PER_SECOND)
        return every_ns is not None and self._clock.monotonic_ns() - self._since_ns >= every_ns

    def steps_due(self, before: int, after: int) -> bool:
        """Whether a multiple of the steps lies in (before, after]."""
        every = self._checkpoint.every_steps
        return every is not None and after // every > before // every

    def saved(self) -> None:
        """A save has begun: time counts from now."""
        self._since_ns = self._clock.monotonic_ns()
