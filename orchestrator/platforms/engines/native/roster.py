"""Who is there: agents, their workers, and the places that a world could have on them.

Places are given so that ranks stay where they were: an agent of the last world keeps its order, others follow in the
order in which they came, and the ranks of one agent are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.platforms.engines.base import Outcome
from orchestrator.platforms.engines.native.causes import SUCCEEDED, WORKER_LOST
from orchestrator.platforms.engines.native.commands import Tell
from orchestrator.platforms.engines.native.messages import (
    READY,
    WARMING,
    Address,
    Hello,
    Kill,
    Left,
    Spawn,
    WorkerBeat,
)
from orchestrator.platforms.engines.native.terms import MILLISECOND, SECOND, Judgements, Limits, Terms
from orchestrator.platforms.engines.native.warnings import Warnings


@dataclass(slots=True)
class Worker:
    """A worker process as its agent tells of it."""

    worker: str
    agent: str
    state: str = WARMING
    generation: int = 0
    """Of the world that it has a place in; 0 for a standby."""
    rank: int = 0
    step: int | None = None
    step_age_ns: int = 0
    quiet_ns: int = 0
    starved_ns: int = 0
    stopped_ns: int = 0
    own_ns: int | None = None
    pid: int | None = None
    born_ns: int = 0
    seen_ns: int = 0
    """When its agent last spoke of it."""
    doomed: bool = False
    """We asked for its end, or for that of its world."""
    returns: bool = False
    """Its process was a member of an older world."""

    @property
    def standby(self) -> bool:
        return self.generation == 0 and not self.doomed

    def hear(self, beat: WorkerBeat) -> None:
        self.state = beat.state
        self.pid = beat.pid or self.pid
        self.quiet_ns, self.starved_ns, self.own_ns = beat.quiet_ns, beat.starved_ns, beat.own_ns
        self.stopped_ns = beat.stopped_ns
        if beat.step is not None or self.step is None:
            self.step, self.step_age_ns = beat.step, beat.step_ns


@dataclass(slots=True)
class AgentSeen:
    """One node's agent. `order` counts agents as they came."""

    agent: str
    node: str
    host: str
    address: Address
    slots: int
    order: int
    heard_ns: int
    workers: dict[str, Worker] = field(default_factory=dict)
    suspected_until_ns: list[int] = field(default_factory=list)
    """One entry a slot that is not used for now, as its worker did not answer."""
    held_until_ns: list[int] = field(default_factory=list)
    """One entry a slot that a process holds which could not be ended."""
    failed: int = 0
    """Standbys in a row that ended before they were ready."""
    spawn_after_ns: int = 0
    ready_told: int = 0
    """Slots of which it was told that a worker was ready there once."""

    @classmethod
    def of(cls, hello: Hello, order: int, now_ns: int) -> AgentSeen:
        return cls(hello.agent, hello.node, hello.host, hello.address, hello.slots, order, now_ns)

    def standbys(self, *states: str) -> list[Worker]:
        """Standbys in any of these states, the oldest first."""
        return [worker for worker in self.workers.values() if worker.standby and worker.state in states]

    def sound_slots(self, now_ns: int) -> int:
        self.suspected_until_ns = [until for until in self.suspected_until_ns if until > now_ns]
        self.held_until_ns = [until for until in self.held_until_ns if until > now_ns]
        return max(0, self.slots - len(self.suspected_until_ns) - len(self.held_until_ns))

    @property
    def returning(self) -> list[Worker]:
        """Processes on their way back from a world that has ended."""
        return [worker for worker in self.standbys(WARMING) if worker.returns]

    def room(self, ranks_per_worker: int, now_ns: int, *states: str, live: bool) -> int:
        """Workers that a world could have here, out of standbys in these states and, where members come back (`live`), of
        the members that run."""
        found = len(self.standbys(*states))
        if live:
            found += sum(1 for worker in self.workers.values() if worker.generation and not worker.doomed)
        return min(self.sound_slots(now_ns), found // ranks_per_worker)


@dataclass(frozen=True, slots=True)
class Member:
    """One rank's place in a world. `slot` is the number of its worker on the agent, from 0."""

    worker: str
    agent: str
    node: str
    host: str
    address: Address
    rank: int
    local_rank: int
    local_world_size: int
    slot: int

    @property
    def slot_name(self) -> str:
        return slot_name(self.agent, self.slot)

    def document(self) -> dict[str, Any]:
        return {
            "worker": self.worker,
            "rank": self.rank,
            "host": self.host,
            "node": self.node,
            "slot": self.slot_name,
        }


def slot_name(agent: str, number: int) -> str:
    return f"{agent}/{number}"


@dataclass(slots=True)
class World:
    """One generation. Its members and its source never change."""

    generation: int
    members: tuple[Member, ...]
    sources: frozenset[Address]
    """Memory servers that its state is read from."""
    planned_ns: int
    ends: dict[int, Left] = field(default_factory=dict)
    """How ranks left, by rank."""
    spares: dict[int, str] = field(default_factory=dict)
    """Agents without members that keep copies, by the rank that has no other node's member for it."""
    stepped: bool = False
    settled: bool = False
    """Older state was let go."""

    @property
    def size(self) -> int:
        return len(self.members)

    def member(self, worker: str) -> Member | None:
        return next((member for member in self.members if member.worker == worker), None)

    def on(self, agent: str) -> list[Member]:
        return [member for member in self.members if member.agent == agent]

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(member.node for member in self.members)

    @property
    def empty(self) -> bool:
        """Every rank has left."""
        return len(self.ends) == self.size

    @property
    def finished(self) -> bool:
        """Some rank has finished the job."""
        return any(left.reason in SUCCEEDED for left in self.ends.values())

    @property
    def result(self) -> Left | None:
        """How rank 0 finished the job, when it has."""
        left = self.ends.get(0)
        return left if left is not None and left.reason in SUCCEEDED else None


def places(
    agents: Iterable[AgentSeen],
    workers: int,
    ranks_per_worker: int,
    before: Sequence[Member],
    now_ns: int,
    slow: Collection[str] = (),
) -> tuple[Member, ...]:
    """Members of a world of so many workers on these agents, in rank order. There must be room for it. Nodes that are `slow`
    are taken last."""
    seniority = _seniority(before)
    agents = sorted(agents, key=lambda agent: (agent.node in slow, *seniority(agent)))
    chosen: list[tuple[AgentSeen, list[Worker]]] = []
    free = workers
    for agent in agents:
        count = min(free, agent.room(ranks_per_worker, now_ns, READY, live=False))
        if count:
            chosen.append((agent, agent.standbys(READY)[: count * ranks_per_worker]))
            free -= count
    if free:
        raise ValueError(f"no room for {workers} workers: {free} too many")
    flat = [(agent, worker, local, len(own)) for agent, own in chosen for local, worker in enumerate(own)]
    return tuple(
        _member(agent, worker, rank, local, local_size, ranks_per_worker)
        for rank, (agent, worker, local, local_size) in enumerate(flat)
    )


def _member(
    agent: AgentSeen, worker: Worker, rank: int, local_rank: int, local_size: int, ranks_per_worker: int
) -> Member:
    slot = local_rank // ranks_per_worker
    return Member(worker.worker, agent.agent, agent.node, agent.host, agent.address, rank, local_rank, local_size, slot)


def _seniority(before: Sequence[Member]) -> Callable[[AgentSeen], tuple[int, int]]:
    first_rank: dict[str, int] = {}
    for member in before:
        first_rank.setdefault(member.node, member.rank)
    return lambda agent: (first_rank.get(agent.node, len(before)), agent.order)


def replica_of(member: Member, members: Sequence[Member]) -> Address | None:
    """The memory that keeps a copy of this member's shard: of the next rank on another node; None when there is none."""
    for offset in range(1, len(members)):
        other = members[(member.rank + offset) % len(members)]
        if other.node != member.node:
            return other.address
    return None


class Roster:
    """All agents that are there, and the standbys they should have."""

    def __init__(self, terms: Terms, limits: Limits, judgements: Judgements, warnings: Warnings, prefix: str) -> None:
        self.agents: dict[str, AgentSeen] = {}
        self._ranks = terms.ranks_per_worker
        self._lives = terms.lives
        self._live = terms.live
        self._limits = limits
        self._judgements = judgements
        self._warnings = warnings
        self._prefix = prefix
        self._arrived = 0
        self._spawned = 0
        self._ever_ready = False
        self._failures: list[Left] = []

    def add(self, hello: Hello, now_ns: int) -> AgentSeen:
        self._arrived += 1
        agent = AgentSeen.of(hello, self._arrived, now_ns)
        self.agents[hello.agent] = agent
        return agent

    @property
    def addresses(self) -> dict[str, Address]:
        return {name: agent.address for name, agent in self.agents.items()}

    def workers(self) -> list[Worker]:
        return [worker for agent in self.agents.values() for worker in agent.workers.values()]

    def open(self, world: World) -> list[Worker]:
        """Workers of the world that have not left, in rank order, of agents that are there."""
        found = []
        for member in world.members:
            agent = self.agents.get(member.agent)
            worker = None if agent is None else agent.workers.get(member.worker)
            if worker is not None:
                found.append(worker)
        return found

    def running(self, generation: int, size: int) -> tuple[Member, ...] | None:
        """The members of a world that another coordinator planned, when all of them are here."""
        found = {worker.rank: worker for worker in self.workers() if worker.generation == generation}
        if set(found) != set(range(size)):
            return None
        members = []
        for rank, worker in sorted(found.items()):
            agent = self.agents[worker.agent]
            ranks = sorted(other.rank for other in found.values() if other.agent == worker.agent)
            members.append(_member(agent, worker, rank, ranks.index(rank), len(ranks), self._ranks))
        return tuple(members)

    def standby_ready(self, agent: AgentSeen) -> None:
        self._ever_ready = True
        agent.failed = 0
        self._failures.clear()

    def comes_back(self, agent: AgentSeen, left: Left, now_ns: int) -> None:
        """The process of a worker that left its world is a standby from now on, not ready yet."""
        if left.again is not None:
            worker = Worker(left.again, agent.agent, born_ns=now_ns, seen_ns=now_ns, pid=left.pid, returns=True)
            agent.workers[worker.worker] = worker

    def standby_failed(self, agent: AgentSeen, left: Left, now_ns: int) -> Outcome | None:
        """One ended before it was used. The next on this agent comes after a pause; when none was ever ready anywhere and
        several have failed, there will be none: the attempt's outcome."""
        agent.failed += 1
        agent.spawn_after_ns = now_ns + min(10 * SECOND, 100 * MILLISECOND * 2 ** min(agent.failed, 10))
        self._failures.append(left)
        if self._ever_ready or len(self._failures) < self._limits.standby_failures:
            return None
        told = next((one for one in self._failures if one.reason != WORKER_LOST), left)
        return Outcome(told.reason, f"no worker could be made ready: {told.message}")

    def newly_ready(self, agent: AgentSeen) -> list[str]:
        """Slots of the agent where workers are ready for the first time."""
        ready = min(agent.slots, len(agent.standbys(READY)) // self._ranks)
        names = [slot_name(agent.agent, number) for number in range(agent.ready_told, ready)]
        agent.ready_told = max(agent.ready_told, ready)
        return names

    def usable(self, now_ns: int) -> list[AgentSeen]:
        """Agents whose slots count: on nodes that nobody leaves, and that are not in quarantine."""
        return [
            agent
            for agent in self.agents.values()
            if not self._warnings.leaving((agent.node,), now_ns) and self._judgements.usable(agent.node, now_ns)
        ]

    def spare(self, member: Member, now_ns: int) -> AgentSeen | None:
        """Who keeps copies for a member whose world is on no other node: the agent that has been there longest."""
        elsewhere = [agent for agent in self.usable(now_ns) if agent.node != member.node]
        return min(elsewhere, key=lambda agent: agent.order, default=None)

    def room(self, now_ns: int, *states: str, without: Collection[str] = ()) -> int:
        """Workers that a world could have, out of standbys in these states; `without` some nodes."""
        agents = [agent for agent in self.usable(now_ns) if agent.node not in without]
        return sum(agent.room(self._ranks, now_ns, *states, live=self._live) for agent in agents)

    def returning(self, now_ns: int) -> bool:
        """Whether processes that can be of use are on their way back from a world, and not late."""
        return any(
            now_ns - worker.born_ns < self._limits.return_ns
            for agent in self.usable(now_ns)
            for worker in agent.returning
        )

    def going_slots(self, now_ns: int) -> int:
        """Slots on nodes that are being left."""
        return sum(agent.slots for agent in self.agents.values() if self._warnings.leaving((agent.node,), now_ns))

    def fill(self, now_ns: int) -> list[Tell]:
        """Spawn what is missing of one standby a rank of every usable slot, and end those that take too long. Where members
        come back, a slot has one process in all."""
        tells = []
        for agent in self.usable(now_ns):
            for worker in agent.standbys(WARMING):
                if now_ns - worker.born_ns > self._limits.standby_ns:
                    worker.doomed = True
                    tells.append(Tell(agent.agent, Kill(worker.worker, "it did not become ready")))
            if now_ns < agent.spawn_after_ns:
                continue
            there = list(agent.workers.values()) if self._live else agent.standbys(WARMING, READY)
            for _ in range(agent.slots * self._ranks - len(there)):
                self._spawned += 1
                worker = Worker(f"{self._prefix}{self._spawned}", agent.agent, born_ns=now_ns, seen_ns=now_ns)
                agent.workers[worker.worker] = worker
                # Unlike lives, so that not all of a gang end in the same transition.
                lives = self._lives - self._spawned % max(1, self._lives // 2)
                tells.append(Tell(agent.agent, Spawn(worker.worker, lives)))
        return tells

    def end_older(self, generation: int) -> list[Tell]:
        """End what worlds before this one left behind on agents that were away."""
        tells = []
        for worker in self.workers():
            if 0 < worker.generation < generation and not worker.doomed:
                worker.doomed = True
                tells.append(Tell(worker.agent, Kill(worker.worker, "its world is over")))
        return tells

    def suspect(self, now_ns: int, workers: Iterable[Worker]) -> list[Tell]:
        """These did not answer: their slots are not used for a while. Where members come back these would not, and are
        ended."""
        tells = []
        for worker in workers:
            agent = self.agents[worker.agent]
            agent.suspected_until_ns.append(now_ns + self._limits.suspect_ns)
            self._judgements.fault(agent.node, "Hung", now_ns)
            if self._live and not worker.doomed:
                worker.doomed = True
                tells.append(Tell(agent.agent, Kill(worker.worker, "it does not answer")))
        return tells

    def sound_slots(self, now_ns: int, needed: int) -> dict[str, int]:
        """Slots a node, of the nodes that nobody leaves. Where they are fewer than `needed`, those whose worker did not answer
        count again: another one may."""
        staying = [a for a in self.agents.values() if not self._warnings.leaving((a.node,), now_ns)]
        suspected = [(until, agent) for agent in staying for until in agent.suspected_until_ns if until > now_ns]
        for until, agent in sorted(suspected, key=lambda each: each[0]):
            if sum(each.sound_slots(now_ns) for each in staying) >= needed:
                break
            agent.suspected_until_ns.remove(until)
        slots: dict[str, int] = {}
        for agent in staying:
            slots[agent.node] = slots.get(agent.node, 0) + agent.sound_slots(now_ns)
        return slots

    def sentence(self, now_ns: int) -> str:
        """Who is there, for a person."""
        ready, possible = self.room(now_ns, READY), self.room(now_ns, READY, WARMING)
        parts = [f"{len(self.agents)} agents", f"{ready} workers ready", f"{possible - ready} warming up"]
        if going := self.going_slots(now_ns):
            parts.append(f"{going} slots on nodes that are being left")
        return ", ".join(parts)
