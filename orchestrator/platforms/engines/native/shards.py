"""The state memory of one node, in its agent: the shards of its own ranks, and copies of a neighbour's.

What is guaranteed. Let ranks publish every k-th step and wait, before the collective call that ends step s (`Memory.settle`),
for the copy of what they published last. Then, once step s is over on any rank, the shard of the last published step before s
is whole in two places for every rank: one node may be lost at any moment, and at most k steps are redone. If a loop waits
only in `Memory.buffer`, after that call, a rank may be ahead of another's copy by one publication, and up to 2k steps are
redone; that is what the third slot is for. While a rank is `alone` (its neighbour is gone, or too slow to be waited for)
only its own node has its state: lose that node then, and the job resumes from its checkpoint.

Shards of a generation stay until `forget` names a later one, also when their ranks are long dead. Nothing is written to a
disk or to /dev/shm: a killed agent leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.domain.clock import Clock
from orchestrator.platforms.engines.native.copies import Arriving, Copies, Copy
from orchestrator.platforms.engines.native.couriers import Bells, Courier, Numbers
from orchestrator.platforms.engines.native.segments import NotASegment, Published, Segment
from orchestrator.platforms.engines.native.serving import Server
from orchestrator.platforms.engines.native.wire import Address, Description, Name, Refused, hashes_of

SLOTS = 3
"""Shards that a rank holds at a time: one to fill, and two whole ones, since another rank's copy may be one behind."""
PATIENCE_SECONDS = 2.0
"""How long another agent may not answer at all before it counts as gone. The coordinator decides far sooner."""


@dataclass(frozen=True, slots=True)
class Held:
    """One whole shard that this node has."""

    generation: int
    world_size: int
    rank: int
    step: int
    bytes: int
    own: bool
    """True for a rank of this node, False for the copy of a neighbour's."""

    def fields(self) -> dict[str, Any]:
        """As it stands in an `inventory` message."""
        return asdict(self)


class ShardStore:
    """One an agent. Safe to use from several threads."""

    def __init__(
        self, host: str, token: str, clock: Clock, *, slots: int = SLOTS, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """`host`: the address of this node by which other nodes reach it. Raises OSError when it is not one of its own."""
        self._token, self._clock = token, clock
        self._slots, self._patience = slots, patience_seconds
        self._lock = threading.Lock()
        self._own: dict[tuple[int, int], _Own] = {}
        self._copies: dict[tuple[int, int], Copies] = {}
        self._ending: list[Courier] = []
        self._from = 0
        self._server = Server(host, token, self)

    @property
    def address(self) -> Address:
        """Of the memory server."""
        return self._server.address

    # ---- for the agent

    def admit(
        self,
        generation: int,
        rank: int,
        world_size: int,
        *,
        replica: Address | None,
        source: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Memory for a rank of this node in a new world. What comes back is JSON and belongs into the rank's `Memory`; it
        holds the token, so it must not be logged. `replica` and `source` are those of the plan.

        Raises ValueError when the rank has some already, OSError when the system gives none.
        """
        with self._lock:
            if (generation, rank) in self._own:
                raise ValueError(f"rank {rank} of generation {generation} has memory already")
            segment = Segment.create(f"shard-{generation}-{rank}", self._slots)
            try:
                bells = Bells()
            except OSError:
                segment.close()
                raise
            path, (up, down) = segment.path, bells.paths
            courier = Courier(
                generation, rank, world_size, segment, bells, replica, self._token, self._patience, self._clock
            )
            self._own[generation, rank] = _Own(world_size, segment, courier)
        return {
            "generation": generation,
            "rank": rank,
            "world_size": world_size,
            "segment": path,
            "bell": up,
            "answer": down,
            "source": dict(source) if source is not None else None,
            "paired": replica is not None,
            "near": list(self.address),
            "token": self._token,
            "patience_seconds": self._patience,
        }

    def inventory(self) -> list[Held]:
        """Every whole shard that is here. Ask when the ranks of the old world are dead: a live one goes on overwriting."""
        with self._lock:
            own, copies = list(self._own.items()), list(self._copies.items())
        found = [
            Held(generation, held.world_size, rank, copy.step, len(copy.data), own=False)
            for (generation, rank), held in copies
            for copy in held.whole()
        ]
        found += [
            Held(generation, mine.world_size, rank, shard.step, mine.segment.nbytes, own=True)
            for (generation, rank), mine in own
            for shard in mine.published()
        ]
        return sorted(found, key=lambda held: (-held.generation, -held.step, held.rank, not held.own))

    def pair(self, generation: int, rank: int, replica: Address | None) -> None:
        """Copies of the rank's shards go to another agent from the next one on; None: to none."""
        with self._lock:
            mine = self._own.get((generation, rank))
        if mine is not None:
            mine.courier.pair(replica)

    def forget(self, generation: int, step: int) -> None:
        """No state older than `step` of `generation` is needed any more: shards of generations before it go, and none of
        them is taken again. Within the generation each rank's own slots go round, so nothing has to be done."""
        with self._lock:
            self._from = max(self._from, generation)
            self._end([self._own.pop(key) for key in list(self._own) if key[0] < generation])
            self._copies = {key: copies for key, copies in self._copies.items() if key[0] >= generation}

    def numbers(self) -> list[Numbers]:
        """What replication of each rank of this node costs, the newest generation first."""
        with self._lock:
            own = list(self._own.values())
        return sorted((mine.courier.numbers() for mine in own), key=lambda item: (-item.generation, item.rank))

    def close(self) -> None:
        """Give everything back, and wait until it is."""
        with self._lock:
            self._end(list(self._own.values()))
            self._own, self._copies = {}, {}
            self._from = 2**63
            ending, self._ending = self._ending, []
        for courier in ending:
            courier.join()
        self._server.close()

    def _end(self, gone: list[_Own]) -> None:
        for mine in gone:
            mine.courier.stop()
        self._ending = [*(courier for courier in self._ending if courier.alive), *(mine.courier for mine in gone)]

    # ---- for the server

    def describe(self, name: Name) -> Description:
        found = self._find(name)
        if isinstance(found, Copy):
            world_size = self._copies_of(name).world_size
            return Description(len(found.data), world_size, found.layout, found.fixed, found.document, found.hashes)
        mine, shard = found
        segment = mine.segment
        hashes = mine.courier.hashes(shard) or hashes_of(segment.data(shard.slot))
        if not segment.still(shard):
            raise Refused(f"{name} is not here any more")
        return Description(segment.nbytes, mine.world_size, segment.layout, segment.fixed, shard.document, hashes)

    def look(self, name: Name) -> memoryview:
        found = self._find(name)
        return found.data if isinstance(found, Copy) else found[0].segment.data(found[1].slot)

    def expect(self, name: Name, world_size: int, nbytes: int, *, again: bool) -> Arriving:
        with self._lock:
            if name.generation < self._from:
                raise Refused(f"generation {name.generation} is over")
            held = self._copies.setdefault((name.generation, name.rank), Copies(world_size))
        return held.expect(name.step, nbytes, again=again)

    def _copies_of(self, name: Name) -> Copies:
        with self._lock:
            held = self._copies.get((name.generation, name.rank))
        if held is None:
            raise Refused(f"{name} is not here")
        return held

    def _find(self, name: Name) -> Copy | tuple[_Own, Published]:
        with self._lock:
            mine = self._own.get((name.generation, name.rank))
        if mine is not None:
            for shard in mine.published():
                if shard.step == name.step:
                    return mine, shard
        for copy in self._copies_of(name).whole():
            if copy.step == name.step:
                return copy
        raise Refused(f"{name} is not here")


@dataclass(frozen=True, slots=True)
class _Own:
    """The memory of a rank of this node."""

    world_size: int
    segment: Segment
    courier: Courier

    def published(self) -> list[Published]:
        """What is whole; nothing when the rank left its memory in a state that it cannot be in, or when it was let go."""
        try:
            return self.segment.published()
        except (NotASegment, OSError):
            return []
