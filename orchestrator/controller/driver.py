"""The driver of one job: runs its attempts on an engine, one after the other, and keeps what it heard until the
controller has journaled it.

The controller pulls (`updates`) and acknowledges; the driver never calls the controller. So the controller may die and
come back while the workers keep stepping, and nothing that was heard is lost in between. Every update has a number;
`driver_id` tells one incarnation of the driver from the next.

Log lines do not go through the controller: the driver appends them to the job's folder, where `logs` reads them. Secret
variables of the job are struck out of everything that is heard, before it is kept anywhere. A log that cannot be written
(disk full) costs its lines, which are counted where they are missing, and never the attempt.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.controller.secrecy import Redactor
from orchestrator.domain.clock import Clock, to_rfc3339
from orchestrator.domain.errors import OrchestrateError
from orchestrator.platforms.engines.base import Cadence, Engine, Events, Outcome, RunRequest, WishBoard

MAX_KEPT_UPDATES = 200_000
"""Beyond this many unacknowledged updates (the controller has been away for hours) the oldest step reports are let go."""


@dataclass(frozen=True, slots=True)
class Update:
    seq: int
    attempt: int
    event: Mapping[str, Any]
    """A worker event, or `{"kind": "ended", "reason", "message", "result", "at_ns"}` as the attempt's last."""


_WITH_STACK = {"hung": "stands still", "straggler": "is slow"}


class Driver:
    """Runs attempts on `engine`; safe over threads. `on_update` is called (without arguments) after each new update."""

    def __init__(
        self, engine: Engine, clock: Clock, run_dir: Path, on_update: Callable[[], None] = lambda: None
    ) -> None:
        self.driver_id = uuid.uuid4().hex
        self._engine = engine
        self._clock = clock
        self._logs = run_dir / "logs"
        self._on_update = on_update
        self._changed = threading.Condition()
        self._updates: deque[Update] = deque()
        self._seq = 0
        self._attempt = 0
        self._wishes = WishBoard()
        self._thread: threading.Thread | None = None
        self._unwritten: Counter[str] = Counter()
        """Lines that a log could not take, by its name, until it takes lines again."""

    @property
    def running(self) -> bool:
        """Whether an attempt runs, or waits for the one before it."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def start(self, request: RunRequest) -> None:
        """Start an attempt. One that is running or was run already is left alone; a newer one waits for the older."""
        with self._changed:
            if request.attempt <= self._attempt:
                return
            self._attempt = request.attempt
            self._wishes = WishBoard(request.cadence, request.size)
            before = self._thread
            self._thread = threading.Thread(
                target=self._run, args=(request, self._wishes, before), name=f"attempt-{request.attempt}", daemon=True
            )
            self._thread.start()

    def wish_checkpoint(self, attempt: int) -> None:
        with self._changed:
            if attempt == self._attempt:
                self._wishes.wish_checkpoint()

    def wish_stop(self, attempt: int) -> None:
        with self._changed:
            if attempt == self._attempt:
                self._wishes.wish_stop()

    def wish_cadence(self, attempt: int, cadence: Cadence) -> None:
        """One for an attempt that this driver has not begun is not needed: its request brings it."""
        with self._changed:
            if attempt == self._attempt:
                self._wishes.wish_cadence(cadence)

    def wish_size(self, attempt: int, workers: int) -> None:
        """One for an attempt that this driver has not begun is not needed: its request brings it."""
        with self._changed:
            if attempt == self._attempt:
                self._wishes.wish_size(workers)

    def kill(self, attempt: int) -> None:
        with self._changed:
            if attempt != self._attempt:
                return
        self._engine.kill()

    def updates(self, after: int, limit: int = 2_000, wait_seconds: float = 0.0) -> list[Update]:
        """Updates numbered above `after`, oldest first; waits up to `wait_seconds` for the first. What is numbered up to
        `after` counts as acknowledged and is let go."""
        with self._changed:
            while self._updates and self._updates[0].seq <= after:
                self._updates.popleft()
            if not self._updates:
                self._changed.wait_for(lambda: bool(self._updates), timeout=wait_seconds)
            return [update for update, _ in zip(self._updates, range(limit), strict=False)]

    def close(self) -> None:
        """Kill a running attempt and wait until its gang is gone."""
        with self._changed:
            thread = self._thread
        self._engine.kill()
        if thread is not None:
            thread.join()

    def _run(self, request: RunRequest, wishes: WishBoard, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        redactor = Redactor.of(request.env)

        def heard(events: Events) -> None:
            self._heard(request.attempt, redactor.clean(events))

        try:
            outcome = self._engine.run(request, heard, wishes)
        except OrchestrateError as error:
            outcome = Outcome("EngineLost", str(error))
        except Exception as error:  # noqa: BLE001 - the driver's edge: whatever an engine raises ends the attempt, told
            trace = "".join(traceback.format_exception(error))
            self._write_log("driver", request.attempt, redactor.text(trace).splitlines())
            outcome = Outcome("EngineLost", f"{type(error).__name__}: {error}")
        ended = {
            "kind": "ended",
            "reason": outcome.reason,
            "message": outcome.message,
            "result": dict(outcome.result) if outcome.result is not None else None,
            "at_ns": self._clock.now_ns(),
        }
        heard([ended])

    def _heard(self, attempt: int, events: Events) -> None:
        kept: list[Mapping[str, Any]] = []
        for event in events:
            if event["kind"] == "log":
                self._write_log(f"rank-{event['rank']}", attempt, event["lines"])
                continue
            if event["kind"] in _WITH_STACK and event.get("stack"):
                found = f"{_WITH_STACK[event['kind']]}; its stack at {to_rfc3339(int(event['at_ns']))}:"
                lines = [found, *event["stack"].splitlines()]
                self._write_log(f"rank-{event['rank']}", attempt, lines)
                event = {name: value for name, value in event.items() if name != "stack"}
            kept.append(event)
        if not kept:
            return
        with self._changed:
            for event in kept:
                self._seq += 1
                self._updates.append(Update(self._seq, attempt, event))
            if len(self._updates) > MAX_KEPT_UPDATES:
                self._let_go_of_steps()
            self._changed.notify_all()
        self._on_update()

    def _let_go_of_steps(self) -> None:
        half = len(self._updates) // 2
        old = [self._updates.popleft() for _ in range(half)]
        self._updates.extendleft(update for update in reversed(old) if update.event["kind"] != "step")

    def _write_log(self, name: str, attempt: int, lines: list[str]) -> None:
        if missing := self._unwritten[name]:
            lines = [f"({missing} lines are missing here: the log could not be written)", *lines]
        file, size = self._logs / f"{name}.log", None
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            with open(file, "a", encoding="utf-8", errors="replace") as log:
                size = log.tell()
                log.writelines(f"[{attempt}] {line}\n" for line in lines)
        except OSError:
            self._unwritten[name] += len(lines) - bool(missing)
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(file, size)  # no half line stays
        else:
            del self._unwritten[name]
