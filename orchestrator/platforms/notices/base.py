"""The port to whoever warns, and what every source shares.

A source shows its whole present view, again and again: every notice that stands there now, by a key that stays the same
while it stands. Nothing is told as an event, so a notice that is seen twice is one, one that is no longer there was
withdrawn, and a lost answer costs nothing. What follows from a view is decided in one place (`standing`).

A source is used by one thread, except for `interrupt` and `handled`.
"""

from __future__ import annotations

import email.utils
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.domain.notices import NoticeKind


class NotHere(Exception):
    """This source has nothing to say on this machine: another cloud, no token, a library that is missing. `str()` is why."""


class Unreadable(Exception):
    """The source could not be read this time; the next look may succeed. `str()` is what came instead."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A notice as its source shows it. With neither time the deadline is unknown."""

    kind: NoticeKind
    deadline_ns: int | None = None
    """When it will happen, on this machine's clock, ns since the Unix epoch."""
    lead_ns: int | None = None
    """Or: how long after it was first seen. For a source that says that, not when."""
    node: str | None = None
    """None: the node that this process runs on."""


View = Mapping[str, Sighting]


class Source(ABC):
    """One place where notices are read. `name` goes into every notice; names with the same word before the first hyphen
    belong to one API, whose absence is told once."""

    name: str
    every_seconds: float = 1.0
    """From the beginning of one look to the next. 0 for a source whose look waits for a change by itself."""

    def probe(self) -> None:
        """Find out, within a few seconds, whether this source exists here. Raises `NotHere` or `Unreadable`."""
        return

    @abstractmethod
    def look(self) -> View:
        """All that stands now. May wait for a change, for a bounded time. Raises `Unreadable`."""

    def interrupt(self) -> None:
        """Called from another thread: let a `look` or `probe` that waits end at once, and refuse any after it."""
        return

    def handled(self, node: str) -> None:
        """Called from another thread: all that was worth saving has left `node`; a source that can hasten the end may."""
        return


def seconds(count: float) -> int:
    """`count` seconds in ns."""
    return round(count * NANOSECONDS_PER_SECOND)


def instant_ns(text: object) -> int | None:
    """An instant as clouds write it: RFC 3339 (AWS, Kubernetes) or RFC 1123 with or without the weekday (Azure, AWS
    maintenance, HTTP). Without a zone it is UTC. None for anything else."""
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text.strip())
        except (ValueError, TypeError, IndexError):
            return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except OverflowError:
        return None
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000
