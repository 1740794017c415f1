"""Who warns that a node is about to go: clouds, Kubernetes, Ray, a file. One file a source behind one port (`base`).

`watch` follows the sources that exist here and tells what changes; `choose` makes them from their names, as an operator writes
them. `for_agent` is both, in the form in which an agent takes it. SIGTERM is the agent's own: it ends the agent, too.

Standard library only, so that an agent can afford it; Ray is imported when its source is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.domain.clock import Clock
from orchestrator.domain.errors import UsageError
from orchestrator.platforms.notices.aws import aws
from orchestrator.platforms.notices.azure import ScheduledEvents
from orchestrator.platforms.notices.base import NotHere, Sighting, Source, Unreadable, View
from orchestrator.platforms.notices.fake import FakeSource
from orchestrator.platforms.notices.file import NoticeFile
from orchestrator.platforms.notices.gcp import gcp
from orchestrator.platforms.notices.given import Absent, Asked, RayDrain
from orchestrator.platforms.notices.kubernetes import kubernetes
from orchestrator.platforms.notices.standing import Change, Standing
from orchestrator.platforms.notices.watcher import OnChange, Watcher

AUTO = "auto"
NAMES = ("aws", "gcp", "azure", "kubernetes", "file:PATH")
"""What an agent can watch. `ray` needs somebody who knows which Ray node is which: see `RayDrain`."""


def choose(text: str, node: str, environ: Mapping[str, str], clock: Clock) -> list[Source]:
    """The sources that `text` names, separated by commas; `auto`: whatever can be found by asking; empty: none.

    Raises `UsageError` for a name that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    sources: list[Source] = []
    for name in names:
        match name.partition(":"):
            case ("auto", "", ""):
                sources += [
                    *aws(clock),
                    *gcp(clock),
                    ScheduledEvents(clock, acknowledge=True),
                    *_in_kubernetes(environ, clock, node),
                ]
            case ("aws", "", ""):
                sources += aws(clock)
            case ("gcp", "", ""):
                sources += gcp(clock)
            case ("azure", "", ""):
                sources.append(ScheduledEvents(clock, acknowledge=True))
            case ("kubernetes", "", ""):
                sources += _in_kubernetes(environ, clock, node)
            case ("file", ":", path) if path:
                sources.append(NoticeFile(Path(path)))
            case _:
                raise UsageError(f"{name!r} is no source of notices", hint=f"name {', '.join((AUTO, *NAMES))}")
    return sources


def _in_kubernetes(environ: Mapping[str, str], clock: Clock, node: str) -> list[Source]:
    try:
        return kubernetes(environ, clock, node)
    except NotHere as error:
        return [Absent("kubernetes", str(error))]


def watch(
    sources: Iterable[Source], on_change: OnChange, clock: Clock, node: str, *, persistent: Collection[Source] = ()
) -> Watcher:
    """Follow `sources` until the watcher is stopped. Those in `persistent` are looked for again when they are absent."""
    return Watcher(sources, on_change, clock, node, persistent=persistent)


def for_agent(
    text: str, node: str, environ: Mapping[str, str], clock: Clock, also: Iterable[Source] = ()
) -> Callable[[Callable[[Mapping[str, Any]], None]], Watcher]:
    """What an agent calls with a function that takes each change as a document; returns the watcher.

    A document is a notice's JSON form, with `withdrawn: true` for one that no longer stands. `also`: watched beside what `text`
    names. These, and sources that were named rather than found by `auto`, are looked for again while they are absent. Raises
    `UsageError` as `choose`.
    """
    further = list(also)
    chosen = choose(text, node, environ, clock)
    named = AUTO not in {name.strip() for name in text.split(",")}

    def begin(tell: Callable[[Mapping[str, Any]], None]) -> Watcher:
        persistent = [*further, *(chosen if named else ())]
        watched = [*further, *chosen]
        return watch(watched, lambda change: tell(change.to_document()), clock, node, persistent=persistent)

    return begin


__all__ = [
    "AUTO",
    "NAMES",
    "Asked",
    "Change",
    "FakeSource",
    "NotHere",
    "RayDrain",
    "Sighting",
    "Source",
    "Standing",
    "Unreadable",
    "View",
    "Watcher",
    "choose",
    "for_agent",
    "watch",
]
