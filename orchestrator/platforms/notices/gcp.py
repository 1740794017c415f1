"""Google Compute Engine: the metadata server, asked to answer when something changes.

    GET /computeMetadata/v1/instance/preempted            TRUE or FALSE
    GET /computeMetadata/v1/instance/maintenance-event    NONE, MIGRATE_ON_HOST_MAINTENANCE or TERMINATE_ON_HOST_MAINTENANCE

Each value comes with an ETag; with `wait_for_change`, `last_etag` and `timeout_sec` the server answers at once when it holds
another one, and otherwise when the time is up, so nothing is missed between two questions. Neither value says when: a spot
machine goes 30 s after `preempted` turned (some pools extend it, which is not told here), a machine that cannot migrate 60 s
after `maintenance-event` did. A live migration loses nothing and is no notice. An answer counts only with the header
`Metadata-Flavor: Google`.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Set

from orchestrator.domain.clock import Clock
from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.notices.base import NotHere, Sighting, Source, Unreadable, View, seconds
from orchestrator.platforms.notices.nearby import ANSWER_SECONDS, LINK_LOCAL, Answer, Nearby

FLAVOR = {"Metadata-Flavor": "Google"}
WAIT_SECONDS = 10
"""How long the server may keep us waiting: bounds how late we learn that a connection died without a word."""
PREEMPTION_LEAD_SECONDS = 30.0
MAINTENANCE_LEAD_SECONDS = 60.0


class MetadataKey(Source):
    """One value of the instance. `quiet` are the values that mean nothing, `loud` those that are notices."""

    def __init__(
        self,
        name: str,
        key: str,
        quiet: Set[str],
        loud: Mapping[str, Sighting],
        server: Nearby,
        every_seconds: float,
        wait_seconds: int,
    ) -> None:
        self.name, self.every_seconds = name, every_seconds
        self._path, self._quiet, self._loud = f"/computeMetadata/v1/instance/{key}", quiet, loud
        self._server, self._wait_seconds = server, wait_seconds
        self._etag: str | None = None

    def probe(self) -> None:
        answer = self._server.get(self._path, FLAVOR)
        if answer.status >= 500:
            raise Unreadable(f"HTTP status {answer.status}")
        if not _is_google(answer) or answer.status != 200:
            raise NotHere(f"the server at this address is not Google's (HTTP status {answer.status})")

    def look(self) -> View:
        if self._etag is None:
            answer = self._server.get(self._path, FLAVOR)
        else:
            query = {"wait_for_change": "true", "last_etag": self._etag, "timeout_sec": str(self._wait_seconds)}
            path = f"{self._path}?{urllib.parse.urlencode(query)}"
            answer = self._server.get(path, FLAVOR, answer_seconds=self._wait_seconds + self._server.answer_seconds)
        if answer.status != 200 or not _is_google(answer):
            raise Unreadable(f"HTTP status {answer.status}")
        value = answer.text
        if value not in self._quiet and value not in self._loud:
            raise Unreadable(f"neither of its values: {answer.beginning}")
        self._etag = answer.headers.get("etag")
        return {value: self._loud[value]} if value in self._loud else {}

    def interrupt(self) -> None:
        self._server.interrupt()


def _is_google(answer: Answer) -> bool:
    return answer.headers.get("metadata-flavor") == "Google"


def gcp(
    clock: Clock,
    address: tuple[str, int] = (LINK_LOCAL, 80),
    *,
    every_seconds: float = 1.0,
    wait_seconds: int = WAIT_SECONDS,
    answer_seconds: float = ANSWER_SECONDS,
    lead_seconds: float = PREEMPTION_LEAD_SECONDS,
) -> list[Source]:
    """Preemption and maintenance. `every_seconds` paces a server that answers at once without a change; `lead_seconds` is
    what this pool gives its machines from the notice to the end."""

    def source(name: str, key: str, quiet: set[str], loud: str, sighting: Sighting) -> Source:
        server = Nearby(address, clock, answer_seconds=answer_seconds)
        return MetadataKey(name, key, quiet, {loud: sighting}, server, every_seconds, wait_seconds)

    preempted = Sighting(NoticeKind.INTERRUPTION, lead_ns=seconds(lead_seconds))
    restart = Sighting(NoticeKind.MAINTENANCE, lead_ns=seconds(MAINTENANCE_LEAD_SECONDS))
    migrates = {"NONE", "MIGRATE_ON_HOST_MAINTENANCE"}
    return [
        source("gcp", "preempted", {"FALSE"}, "TRUE", preempted),
        source("gcp-maintenance", "maintenance-event", migrates, "TERMINATE_ON_HOST_MAINTENANCE", restart),
    ]
