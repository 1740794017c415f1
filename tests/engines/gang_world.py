"""A cluster of agents and workers that exists only in virtual time, driven by a `Gang`, which it watches.

Messages take time and arrive in order; workers warm up, form, step, publish their shards and replicate them; nodes die,
freeze, are cut off and come back. Whatever the gang commands is checked against what is really there.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.engines.base import Outcome
from orchestrator.platforms.engines.native import messages as m
from orchestrator.platforms.engines.native.commands import Command, Dismiss, End, Report, SaveNow, Tell, Want
from orchestrator.platforms.engines.native.gang import Gang, State
from orchestrator.platforms.engines.native.terms import MILLISECOND, SECOND, AfterHysteresis, Judgements, Limits, Terms

QUICK = Limits(
    silence_ns=700 * MILLISECOND,
    leave_ns=800 * MILLISECOND,
    return_ns=500 * MILLISECOND,
    inventory_ns=300 * MILLISECOND,
    inventory_hard_ns=600 * MILLISECOND,
    forming_ns=3 * SECOND,
    regroup_ns=2 * SECOND,
    dump_ns=200 * MILLISECOND,
    grace_ns=300 * MILLISECOND,
    gather_ns=SECOND,
    warm_ns=500 * MILLISECOND,
    coalesce_ns=300 * MILLISECOND,
    suspect_ns=3 * SECOND,
    start_ns=60 * SECOND,
    patience_ns=60 * SECOND,
    adopt_ns=SECOND,
    missing_ns=1_500 * MILLISECOND,
)
STEP_NS = 200 * MILLISECOND
ShardKey = tuple[int, int, int, int]  # generation, world size, step, rank


@dataclass(eq=False)
class SimWorker:
    worker: str
    agent: SimAgent
    state: str = m.WARMING
    generation: int = 0
    plan: m.Plan | None = None
    step: int | None = None
    stepped_ns: int = 0
    frozen: bool = False
    alive: bool = True
    own_ns: int | None = None
    """Its own work in a step, as its agent tells it."""
    lives: int = 1
    """Worlds that its process may yet have a place in, the present one counted."""
    cut: int = 0
    """The generation from which it was told to come back."""


@dataclass(eq=False)
class SimAgent:
    agent: str
    node: str
    slots: int
    address: tuple[str, int]
    alive: bool = True
    frozen: bool = False
    cut: bool = False
    line: int = 0
    """Number of its connection; 0: none."""
    workers: dict[str, SimWorker] = field(default_factory=dict)
    memory: dict[ShardKey, bool] = field(default_factory=dict)
    regroup: int = 0
    held: list[Callable[[], None]] = field(default_factory=list)
    up_ns: int = 0
    down_ns: int = 0
    generation: int = 0
    out_of_memory: tuple[tuple[int, int], ...] = ()
    known_ns: int = 0
    """When the gang heard its hello."""
    notice: Callable[[], None] | None = None
    """How it tells of its notice; again whenever it has connected."""


class Cluster:
    """`loops_hear_regroup=False` makes worker loops that do not know the wish. With `lives` above 1 workers come back from a
    world that has ended, those of `unfit` excepted, which fail their self-test. Fresh ones take `warm_ns` to be ready."""

    def __init__(
        self,
        sizes: tuple[int, ...] = (1, 2, 3),
        *,
        seed: int = 0,
        elastic: bool = True,
        ranks_per_worker: int = 1,
        exclusive: bool = False,
        limits: Limits = QUICK,
        hang_ns: int | None = 1_000 * MILLISECOND,
        loops_hear_regroup: bool = True,
        lead_ns: int = SECOND,
        delay_ns: tuple[int, int] = (MILLISECOND, 5 * MILLISECOND),
        global_batch: int | None = None,
        judge: Callable[[Terms], Judgements] | None = None,
        lives: int = 1,
        unfit: float = 0.0,
        warm_ns: tuple[int, int] = (20 * MILLISECOND, 600 * MILLISECOND),
    ) -> None:
        self.random = random.Random(seed)
        self.now_ns = 10**12
        self.judgements = Judgements(
            hang_limit_ns=lambda: hang_ns,
            grow_to=AfterHysteresis(500 * MILLISECOND),
            leave_at_ns=lambda notice: (notice.deadline_ns or notice.received_ns) - lead_ns,
        )
        self.terms = Terms(sizes, ranks_per_worker, elastic, exclusive, global_batch, lives=lives)
        if judge is not None:
            self.judgements = judge(self.terms)
        self.unfit = unfit
        self.warm_ns = warm_ns
        self.returned: list[str] = []
        """Workers whose process has come back."""
        self.limits = limits
        self.gang = Gang(self.terms, self.now_ns, limits=limits, judgements=self.judgements)
        self.delay_ns = delay_ns
        self.loops_hear_regroup = loops_hear_regroup
        self.agents: dict[str, SimAgent] = {}
        self.events: list[Mapping[str, Any]] = []
        self.commands: list[Command] = []
        self.outcome: Outcome | None = None
        self.saves = 0
        self.wanted = 0
        self.steps: dict[int, int] = {}
        """The last step of each generation."""
        self.started_from: dict[int, int | None] = {}
        self.past: list[m.Plan] = []
        self.handed_over: list[str] = []
        """Nodes whose agents were told that nothing of worth is left there."""
        self.warned: set[str] = set()
        """Nodes whose notice the gang has received."""
        self.known_gone: set[str] = set()
        """Workers whose end the gang has received."""
        self.starved: set[str] = set()
        """Workers that get no processor."""
        self.stopped: dict[str, int] = {}
        """Workers that are stopped, and when that happened."""
        self._generation = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._lines = 0
        self.every(50 * MILLISECOND, lambda: self.feed(self.gang.tick(self.now_ns)))

    # --- time ---

    def at(self, after_ns: int, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now_ns + after_ns, self._count, what))

    def every(self, period_ns: int, what: Callable[[], None]) -> None:
        def again() -> None:
            what()
            self.at(period_ns, again)

        self.at(period_ns, again)

    def run(self, seconds: float) -> None:
        end = self.now_ns + round(seconds * SECOND)
        while self._queue and self._queue[0][0] <= end and self.outcome is None:
            self.now_ns, _, what = heapq.heappop(self._queue)
            what()
        self.now_ns = max(self.now_ns, end)

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        end = self.now_ns + round(seconds * SECOND)
        while not condition():
            assert self.outcome is None or condition(), f"it ended: {self.outcome}"
            assert self._queue[0][0] <= end, f"not within {seconds} s: {self.story()}"
            self.now_ns, _, what = heapq.heappop(self._queue)
            what()

    def story(self) -> str:
        world = self.gang.world
        return (
            f"{self.gang.state}, generation {self.gang.generation}, size {world and world.size}, steps {self.steps}, "
            f"{self.events[-6:]}"
        )

    # --- nodes ---

    def start(self, node: str, slots: int = 1, agent: str | None = None) -> SimAgent:
        number = len(self.agents) + 1
        new = SimAgent(agent or f"agent-{node}-{number}", node, slots, (node, 1_000 + number))
        self.agents[new.agent] = new
        self.every(100 * MILLISECOND, lambda: self._beat(new))
        self._connect(new)
        return new

    def start_all(self, nodes: str, slots: int = 1) -> None:
        """One agent a node, in this order."""
        for node in nodes:
            self.start(node, slots)
            self.run(0.01)

    def new_coordinator(self, prefix: str = "x") -> None:
        """The gang is gone, and another hears the agents that come back."""
        self.gang = Gang(
            self.terms, self.now_ns, limits=self.limits, judgements=self.judgements, prefix=prefix, adopt=True
        )
        self._generation = 0
        self.warned.clear()
        for agent in self.agents.values():
            agent.line = 0

    def kill_node(self, agent: SimAgent) -> None:
        """Everything on it is gone at once, and its connection breaks."""
        agent.alive = False
        agent.memory.clear()
        for worker in agent.workers.values():
            self._die(worker)
        line = agent.line
        if not agent.cut:
            self.at(self._delay(), lambda: self._eof(agent, line))

    def kill_worker(self, worker: SimWorker, reason: str = "WorkerLost", *, collateral: bool = False) -> None:
        if worker.alive and collateral:
            generation = worker.generation
            self._leave(worker, reason, "connection closed by peer", collateral=True)
            self.at(100 * MILLISECOND, lambda: self._miss(generation))
        elif worker.alive:
            self._die(worker)
            self._leave(worker, reason, "killed by signal 9", collateral=collateral)

    def cut(self, agent: SimAgent) -> None:
        """Its cable is pulled: nothing comes or goes."""
        agent.cut = True

    def heal(self, agent: SimAgent) -> None:
        agent.cut = False
        held, agent.held = agent.held, []
        for send in held:
            send()
        if agent.line == 0:
            self._connect(agent)

    def notice(self, agent: SimAgent, seconds: float | None, kind: str = "interruption") -> None:
        deadline = None if seconds is None else self.now_ns + round(seconds * SECOND)

        def arrive() -> None:
            self.warned.add(agent.node)
            self.feed(self.gang.noticed("aws", agent.node, NoticeKind(kind), deadline, self.now_ns))

        agent.notice = arrive
        self._up(agent, arrive)

    def members(self) -> list[SimWorker]:
        world = self.gang.world
        assert world is not None
        return [self.agents[place.agent].workers[place.worker] for place in world.members]

    # --- the wire ---

    def _delay(self) -> int:
        return self.random.randint(*self.delay_ns)

    def _up(self, agent: SimAgent, what: Callable[[], None]) -> None:
        """From the agent to the gang, over its connection, in order."""
        if agent.cut:
            agent.held.append(lambda: self._up(agent, what))
            return
        line = agent.line
        agent.up_ns = max(agent.up_ns + 1, self.now_ns + self._delay())

        def arrive() -> None:
            if agent.cut:
                agent.held.append(lambda: self._up(agent, what))
            elif line == agent.line and line:
                what()

        self.at(agent.up_ns - self.now_ns, arrive)

    def _connect(self, agent: SimAgent) -> None:
        if not agent.alive or agent.cut or agent.line:
            return
        self._lines += 1
        agent.line = self._lines

        def hello() -> None:
            beats = tuple(
                m.WorkerBeat(
                    w.worker,
                    w.state,
                    w.generation,
                    w.step,
                    rank=w.plan.rank if w.plan else None,
                    world_size=w.plan.world_size if w.plan else None,
                )
                for w in agent.workers.values()
                if w.alive
            )
            self.known_gone -= {beat.worker for beat in beats}
            said = m.Hello(
                "token",
                agent.agent,
                agent.node,
                f"host-{agent.node}",
                agent.address,
                agent.slots,
                beats,
                agent.generation,
                out_of_memory=agent.out_of_memory,
            )
            agent.known_ns = self.now_ns
            self.feed(self.gang.joined(said, self.now_ns))

        self._up(agent, hello)
        if agent.notice is not None:
            self._up(agent, agent.notice)

    def _eof(self, agent: SimAgent, line: int) -> None:
        if agent.line == line and line:
            agent.line = 0
            self.known_gone |= agent.workers.keys()
            self.feed(self.gang.lost(agent.agent, "its connection was closed", self.now_ns))

    def _beat(self, agent: SimAgent) -> None:
        if not agent.alive or agent.frozen or agent.cut:
            return
        if agent.line == 0:
            self._connect(agent)
            return
        workers = tuple(
            m.WorkerBeat(
                w.worker,
                w.state,
                w.generation,
                w.step,
                self.now_ns - w.stepped_ns,
                starved_ns=self.now_ns - w.stepped_ns if w.worker in self.starved else 0,
                stopped_ns=self.now_ns - self.stopped.get(w.worker, self.now_ns),
                own_ns=w.own_ns,
            )
            for w in agent.workers.values()
            if w.alive
        )
        self._up(agent, lambda: self.feed(self.gang.heard(agent.agent, m.Beat(workers), self.now_ns)))

    # --- what the gang commands ---

    def feed(self, commands: list[Command]) -> None:
        self.commands += commands
        for command in commands:
            match command:
                case Tell():
                    self._check(command)
                    self._down(self.agents[command.agent], command.message)
                case Dismiss():
                    agent = self.agents[command.agent]
                    self.known_gone |= agent.workers.keys()
                    agent.line = 0
                case Report():
                    self.events.append({**command.event, **command.moments})
                    self.judgements.hear(self.now_ns, {**self.events[-1], "at_ns": self.now_ns})
                case SaveNow():
                    self.saves += 1
                case Want():
                    self.wanted = command.slots
                case End():
                    assert self.outcome is None, "it ended twice"
                    self.outcome = command.outcome
        assert self.gang.generation >= self._generation
        self._generation = self.gang.generation

    def _check(self, command: Tell) -> None:
        plan = command.message
        if not isinstance(plan, m.Plan):
            return
        agent = self.agents[command.agent]
        known = [a.generation for a in self.agents.values() if a.agent in self.gang.roster.agents]
        assert plan.generation == self.gang.generation
        assert plan.generation > max(known)
        assert plan.worker not in self.known_gone, "planned with a worker that is known to be gone"
        assert agent.node not in self.warned, "planned on a node that is being left"
        self.past.append(plan)
        self.started_from[plan.generation] = plan.source.step if plan.source else None
        for other in self.agents.values():  # never two worlds, wherever the gang can know
            if other.line and not other.cut and other.agent in self.gang.roster.agents:
                old = [w for w in other.workers.values() if w.alive and 0 < w.generation < plan.generation]
                assert not old, f"{[w.worker for w in old]} of an older world still live on {other.agent}"
        if plan.source is not None:
            assert set(plan.source.shards) == set(range(plan.source.world_size)), "a source that is not whole"
            for rank, held in plan.source.shards.items():
                key = (plan.source.generation, plan.source.world_size, plan.source.step, rank)
                holders = [a for a in self.agents.values() if a.address in held]
                assert holders
                assert all(key in holder.memory or not holder.alive for holder in holders)

    def _down(self, agent: SimAgent, message: m.ToAgent) -> None:
        line = agent.line
        agent.down_ns = max(agent.down_ns + 1, self.now_ns + self._delay())

        def arrive() -> None:
            if agent.cut:
                agent.held.append(arrive)  # the connection keeps it until the cable is back
            elif agent.alive and not agent.frozen and agent.line == line:
                self._obey(agent, message)

        self.at(agent.down_ns - self.now_ns, arrive)

    def _obey(self, agent: SimAgent, message: m.ToAgent) -> None:
        match message:
            case m.Spawn():
                worker = SimWorker(message.worker, agent, lives=message.lives)
                if self.terms.live:
                    living = [w for w in agent.workers.values() if w.alive]
                    places = agent.slots * self.terms.ranks_per_worker
                    assert len(living) < places, f"{len(living)} processes for {places} ranks of {agent.agent}"
                agent.workers[worker.worker] = worker
                milliseconds = self.random.randint(*(limit // MILLISECOND for limit in self.warm_ns))
                self.at(milliseconds * MILLISECOND, lambda: self._warm(worker))
            case m.Plan():
                agent.generation, agent.out_of_memory = message.generation, message.out_of_memory
                planned = agent.workers.get(message.worker)
                if planned is not None and planned.alive and planned.state == m.READY:
                    planned.plan, planned.generation, planned.state = message, message.generation, m.FORMING
                    planned.step, planned.stepped_ns = None, self.now_ns
                    self._form(message.generation)
            case m.Regroup():
                agent.regroup = message.generation
            case m.Abort():
                for worker in [w for w in agent.workers.values() if w.alive and 0 < w.generation <= message.generation]:
                    if message.live:
                        self._cut_off(worker)
                    else:
                        self._end_worker(worker)
            case m.Kill():
                if message.worker in agent.workers:
                    self._end_worker(agent.workers[message.worker])
            case m.Dump():
                asked = agent.workers.get(message.worker)
                if asked is not None and asked.alive and not asked.frozen:
                    stacks = m.Stacks(message.worker, "File loop.py, line 1")
                    self._up(agent, lambda: self.feed(self.gang.heard(agent.agent, stacks, self.now_ns)))
            case m.AskInventory():
                shards = tuple(
                    m.Shard(generation, size, rank, step, own=own)
                    for (generation, size, step, rank), own in agent.memory.items()
                )
                answer = m.Inventory(message.ticket, shards)
                self._up(agent, lambda: self.feed(self.gang.heard(agent.agent, answer, self.now_ns)))
            case m.Pair():
                paired = agent.workers.get(message.worker)
                if paired is not None and paired.plan is not None and paired.generation == message.generation:
                    paired.plan = replace(paired.plan, replica=message.replica)
            case m.HandedOver():
                assert message.node == agent.node
                self.handed_over.append(agent.node)
            case m.Forget():
                for key in [key for key in agent.memory if (key[0], key[2]) < (message.generation, message.step)]:
                    del agent.memory[key]

    def _end_worker(self, worker: SimWorker) -> None:
        if worker.alive:
            self._die(worker)
            self.at(20 * MILLISECOND, lambda: self._leave(worker, "WorkerLost", "ended"))

    def _cut_off(self, worker: SimWorker) -> None:
        """It leaves its world and comes back; one that cannot is killed."""
        if worker.cut:
            return
        worker.cut = worker.generation
        if not worker.frozen and self.random.random() < 0.9:
            self.at(self.random.randint(1, 50) * MILLISECOND, lambda: self._give_way(worker))
        self.at(300 * MILLISECOND, lambda: self._end_worker(worker))

    def _give_way(self, worker: SimWorker) -> None:
        if worker.alive and not worker.agent.frozen:
            self._leave(worker, "ApplicationError", "connection closed by peer", collateral=True)

    def _come_back(self, worker: SimWorker) -> None:
        if worker.alive and worker.state == m.WARMING:
            if self.random.random() < self.unfit:
                worker.alive = False
                self._leave(worker, "Retired", "a thread of the old world is left")
            else:
                self.returned.append(worker.worker)
                worker.state = m.READY

    def _die(self, worker: SimWorker) -> None:
        worker.alive = False
        if worker.plan is not None and worker.generation:
            self.at(100 * MILLISECOND, lambda: self._miss(worker.generation))

    def _leave(
        self,
        worker: SimWorker,
        reason: str,
        message: str = "",
        *,
        collateral: bool = False,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """The agent tells of a worker's end, or of that of its world."""
        lived = worker.alive
        worker.alive = False
        agent = worker.agent
        if not agent.alive:
            return
        agent.workers.pop(worker.worker, None)
        again = None
        if lived and worker.generation and worker.lives > 1 and (reason == "Regrouped" or collateral):
            again = f"{worker.worker}+"
            returning = agent.workers[again] = SimWorker(again, agent, lives=worker.lives - 1)
            self.at(self.random.randint(20, 300) * MILLISECOND, lambda: self._come_back(returning))
        left = m.Left(worker.worker, worker.generation, reason, message, collateral, result, None, 4_711, again)

        def arrive() -> None:
            self.known_gone.add(worker.worker)
            self.feed(self.gang.heard(agent.agent, left, self.now_ns))

        self._up(agent, arrive)

    # --- what workers do ---

    def _warm(self, worker: SimWorker) -> None:
        if worker.alive and worker.state == m.WARMING:
            worker.state = m.READY

    def _of(self, generation: int) -> list[SimWorker]:
        return [w for a in self.agents.values() for w in a.workers.values() if w.generation == generation]

    def _whole(self, generation: int) -> list[SimWorker] | None:
        """The members, if all are there and can reach each other."""
        members = [w for w in self._of(generation) if w.alive]
        size = next((w.plan.world_size for w in members if w.plan is not None), 0)
        if not size or len(members) != size or any(w.frozen or w.agent.frozen for w in members):
            return None
        cut = {w.agent.agent for w in members if w.agent.cut}
        return None if cut and len({w.agent.agent for w in members}) > 1 else members

    def _form(self, generation: int) -> None:
        if self._whole(generation) is not None:
            self.at(self.random.randint(50, 400) * MILLISECOND, lambda: self._formed(generation))

    def _formed(self, generation: int) -> None:
        members = self._whole(generation)
        if members is None:
            return
        for worker in members:
            worker.state, worker.stepped_ns = m.RUNNING, self.now_ns
            assert worker.plan is not None
            worker.step = worker.plan.source.step if worker.plan.source else 0
        self.at(STEP_NS, lambda: self._step(generation))

    def _step(self, generation: int) -> None:
        members = self._whole(generation)
        if members is None:
            if any(w.alive for w in self._of(generation)):
                self.at(STEP_NS, lambda: self._step(generation))  # it hangs, and may go on
            return
        # A gang that has just heard of an agent again has told it what to end, but that is under way.
        heard_before_ns = self.now_ns - 2 * self.delay_ns[1]
        known = [w.agent for w in members if w.agent.line and w.agent.agent in self.gang.roster.agents]
        reachable = [agent for agent in known if agent.known_ns < heard_before_ns]
        if reachable:  # the gang never lets two worlds run
            others = [w for w in self._all() if w.alive and w.generation not in (0, generation) and w.agent.line]
            stepping = {w.generation for w in others if w.state == m.RUNNING and w.generation > generation}
            assert not stepping, f"worlds {generation} and {stepping} run at once"
        heard = self.loops_hear_regroup and all(w.agent.regroup == generation for w in members)
        for worker in members:
            worker.step, worker.stepped_ns = (worker.step or 0) + 1, self.now_ns
            self._publish(worker)
        self.steps[generation] = members[0].step or 0
        told = {"kind": "step", "step": self.steps[generation], "seconds": STEP_NS / SECOND, "at_ns": self.now_ns}
        self.judgements.hear(self.now_ns, told)
        if heard:
            for worker in members:
                self._leave(worker, "Regrouped")
        else:
            self.at(STEP_NS, lambda: self._step(generation))

    def _publish(self, worker: SimWorker) -> None:
        plan = worker.plan
        assert plan is not None
        assert worker.step is not None
        key = (plan.generation, plan.world_size, worker.step, plan.rank)
        holders = [(worker.agent, True)]
        if plan.replica is not None:
            there = [a for a in self.agents.values() if a.address == plan.replica and a.alive and not a.cut]
            assert all(a.node != worker.agent.node for a in there)
            holders += [(a, False) for a in there]
        for agent, own in holders:
            agent.memory[key] = own
            for old in [k for k in agent.memory if k[0] == key[0] and k[3] == key[3] and k[2] < key[2] - 1]:
                del agent.memory[old]

    def _miss(self, generation: int) -> None:
        """Members whose peer is dead see a broken connection."""
        for worker in [w for w in self._of(generation) if w.alive and not w.frozen and not w.agent.frozen]:
            if worker.state in (m.RUNNING, m.FORMING) and self.random.random() < 0.7:
                self._leave(worker, "ApplicationError", "connection closed by peer", collateral=True)

    def _all(self) -> list[SimWorker]:
        return [w for a in self.agents.values() for w in a.workers.values()]

    def steady(self, size: int | None = None) -> bool:
        world = self.gang.world
        return self.gang.state is State.STEADY and world is not None and (size is None or world.size == size)
