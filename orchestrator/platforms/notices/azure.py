"""Azure: Scheduled Events of the instance metadata service.

    GET  /metadata/instance/compute?api-version=2021-02-01        who am I: proof of Azure, and the machine's name
    GET  /metadata/scheduledevents?api-version=2020-07-01         {"DocumentIncarnation": 2, "Events": [...]}
    POST /metadata/scheduledevents?api-version=2020-07-01         {"StartRequests": [{"EventId": ...}]}: go ahead

Events of all machines of a scale set or availability set are told to each of them; those that do not name this one in
`Resources` are left out. `NotBefore` is empty once an event has started, which is taken as now. An event that was cancelled
or is over leaves the list. What each type means here:

    Preempt            interruption     at least 30 s ahead
    Terminate          termination      5 to 15 minutes, where the scale set asks for it
    Reboot, Redeploy   maintenance      10 to 15 minutes or more; none after a hardware failure
    Freeze             nothing: a pause of seconds that loses no memory

The very first question for events in a subscription's service may take two minutes to be answered, so until one was
answered it is waited for; being stopped does not wait. With `acknowledge`, an event is approved once this node is empty,
which lets it begin early; only if it names no other machine, since approving holds for all of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.clock import Clock
from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.notices.base import NotHere, Sighting, Source, Unreadable, View, instant_ns
from orchestrator.platforms.notices.nearby import ANSWER_SECONDS, LINK_LOCAL, Answer, Nearby

HEADERS = {"Metadata": "true"}
IDENTITY = "/metadata/instance/compute?api-version=2021-02-01"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
FIRST_ANSWER_SECONDS = 130.0
KINDS: Mapping[str, NoticeKind] = {
    "Preempt": NoticeKind.INTERRUPTION,
    "Terminate": NoticeKind.TERMINATION,
    "Reboot": NoticeKind.MAINTENANCE,
    "Redeploy": NoticeKind.MAINTENANCE,
}


class ScheduledEvents(Source):
    """The events that name this machine."""

    name = "azure"

    def __init__(
        self,
        clock: Clock,
        address: tuple[str, int] = (LINK_LOCAL, 80),
        *,
        every_seconds: float = 1.0,
        answer_seconds: float = ANSWER_SECONDS,
        acknowledge: bool = False,
    ) -> None:
        self.every_seconds = every_seconds
        self._server = Nearby(address, clock, answer_seconds=answer_seconds)
        self._acknowledge = acknowledge
        self._machine: str | None = None
        self._answered = False
        self._alone: set[str] = set()
        """Events that name this machine only."""
        self._empty = threading.Event()
        self._approved: set[str] = set()

    def probe(self) -> None:
        answer = self._server.get(IDENTITY, HEADERS)
        if answer.status >= 500 or answer.status == 429:
            raise Unreadable(f"HTTP status {answer.status}")
        try:
            name = answer.document().get("name") if answer.status == 200 else None
        except (Unreadable, AttributeError):
            name = None
        if not isinstance(name, str) or not name:
            raise NotHere(f"the server at this address is not Azure's (HTTP status {answer.status})")
        self._machine = name.lower()

    def look(self) -> View:
        if self._empty.is_set():
            self._approve()
        answer = self._server.get(EVENTS, HEADERS, answer_seconds=None if self._answered else FIRST_ANSWER_SECONDS)
        if answer.status != 200:
            raise Unreadable(f"HTTP status {answer.status}")
        document = answer.document()
        if not isinstance(document, Mapping) or not isinstance(document.get("Events"), list):
            raise Unreadable(f"no list of events: {answer.beginning}")
        self._answered = True
        mine = {str(event["EventId"]): event for event in document["Events"] if self._concerns_us(event)}
        self._alone = {event_id for event_id, event in mine.items() if len(event["Resources"]) == 1}
        if not mine:
            self._empty.clear()  # nothing is left to approve: the node is in use again
            self._approved.clear()
        return {event_id: _sighting(event, answer) for event_id, event in mine.items()}

    def interrupt(self) -> None:
        self._server.interrupt()

    def handled(self, node: str) -> None:
        if self._acknowledge:
            self._empty.set()

    def _concerns_us(self, event: object) -> bool:
        if not isinstance(event, Mapping) or event.get("EventType") not in KINDS or not event.get("EventId"):
            return False
        resources = event.get("Resources")
        return isinstance(resources, list) and self._machine in {str(name).lower() for name in resources}

    def _approve(self) -> None:
        waiting = sorted(self._alone - self._approved)
        if not waiting:
            return
        body = json.dumps({"StartRequests": [{"EventId": event_id} for event_id in waiting]}).encode()
        if self._server.ask("POST", EVENTS, HEADERS, body).status == 200:
            self._approved.update(waiting)


def _sighting(event: Mapping[str, Any], answer: Answer) -> Sighting:
    kind = KINDS[event["EventType"]]
    if event.get("EventStatus") == "Started":
        return Sighting(kind, lead_ns=0)
    theirs = instant_ns(event.get("NotBefore"))
    return Sighting(kind, None if theirs is None else answer.here_ns(theirs))
