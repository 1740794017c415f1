"""Read connections of a journal: handed out one to a caller, kept for the next, closed with the journal.

Readers have connections of their own so that a reader never waits for a commit, nor a commit for a reader.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from orchestrator.domain.errors import StorageError

MAX_KEPT = 4
"""Idle connections kept open."""


class Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class Readers(Generic[C]):
    def __init__(self, connect: Callable[[], C], place: str) -> None:
        self._connect = connect
        self._place = place
        self._lock = threading.Lock()
        self._idle: list[C] = []
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[C]:
        """A connection for the length of the block. One whose block raised is closed, not used again."""
        with self._lock:
            if self._closed:
                raise StorageError(f"the journal {self._place} is closed", hint="the controller is stopping")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if not self._kept(connection):
            connection.close()

    def _kept(self, connection: C) -> bool:
        with self._lock:
            if self._closed or len(self._idle) >= MAX_KEPT:
                return False
            self._idle.append(connection)
            return True

    def forget(self) -> None:
        """Close the idle connections; those in use are closed when they come back and more than enough are kept."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.forget()
