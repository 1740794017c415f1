"""Which size the next world has, when it is planned, and when a world that runs is changed for another of its own accord."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.platforms.engines.native.messages import READY, WARMING
from orchestrator.platforms.engines.native.roster import Roster, World
from orchestrator.platforms.engines.native.terms import Judgements, Limits, Terms
from orchestrator.platforms.engines.native.warnings import Warnings


@dataclass(frozen=True, slots=True)
class Change:
    """Make another world. `reason` is one of Notice, Joined, Resized."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LastSave:
    """These nodes go, and no world is possible without them: what can be done is to save. At once, since a checkpoint of a
    large state takes longer than handing it over in memory does; and once more when the nodes would be left otherwise."""

    nodes: frozenset[str]
    message: str
    final: bool
    """It is the second one."""


class Sizing:
    """See the module. `target`: how many workers are wished for."""

    def __init__(
        self, terms: Terms, limits: Limits, judgements: Judgements, roster: Roster, warnings: Warnings, target: int
    ) -> None:
        self.target = target
        self._terms = terms
        self._limits = limits
        self._judgements = judgements
        self._roster = roster
        self._warnings = warnings
        self._fits_since_ns: int | None = None
        """Since when a smallest world would have room, while none is planned."""
        self._grows_since_ns: int | None = None
        """Since when a larger world than the one that runs would have room."""
        self._chosen: int | None = None
        """The size that was chosen to grow to, until that world is planned."""
        self._short = 0
        """Worlds in a row that were to be larger and were not, for members that did not come back."""

    @property
    def goal(self) -> int | None:
        """The size that it would have with all the room there can be."""
        return self._terms.fit(self._most, self._terms.sizes[-1])

    def size(self, now_ns: int) -> int | None:
        """The size for what is ready; None when that is too little for any."""
        return self._terms.fit(self._most, self._roster.room(now_ns, READY))

    @property
    def _most(self) -> int:
        return self.target if self._chosen is None else min(self.target, self._chosen)

    def wanted(self, now_ns: int) -> int:
        """Slots that are of use, those that are being left counted beside."""
        return max(self.target, self._terms.sizes[0]) + self._roster.going_slots(now_ns)

    def planned(self, workers: int) -> None:
        """A world of so many is there."""
        if self._chosen is not None:
            self._short = self._short + 1 if self._terms.live and workers < self._most else 0
        self._fits_since_ns = self._grows_since_ns = self._chosen = None

    def good_moment(self, now_ns: int, *, first: bool, chosen: bool) -> bool:
        """Whether a world should be planned now. It waits a little for what is warming up: another transition for each
        standby would cost more. The first world waits longer, and for those that nobody has seen yet; after a change that
        was `chosen` for what is ready nothing is waited for. Where members come back, only they are: fresh ones join when
        they are ready. But the larger the gang, the surer one of its processes ends in each change; a gang that grows anew
        for each would never come to its size. So the second growth in a row waits for fresh ones as well."""
        size = self.size(now_ns)
        if size is None:
            self._fits_since_ns = None
            return False
        if self._fits_since_ns is None:
            self._fits_since_ns = now_ns
        if size == self.goal:
            return True
        if self._terms.live and not first and self._roster.returning(now_ns):
            return False
        again = self._terms.live and chosen and self._chosen is not None and self._short > 0
        if chosen and not again:
            return True
        waited_ns = now_ns - self._fits_since_ns
        if first:
            return waited_ns >= self._limits.gather_ns
        if self._terms.live and not again:
            return True
        possible = self._terms.fit(self._most, self._roster.room(now_ns, READY, WARMING))
        return possible == size or waited_ns >= (self._limits.gather_ns if again else self._limits.warm_ns)

    def change(self, world: World, now_ns: int, *, fixed: bool) -> Change | LastSave | None:
        """What to do about a world that runs well. `fixed`: it cannot be changed."""
        self._chosen = None
        leaving = self._warnings.leaving(world.nodes, now_ns)
        now, size = world.size // self._terms.ranks_per_worker, self.size(now_ns)
        if leaving:
            due = now_ns >= self._warnings.due_ns(leaving)
            message = f"{', '.join(sorted(leaving))}: {self._warnings.sentence(leaving)}"
            if fixed or size is None:
                return LastSave(leaving, message, due)
            return Change("Notice", message) if due else None
        if fixed or size is None:
            return None
        advised = self._warnings.advised(world.nodes)
        if advised and self._terms.fit(now, self._roster.room(now_ns, READY, without=advised)) == now:
            self._warnings.follow(advised)
            return Change("Notice", f"{', '.join(sorted(advised))}: {self._warnings.sentence(advised)}")
        if size < now and size == self._terms.fit(self.target, now):
            return Change("Resized", f"{size} workers are wished for instead of {now}")
        if size <= now:
            self._grows_since_ns = None
            return None
        if self._grows_since_ns is None:
            self._grows_since_ns = now_ns
        possible = self._terms.fit(self.target, self._roster.room(now_ns, READY, WARMING))
        waited_ns = now_ns - self._grows_since_ns
        if possible != size and waited_ns < self._limits.gather_ns:
            return None  # training goes on meanwhile, and one transition does for all
        if self._short > 1 and waited_ns < self._limits.gather_ns * 2 ** min(self._short - 1, 6):
            return None  # fresh ones were waited for in vain: the gang trains ever longer before it tries again
        grown = self._terms.fit(self._judgements.grow_to(now_ns, now, size), size) or now
        if grown <= now:
            return None
        self._chosen = grown
        return Change("Joined", f"{now} workers become {grown}")
