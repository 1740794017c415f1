"""The world of a coordinator that is no more, taken over by the next one: what agents tell of it when they come (back).

It is waited for until all of its members are here. Members of any other world, and those that come when it is too late, are
ended: there is one world at a time.
"""

from __future__ import annotations

from orchestrator.platforms.engines.native.commands import Tell
from orchestrator.platforms.engines.native.messages import LEFT, Kill, WorkerBeat
from orchestrator.platforms.engines.native.roster import AgentSeen, Roster, Worker, World
from orchestrator.platforms.engines.native.terms import Limits


class Adoption:
    """See the module. `pending`: a world may be running, and none is planned before it is here or was waited for in vain;
    from the beginning when it is `expected`, otherwise from the first member that is told of."""

    def __init__(self, roster: Roster, limits: Limits, now_ns: int, *, expected: bool) -> None:
        self.pending = expected
        self._roster = roster
        self._limits = limits
        self._since_ns = now_ns
        self._sizes: dict[int, int] = {}
        """World sizes by generation, as members that run already tell them."""

    def take_over(self, agent: AgentSeen, beat: WorkerBeat, now_ns: int, *, untouched: bool) -> list[Tell]:
        """A worker that runs already under an agent that comes (back); into a gang that is `untouched` with its world."""
        if beat.state == LEFT:
            return []
        worker = Worker(beat.worker, agent.agent, born_ns=now_ns, seen_ns=now_ns)
        worker.hear(beat)
        agent.workers[worker.worker] = worker
        if not beat.generation:
            return []
        worker.generation = beat.generation
        if not untouched or beat.rank is None or beat.world_size is None:
            worker.doomed = True
            return [Tell(agent.agent, Kill(worker.worker, "its world is over"))]
        worker.rank = beat.rank
        self._sizes[beat.generation] = beat.world_size
        if not self.pending:
            self.pending, self._since_ns = True, now_ns
        return []

    def world(self, generation: int, now_ns: int) -> World | None:
        """The world of this generation, once all of it is here; then nothing is waited for any more."""
        size = self._sizes.get(generation, 0)
        members = self._roster.running(generation, size) if size else None
        if members is None:
            return None
        self.pending = False
        return World(generation, members, frozenset(), now_ns)

    def given_up(self, now_ns: int) -> bool:
        """Whether it was waited for long enough; then nothing is waited for any more."""
        if now_ns - self._since_ns <= self._limits.adopt_ns:
            return False
        self.pending = False
        return True
