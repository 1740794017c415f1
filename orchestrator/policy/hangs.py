"""When a gang that makes no step hangs: judged by progress, with a limit learned from the gang's own steps. (Which of its ranks is
slow: see policy/stragglers.py.)

The limit is

    max(3 s, 5 x p99 of the newest steps) + an allowance for each pause that was announced for this step

A process that is alive but stands still costs the whole gang, so it is not waited for by the minute; and a gang is not killed
for a slow step, which is what the factor is for. p99 is of a window, so that it follows drift within hundreds of steps and
hardly moves with single outliers. While few steps are known it is 10 times the longest, and before any is, two minutes. A step that took three quarters of the
limit and came after all makes twice its length the limit for two thousand steps: what was survived once is no hang the next time.

Pauses that a rank knows of are announced: the first step of a world (compiling, filling caches), an evaluation, a checkpoint that
holds up the step, waiting for data, what comes after the last step. Steps with one do not count as steps; what they took beyond an ordinary step teaches the
allowance of that pause: 5 times the longest of the newest, at least 10 s, and until one was measured minutes.

Limits: a hang in a pause that was announced is seen only after the pause's allowance. A gang that does ever slower steps never
hangs.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from enum import StrEnum

from orchestrator.policy.durations import seconds

FLOOR_SECONDS = 3.0
FACTOR = 5.0
WINDOW = 512
FEW = 20
FEW_FACTOR = 10.0
"""Times the longest, while fewer steps are known."""
EARLY_SECONDS = 120.0
"""While no ordinary step is known; there was none, or only a first one."""
NEARLY = 0.75
SURVIVED_FACTOR = 2.0
SURVIVED_STEPS = 2_048
PAUSE_FACTOR = 5.0
PAUSE_FLOOR_SECONDS = 10.0
PAUSES_REMEMBERED = 16
FORMING_FLOOR_SECONDS = 30.0
"""For a world to make its first step, however soon earlier ones did: a checkpoint instead of memory, a machine under load."""
OVERDUE_FACTOR = 4.0
"""Times the limit, after each world in a row that did not make its first step in time: it may have been slow and not hung."""


class Pause(StrEnum):
    """Why a step may take longer than others."""

    FIRST_STEP = "first step"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    DATA = "data"
    FINISH = "finish"
    """After the last step: a test, the model's folder."""


UNMEASURED: Mapping[Pause, float] = {
    Pause.FIRST_STEP: 300.0,
    Pause.EVALUATION: 900.0,
    Pause.CHECKPOINT: 300.0,
    Pause.DATA: 300.0,
    Pause.FINISH: 3_600.0,
}
"""Seconds that are allowed for a pause before one of its kind was measured."""


class HangLimit:
    """How long a gang may go without a step. Bounded memory; a few microseconds a step."""

    def __init__(self, floor_seconds: float = FLOOR_SECONDS) -> None:
        self._floor = floor_seconds
        self._newest: deque[float] = deque()
        self._ordered: list[float] = []
        self._pauses: dict[Pause, deque[float]] = {}
        self._expected: set[Pause] = {Pause.FIRST_STEP}
        self._survived = 0.0
        self._survived_left = 0
        self._formed: deque[float] = deque(maxlen=PAUSES_REMEMBERED)
        self._overdue = 0

    def formed(self, forming_seconds: float) -> None:
        """A world made its first step so long after it was planned."""
        self._formed.append(max(0.0, forming_seconds))
        self._overdue = 0

    def gave_up(self) -> None:
        """A world that hung is given up."""
        if Pause.FIRST_STEP in self._expected:
            self._overdue += 1

    def forming_seconds(self) -> float | None:
        """For how long a world may be without its first step, from the plan on; None: no world made one yet."""
        if not self._formed:
            return None
        return max(FORMING_FLOOR_SECONDS, PAUSE_FACTOR * max(self._formed)) * OVERDUE_FACTOR**self._overdue

    def expect(self, pause: Pause) -> None:
        """The step that is being made has this pause in it."""
        self._expected.add(pause)

    def new_world(self, workers_before: int, workers: int) -> None:
        """Another gang steps from now on. Fewer workers take longer a step, as the batch is the same; more are not trusted to
        be faster before they were."""
        self._expected = {Pause.FIRST_STEP}
        if 0 < workers < workers_before:
            longer = workers_before / workers
            self._newest = deque(step * longer for step in self._newest)
            self._ordered = sorted(self._newest)
            self._survived *= longer

    def observe(self, step_seconds: float) -> None:
        """A step was made; so long after the one before it (for the first: after the world began)."""
        step = max(0.0, step_seconds)
        if self._expected:
            beyond = max(0.0, step - (self._median() or 0.0))
            for pause in self._expected:
                self._pauses.setdefault(pause, deque(maxlen=PAUSES_REMEMBERED)).append(beyond)
            self._expected = set()
            return
        self._survived_left = max(0, self._survived_left - 1)
        if step > NEARLY * self.limit_seconds():
            self._survived = max(SURVIVED_FACTOR * step, self._survived if self._survived_left else 0.0)
            self._survived_left = SURVIVED_STEPS
        if len(self._newest) == WINDOW:
            del self._ordered[bisect_left(self._ordered, self._newest.popleft())]
        self._newest.append(step)
        insort(self._ordered, step)

    def limit_seconds(self) -> float:
        """Without a step for longer than this, the gang hangs."""
        limit = max(self._floor, self._steps_limit(), self._survived if self._survived_left else 0.0)
        return limit + sum(map(self._allowance, self._expected))

    def formula_seconds(self) -> float:
        """max(3 s, 5 x p99 of the newest steps), without what pauses and survivals add: what a bar may be held against."""
        return max(self._floor, FACTOR * self._p99() if self._ordered else 0.0)

    def suspect(self, age_seconds: float) -> str | None:
        """Why a gang whose newest step is so old hangs; None: it does not."""
        limit = self.limit_seconds()
        return None if age_seconds <= limit else f"no step for {seconds(age_seconds)}; {self.because}"

    @property
    def because(self) -> str:
        """Where the limit comes from: a sentence without its full stop."""
        known = len(self._ordered)
        if not known:
            parts = ["no ordinary step was seen yet"]
        elif known < FEW:
            parts = [f"the longest of {known} steps took {seconds(self._ordered[-1])}"]
        else:
            parts = [f"99 of 100 steps take at most {seconds(self._p99())}"]
        if self._survived_left and self._survived > max(self._floor, self._steps_limit()):
            parts.append(f"one took {seconds(self._survived / SURVIVED_FACTOR)} and came after all")
        parts += [f"{seconds(self._allowance(pause))} are allowed for: {pause}" for pause in sorted(self._expected)]
        return f"the limit is {seconds(self.limit_seconds())}: {', '.join(parts)}"

    def _steps_limit(self) -> float:
        known = len(self._ordered)
        if not known:
            return EARLY_SECONDS
        if known < FEW:
            return FEW_FACTOR * self._ordered[-1]
        return FACTOR * self._p99()

    def _p99(self) -> float:
        return self._ordered[math.ceil(0.99 * len(self._ordered)) - 1]

    def _median(self) -> float | None:
        return self._ordered[len(self._ordered) // 2] if self._ordered else None

    def _allowance(self, pause: Pause) -> float:
        known = self._pauses.get(pause)
        return max(PAUSE_FLOOR_SECONDS, PAUSE_FACTOR * max(known)) if known else UNMEASURED[pause]
