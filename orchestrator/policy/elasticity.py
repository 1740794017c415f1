"""One gang's policies together, fed with the events that its engine and its workers tell anyway.

The engine asks short questions (is it worth growing, how long may no step be made, when must a node be left, may a node be
used); `hear` takes the events from which the answers are learned. What was answered last, and why, is in `reasons`, for
`events` and `status`.

Two clocks: `now_ns` is monotonic, the engine's; `at_ns` in events is the workers' wall clock and only differences between events of
one world are taken.

A pause must be announced before it begins, by an event `{"kind": "pause", "pause": ...}` of rank 0 with a value of `Pause`;
without it a pause longer than the limit looks like a hang. A loop that never announced one (of a user's own, which may
evaluate between two steps) is given five minutes; the built-in trainer announces its first step and so is held to seconds.

Growing counts workers (`by_workers`), unless the caller asks for measured speed: who writes `max: 4` wants four, and several
workers on one machine, for practice, would never be seen to be faster than one.

Events may come from users' own loops: what lacks a field or has another type in it is let be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.domain.notices import Notice
from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.durations import Durations, seconds
from orchestrator.policy.handover import custom, leave_at_ns
from orchestrator.policy.hangs import HangLimit, Pause
from orchestrator.policy.hazard import Observed
from orchestrator.policy.quarantine import Quarantine
from orchestrator.policy.resize import ResizeSense, Verdict
from orchestrator.policy.stragglers import Leaving, Straggler, Stragglers, leaving

PUBLISH_PRIOR = (0.1, 2.0)
"""Mean and high percentile in seconds of writing one rank's shard to memory, until measured."""
STEPS_REMEMBERED = 32
UNANNOUNCED_SECONDS = 300.0
"""Without a step, for a loop that never announced a pause."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, in a word, and why: a sentence without its full stop."""

    word: str
    """`Grow`, `Stay` (at the present size, though more could train), `Wait` (to grow later), `LeaveNode`, `Quarantine`,
    `Pardon` (use a node though it is in quarantine)."""
    because: str


class Elasticity:
    """What a gang learned, and what follows. Not thread-safe."""

    def __init__(
        self,
        allowed: Sequence[int],
        *,
        ranks_per_worker: int = 1,
        by_workers: bool = True,
        observed: Mapping[CapacityType, Observed] | None = None,
        capacity_of: Callable[[str], CapacityType] = lambda node: CapacityType.ON_DEMAND,
    ) -> None:
        """`allowed`: numbers of workers. `capacity_of`: how a node is rented. `by_workers`: see `Speed`."""
        self.sense = ResizeSense(allowed, by_workers=by_workers, observed=observed)
        self.hangs = HangLimit()
        self.quarantine = Quarantine()
        self.stragglers = Stragglers()
        self.reasons: dict[str, str] = {}
        """The newest reason by what was decided: `resize`, `hang`, `quarantine`, `hand-over`, `straggler`."""
        self._publishing = Durations(*PUBLISH_PRIOR)
        self._ranks_per_worker = ranks_per_worker
        self._capacity_of = capacity_of
        self._workers = 0
        self._nodes: frozenset[str] = frozenset()
        self._slots: dict[str, int] = {}
        self._needed = 0
        self._world_ns: int | None = None
        """When the world was planned that has not made a step yet, or the last one that did."""
        self._forming = False
        self._step_at_ns: int | None = None
        self._steps: list[float] = []
        self._total_steps: int | None = None
        self._stood_since_ns: int | None = None
        self._by_choice = False
        self._warming: tuple[float, ...] = ()
        self._announces = False
        self._decisions: list[Decision] = []
        self._told: set[Hashable] = set()
        """Decisions that were told; what concerns the size is told anew in each world."""

    # --- what is heard -----------------------------------------------------------------------------------------------

    def hear(self, now_ns: int, event: Mapping[str, Any]) -> None:
        """An event of the engine or of rank 0. Kinds that say nothing here are let be."""
        match event.get("kind"):
            case "world":
                self._new_world(now_ns, event)
            case "world_lost":
                self._lost(now_ns, event)
            case "plan":
                total = _number(event, "total_steps")
                self._total_steps = None if total is None else int(total)
            case "step":
                self._step(now_ns, event)
            case "pause":
                pause = next((each for each in Pause if each.value == event.get("pause")), None)
                if pause is not None:
                    self._announces = True
                    self.hangs.expect(pause)
            case "replication":
                self._publishing.observe(_number(event, "seconds") or 0.0)

    def nodes(self, slots: Mapping[str, int], needed: int) -> None:
        """The nodes that there are, each with its slots, and how many workers the gang has to have at least."""
        self._slots, self._needed = dict(slots), needed

    def warming(self, expected_seconds: Sequence[float]) -> None:
        """Until each standby that is not ready is expected to be."""
        self._warming = tuple(expected_seconds)

    def _new_world(self, now_ns: int, event: Mapping[str, Any]) -> None:
        workers = int(event["world_size"]) // self._ranks_per_worker
        self._nodes = frozenset(str(each["node"]) for each in event["workers"])
        machines: dict[CapacityType, int] = {}
        for node in self._nodes:
            kind = self._capacity_of(node)
            machines[kind] = machines.get(kind, 0) + 1
        self.sense.world(now_ns, workers, machines)
        self.hangs.new_world(self._workers, workers)
        self.stragglers.clear()
        self._workers, self._world_ns, self._step_at_ns = workers, now_ns, None
        self._forming = True
        self._told = {each for each in self._told if isinstance(each, str)}

    def _lost(self, now_ns: int, event: Mapping[str, Any]) -> None:
        at_ns, began_ns = _number(event, "at_ns"), _number(event, "began_ns")
        stood = 0 if at_ns is None or began_ns is None else max(0, int(at_ns) - int(began_ns))
        if self._stood_since_ns is None:  # a world that was lost before its first step makes the same pause longer
            self._stood_since_ns = now_ns - stood
            self._by_choice = True
        reason = str(event.get("reason"))
        if reason == "Hung":
            self.hangs.gave_up()
        if reason == "Notice" and "hand-over" in self.reasons:
            self._decisions.append(Decision("LeaveNode", self.reasons["hand-over"]))
        self._by_choice = self._by_choice and reason in ("Notice", "Joined", "Resized")
        if reason in ("Joined", "Resized", "OutOfMemory"):  # no machine was interrupted
            return
        kinds = {self._capacity_of(node) for node in self._nodes}
        if kinds:
            self.sense.interrupted(now_ns, CapacityType.SPOT if CapacityType.SPOT in kinds else kinds.pop())

    def _step(self, now_ns: int, event: Mapping[str, Any]) -> None:
        own, step, at_ns = _number(event, "seconds"), _number(event, "step"), _number(event, "at_ns")
        if self._forming and self._world_ns is not None:
            self.hangs.formed((now_ns - self._world_ns) / NANOSECONDS_PER_SECOND)
        self._forming = False
        took = max(0.0, own or 0.0)
        if self._step_at_ns is not None and at_ns is not None:
            took = max(took, (at_ns - self._step_at_ns) / NANOSECONDS_PER_SECOND)
        elif self._world_ns is not None:
            took = max(took, (now_ns - self._world_ns) / NANOSECONDS_PER_SECOND)
        self.hangs.observe(took)
        left = max(0, self._total_steps - int(step)) if self._total_steps is not None and step is not None else None
        if self._stood_since_ns is None:
            self.sense.step(now_ns, self._workers, own or took, left)
            self._steps = [*self._steps[1 - STEPS_REMEMBERED :], own or took]
        else:
            dead = (now_ns - self._stood_since_ns) / NANOSECONDS_PER_SECOND
            if self._by_choice:  # the step itself was work; after a loss it was done before
                self.sense.joined(max(0.0, dead - (median(self._steps) if self._steps else 0.0)))
            else:
                self.sense.lost(dead)
            self._stood_since_ns = None
        self._step_at_ns = None if at_ns is None else int(at_ns)

    # --- what is asked -----------------------------------------------------------------------------------------------

    def hang_limit_ns(self) -> int:
        """How long the world may go without a step."""
        limit = self.hangs.limit_seconds()
        self.reasons["hang"] = self.hangs.because
        if not self._announces and limit < UNANNOUNCED_SECONDS:
            limit = UNANNOUNCED_SECONDS
            self.reasons["hang"] = f"the limit is {seconds(limit)}, as this loop announces no pauses"
        return round(limit * NANOSECONDS_PER_SECOND)

    def forming_limit_ns(self) -> int | None:
        """How long a world may be without its first step, from its plan on; None: none made one yet."""
        limit = self.hangs.forming_seconds()
        return None if limit is None else round(limit * NANOSECONDS_PER_SECOND)

    def growth(self, now_ns: int, present: int, possible: int) -> Verdict:
        """How many workers there should be."""
        verdict = self.sense.worth_growing(now_ns, present, possible, self._warming)
        self.reasons["resize"] = verdict.reason
        if possible > present:
            word = "Grow" if verdict.target > present else "Stay" if verdict.again_seconds is None else "Wait"
            self._tell((word, present, possible), Decision(word, verdict.reason))
        return verdict

    def grow_to(self, now_ns: int, present: int, possible: int) -> int:
        """How many workers there should be; may be fewer than `possible`."""
        return max(present, self.growth(now_ns, present, possible).target)

    def decisions(self) -> Sequence[Decision]:
        """What was decided since this was asked last: each decision once, not whenever its question is asked again."""
        decided, self._decisions = self._decisions, []
        return decided

    def _tell(self, key: Hashable, decision: Decision) -> None:
        if key not in self._told:
            self._told.add(key)
            self._decisions.append(decision)

    def own_work(self, own_seconds: Mapping[str, float]) -> list[Straggler]:
        """A sample of each rank's own work in a step; whose standing among the others changed."""
        return self.stragglers.observe(own_seconds, self.sense.typical_step_seconds(self._workers))

    def leave_out(
        self, now_ns: int, node: str, own_seconds: Mapping[str, float], there: Collection[str], possible: int
    ) -> Leaving:
        """Whether a gang that trains leaves `node` out, with the slow ranks `there`, when `possible` workers could train without
        it. If so, the node is in quarantine from now on."""
        situation = self.sense.situation(now_ns, self._workers, possible)
        judged = leaving(node, own_seconds, there, self.sense.typical_step_seconds(self._workers), situation)
        self.reasons["straggler"] = judged.reason
        if judged.pays:
            self.reasons["quarantine"] = self.quarantine.leave_out(now_ns, node).reason
            self._decisions.append(Decision("Quarantine", self.reasons["quarantine"]))
        return judged

    def leave_at_ns(self, notice: Notice) -> int:
        """When the node of a notice is left, by the notice's clock."""
        publishing, forming = self._publishing.span.p99, self.sense.joining.p99
        margin = custom(notice.source).margin
        told = "the deadline that" if notice.deadline_ns is not None else "the usual end after a notice of what"
        self.reasons["hand-over"] = (
            f"nodes are left {seconds(publishing + forming + margin)} before {told} {notice.source} told: up to "
            f"{seconds(publishing)} to publish, {seconds(forming)} for the next world to read it, {seconds(margin)} to spare"
        )
        return leave_at_ns(notice, publishing + forming)

    def usable(self, node: str, now_ns: int) -> bool:
        """Whether workers may be placed on the node."""
        if self.quarantine.until_ns(now_ns, node) is None:
            self._told.discard(node)
            return True
        admitted = self.quarantine.admit(now_ns, self._slots, self._needed)
        self.reasons["quarantine"] = admitted.reason
        if node in admitted.pardoned:
            self._tell(node, Decision("Pardon", admitted.reason))
        return node in admitted.nodes

    def fault(self, node: str, reason: str, now_ns: int) -> None:
        """Something happened at a node."""
        others = len(self._slots.keys() | self._nodes | {node})
        before = self.quarantine.until_ns(now_ns, node)
        judged = self.quarantine.fault(now_ns, node, reason, others)
        self.reasons["quarantine"] = judged.reason
        if judged.until_ns is not None and judged.until_ns != before:
            self._decisions.append(Decision("Quarantine", judged.reason))


def _number(event: Mapping[str, Any], name: str) -> float | int | None:
    value = event.get(name)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None
