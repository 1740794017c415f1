"""What a gang wants done. The coordinator carries these out, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.platforms.engines.base import Outcome
from orchestrator.platforms.engines.native.messages import ToAgent


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this to an agent."""

    agent: str
    message: ToAgent


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Close the connection of an agent that counts as lost, and see to its end where that can be done."""

    agent: str
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """An event for whoever listens to the attempt. `moments` are instants of the monotonic clock, by the event's keys."""

    event: Mapping[str, Any]
    moments: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SaveNow:
    """Ask the running world for a checkpoint: it is about to lose more than its memories can bear."""

    why: str


@dataclass(frozen=True, slots=True)
class Want:
    """So many slots are wanted, those on nodes that are being left included."""

    slots: int


@dataclass(frozen=True, slots=True)
class End:
    """The attempt is over; nothing of it runs. The last command."""

    outcome: Outcome


Command = Tell | Dismiss | Report | SaveNow | Want | End
