"""A source that shows what it is told to: for tests of whatever acts on notices, and for rehearsals."""

from __future__ import annotations

import threading

from orchestrator.platforms.notices.base import NotHere, Sighting, Source, Unreadable, View

LOOK_SECONDS = 5.0


class FakeSource(Source):
    """Waits for a change as a long poll does. Thread-safe."""

    every_seconds = 0.0

    def __init__(self, name: str = "fake", absent: str | None = None) -> None:
        self.name = name
        self._absent = absent
        self._changed = threading.Condition()
        self._view: dict[str, Sighting] = {}
        self._failure: str | None = None
        self._news = True
        self._interrupted = False
        self.looks = 0
        self.emptied: list[str] = []
        """Nodes that were handled."""

    def show(self, key: str, sighting: Sighting) -> None:
        with self._changed:
            self._view[key] = sighting
            self._tell()

    def withdraw(self, key: str) -> None:
        with self._changed:
            del self._view[key]
            self._tell()

    def fail(self, why: str | None) -> None:
        """Be unreadable from now on; None: be readable again."""
        with self._changed:
            self._failure = why
            self._tell()

    def probe(self) -> None:
        if self._absent is not None:
            raise NotHere(self._absent)

    def look(self) -> View:
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._interrupted, LOOK_SECONDS)
            self._news = False
            self.looks += 1
            self._changed.notify_all()
            if self._interrupted:
                raise Unreadable("stopped")
            if self._failure is not None:
                raise Unreadable(self._failure)
            return dict(self._view)

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self._tell()

    def handled(self, node: str) -> None:
        with self._changed:
            self.emptied.append(node)

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()
