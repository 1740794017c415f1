"""Which ranks of the running world are slow by themselves, told with their stacks, and whether to go on without their node.

Agents tell with each beat how long each rank's newest steps took it by itself. Once all ranks have made as many more steps as
that is taken over, it is a sample for the policy (`policy/stragglers.py`), which judges. A rank that it finds slow is asked for its
stack, and told with it; then its node is left out as soon as that pays. In any world that is made later, while the node is
remembered as slow, workers on it are taken last.

Limits: worker loops that do not tell their own work (see `own_work` of the link) are never slow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.platforms.engines.native.commands import Command, Report, Tell
from orchestrator.platforms.engines.native.hangs import NO_ANSWER
from orchestrator.platforms.engines.native.messages import READY, RUNNING, Dump
from orchestrator.platforms.engines.native.roster import Member, Roster, World
from orchestrator.platforms.engines.native.sizing import Change
from orchestrator.platforms.engines.native.terms import SECOND, Judgements, Limits, Terms
from orchestrator.policy.stragglers import SMOOTHED_STEPS, Straggler

ASK_AGAIN_NS = SECOND
"""From one question whether a node is left out to the next."""


@dataclass(slots=True)
class _Found:
    """A rank that is slow and not told yet."""

    member: Member
    standing: Straggler
    until_ns: int


class StragglerWatch:
    """Of one gang; `clear` for each world."""

    def __init__(self, terms: Terms, limits: Limits, judgements: Judgements, roster: Roster) -> None:
        self.nodes: set[str] = set()
        """Nodes that are known to be slow."""
        self._terms = terms
        self._limits = limits
        self._judgements = judgements
        self._roster = roster
        self._reports: list[Report] = []
        self._found: dict[str, _Found] = {}
        self._slow: dict[str, Member] = {}
        self._own: dict[str, float] = {}
        self._sampled = 0
        self._asked_ns = 0

    def clear(self) -> None:
        """Another world comes. What is known of nodes stays."""
        self._found.clear()
        self._slow.clear()
        self._own.clear()
        self._sampled = 0

    def stacks(self, worker: str, text: str) -> None:
        if (found := self._found.pop(worker, None)) is not None:
            self._tell(found, text)

    def look(self, world: World, now_ns: int) -> list[Command]:
        """Take a sample when it is time; ask for stacks, and report what is known by now."""
        for worker, found in list(self._found.items()):
            if now_ns >= found.until_ns:
                self._tell(self._found.pop(worker), NO_ANSWER)
        workers = self._roster.open(world)
        own = [worker.own_ns for worker in workers if worker.own_ns is not None and worker.state == RUNNING]
        steps = min((worker.step or 0 for worker in workers), default=0)
        asked: list[Command] = []
        if len(own) == world.size and steps >= self._sampled + SMOOTHED_STEPS:
            self._sampled = steps
            asked += self._sample(world, own, now_ns)
        reports, self._reports = self._reports, []
        return [*asked, *reports]

    def _sample(self, world: World, own: Sequence[int], now_ns: int) -> Iterator[Tell]:
        named = {_who(member): member for member in world.members}
        self._own = {who: own_ns / SECOND for who, own_ns in zip(named, own, strict=True)}
        for standing in self._judgements.own_work(self._own):
            member = named[standing.who]
            found = _Found(member, standing, now_ns + self._limits.stacks_ns)
            if standing.slow:
                self._found[member.worker] = found
                self._slow[standing.who] = member
                self.nodes.add(member.node)
                self._judgements.fault(member.node, "Slow", now_ns)
                yield Tell(member.agent, Dump(member.worker))
            else:
                self._slow.pop(standing.who, None)
                self.nodes -= {member.node} - {other.node for other in self._slow.values()}
                self._tell(found, None)

    def leave(self, world: World, target: int, now_ns: int) -> Change | None:
        """Go on without a node that is slow, when that pays and its ranks were told."""
        if not self._slow or self._found or now_ns - self._asked_ns < ASK_AGAIN_NS:
            return None
        self._asked_ns = now_ns
        for node in sorted({member.node for member in self._slow.values()}):
            there = {_who(member) for member in world.members if member.node == node}
            possible = self._terms.fit(target, self._roster.room(now_ns, READY, without={node})) or 0
            judged = self._judgements.leave_out(now_ns, node, self._own, there, possible)
            if judged.pays:
                return Change("Resized", judged.reason)
        return None

    def _tell(self, found: _Found, stack: str | None) -> None:
        member, standing = found.member, found.standing
        event = {
            "kind": "straggler",
            "worker": member.worker,
            "rank": member.rank,
            "node": member.node,
            "host": member.host,
            "slow": standing.slow,
            "ratio": standing.ratio,
            "factor": standing.factor,
            "own_seconds": standing.own_seconds,
            "others_seconds": standing.others_seconds,
            "message": standing.reason,
            **({} if stack is None else {"stack": stack}),
        }
        self._reports.append(Report(event, {}))


def _who(member: Member) -> str:
    return f"rank {member.rank} on {member.node}"
