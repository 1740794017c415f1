"""Every how many steps a shard is published, from what that is measured to cost the steps of this rank.

Begins with every step. After each window of publications the policy's rule is asked again, with medians of that window, so
that an evaluation or a save between two steps does not count. The number goes up when the cost exceeds the budget and comes
down only at half of it, so that it does not swing. Rank 0's number holds for all ranks, which agree on it in every step.

What a publication costs is more than the copy: where the processors are taken, shipping slows the step down that it goes on
beside. How much, is the difference between steps with a publication and steps without. While every step has one there is
nothing to compare with; so when shipping takes long enough to matter, a short window of every second step finds it out.
"""

from __future__ import annotations

from statistics import median

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.policy.replication import BUDGET, replicate_every

WINDOW = 50
"""Publications from one decision to the next."""
TRIAL = 12
"""Publications of every second step that tell what shipping costs."""
TRYING = "for a while"
"""Begins the reason of a number that is only tried."""
AGAIN = 2.0
"""Shipping that takes so many times as long as when it was tried is tried again."""
NEGLIGIBLE_SECONDS = 0.001
"""What costs no more than this is no reason to put a second step at risk, however short the steps are."""


class Pace:
    """Measured by the one rank that has it. `stepped` is called at the end of each step, `note` after each publication."""

    def __init__(self) -> None:
        self.every = 1
        self.because = ""
        self.copy_seconds = self.step_seconds = self.ship_seconds = 0.0
        """Medians of the last window: filling the buffer, on the step path; a step without that; shipping, beside it."""
        self.slower_seconds: float | None = None
        """By how much a publication makes its step longer, the copy included; None while every step has one."""
        self._fixed = False
        self._tried_ship_seconds = 0.0
        self._trial = False
        self._last: tuple[int, int] | None = None
        self._copies: list[float] = []
        self._ships: list[float] = []
        self._steps: list[float] = []
        self._with: list[float] = []
        self._without: list[float] = []
        self._step_ended_ns: int | None = None
        self._published = False

    def fix(self, every: int) -> None:
        """Somebody has decided: costs are measured, and the number stays."""
        self.every, self.because, self._fixed = every, "it was set so", True

    def stepped(self, ended_ns: int, wait_ns: int) -> None:
        """A step has ended; at its end its rank waited `wait_ns` more for its neighbour, which is no part of a step."""
        if self._step_ended_ns is not None:
            took = (ended_ns - self._step_ended_ns) / NANOSECONDS_PER_SECOND
            (self._with if self._published else self._without).append(took)
        self._step_ended_ns, self._published = ended_ns + wait_ns, False

    def note(self, step: int, began_ns: int, ended_ns: int, wait_ns: int, ship_ns: int) -> bool:
        """A shard was copied from `began_ns` to `ended_ns`; before that its rank waited `wait_ns` for the neighbour, and the
        last shard that went out took `ship_ns` (0: none did). True when a window is full and a decision was taken."""
        self._published = True
        if self._last is not None and step > self._last[0]:
            between_ns = began_ns - self._last[1] - wait_ns
            self._steps.append(max(between_ns, 1) / (step - self._last[0]) / NANOSECONDS_PER_SECOND)
            self._copies.append((ended_ns - began_ns) / NANOSECONDS_PER_SECOND)
            self._ships.append(ship_ns / NANOSECONDS_PER_SECOND)
        self._last = step, ended_ns
        if len(self._steps) < (TRIAL if self._trial else WINDOW):
            return False
        self.copy_seconds, self.step_seconds = median(self._copies), median(self._steps)
        self.ship_seconds = median(self._ships)
        self.slower_seconds = None
        if self._without and self._with:
            self.step_seconds = median(self._without)
            self.slower_seconds = max(0.0, median(self._with) - self.step_seconds)
        for values in (self._copies, self._ships, self._steps, self._with, self._without):
            values.clear()
        if not self._fixed:
            self._decide()
        return True

    def _decide(self) -> None:
        if self._worth_a_trial():
            self._trial, self._tried_ship_seconds = True, self.ship_seconds
            self.every, self.because = 2, f"{TRYING}, to see by how much shipping slows the steps down"
            return
        held_up = max(self.copy_seconds, self.slower_seconds or 0.0)
        costs = held_up if held_up > NEGLIGIBLE_SECONDS else 0.0, self.ship_seconds, self.step_seconds
        # How often nodes are lost is not known here; without it the rule keeps to its budget.
        more = replicate_every(*costs, interruptions_per_hour=0.0)
        fewer = replicate_every(*costs, interruptions_per_hour=0.0, budget=BUDGET / 2)
        if more.every > self.every or self._trial:
            self.every, self.because = more.every, more.reason
        elif fewer.every < self.every:
            self.every, self.because = fewer.every, fewer.reason
        elif not self.because:
            self.because = more.reason
        self._trial = False

    def _worth_a_trial(self) -> bool:
        """Whether every step has a publication, and shipping takes long enough to cost more than the budget."""
        if self.every > 1 or self.slower_seconds is not None or self.ship_seconds <= NEGLIGIBLE_SECONDS:
            return False
        return self.ship_seconds > max(BUDGET * self.step_seconds, AGAIN * self._tried_ship_seconds)
