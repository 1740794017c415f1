"""A warning that a node, or what runs on it, is about to go: one form for every cloud, Kubernetes, Ray and a signal.

Who warns, and how it is read, is the platforms' business (`orchestrator/platforms/notices`). Here is what the rest agrees on:
the fields, their JSON form, and how several notices about one node become one answer. At most one notice stands for a pair
of source and node: a newer one takes the place of the older. Instants are `ns` since the Unix epoch, by the clock of the
machine that received the notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from orchestrator.domain.clock import seconds_between


class NoticeKind(StrEnum):
    """What is going to happen, from the weakest to the strongest."""

    REBALANCE = "rebalance"
    """Advice: the machine is likelier than others to be taken away. Nothing is certain, and there is no deadline."""
    MAINTENANCE = "maintenance"
    """The machine will be restarted or moved, and its memory lost. Hours or days ahead, as a rule."""
    DRAIN = "drain"
    """Somebody wants the node empty: an operator, an autoscaler, Ray."""
    INTERRUPTION = "interruption"
    """The cloud takes the machine back."""
    TERMINATION = "termination"
    """The machine, the pod or the process is being ended now."""

    @property
    def strength(self) -> int:
        return _STRENGTH[self]

    @property
    def certain(self) -> bool:
        """Whether the node must be left; of a rebalance recommendation nobody knows."""
        return self is not NoticeKind.REBALANCE


_STRENGTH = {kind: number for number, kind in enumerate(NoticeKind)}


@dataclass(frozen=True, slots=True)
class Notice:
    """One warning. `deadline_ns` is when the node may be gone; None when nobody told, which calls for haste, not for rest."""

    source: str
    """Who warned: `aws`, `gcp`, `azure`, `kubernetes`, `ray`, `sigterm`, `file` ..."""
    node: str
    kind: NoticeKind
    received_ns: int
    deadline_ns: int | None

    def covers(self, other: Notice) -> bool:
        """Whether `other` says nothing that this one does not: no stronger kind, and no earlier deadline. Maintenance, which
        may be days away, does not cover the advice to leave before."""
        if self.node != other.node:
            return False
        sooner = self.deadline_ns is not None and (other.deadline_ns is None or self.deadline_ns <= other.deadline_ns)
        same_time = sooner or (self.deadline_ns is None and other.deadline_ns is None)
        stronger = self.kind.strength > other.kind.strength
        days_away = self.kind is NoticeKind.MAINTENANCE and not other.kind.certain
        return same_time and (self.kind is other.kind or (stronger and not days_away))

    def remaining_seconds(self, now_ns: int) -> float | None:
        """Seconds to the deadline; negative once it has passed, None when there is none."""
        return None if self.deadline_ns is None else seconds_between(now_ns, self.deadline_ns)

    def to_document(self) -> dict[str, Any]:
        """JSON form, as in messages, events and status."""
        return {
            "source": self.source,
            "node": self.node,
            "kind": self.kind.value,
            "received_ns": self.received_ns,
            "deadline_ns": self.deadline_ns,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Notice:
        """Back from the JSON form; further keys are let be. Raises `ValueError` for what is not a notice."""
        try:
            source, node, received = document["source"], document["node"], document["received_ns"]
            deadline, kind = document.get("deadline_ns"), NoticeKind(document["kind"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a notice: {document!r}") from error
        instants_fit = type(received) is int and (deadline is None or type(deadline) is int)
        if not (isinstance(source, str) and isinstance(node, str) and instants_fit):
            raise ValueError(f"not a notice: {document!r}")
        return cls(source, node, kind, received, deadline)


def in_force(notices: Iterable[Notice]) -> Notice | None:
    """What holds for a node that several notices speak of: the strongest kind, and the earliest deadline that any of them
    gave, though not one before that kind was received. None without a notice. All must be about the same node."""
    standing = list(notices)
    if not standing:
        return None
    strongest = max(standing, key=lambda notice: (notice.kind.strength, -notice.received_ns))
    deadlines = [notice.deadline_ns for notice in standing if notice.deadline_ns is not None]
    deadline = max(min(deadlines), strongest.received_ns) if deadlines else None
    return replace(strongest, deadline_ns=deadline)
