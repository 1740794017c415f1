"""SIGTERM to the agent: Kubernetes ends the pod, systemd the unit, or somebody the process.

The signal carries no time. The grace that the platform gives from SIGTERM to SIGKILL (`terminationGracePeriodSeconds`, less
what a preStop hook used) is a setting; without it the deadline is unknown. On GKE, pods on spot machines get 15 s whatever the
pod asks for. The handler only puts a word into a queue, which is safe in a signal handler.
"""

from __future__ import annotations

import contextlib
import queue
import signal
from types import FrameType

from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.notices.base import Sighting, Source, View, seconds

LOOK_SECONDS = 5.0
"""A look ends by then, signal or not."""


class SignalSource(Source):
    """Call `arm` from the main thread, or `received` from a handler of one's own. A signal is never withdrawn."""

    name = "sigterm"
    every_seconds = 0.0

    def __init__(self, grace_seconds: float | None = None) -> None:
        lead = None if grace_seconds is None else seconds(grace_seconds)
        self._sighting = Sighting(NoticeKind.TERMINATION, lead_ns=lead)
        self._words: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._seen = False

    def arm(self) -> None:
        """Take SIGTERM over, in place of whatever handled it. Only the main thread may."""
        signal.signal(signal.SIGTERM, self.received)

    def received(self, signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """A signal handler: tell that the end was announced."""
        self._words.put(True)

    def look(self) -> View:
        with contextlib.suppress(queue.Empty):
            self._seen |= self._words.get(timeout=LOOK_SECONDS)
        return {"signal": self._sighting} if self._seen else {}

    def interrupt(self) -> None:
        self._words.put(False)
