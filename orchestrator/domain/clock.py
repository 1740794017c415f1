"""Time as a parameter.

Everything that asks for the time takes a `Clock`, so that a two-hour spot storm is a test of milliseconds. This module
and the tests' own clocks are the only places that may call the interpreter's clock functions (ruff bans them elsewhere).
Instants are integers: `ns` since the Unix epoch, UTC.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Protocol

NANOSECONDS_PER_SECOND = 1_000_000_000


class Clock(Protocol):
    """What a component may know about time."""

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch, UTC. May step backwards when the machine's clock is set."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary moment; never goes backwards. For durations and deadlines."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class ManualClock:
    """A clock that moves only when told to. Safe to read from several threads."""

    def __init__(self, start_ns: int = 1_700_000_000 * NANOSECONDS_PER_SECOND) -> None:
        self._lock = threading.Lock()
        self._now_ns = start_ns
        self._monotonic_ns = 0

    def now_ns(self) -> int:
        with self._lock:
            return self._now_ns

    def monotonic_ns(self) -> int:
        with self._lock:
            return self._monotonic_ns

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        step = round(seconds * NANOSECONDS_PER_SECOND)
        if step < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        with self._lock:
            self._now_ns += step
            self._monotonic_ns += step


def to_rfc3339(at_ns: int) -> str:
    """An instant as RFC 3339 in UTC with milliseconds, as Kubernetes clients expect: `2026-01-31T10:20:30.123Z`."""
    seconds, rest = divmod(at_ns, NANOSECONDS_PER_SECOND)
    stamp = datetime.fromtimestamp(seconds, tz=UTC).isoformat()[:19]  # faster than strftime; lists write thousands
    return f"{stamp}.{rest // 1_000_000:03d}Z"


def seconds_between(start_ns: int, end_ns: int) -> float:
    """Seconds from `start_ns` to `end_ns`; negative when the order is reversed."""
    return (end_ns - start_ns) / NANOSECONDS_PER_SECOND
