"""Once a step of the present world is whole in two memories, what older worlds left behind is not needed."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.platforms.engines.native import sources
from orchestrator.platforms.engines.native.messages import Forget, ToAgent
from orchestrator.platforms.engines.native.roster import Roster, World
from orchestrator.platforms.engines.native.terms import SECOND

LONGEST_PAUSE_NS = 30 * SECOND


class Tidying:
    """Looks every now and then, ever more seldom. `ask_all` asks all agents for their inventory."""

    def __init__(
        self,
        memories: sources.Memories,
        roster: Roster,
        tell: Callable[[str, ToAgent], None],
        ask_all: Callable[[], None],
    ) -> None:
        self._memories = memories
        self._roster = roster
        self._tell = tell
        self._ask_all = ask_all
        self._look_ns = 0
        self._pause_ns = SECOND

    def begin(self, now_ns: int) -> None:
        """A world runs from now on."""
        self._look_ns, self._pause_ns = now_ns, SECOND
        self._memories.clear()

    def look(self, world: World, now_ns: int) -> None:
        if world.settled or world.generation == 1 or not world.stepped:
            return
        if self._memories.answered:
            whole = self._memories.newest(self._roster.addresses)
            self._memories.clear()
            alone = len(world.nodes) == 1 and not world.spares
            if whole is not None and whole.generation == world.generation and (alone or sources.doubled(whole)):
                world.settled = True
                for agent in self._roster.agents:
                    self._tell(agent, Forget(whole.generation, whole.step))
        elif now_ns >= self._look_ns:
            self._look_ns = now_ns + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, LONGEST_PAUSE_NS)
            self._ask_all()
