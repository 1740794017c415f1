"""What runs inside a Ray worker process: one rank of a gang, its link to the driver, and how its end is told.

The link hands batches of events to the driver a few times a second and brings back what is wished for, by a call on the
driver's actor. (`ray.train.report` would be the usual road, but its one-slot queue is emptied once a poll and holds
training up for seconds.) A rank whose driver is gone ends its own process: nobody is left to hear it, and its machine is
booked on a job that will be started again elsewhere.

What holds for a rank of any engine (its surroundings, its words, how its end is told) is in `rank`.
"""

from __future__ import annotations

import importlib
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.domain.clock import Clock, SystemClock
from orchestrator.platforms.engines.base import Wishes
from orchestrator.platforms.engines.rank import classify, output_heard, prepare

EXCHANGE_SECONDS = 0.15
"""Time between two batches of a rank. Bounds how late a wish is seen; far below what a person notices."""
CLOSE_SECONDS = 10.0
MAX_KEPT_LINES = 20_000
"""Log lines kept while the driver does not take them; beyond it the oldest are let go, and their number is told."""
MAX_SENT_LINES = 2_000
DRIVER_GONE = 70
"""Exit status of a rank that ended itself because its driver is gone."""

Exchange = Callable[[int, Sequence[Mapping[str, Any]]], Wishes | None]
"""Hands over a batch (the number of its first event, the events); the wishes, or None when there was no answer yet and
the batch should be sent again. Raises `DriverGone`."""


class DriverGone(Exception):
    """Nobody hears this rank any more."""


class RayLink:
    """The `Link` of one rank (see orchestrator.training.link). A thread of its own does the talking."""

    def __init__(self, rank: int, exchange: Exchange, clock: Clock) -> None:
        self.rank = rank
        self._exchange = exchange
        self._clock = clock
        self._changed = threading.Condition()
        self._events: deque[Mapping[str, Any]] = deque()
        self._lines: deque[str] = deque()
        self._lines_dropped = 0
        self._sent = 0
        self._wishes = Wishes()
        self._closing = False
        self._thread = threading.Thread(target=self._talk, name="link", daemon=True)
        self._thread.start()

    def send(self, event: Mapping[str, Any]) -> None:
        with self._changed:
            self._events.append(event)

    def say(self, lines: Sequence[str]) -> None:
        """Log lines; they travel together as `log` events."""
        with self._changed:
            self._lines.extend(lines)
            while len(self._lines) > MAX_KEPT_LINES:
                self._lines.popleft()
                self._lines_dropped += 1

    def wishes(self) -> Wishes:
        return self._wishes

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def _talk(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=EXCHANGE_SECONDS)
                    last = self._closing
                    batch = self._batch()
                reply = None
                while reply is None:
                    reply = self._exchange(self._sent, batch)
                self._sent += len(batch)
                self._wishes = reply
                if last and not self._events and not self._lines:
                    return
        except DriverGone:
            os._exit(DRIVER_GONE)

    def _batch(self) -> list[Mapping[str, Any]]:
        batch = list(self._events)
        self._events.clear()
        if self._lines:
            lines = [self._lines.popleft() for _ in range(min(len(self._lines), MAX_SENT_LINES))]
            if self._lines_dropped:
                lines.insert(
                    0, f"({self._lines_dropped} lines were dropped here: they came faster than they could be sent)"
                )
                self._lines_dropped = 0
            batch.append({"kind": "log", "rank": self.rank, "lines": lines, "at_ns": self._clock.now_ns()})
        return batch


def run_rank(worker_loop: str, assignment: Mapping[str, Any], env: Mapping[str, str], exchange: Exchange) -> Any:
    """Run the worker loop named `module:function` on this rank, in an environment made by `prepare`."""
    clock = SystemClock()
    rank = int(os.environ["RANK"])  # noqa: TID251 - the edge of a worker's process
    link = RayLink(rank, exchange, clock)
    try:
        with output_heard(link.say):
            try:
                prepare(assignment, env)
                module, _, function = worker_loop.partition(":")
                return getattr(importlib.import_module(module), function)(assignment, link)
            except BaseException as error:  # noqa: BLE001 - the rank's edge: told by name, whatever the user's code raises
                link.say("".join(traceback.format_exception(error)).splitlines())
                raise classify(rank, error, clock.now_ns()) from None
    finally:
        link.close()
