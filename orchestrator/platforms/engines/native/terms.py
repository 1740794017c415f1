"""What a gang is held to: its sizes, the limits of its patience, and the judgements that others make for it.

Durations here are in nanoseconds of a monotonic clock. Each limit says why it is what it is; none is a bar of speed, they
bound how long something that went wrong is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.domain.offerings import CapacityType
from orchestrator.platforms.engines.base import RunRequest
from orchestrator.policy.elasticity import Decision, Elasticity
from orchestrator.policy.hazard import Observed
from orchestrator.policy.stragglers import Leaving, Straggler

MILLISECOND = 1_000_000
SECOND = 1_000_000_000
LIVES = 16
"""Worlds of one process where processes come back. Memory of 20 such lives was flat after the sixth; what nobody has seen
grow is not trusted for ever."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the request says of the gang's shape. Sizes count workers; a worker has `ranks_per_worker` ranks."""

    sizes: tuple[int, ...]
    """The numbers of workers that a world may have, ascending."""
    ranks_per_worker: int = 1
    elastic: bool = True
    exclusive: bool = False
    """A worker's place must be free before another takes it: its memory is a GPU's. On CPUs a worker that was sent
    SIGKILL does nothing any more, and the next world need not wait until the kernel has cleared it away."""
    global_batch: int | None = None
    micro_batch: int | None = None
    out_of_memory: tuple[tuple[int, int], ...] = ()
    capacity: CapacityType = CapacityType.ON_DEMAND
    observed: Mapping[CapacityType, Observed] = field(default_factory=dict)
    """These five as in `RunRequest`."""
    lives: int = 1
    """In how many worlds a process may have a place. More than one: it comes back after each, and a slot keeps no standby
    beside it."""

    @property
    def live(self) -> bool:
        """Processes come back from a world that has ended."""
        return self.lives > 1

    @classmethod
    def of(cls, request: RunRequest) -> Terms:
        sizes = request.sizes if request.elastic else (request.workers,)
        lives = LIVES if request.live and request.elastic else 1
        return cls(
            sizes,
            request.ranks_per_worker,
            request.elastic,
            request.gpus_per_worker > 0,
            request.global_batch,
            request.micro_batch,
            request.out_of_memory,
            request.capacity,
            request.observed,
            lives,
        )

    def fit(self, target: int, room: int) -> int | None:
        """The largest allowed size within `target` and `room`; None when not even the smallest has room. A target below
        the smallest size means the smallest."""
        within = min(max(target, self.sizes[0]), room)
        return max((size for size in self.sizes if size <= within), default=None)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long what is waited for."""

    silence_ns: int = 2_500 * MILLISECOND
    """An agent from which nothing came for so long counts as lost. Beats come every 0.1 s; a loaded machine delays them
    by some tenths of a second."""
    stall_ns: int = 500 * MILLISECOND
    """When the coordinator itself did not run for so long, that time is nobody's silence."""
    inventory_ns: int = SECOND
    """For all agents to say what their memory holds, when what the others said makes a whole state."""
    inventory_hard_ns: int = 5 * SECOND
    """The same when it does not: better some seconds late than back to the checkpoint."""
    leave_ns: int = 5 * SECOND
    """For a killed worker to be gone. A process that holds a GPU's memory takes a while."""
    quiet_ns: int = 20 * SECOND
    """A placed worker of which not even a sign of life came for so long does not run; they come every half second."""
    stopped_ns: int = 2_400 * MILLISECOND
    """A placed worker that its agent has seen stopped for so long is given up: with the half second between two looks and a
    beat, three seconds after it was stopped."""
    missing_ns: int = 5 * SECOND
    """A worker that its agent does not speak of for so long, though it speaks, is gone."""
    forming_ns: int = 600 * SECOND
    """From the plan to the first moment in which all members run: process group, state, first step. A large state comes
    from a checkpoint in minutes; members that died, or are stopped, are found much sooner by other signs."""
    forming_alone_ns: int = 5 * SECOND
    """For so long no standby warms up beside a world that forms. One that takes longer reads a large state or builds
    something; a standby beside it costs little, and without one the next loss would wait for it."""
    regroup_ns: int = 30 * SECOND
    """For the members to finish their step and leave, once asked; twice the hang limit where that is longer."""
    dump_ns: int = 500 * MILLISECOND
    """For stacks to come, before what does not step is given up."""
    stacks_ns: int = 3 * SECOND
    """For the stacks of a rank that is slow, before it is told without them. Agents give up after two."""
    grace_ns: int = SECOND
    """How long a rank that lost its peers waits for the peer's own story, and an error for other ranks' errors."""
    gather_ns: int = 10 * SECOND
    """For the whole gang to be ready at an attempt's beginning, when fewer would do; and for standbys that are still
    warming up, before a running world grows by those that are ready."""
    warm_ns: int = SECOND
    """For standbys that are still warming up when a larger world could be had with them: about what another transition
    would cost."""
    return_ns: int = 5 * SECOND
    """For members that come back from a world that has ended to be ready again: their teardown and self-test take some
    tenths of a second. A world is planned without one that is slower."""
    standby_ns: int = 300 * SECOND
    """For a standby to be ready."""
    start_ns: int = 180 * SECOND
    """For the first world to be planned."""
    patience_ns: int = 300 * SECOND
    """For workers to come back when there are too few. Then the attempt ends, and the lifecycle decides."""
    adopt_ns: int = 10 * SECOND
    """For all agents of a running world to come back to a coordinator that is new."""
    coalesce_ns: int = 500 * MILLISECOND
    """Notices without a deadline that come within this time are one transition."""
    horizon_ns: int = 1_800 * SECOND
    """A notice whose deadline is further away than this changes nothing yet."""
    suspect_ns: int = 60 * SECOND
    """For this long a slot whose worker did not answer is not used."""
    fruitful_ns: int = 60 * SECOND
    """A world that ran so long was not in vain, also when it never told of a step."""
    fruitless_worlds: int = 5
    """So many worlds in a row lost by their workers before their first step end the attempt."""
    standby_failures: int = 3
    """So many standbys in a row that fail end an attempt in which none was ever ready."""


class AfterHysteresis:
    """Grow when the same larger size was to be had for a while. What decides where no policy is given."""

    def __init__(self, steady_ns: int = 5 * SECOND) -> None:
        self._steady_ns = steady_ns
        self._seen: tuple[int, int] | None = None
        self._since_ns = 0
        self._asked_ns = 0

    def __call__(self, now_ns: int, from_workers: int, to_workers: int) -> int:
        if self._seen != (from_workers, to_workers) or now_ns - self._asked_ns > self._steady_ns:
            self._seen = (from_workers, to_workers)
            self._since_ns = now_ns
        self._asked_ns = now_ns
        return to_workers if now_ns - self._since_ns >= self._steady_ns else from_workers


def _no_limit() -> int | None:
    return None


def _leave_at(notice: Notice) -> int:
    return notice.received_ns if notice.deadline_ns is None else notice.deadline_ns - 5 * SECOND


def _usable(node: str, now_ns: int) -> bool:
    return True


def _nobody(own_seconds: Mapping[str, float]) -> Sequence[Straggler]:
    return ()


def _kept(now_ns: int, node: str, own_seconds: Mapping[str, float], there: Collection[str], possible: int) -> Leaving:
    return Leaving(False, 0, 0.0, "nobody judges")


def _let_be(*told: Any) -> None:
    return


@dataclass(frozen=True, slots=True)
class Judgements:
    """What the gang asks others about. All are called on the coordinator's thread and answer at once."""

    hang_limit_ns: Callable[[], int | None] = _no_limit
    """How long a running world may go without a step; None: not known yet, nothing counts as hung."""
    forming_limit_ns: Callable[[], int | None] = _no_limit
    """How long a world may take from its plan to the first step of all its members; None: not known yet, `forming_ns` holds.
    It holds in any case as the longest."""
    grow_to: Callable[[int, int, int], int] = field(default_factory=AfterHysteresis)
    """(now_ns, present, possible) in workers: how many there should be; `present` for no change. Asked often while a larger
    world could be had."""
    leave_at_ns: Callable[[Notice], int] = _leave_at
    """When the node of a notice is left, by the notice's clock: its deadline less p99 of a publish and of the forming that
    reads from it, and a margin."""
    usable: Callable[[str, int], bool] = _usable
    """(node, now_ns): False while a node is in quarantine."""
    fault: Callable[[str, str, int], None] = _let_be
    """(node, reason, now_ns): told of every fault that has a place."""
    nodes: Callable[[Mapping[str, int], int], None] = _let_be
    """(slots by node, workers that are needed): told when agents come and go."""
    decisions: Callable[[], Sequence[Decision]] = tuple
    """What was decided since this was asked last, each once."""
    own_work: Callable[[Mapping[str, float]], Sequence[Straggler]] = _nobody
    """(seconds by rank in words): a sample of each rank's own work in a step; whose standing among the others changed."""
    leave_out: Callable[[int, str, Mapping[str, float], Collection[str], int], Leaving] = _kept
    """(now_ns, node, seconds by rank, the slow ranks there, workers that could train without it): whether the world is made
    anew without the node, which is then not `usable`."""
    hear: Callable[[int, Mapping[str, Any]], None] = _let_be
    """(now_ns, event): told of every event of the engine and of rank 0."""

    @classmethod
    def learned(cls, terms: Terms) -> Judgements:
        """Those of orchestrator.policy, which learn from the gang's own events."""
        spot: set[str] = set()
        """Nodes that a cloud announced to take back: that happens to no others."""

        def capacity_of(node: str) -> CapacityType:
            return CapacityType.SPOT if node in spot else terms.capacity

        def hear(now_ns: int, event: Mapping[str, Any]) -> None:
            notice = event.get("notice")
            if isinstance(notice, Mapping) and notice.get("kind") == NoticeKind.INTERRUPTION.value:
                spot.add(str(notice.get("node")))
            policy.hear(now_ns, event)

        policy = Elasticity(
            terms.sizes,
            ranks_per_worker=terms.ranks_per_worker,
            observed=terms.observed,
            capacity_of=capacity_of,
        )
        return cls(
            hang_limit_ns=policy.hang_limit_ns,
            forming_limit_ns=policy.forming_limit_ns,
            grow_to=policy.grow_to,
            leave_at_ns=policy.leave_at_ns,
            usable=policy.usable,
            fault=policy.fault,
            nodes=policy.nodes,
            decisions=policy.decisions,
            hear=hear,
            own_work=policy.own_work,
            leave_out=policy.leave_out,
        )
