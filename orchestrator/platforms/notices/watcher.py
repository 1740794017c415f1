"""Watches sources, each in a thread of its own, and tells what changes.

A source that does not exist on this machine is told once and given up; one that was named rather than found is asked again
now and then. One that cannot be read for a while is told once, and once more when it can be read again; what it showed before
goes on to stand. Changes are told one after the other, in the order in which the world was seen.

`stop` wakes every thread and ends every wait for an answer, so it takes milliseconds; a source that asks a callable of
somebody else's is not waited for longer than `STOP_SECONDS`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock, seconds_between
from orchestrator.domain.notices import Notice
from orchestrator.platforms.notices.base import NotHere, Source, Unreadable, View
from orchestrator.platforms.notices.standing import Change, Standing

log = logging.getLogger(__name__)

OnChange = Callable[[Change], None]
"""Called from several threads, one at a time; must return quickly."""

PROBES = 3
"""How often a source may be out of order before it counts as absent: a network may be younger than the process."""
RETRY_SECONDS = 1.0
"""From one failed attempt to the next, at least: short, for what cannot be read may be a notice of 15 s."""
ABSENT_SECONDS = 30.0
"""From one look for a source that was named and is absent to the next."""
STOP_SECONDS = 2.0


class Watcher:
    """Begins at once. `node` is where this process runs; sources in `persistent` are looked for again when they are absent."""

    def __init__(
        self,
        sources: Iterable[Source],
        on_change: OnChange,
        clock: Clock,
        node: str,
        *,
        persistent: Collection[Source] = (),
        retry_seconds: float = RETRY_SECONDS,
        absent_seconds: float = ABSENT_SECONDS,
    ) -> None:
        self._sources = list(sources)
        self._on_change, self._clock = on_change, clock
        self._persistent = persistent
        self._retry_seconds, self._absent_seconds = retry_seconds, absent_seconds
        self._standing = Standing(node)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._absent: set[str] = set()
        self._threads = [
            threading.Thread(target=self._watch, args=(source,), name=f"notices-{source.name}", daemon=True)
            for source in self._sources
        ]
        for thread in self._threads:
            thread.start()

    def told(self) -> list[Notice]:
        """Every notice that was told and stands."""
        with self._lock:
            return self._standing.told()

    def handled(self, node: str) -> None:
        """All that was worth saving has left `node`: a source that can let the end come sooner may do so."""
        for source in self._sources:
            source.handled(node)

    def stop(self) -> None:
        """Tell nothing any more, and end all threads. Twice is once."""
        self._stop.set()
        for source in self._sources:
            source.interrupt()
        deadline_ns = self._clock.monotonic_ns() + round(STOP_SECONDS * NANOSECONDS_PER_SECOND)
        for thread in self._threads:
            thread.join(max(0.0, seconds_between(self._clock.monotonic_ns(), deadline_ns)))

    def _watch(self, source: Source) -> None:
        """The life of a source's thread."""
        while not self._stop.is_set():
            if self._found(source):
                log.info("notices are read from %s", source.name)
                self._follow(source)
            elif source not in self._persistent or self._stop.wait(self._absent_seconds):
                return

    def _found(self, source: Source) -> bool:
        why = ""
        for attempt in range(PROBES):
            if attempt and self._stop.wait(self._retry_seconds):
                return False
            try:
                source.probe()
            except Unreadable as error:
                why = str(error)
            except NotHere as error:
                why = str(error)
                break
            else:
                return not self._stop.is_set()
        family = source.name.partition("-")[0]
        with self._lock:
            tell = family not in self._absent and not self._stop.is_set()
            self._absent.add(family)
        if tell:
            log.info("no notices from %s: %s", family, why)
        return False

    def _follow(self, source: Source) -> None:
        """Look until stopped."""
        trouble = False
        while not self._stop.is_set():
            begun_ns = self._clock.monotonic_ns()
            pause = source.every_seconds
            why = self._look(source)
            if why is not None:
                pause = max(pause, self._retry_seconds)
                if not trouble and not self._stop.is_set():
                    log.warning("%s cannot be read, and is asked again: %s", source.name, why)
            elif trouble:
                log.info("%s can be read again", source.name)
            trouble = why is not None
            took = seconds_between(begun_ns, self._clock.monotonic_ns())
            self._stop.wait(max(0.0, pause - took))

    def _look(self, source: Source) -> str | None:
        """Look once and tell; why that could not be."""
        try:
            self._update(source, source.look())
        except (Unreadable, NotHere) as error:
            return str(error)
        except Exception as error:
            log.exception("a defect in the source of notices %s, or in who listens to it", source.name)
            return f"{type(error).__name__}: {error}"
        return None

    def _update(self, source: Source, view: View) -> None:
        with self._lock:
            if self._stop.is_set():
                return
            for change in self._standing.update(source.name, view, self._clock.now_ns()):
                if change.remark:
                    log.warning("notice from %s: %s", change.notice.source, change.remark)
                self._on_change(change)
