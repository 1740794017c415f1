"""Which notices stand, and what is news about them. Pure: views and the time go in, changes come out.

For each pair of source and node one notice stands: the strongest kind and the earliest deadline of all that the source
shows. A change is told when it says something new: not when another source has already told the same or worse about the
node, and not for a deadline that moved by less than two seconds. What was told and no longer stands is told as withdrawn,
after whatever takes its place, so that nobody takes a node back in between.

A deadline is never told in the past: one that had passed when it was seen is told as now, with a remark.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.domain.clock import seconds_between
from orchestrator.domain.notices import Notice, in_force
from orchestrator.platforms.notices.base import Sighting, View, seconds

MOVED_NS = seconds(2)
"""A deadline that moves by less is the same one: clouds tell whole seconds, by clocks of their own."""


class Change(NamedTuple):
    """`notice` holds now, in place of any other of its source and node; or it was told, and is `withdrawn`."""

    notice: Notice
    withdrawn: bool = False
    remark: str = ""
    """What somebody should know about it beside its fields."""

    def to_document(self) -> dict[str, Any]:
        """The notice's JSON form; `withdrawn` is there only when it is true."""
        document = self.notice.to_document()
        return {**document, "withdrawn": True} if self.withdrawn else document


@dataclass(slots=True)
class _Seen:
    sighting: Sighting
    notice: Notice
    remark: str


@dataclass(slots=True)
class _Source:
    seen: dict[str, _Seen] = field(default_factory=dict)
    told: dict[str, Notice] = field(default_factory=dict)
    """By node."""
    stands: dict[str, Notice] = field(default_factory=dict)
    """By node."""

    def tell(self, notice: Notice) -> Change:
        self.told[notice.node] = notice
        remarks = [each.remark for each in self.seen.values() if each.notice.node == notice.node and each.remark]
        return Change(notice, remark="; ".join(remarks))


class Standing:
    """All sources of one watcher. `node` is where sightings belong that name none. Not thread-safe."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._sources: dict[str, _Source] = {}

    def update(self, source: str, view: View, now_ns: int) -> list[Change]:
        """`source` shows exactly `view` at `now_ns`; what is new."""
        mine = self._sources.setdefault(source, _Source())
        mine.seen = {key: self._see(source, mine.seen.get(key), sighting, now_ns) for key, sighting in view.items()}
        by_node: dict[str, list[Notice]] = {}
        for seen in mine.seen.values():
            by_node.setdefault(seen.notice.node, []).append(seen.notice)
        stands = {node: in_force(notices) for node, notices in by_node.items()}
        mine.stands = {node: notice for node, notice in stands.items() if notice is not None}
        gone = [mine.told.pop(node) for node in mine.told.keys() - mine.stands.keys()]
        return [*self._tell(), *(Change(notice, withdrawn=True) for notice in sorted(gone, key=lambda one: one.node))]

    def told(self) -> list[Notice]:
        """Every notice that was told and stands."""
        return [notice for mine in self._sources.values() for notice in mine.told.values()]

    def _see(self, source: str, before: _Seen | None, sighting: Sighting, now_ns: int) -> _Seen:
        if before is not None and before.sighting == sighting:
            return before
        deadline = sighting.deadline_ns if sighting.lead_ns is None else now_ns + sighting.lead_ns
        remark = ""
        if deadline is not None and deadline < now_ns:
            remark = f"its deadline was {seconds_between(deadline, now_ns):.1f} s ago when it was seen; taken as now"
            deadline = now_ns
        notice = Notice(source, sighting.node or self._node, sighting.kind, now_ns, deadline)
        if before is not None and not _news(before.notice, notice):
            return _Seen(sighting, before.notice, before.remark)
        return _Seen(sighting, notice, remark)

    def _tell(self) -> list[Change]:
        """Tell what stands and was not told as it is: first what takes the place of something told, then, the strongest
        first, what no other source's word covers."""
        changes, untold = [], []
        for mine in self._sources.values():
            for node, notice in mine.stands.items():
                if node not in mine.told:
                    untold.append((mine, notice))
                elif _differs(mine.told[node], notice):
                    changes.append(mine.tell(notice))
        for mine, notice in sorted(untold, key=lambda pair: _urgency(pair[1])):
            if not any(other.covers(notice) for other in self.told()):
                changes.append(mine.tell(notice))
        return changes


def _urgency(notice: Notice) -> tuple[int, bool, int]:
    return -notice.kind.strength, notice.deadline_ns is None, notice.deadline_ns or 0


def _news(before: Notice, after: Notice) -> bool:
    """Whether a sighting that changed is another notice."""
    if before.kind is not after.kind or before.node != after.node:
        return True
    if after.deadline_ns is None or before.deadline_ns is None:
        return after.deadline_ns is not None
    if before.deadline_ns <= after.received_ns >= after.deadline_ns:
        return False  # it was due, and it has come
    return abs(after.deadline_ns - before.deadline_ns) > MOVED_NS


def _differs(told: Notice, stands: Notice) -> bool:
    return (told.kind, told.deadline_ns) != (stands.kind, stands.deadline_ns)
