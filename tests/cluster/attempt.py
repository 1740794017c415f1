"""An attempt of an engine that runs in a thread of its own, and what was heard of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.platforms.engines.base import Engine, Outcome, RunRequest, WishBoard

DEADLINE_SECONDS = 60.0
Event = Mapping[str, Any]


class Attempt:
    """Begins at once; `finish` asks it to stop."""

    def __init__(self, engine: Engine, request: RunRequest) -> None:
        self.wishes = WishBoard(request.cadence, request.size)
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._outcome: Outcome | None = None
        self._engine = engine
        self._thread = threading.Thread(target=self._run, args=(request,))
        self._thread.start()

    def _run(self, request: RunRequest) -> None:
        outcome = self._engine.run(request, self._heard, self.wishes)
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def _heard(self, events: Any) -> None:
        now_ns = time.monotonic_ns()
        with self._changed:
            self.events.extend({**event, "heard_ns": now_ns} for event in events)
            self._changed.notify_all()

    def of_kind(self, kind: str) -> list[Event]:
        return [event for event in list(self.events) if event["kind"] == kind]

    def until(self, condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
        with self._changed:
            met = self._changed.wait_for(lambda: condition() or self._outcome is not None, seconds)
            told = [event for event in self.events if event["kind"] not in ("step", "log")][-12:]
            logs = [line for event in self.of_kind("log") for line in event["lines"]][-30:]
            assert met, f"nothing came of it in {seconds} s: {told} {logs}"
            assert condition(), f"the attempt ended before: {self._outcome}, {told} {logs}"

    def until_steps(self, size: int, steps: int = 5, seconds: float = DEADLINE_SECONDS) -> None:
        """Wait until the newest world has this size and its rank 0 has made so many steps."""
        self.until(lambda: self._newest() == size and len(self.steps_of_newest()) >= steps, seconds)

    def _newest(self) -> int | None:
        worlds = self.of_kind("world")
        return worlds[-1]["world_size"] if worlds else None

    def steps_of_newest(self) -> list[Event]:
        generation = self.of_kind("world")[-1]["generation"]
        return [
            event for event in self.of_kind("step") if event["generation"] == generation and event.get("rank", 0) == 0
        ]

    def last_step_before_newest(self) -> int:
        """The last step that any rank of an older world told."""
        generation = self.of_kind("world")[-1]["generation"]
        return max(int(event["step"]) for event in self.of_kind("step") if event["generation"] < generation)

    def finish(self) -> Outcome:
        self.wishes.wish_stop()
        return self.outcome()

    def outcome(self) -> Outcome:
        self._thread.join(DEADLINE_SECONDS)
        assert self._outcome is not None, f"still running after {DEADLINE_SECONDS} s: {self.events[-10:]}"
        return self._outcome

    def close(self) -> None:
        if self._thread.is_alive():
            self._engine.kill()
            self._thread.join(DEADLINE_SECONDS)
