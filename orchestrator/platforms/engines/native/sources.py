"""Which state a new world begins with: the newest step that is whole in the agents' memories.

A step is whole when every rank's shard of one world is there, its own or a replica. Shards of two worlds are never mixed,
also not where their step is the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.platforms.engines.native.messages import Address, Shard, Source

Holdings = Sequence[tuple[Address, Sequence[Shard]]]
"""What each surviving agent has: the address of its memory server, and its shards."""


def newest_whole(holdings: Holdings) -> Source | None:
    """The newest whole step, the newer world's where two have it; None when nothing is whole."""
    by_state: dict[tuple[int, int, int], dict[int, list[tuple[bool, Address]]]] = defaultdict(lambda: defaultdict(list))
    for address, shards in holdings:
        for shard in shards:
            if 0 <= shard.rank < shard.world_size:
                state = (shard.step, shard.generation, shard.world_size)
                by_state[state][shard.rank].append((not shard.own, address))
    whole = [state for state, ranks in by_state.items() if len(ranks) == state[2]]
    if not whole:
        return None
    step, generation, world_size = newest = max(whole)
    return Source(generation, step, world_size, _own_first(by_state[newest]))


def doubled(source: Source) -> bool:
    """Whether every shard of it is in two memories, so that no single loss takes it."""
    return all(len(set(held)) > 1 for held in source.shards.values())


def _own_first(ranks: Mapping[int, list[tuple[bool, Address]]]) -> dict[int, tuple[Address, ...]]:
    return {rank: tuple(address for _, address in sorted(held)) for rank, held in sorted(ranks.items())}


class Memories:
    """What the agents last said that their memories hold. A question has a ticket; answers to older ones do not count."""

    def __init__(self) -> None:
        self.ticket = 0
        self._asked: set[str] = set()
        self._held: dict[str, tuple[Shard, ...]] = {}

    @property
    def pending(self) -> bool:
        """Somebody who was asked has not answered."""
        return bool(self._asked)

    def owes(self, agent: str) -> bool:
        """It was asked and has not answered."""
        return agent in self._asked

    @property
    def answered(self) -> bool:
        """Everybody who was asked has answered, and somebody was asked."""
        return bool(self._held) and not self._asked

    def ask(self, agents: Iterable[str]) -> None:
        """A new question, to these; what was known is out of date."""
        self.ticket += 1
        self._held.clear()
        self._asked = set(agents)

    def ask_also(self, agent: str) -> None:
        """The same question, to one that has come."""
        self._asked.add(agent)

    def answer(self, agent: str, ticket: int, shards: tuple[Shard, ...]) -> None:
        if ticket == self.ticket and agent in self._asked:
            self._asked.discard(agent)
            self._held[agent] = shards

    def lose(self, agent: str) -> None:
        self._asked.discard(agent)
        self._held.pop(agent, None)

    def clear(self) -> None:
        self._asked.clear()
        self._held.clear()

    def newest(self, addresses: Mapping[str, Address]) -> Source | None:
        return newest_whole([(addresses[agent], shards) for agent, shards in self._held.items()])
