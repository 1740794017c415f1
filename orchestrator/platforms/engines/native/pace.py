"""Every how many steps a shard is published, from what publishing is measured to cost this rank.

Begins with every step. After each window of publications the policy's rule is asked again, with medians of that window, so
that an evaluation or a save between two steps does not count. The number goes up when the cost exceeds the budget and comes
down only at half of it, so that it does not swing. Rank 0's number holds for all ranks, which agree on it in every step.
"""

from __future__ import annotations

from statistics import median

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.policy.replication import BUDGET, replicate_every

WINDOW = 50
"""Publications from one decision to the next."""
NEGLIGIBLE_SECONDS = 0.001
"""What costs no more than this is no reason to put a second step at risk, however short the steps are."""


class Pace:
    """Measured by the one rank that has it."""

    def __init__(self, every: int | None) -> None:
        """`every`: a number that somebody has fixed; None to find it."""
        self.every = every or 1
        self.because = "" if every is None else "it was set so"
        self.copy_seconds = self.step_seconds = self.ship_seconds = 0.0
        """Medians of the last window: filling the buffer, on the step path; a step without that; shipping, beside it."""
        self._fixed = every is not None
        self._last: tuple[int, int] | None = None
        self._copies: list[float] = []
        self._ships: list[float] = []
        self._steps: list[float] = []

    def note(self, step: int, began_ns: int, ended_ns: int, wait_ns: int, ship_ns: int) -> bool:
        """A shard was copied from `began_ns` to `ended_ns`; before that its rank waited `wait_ns` for the neighbour, and the
        last shard that went out took `ship_ns` (0: none did). True when a window is full and a decision was taken."""
        if self._last is not None and step > self._last[0]:
            between_ns = began_ns - self._last[1] - wait_ns
            self._steps.append(max(between_ns, 1) / (step - self._last[0]) / NANOSECONDS_PER_SECOND)
            self._copies.append((ended_ns - began_ns) / NANOSECONDS_PER_SECOND)
            self._ships.append(ship_ns / NANOSECONDS_PER_SECOND)
        self._last = step, ended_ns
        if len(self._steps) < WINDOW:
            return False
        self.copy_seconds, self.step_seconds = median(self._copies), median(self._steps)
        self.ship_seconds = median(self._ships)
        for values in (self._copies, self._ships, self._steps):
            values.clear()
        if not self._fixed:
            self._decide()
        return True

    def _decide(self) -> None:
        copy = self.copy_seconds if self.copy_seconds > NEGLIGIBLE_SECONDS else 0.0
        costs = copy, self.ship_seconds, self.step_seconds
        # How often nodes are lost is not known here; without it the rule keeps to its budget.
        more = replicate_every(*costs, interruptions_per_hour=0.0)
        fewer = replicate_every(*costs, interruptions_per_hour=0.0, budget=BUDGET / 2)
        if more.every > self.every:
            self.every, self.because = more.every, more.reason
        elif fewer.every < self.every:
            self.every, self.because = fewer.every, fewer.reason
        elif not self.because:
            self.because = more.reason
