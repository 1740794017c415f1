"""Which nodes are being left, and when: what stands of the notices that came.

A node with a notice is not capacity. A world that stands on it leaves as late as is safe, which gathers further notices
into one transition: before the earliest deadline among them, by the lead; without a deadline after a short time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.platforms.engines.native.terms import Judgements, Limits

if TYPE_CHECKING:
    from orchestrator.platforms.engines.native.roster import AgentSeen  # which imports this module


@dataclass(frozen=True, slots=True)
class _Warning:
    kind: str
    seen_ns: int
    deadline_ns: int | None
    agents: frozenset[str]
    """Who was on the node then; a later one may come to a node of the same name that was made anew."""


class Warnings:
    """Instants are of the monotonic clock. A source has one notice for a node: a newer one takes its place."""

    def __init__(self, limits: Limits, judgements: Judgements) -> None:
        self._limits = limits
        self._judgements = judgements
        self._standing: dict[tuple[str, str], _Warning] = {}
        self._gone: set[str] = set()
        self._empty: frozenset[str] = frozenset()
        """Agents on nodes that were handed over."""

    def add(
        self,
        source: str,
        node: str,
        kind: str,
        certain: bool,
        deadline_ns: int | None,
        agents: Iterable[str],
        now_ns: int,
    ) -> None:
        """A notice that is not certain says that a node is less safe than others, and nothing follows from it here."""
        before = self._standing.pop((source, node), None)
        if certain:
            seen_ns = now_ns if before is None else before.seen_ns
            self._standing[source, node] = _Warning(kind, seen_ns, deadline_ns, frozenset(agents))

    def withdraw(self, source: str, node: str) -> None:
        self._standing.pop((source, node), None)

    def arrived(self, node: str, agent: str) -> None:
        """An agent is on the node. If it is another than those that were warned, and they are gone, the node is new."""
        for key in [key for key, one in self._standing.items() if key[1] == node and one.agents]:
            warning = self._standing[key]
            if agent not in warning.agents and warning.agents <= self._gone:
                del self._standing[key]
        self._gone.discard(agent)

    def left(self, node: str, agent: str) -> None:
        """An agent is gone from the node."""
        if any(key[1] == node for key in self._standing):
            self._gone.add(agent)

    def leaving(self, nodes: Iterable[str], now_ns: int) -> frozenset[str]:
        """Which of these nodes are being left."""
        horizon = now_ns + self._limits.horizon_ns
        near = {
            node for (_, node), one in self._standing.items() if one.deadline_ns is None or one.deadline_ns <= horizon
        }
        return frozenset(near.intersection(nodes))

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
        """When the first of these nodes must be left. Every one must have a notice."""
        nodes = frozenset(nodes)
        return min(self._due(source, one) for (source, node), one in self._standing.items() if node in nodes)

    def sentence(self, nodes: Iterable[str]) -> str:
        """What was announced."""
        nodes = frozenset(nodes)
        told = {f"{one.kind} (told by {source})" for (source, node), one in self._standing.items() if node in nodes}
        return ", ".join(sorted(told))

    def _due(self, source: str, one: _Warning) -> int:
        if one.deadline_ns is None:
            return one.seen_ns + self._limits.coalesce_ns
        return one.deadline_ns - self._judgements.lead_ns(source)
