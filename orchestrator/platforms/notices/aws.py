"""Amazon EC2: the instance metadata service, version 2.

    PUT /latest/api/token                                     a token, with the hours it is to live
    GET /latest/meta-data/spot/instance-action                404, or {"action": "terminate", "time": "2026-09-18T08:22:00Z"}
    GET /latest/meta-data/events/recommendations/rebalance    404, or {"noticeTime": "2026-09-18T08:10:00Z"}
    GET /latest/meta-data/events/maintenance/scheduled        a list of events, often empty

An interruption is told 120 s ahead, except for hibernation, which begins at once. A rebalance recommendation may come long
before it, with it, or never, and has no deadline. Read by three sources, so that one path that fails hides no other. A
token is renewed when a tenth of its life is left, and after a 401. Only EC2 answers the PUT with the header that says how
long the token lives: that is what tells it from other servers on the same address. In a container the PUT needs a hop limit
of 2 on the instance, or the answer never arrives; the source then says that it is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.domain.clock import Clock
from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.notices.base import NotHere, Sighting, Source, Unreadable, View, instant_ns, seconds
from orchestrator.platforms.notices.nearby import ANSWER_SECONDS, LINK_LOCAL, Answer, Nearby

TOKEN_SECONDS = 21_600
"""As long as EC2 allows."""
TOKEN_LIFE = "X-aws-ec2-metadata-token-ttl-seconds"  # noqa: S105 - the name of a header
TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105 - the name of a header
ENDED = {"completed", "canceled"}
"""States of a maintenance event that need nobody any more."""

Read = Callable[[Answer], View]


def read_action(answer: Answer) -> View:
    """Raises `Unreadable` for what is not an instance action; an action whose time cannot be read has no deadline."""
    action = _mapping(answer.document())
    if not isinstance(action.get("action"), str):
        raise Unreadable(f"no instance action: {answer.beginning}")
    if action["action"] == "hibernate":
        return {"instance-action": Sighting(NoticeKind.INTERRUPTION, lead_ns=0)}
    return {"instance-action": Sighting(NoticeKind.INTERRUPTION, _here(answer, action.get("time")))}


def read_rebalance(answer: Answer) -> View:
    """Raises `Unreadable` for what is not a recommendation."""
    if "noticeTime" not in _mapping(answer.document()):
        raise Unreadable(f"no rebalance recommendation: {answer.beginning}")
    return {"rebalance": Sighting(NoticeKind.REBALANCE)}


def read_maintenance(answer: Answer) -> View:
    """Raises `Unreadable` for what is not a list of events."""
    events = answer.document()
    if not isinstance(events, list):
        raise Unreadable(f"no list of maintenance events: {answer.beginning}")
    return {
        str(event.get("EventId")): Sighting(NoticeKind.MAINTENANCE, _here(answer, event.get("NotBefore")))
        for event in map(_mapping, events)
        if event.get("State") not in ENDED
    }


def _mapping(document: Any) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise Unreadable(f"not an object: {str(document)[:60]!r}")
    return document


def _here(answer: Answer, text: object) -> int | None:
    theirs = instant_ns(text)
    return None if theirs is None else answer.here_ns(theirs)


class InstanceMetadata(Source):
    """One path of the metadata service; 404 is nothing."""

    def __init__(self, name: str, path: str, read: Read, server: Nearby, clock: Clock, every_seconds: float) -> None:
        self.name, self.every_seconds = name, every_seconds
        self._path, self._read, self._server, self._clock = path, read, server, clock
        self._token, self._renew_ns = "", 0

    def probe(self) -> None:
        self._renew()

    def look(self) -> View:
        if self._clock.monotonic_ns() >= self._renew_ns:
            self._renew_again()
        answer = self._server.get(self._path, {TOKEN: self._token})
        if answer.status == 401:
            self._renew_again()
            answer = self._server.get(self._path, {TOKEN: self._token})
        if answer.status == 404:
            return {}
        if answer.status != 200:
            raise Unreadable(f"HTTP status {answer.status}")
        return self._read(answer)

    def interrupt(self) -> None:
        self._server.interrupt()

    def _renew_again(self) -> None:
        """It was here when it was probed, so it is here."""
        try:
            self._renew()
        except NotHere as error:
            raise Unreadable(str(error)) from None

    def _renew(self) -> None:
        answer = self._server.ask("PUT", "/latest/api/token", {TOKEN_LIFE: str(TOKEN_SECONDS)})
        if answer.status >= 500:
            raise Unreadable(f"HTTP status {answer.status} for a token")
        life = answer.headers.get(TOKEN_LIFE.lower(), "")
        if answer.status != 200 or not life.isdecimal() or not _is_token(answer.text):
            raise NotHere(f"the server at this address gives no EC2 token (HTTP status {answer.status})")
        self._token = answer.text
        self._renew_ns = self._clock.monotonic_ns() + seconds(int(life) * 0.9)


def _is_token(text: str) -> bool:
    return 0 < len(text) <= 1024 and text.isascii() and all(char.isalnum() or char in "+/=-_." for char in text)


def aws(
    clock: Clock,
    address: tuple[str, int] = (LINK_LOCAL, 80),
    *,
    every_seconds: float = 1.0,
    maintenance_seconds: float = 30.0,
    answer_seconds: float = ANSWER_SECONDS,
) -> list[Source]:
    """Interruption and rebalance every `every_seconds`, maintenance every `maintenance_seconds`."""

    def source(name: str, path: str, read: Read, every: float) -> Source:
        server = Nearby(address, clock, answer_seconds=answer_seconds)
        return InstanceMetadata(name, f"/latest/meta-data/{path}", read, server, clock, every)

    return [
        source("aws", "spot/instance-action", read_action, every_seconds),
        source("aws-rebalance", "events/recommendations/rebalance", read_rebalance, every_seconds),
        source("aws-maintenance", "events/maintenance/scheduled", read_maintenance, maintenance_seconds),
    ]
