"""The elastic gang as a state machine: what agents tell goes in, what is to be done comes out. Pure: no clock, no socket.

    WAITING      too few workers for a world
    DECIDING     nothing runs; agents are asked what state their memories hold
    FORMING      a world is planned and its members are told; not all run yet
    STEADY       the world runs
    REGROUPING   the members of the world were asked to finish their step and leave
    ENDING       the attempt is over; its members are being ended
    ENDED

A world is a generation: a plan that never changes. Whatever goes wrong with it, while it runs or while it forms, ends it
and makes another, so there is one way to recover and no special case for a second fault. What belongs to an older
generation is ignored. After each input the same rules are applied (`_go_on`), until they change nothing more.

Limits: a node that is cut off and holds a whole world by itself goes on stepping until its agent finds the coordinator
again; for the gang that world is over, and its members are ended as soon as they can be reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.engines.base import Outcome
from orchestrator.platforms.engines.native import causes, hangs, sources
from orchestrator.platforms.engines.native.adoption import Adoption
from orchestrator.platforms.engines.native.batches import OUT_OF_MEMORY, Batches
from orchestrator.platforms.engines.native.causes import REGROUPED, RETIRED, SUCCEEDED, WORKER_LOST, Cause
from orchestrator.platforms.engines.native.commands import Command, Dismiss, End, Report, SaveNow, Tell, Want
from orchestrator.platforms.engines.native.founding import found, pair_anew
from orchestrator.platforms.engines.native.hangs import HangWatch, Verdict
from orchestrator.platforms.engines.native.messages import (
    LEFT,
    READY,
    RUNNING,
    Abort,
    AskInventory,
    Beat,
    Dump,
    HandedOver,
    Hello,
    Inventory,
    Kill,
    Left,
    Regroup,
    Source,
    Stacks,
    ToAgent,
    WorkerBeat,
)
from orchestrator.platforms.engines.native.roster import (
    AgentSeen,
    Member,
    Roster,
    World,
    places,
    slot_name,
)
from orchestrator.platforms.engines.native.sizing import Change, LastSave, Sizing
from orchestrator.platforms.engines.native.stragglers import StragglerWatch
from orchestrator.platforms.engines.native.terms import SECOND, Judgements, Limits, Terms
from orchestrator.platforms.engines.native.tidying import Tidying
from orchestrator.platforms.engines.native.warnings import Warnings


class State(Enum):
    WAITING = "waiting"
    DECIDING = "deciding"
    FORMING = "forming"
    STEADY = "steady"
    REGROUPING = "regrouping"
    ENDING = "ending"
    ENDED = "ended"


_WITH_WORLD = (State.FORMING, State.STEADY, State.REGROUPING)
_BY_THEMSELVES = Change("Resized", "its ranks left by themselves")


class Gang:
    """See the module. Every method that takes `now_ns` is an input and returns the commands that follow from it.

    `prefix` begins the names of the workers that this gang spawns; of two coordinators one after the other they differ.
    With `adopt` a world may be running already, of a coordinator that is no more: it is waited for before one is planned.
    """

    def __init__(
        self,
        terms: Terms,
        now_ns: int,
        *,
        target: int | None = None,
        limits: Limits | None = None,
        judgements: Judgements | None = None,
        prefix: str = "w",
        adopt: bool = False,
    ) -> None:
        self.terms = terms
        self.limits = limits or Limits()
        self.judgements = judgements or Judgements()
        self.state = State.WAITING
        self.generation = 0
        self.world: World | None = None
        self.warnings = Warnings(self.limits, self.judgements)
        self.roster = Roster(terms, self.limits, self.judgements, self.warnings, prefix)
        self.sizing = Sizing(terms, self.limits, self.judgements, self.roster, self.warnings, target or terms.sizes[-1])
        self._memories = sources.Memories()
        self._batches = Batches(terms)
        self._hangs = HangWatch(self.limits.dump_ns)
        self._stragglers = StragglerWatch(terms, self.limits, self.judgements, self.roster)
        self._commands: list[Command] = []
        self._now_ns = now_ns
        self._since_ns = now_ns
        """When the present state began."""
        self._before: tuple[Member, ...] = ()
        """The members of the last world, in rank order."""
        self._told: list[Cause] = []
        """What went wrong with this world's ranks, in the order in which it was told."""
        self._doubted_ns: int | None = None
        """Since when a rank has lost its peers without a cause that is known."""
        self._why_regroup = _BY_THEMSELVES
        self._regroup_told = False
        self._deaf = 0
        """The generation that was asked to regroup and did not."""
        self._saved_for: set[tuple[str, bool]] = set()
        """Nodes, and whether it was the final save."""
        self._wanted = 0
        self._fruitless = 0
        self._last_fault = (WORKER_LOST, "rank 0 left without a result")
        self._adoption = Adoption(self.roster, self.limits, now_ns, expected=adopt)
        self._stopping = False
        self._ending: Outcome | None = None
        self._grace_until_ns = 0
        self._tidying = Tidying(self._memories, self.roster, self._tell, self._ask_all)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def joined(self, hello: Hello, now_ns: int) -> list[Command]:
        """An agent is there, or there again."""
        self._wake(now_ns)
        before = self.roster.agents.get(hello.agent)
        if before is not None:
            self._lose_agent(before, "it began anew")
        agent = self.roster.add(hello, now_ns)
        untouched = self.state is State.WAITING and (self._adoption.pending or self.generation == 0)
        self.warnings.arrived(hello.node, hello.agent)
        for beat in hello.members:
            self._commands += self._adoption.take_over(agent, beat, now_ns, untouched=untouched)
        told = (beat.generation for beat in hello.members if beat.state != LEFT)
        self.generation = max(self.generation, hello.generation, *told)
        self._batches.learn(hello.out_of_memory)
        self._tell_of_nodes()
        self._report_slots(agent, "held")
        self._report_slots(agent, "ready", self.roster.newly_ready(agent))
        if self.state is State.DECIDING:
            self._memories.ask_also(agent.agent)
            self._tell(agent.agent, AskInventory(self._memories.ticket))
        return self._go_on()

    def lost(self, agent: str, why: str, now_ns: int) -> list[Command]:
        """An agent's connection is gone."""
        self._wake(now_ns)
        seen = self.roster.agents.get(agent)
        if seen is not None:
            self._lose_agent(seen, why)
            self._commands.append(Dismiss(agent, why))
        return self._go_on()

    def heard(self, agent: str, message: Beat | Left | Inventory | Stacks, now_ns: int) -> list[Command]:
        """A message of an agent that has joined; of any other it is ignored."""
        self._wake(now_ns)
        seen = self.roster.agents.get(agent)
        if seen is None:
            return self._go_on()
        seen.heard_ns = now_ns
        match message:
            case Beat():
                for beat in message.workers:
                    self._beat(seen, beat)
                self._miss_the_unnamed(seen)
                self._report_slots(seen, "ready", self.roster.newly_ready(seen))
            case Left():
                self._left(seen, message)
            case Inventory():
                self._memories.answer(agent, message.ticket, message.shards)
                self.generation = max(self.generation, *(shard.generation for shard in message.shards), 0)
            case Stacks():
                self._hangs.stacks(message.worker, message.text)
                self._stragglers.stacks(message.worker, message.text)
        return self._go_on()

    def noticed(self, source: str, node: str, kind: NoticeKind, deadline_ns: int | None, now_ns: int) -> list[Command]:
        """A node is about to go, or may be. `deadline_ns` is on the monotonic clock."""
        self._wake(now_ns)
        present = [agent.agent for agent in self.roster.agents.values() if agent.node == node]
        self.warnings.add(source, node, kind, deadline_ns, present, now_ns)
        return self._go_on()

    def withdrawn(self, source: str, node: str, now_ns: int) -> list[Command]:
        """A notice no longer stands."""
        self._wake(now_ns)
        self.warnings.withdraw(source, node)
        return self._go_on()

    def resize(self, workers: int, now_ns: int) -> list[Command]:
        """So many workers are wished for from now on."""
        self._wake(now_ns)
        self.sizing.target = workers
        return self._go_on()

    def stopping(self, now_ns: int) -> list[Command]:
        """The gang was asked to save and stop: it changes its size no more."""
        self._wake(now_ns)
        self._stopping = True
        return self._go_on()

    def end(self, outcome: Outcome, now_ns: int) -> list[Command]:
        """End at once, whatever runs."""
        self._wake(now_ns)
        self._end(outcome, grace_ns=0)
        return self._go_on()

    def tick(self, now_ns: int) -> list[Command]:
        """Time has passed. To be called several times within each limit."""
        self._wake(now_ns)
        return self._go_on()

    # --- what agents tell --------------------------------------------------------------------------------------------

    def _beat(self, agent: AgentSeen, beat: WorkerBeat) -> None:
        worker = agent.workers.get(beat.worker)
        if beat.state == LEFT:
            return
        if worker is None:
            if not any(member.worker == beat.worker for member in self._before):  # those are told as left any moment
                self._tell(agent.agent, Kill(beat.worker, "nobody knows it"))
            return
        worker.seen_ns = self._now_ns
        if beat.generation != worker.generation:
            return
        if worker.standby and beat.state == READY:
            self.roster.standby_ready(agent)
        worker.hear(beat)
        if self.world is not None and worker.generation == self.world.generation and worker.step is not None:
            self.world.stepped = True

    def _miss_the_unnamed(self, agent: AgentSeen) -> None:
        """Workers that the agent does not speak of any more, and whose end it did not tell."""
        for worker in list(agent.workers.values()):
            if self._now_ns - worker.seen_ns > self.limits.missing_ns:
                self._left(agent, Left(worker.worker, worker.generation, WORKER_LOST, "its agent does not know it"))

    def _left(self, agent: AgentSeen, left: Left) -> None:
        worker = agent.workers.pop(left.worker, None)
        if worker is None:
            return
        self.roster.comes_back(agent, left, self._now_ns)
        worker.pid = left.pid or worker.pid
        world = self.world
        member = None if world is None else world.member(left.worker)
        if world is None or member is None:
            failed = worker.standby and left.reason != RETIRED
            outcome = self.roster.standby_failed(agent, left, self._now_ns) if failed else None
            if outcome is not None and not self.generation:
                self._end(outcome, grace_ns=0)
            return
        world.ends[member.rank] = left
        if worker.doomed or left.reason in SUCCEEDED:
            return
        if left.reason == REGROUPED:
            if self.state in (State.FORMING, State.STEADY):  # it had been asked, and we had given up waiting for it
                self._enter(State.REGROUPING)
            if self.state is State.REGROUPING and not self._regroup_told:
                self._regroup_told = True
                self._report_lost(self._why_regroup.reason, self._why_regroup.message, self._now_ns)
            return
        cause = Cause.of(left, member.rank, causes.who(worker, member))
        self._told.append(cause)
        if self.state not in _WITH_WORLD:
            return
        if cause.own and cause.reason == OUT_OF_MEMORY:
            self._ran_out_of_memory(world, cause)
        elif cause.own:
            self._end(None, self.limits.grace_ns)
        elif cause.gone:
            reason = self._taken(member.node)
            self.judgements.fault(member.node, reason, self._now_ns)
            self._fault(reason, cause.sentence(), self._now_ns)
        elif self._doubted_ns is None:
            self._doubted_ns = self._now_ns

    def _lose_agent(self, agent: AgentSeen, why: str) -> None:
        del self.roster.agents[agent.agent]
        self._tell_of_nodes()
        self._report_slots(agent, "released")
        self._memories.lose(agent.agent)
        reason = self._taken(agent.node)
        self.warnings.left(agent.node, agent.agent)
        world = self.world
        if world is None:
            return
        lost = [member for member in world.on(agent.agent) if member.rank not in world.ends]
        for member in lost:
            worker = agent.workers.get(member.worker)
            self._told.append(Cause(member.rank, causes.who(worker, member), WORKER_LOST, why, False, True))
        if self.state not in _WITH_WORLD:
            return
        if lost or (self.state is State.FORMING and agent.address in world.sources):
            self.judgements.fault(agent.node, "NodeLost" if reason == WORKER_LOST else reason, self._now_ns)
            what = self._told[-1].sentence() if lost else f"the memory of {agent.host} is gone: {why}"
            self._fault(reason, what, agent.heard_ns, excused=True)

    # --- faults and ends ---------------------------------------------------------------------------------------------

    def _ran_out_of_memory(self, world: World, cause: Cause) -> None:
        """Go on with a smaller micro-batch, as long as there is one."""
        relief = self._batches.ran_out(world.size) if self.terms.elastic else None
        if relief is None:
            self._end(None, self.limits.grace_ns)
        elif relief.batch is None:
            self._end(Outcome(OUT_OF_MEMORY, f"{cause.sentence()}; {relief.reason}"), grace_ns=0)
        else:
            self._fault(OUT_OF_MEMORY, f"{cause.sentence()}; {relief.reason}", self._now_ns, excused=True)

    def _fault(self, reason: str, message: str, began_ns: int, *, excused: bool = False) -> None:
        """The world is over, against our will. `excused`: it does not count as one that was in vain."""
        world = self.world
        assert world is not None
        self._last_fault = (reason, message)
        if not self.terms.elastic or world.result is not None:  # rank 0 has finished the job
            self._end(None, self.limits.grace_ns if world.result is None else 0)
            return
        if not self._regroup_told:
            self._report_lost(reason, message, began_ns)
        self._regroup_told = False
        ran_long = self.state is State.STEADY and self._now_ns - self._since_ns >= self.limits.fruitful_ns
        if world.stepped or ran_long:
            self._fruitless = 0
        elif not excused:
            self._fruitless += 1
        if self._fruitless >= self.limits.fruitless_worlds:
            text = f"{self._fruitless} worlds in a row were lost before their first step; the last because {message}"
            self._end(Outcome(WORKER_LOST, text), grace_ns=0)
            return
        self._abort(message)
        self._decide()

    def _abort(self, why: str) -> None:
        """End all members of this world and of older ones, wherever they are."""
        for agent in self.roster.agents.values():
            placed = [worker for worker in agent.workers.values() if worker.generation and not worker.doomed]
            for worker in placed:
                worker.doomed = True
            if placed:
                live = self.terms.live and self.state is not State.ENDING
                self._tell(agent.agent, Abort(self.generation, why, live))

    def _decide(self) -> None:
        """Nothing runs any more, or will in a moment: look for the state to go on from."""
        self.world = None
        self._told.clear()
        self._doubted_ns = None
        self._hangs.clear()
        self._stragglers.clear()
        self._enter(State.DECIDING)
        self._ask_all()

    def _end(self, outcome: Outcome | None, grace_ns: int) -> None:
        """Begin to end the attempt; without an outcome it is found among the causes, which have `grace_ns` to come."""
        if self.state is State.ENDED:
            return
        if self.state is not State.ENDING:
            self._ending = outcome
            self._grace_until_ns = self._now_ns + grace_ns
            self._enter(State.ENDING)
        elif outcome is not None and self._ending is None:
            self._ending = outcome
            self._grace_until_ns = self._now_ns

    def _report_lost(self, reason: str, message: str, began_ns: int) -> None:
        assert self.world is not None
        event: dict[str, Any] = {"reason": reason, "message": message, "target": self.sizing.goal}
        if reason == OUT_OF_MEMORY:
            event["out_of_memory"] = self._batches.failed
        self._commands.append(
            Report({"kind": "world_lost", "generation": self.world.generation, **event}, {"began_ns": began_ns})
        )

    # --- the rules ---------------------------------------------------------------------------------------------------

    def _wake(self, now_ns: int) -> None:
        gap = now_ns - self._now_ns
        if gap > self.limits.stall_ns:
            for agent in self.roster.agents.values():
                agent.heard_ns += gap
        self._now_ns = now_ns

    def _go_on(self) -> list[Command]:
        rules = {
            State.WAITING: self._in_waiting,
            State.DECIDING: self._in_deciding,
            State.FORMING: self._in_forming,
            State.STEADY: self._in_steady,
            State.REGROUPING: self._in_regrouping,
            State.ENDING: self._in_ending,
        }
        self._miss_the_silent()
        before = None
        while before is not self.state and self.state is not State.ENDED:
            before = self.state
            rules[self.state]()
        # While a world forms it needs the processors itself.
        forms = self.state is State.FORMING and self._now_ns - self._since_ns < self.limits.forming_alone_ns
        if not forms and self.state not in (State.ENDING, State.ENDED):
            if not self._stopping and (self.terms.elastic or not self.generation):
                self._commands += self.roster.fill(self._now_ns)
            self._want()
        for decision in self.judgements.decisions():
            self._report(kind="decision", decision=decision.word, message=decision.because)
        commands, self._commands = self._commands, []
        return commands

    def _miss_the_silent(self) -> None:
        for agent in list(self.roster.agents.values()):
            silent_ns = self._now_ns - agent.heard_ns
            if silent_ns > self.limits.silence_ns:
                why = f"nothing was heard of {agent.host} for {silent_ns / SECOND:.1f} s"
                self._lose_agent(agent, why)
                self._commands.append(Dismiss(agent.agent, why))

    def _in_waiting(self) -> None:
        if self._adoption.pending and not self._adoption_over():
            return
        self._tell_of_nodes()
        waited = self._now_ns - self._since_ns
        text = f"{self.terms.sizes[0]} workers are needed; {self.roster.sentence(self._now_ns)}"
        if self._good_moment():
            self._decide()
        elif self._stopping:
            self._end(Outcome("Stopped", f"stopped with too few workers: {text}"), grace_ns=0)
        elif self.generation == 0 and waited > self.limits.start_ns:
            self._end(Outcome("EngineLost", f"no world within {waited / SECOND:.0f} s: {text}"), grace_ns=0)
        elif self.generation > 0 and waited > self.limits.patience_ns:
            self._end(Outcome(WORKER_LOST, f"too few workers for {waited / SECOND:.0f} s: {text}"), grace_ns=0)

    def _in_deciding(self) -> None:
        asked_ns = self._now_ns - self._since_ns
        # An agent heeds in order: when it has answered, its members of older worlds have been killed.
        going = [
            worker
            for worker in self.roster.workers()
            if worker.generation and (self._waits_for_all or self._memories.owes(worker.agent))
        ]
        if going and asked_ns < self.limits.leave_ns:
            return
        source = self._memories.newest(self.roster.addresses)
        patience = self.limits.inventory_ns if source is not None else self.limits.inventory_hard_ns
        if self._memories.pending and asked_ns < patience:
            return
        for worker in going:  # a process that cannot be ended holds its slot
            agent = self.roster.agents[worker.agent]
            agent.held_until_ns.append(self._now_ns + self.limits.suspect_ns)
            del agent.workers[worker.worker]
        size = self.sizing.size(self._now_ns)
        if size is None or not self._good_moment():
            self._enter(State.WAITING)
        else:
            self._plan(size, source)

    def _plan(self, size: int, source: Source | None) -> None:
        self.generation += 1
        agents = self.roster.usable(self._now_ns)
        members = places(agents, size, self.terms.ranks_per_worker, self._before, self._now_ns, self._stragglers.nodes)
        self.world, plans = found(self.roster, self.generation, members, source, self._batches, self._now_ns)
        self._before = members
        self._commands += plans
        workers = [member.document() for member in members]
        self._report(kind="world", generation=self.generation, world_size=len(members), workers=workers)
        self.sizing.planned(size)
        self._why_regroup, self._regroup_told = _BY_THEMSELVES, False
        self._enter(State.FORMING)

    def _in_forming(self) -> None:
        world = self.world
        assert world is not None
        if self._doubts_over(world) or self._all_left(world) or self._stopped_ones(world):
            return
        late = [worker for worker in self.roster.open(world) if worker.state != RUNNING]
        waited = self._now_ns - self._since_ns
        if not late:
            self._enter(State.STEADY)
        elif hangs.unhindered(waited, self.roster.open(world)) > min(
            self.limits.forming_ns, self.judgements.forming_limit_ns() or self.limits.forming_ns
        ):
            if len(late) < world.size:
                self._commands += self.roster.suspect(self._now_ns, late)
            ranks = ", ".join(str(worker.rank) for worker in late)
            text = f"the world did not form within {waited / SECOND:.0f} s; not running: rank {ranks}"
            self._fault("Hung", text, self._since_ns)

    def _in_steady(self) -> None:
        world = self.world
        assert world is not None
        if self._doubts_over(world) or self._all_left(world) or world.finished:
            return
        if self._hangs_here(world) or self._stopped_ones(world):
            return
        self._commands += pair_anew(self.roster, world, self._now_ns)
        self._tidying.look(world, self._now_ns)
        if world.settled:
            for agent in self.warnings.handed_over(self.roster.agents.values(), world.nodes, self._now_ns):
                self._tell(agent.agent, HandedOver(agent.node))
        fixed = self._stopping or self._deaf == world.generation or not self.terms.elastic
        self._commands += self._stragglers.look(world, self._now_ns)
        change = self.sizing.change(world, self._now_ns, fixed=fixed)
        if change is None and not fixed:
            change = self._stragglers.leave(world, self.sizing.target, self._now_ns)
        if isinstance(change, Change):
            self._regroup(world, change)
        elif isinstance(change, LastSave):
            saves = {(node, change.final) for node in change.nodes}
            if not saves <= self._saved_for:
                self._saved_for |= saves
                self._commands.append(SaveNow(change.message))

    def _regroup(self, world: World, change: Change) -> None:
        self._why_regroup, self._regroup_told = change, False
        for agent in sorted({member.agent for member in world.members}):
            self._tell(agent, Regroup(world.generation))
        self._enter(State.REGROUPING)

    def _in_regrouping(self) -> None:
        world = self.world
        assert world is not None
        if self._doubts_over(world) or self._all_left(world) or self._stopped_ones(world):
            return
        limit_ns = max(self.limits.regroup_ns, 2 * (self.judgements.hang_limit_ns() or 0))
        if self._now_ns - self._since_ns <= limit_ns:
            return
        if not world.ends:
            self._deaf = world.generation  # a loop that does not know the wish; it goes on as it is
            self._enter(State.STEADY)
            return
        stuck = self.roster.open(world)
        self._commands += self.roster.suspect(self._now_ns, stuck)
        ranks = ", ".join(str(worker.rank) for worker in stuck)
        self._fault("Hung", f"rank {ranks} did not leave within {limit_ns / SECOND:.0f} s", self._since_ns)

    def _in_ending(self) -> None:
        world = self.world
        if self._now_ns < self._grace_until_ns and world is not None and self.roster.open(world):
            return
        self._abort("the attempt ends")
        overdue = self._now_ns - max(self._grace_until_ns, self._since_ns) > self.limits.leave_ns
        if overdue or not any(worker.generation for worker in self.roster.workers()):
            self.state = State.ENDED
            self._commands.append(End(self._ending or causes.end_of(self.world, self._told, self._last_fault)))

    # --- what the rules ask ------------------------------------------------------------------------------------------

    def _all_left(self, world: World) -> bool:
        """Go on or end, when every rank has left and none for a fault."""
        if not world.empty:
            return False
        if world.result is None and any(left.reason == REGROUPED for left in world.ends.values()):
            self._decide()
        else:
            self._end(None, grace_ns=0)
        return True

    def _doubts_over(self, world: World) -> bool:
        """Give a rank's lost peers up as lost, when no cause has come in time."""
        if self._doubted_ns is None:
            return False
        if self.roster.open(world) and self._now_ns - self._doubted_ns < self.limits.grace_ns:
            return False
        self._fault(WORKER_LOST, causes.outcome_of(self._told).message, self._doubted_ns)
        return True

    def _hangs_here(self, world: World) -> bool:
        """Look for a world that makes no step; whether it was given up."""
        verdict = self._hangs.look(self.roster.open(world), self.judgements.hang_limit_ns(), self._now_ns)
        if isinstance(verdict, Verdict):
            for worker, stack in verdict.stuck:
                self._report(kind="hung", worker=worker.worker, rank=worker.rank, stack=stack)
            self._commands += self.roster.suspect(self._now_ns, verdict.silent)
            self._fault("Hung", verdict.sentence, self._now_ns - verdict.age_ns)
            return True
        for worker in verdict or ():
            self._tell(worker.agent, Dump(worker.worker))
        return False

    def _stopped_ones(self, world: World) -> bool:
        """Look for members that are stopped or give no sign of life, though their agents do; whether the world was given up
        for them."""
        there = self.roster.open(world)
        stopped = [worker for worker in there if worker.stopped_ns > self.limits.stopped_ns]
        meant = stopped or [worker for worker in there if worker.quiet_ns > self.limits.quiet_ns]
        if meant:
            for worker in meant:
                self._report(kind="hung", worker=worker.worker, rank=worker.rank, stack=hangs.NO_ANSWER)
            self._commands += self.roster.suspect(self._now_ns, meant)
            ranks = ", ".join(str(worker.rank) for worker in meant)
            longest_ns = max(worker.stopped_ns if stopped else worker.quiet_ns for worker in meant)
            what = "has been stopped" if stopped else "gave no sign of life"
            self._fault("Hung", f"rank {ranks} {what} for {longest_ns / SECOND:.1f} s", self._now_ns - longest_ns)
        return bool(meant)

    def _adoption_over(self) -> bool:
        """Take over the world of a coordinator that is no more, once it is whole; whether it was waited for in vain."""
        self.world = self._adoption.world(self.generation, self._now_ns)
        if self.world is not None:
            self._before = self.world.members
            self._commands += self.roster.end_older(self.generation)
            self._enter(State.FORMING)
            return False
        if not self._adoption.given_up(self._now_ns):
            return False
        self._abort("not all of its world came back")
        if self.generation:  # the coordinator before may have planned one of which no agent has heard
            self.generation += 1
        self._enter(State.WAITING)
        return True

    # --- small things ------------------------------------------------------------------------------------------------

    @property
    def _waits_for_all(self) -> bool:
        """The next world needs the place of each member of the last one, or the member itself."""
        return self.terms.exclusive or self.terms.live

    def _good_moment(self) -> bool:
        return self.sizing.good_moment(self._now_ns, first=self.generation == 0, chosen=self._regroup_told)

    def _want(self) -> None:
        wanted = self.sizing.wanted(self._now_ns)
        if wanted != self._wanted:
            self._wanted = wanted
            self._commands.append(Want(wanted))

    def _enter(self, state: State) -> None:
        self.state = state
        self._since_ns = self._now_ns
        if state is State.STEADY:
            self._tidying.begin(self._now_ns)

    def _report(self, **event: Any) -> None:
        self._commands.append(Report(event))

    def _report_slots(self, agent: AgentSeen, state: str, names: Iterable[str] | None = None) -> None:
        """`held`, `ready` for the first time, or `released`; without names all slots of the agent."""
        for name in (slot_name(agent.agent, number) for number in range(agent.slots)) if names is None else names:
            self._report(kind="slot", slot=name, state=state, node=agent.node, host=agent.host)

    def _tell(self, agent: str, message: ToAgent) -> None:
        self._commands.append(Tell(agent, message))

    def _ask_all(self) -> None:
        self._memories.ask(self.roster.agents)
        for agent in self.roster.agents:
            self._tell(agent, AskInventory(self._memories.ticket))

    def _tell_of_nodes(self) -> None:
        needed = self.terms.sizes[0]
        self.judgements.nodes(self.roster.sound_slots(self._now_ns, needed), needed)

    def _taken(self, node: str) -> str:
        """Why something on this node went: after a notice it was taken, otherwise it was lost."""
        return "Preempted" if self.warnings.leaving((node,), self._now_ns) else WORKER_LOST
