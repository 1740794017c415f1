"""Which nodes are being left, and when: what stands of the notices that came.

A node with a notice is not capacity. A world that stands on it leaves as late as is safe for the first of its nodes, which
gathers further notices into one transition. Advice, that a node is likelier to be taken than others, is followed when it costs
little: when standbys elsewhere are ready to take the place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.platforms.engines.native.terms import Judgements, Limits

if TYPE_CHECKING:
    from orchestrator.platforms.engines.native.roster import AgentSeen  # which imports this module


@dataclass(frozen=True, slots=True)
class _Warning:
    notice: Notice
    agents: frozenset[str]
    """Who was on the node then; a later one may come to a node of the same name that was made anew."""


class Warnings:
    """Instants are of the monotonic clock. A source has one notice for a node: a newer one takes its place."""

    def __init__(self, limits: Limits, judgements: Judgements) -> None:
        self._limits = limits
        self._judgements = judgements
        self._standing: dict[tuple[str, str], _Warning] = {}
        self._advised: set[str] = set()
        """Nodes that are left though nothing is certain."""
        self._gone: set[str] = set()
        self._empty: frozenset[str] = frozenset()
        """Agents on nodes that were handed over."""

    def add(
        self,
        source: str,
        node: str,
        kind: NoticeKind,
        deadline_ns: int | None,
        agents: Iterable[str],
        now_ns: int,
    ) -> None:
        """A notice came; the instants are those of the gang's clock."""
        before = self._standing.pop((source, node), None)
        received_ns = now_ns if before is None else before.notice.received_ns
        notice = Notice(source, node, kind, received_ns, deadline_ns)
        self._standing[source, node] = _Warning(notice, frozenset(agents))

    def withdraw(self, source: str, node: str) -> None:
        """A notice no longer stands."""
        self._standing.pop((source, node), None)
        self._forget_advice(node)

    def arrived(self, node: str, agent: str) -> None:
        """An agent is on the node. If it is another than those that were warned, and they are gone, the node is new."""
        for key in [key for key, one in self._standing.items() if key[1] == node and one.agents]:
            warning = self._standing[key]
            if agent not in warning.agents and warning.agents <= self._gone:
                del self._standing[key]
        self._forget_advice(node)
        self._gone.discard(agent)

    def left(self, node: str, agent: str) -> None:
        """An agent is gone from the node."""
        if any(key[1] == node for key in self._standing):
            self._gone.add(agent)

    def leaving(self, nodes: Iterable[str], now_ns: int) -> frozenset[str]:
        """Which of these nodes are being left."""
        horizon = now_ns + self._limits.horizon_ns
        near = {
            notice.node for notice in self._certain() if notice.deadline_ns is None or notice.deadline_ns <= horizon
        }
        return frozenset((near | self._advised).intersection(nodes))

    def advised(self, nodes: Iterable[str]) -> frozenset[str]:
        """Which of these nodes it was advised to leave, without certainty."""
        likely = {one.notice.node for one in self._standing.values() if not one.notice.kind.certain}
        return frozenset(likely.intersection(nodes) - self._advised)

    def follow(self, nodes: Iterable[str]) -> None:
        """Leave these nodes on mere advice; they are no capacity from here on."""
        self._advised.update(nodes)

    def handed_over(self, agents: Iterable[AgentSeen], used: Collection[str], now_ns: int) -> list[AgentSeen]:
        """Those on nodes that are being left and hold nothing any more, since the last call. `used`: nodes of the world, whose
        state lies in memories of its own."""
        empty = {
            agent.agent: agent for agent in agents if agent.node not in used and self.leaving((agent.node,), now_ns)
        }
        fresh = [agent for name, agent in empty.items() if name not in self._empty]
        self._empty = frozenset(empty)
        return fresh

    def due_ns(self, nodes: Iterable[str]) -> int:
        """When the first of these nodes must be left; those that are left on advice have no haste. Every one must have a
        notice."""
        nodes = frozenset(nodes)
        return min((self._due(notice) for notice in self._certain() if notice.node in nodes), default=0)

    def sentence(self, nodes: Iterable[str]) -> str:
        """What was announced."""
        nodes = frozenset(nodes)
        told = {
            f"{one.notice.kind} (told by {source})" for (source, node), one in self._standing.items() if node in nodes
        }
        return ", ".join(sorted(told))

    def _certain(self) -> Iterator[Notice]:
        return (one.notice for one in self._standing.values() if one.notice.kind.certain)

    def _due(self, notice: Notice) -> int:
        due_ns = self._judgements.leave_at_ns(notice)
        if notice.deadline_ns is None:  # nobody set the hour: what comes at the same time is one transition
            due_ns = max(due_ns, notice.received_ns + self._limits.coalesce_ns)
        return due_ns

    def _forget_advice(self, node: str) -> None:
        if not any(key[1] == node for key in self._standing):
            self._advised.discard(node)
