"""One gang's policies together: what is learned from the events of an engine, and what is answered."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.elasticity import Elasticity
from orchestrator.policy.hangs import UNMEASURED, Pause

SECOND = 1_000_000_000
WALL = 1_700_000_000 * SECOND


class Played:
    """An engine's events on one clock, in seconds."""

    def __init__(self, **settings: Any) -> None:
        self.policy = Elasticity((1, 2, 3, 4), **settings)
        self.now = 0.0
        self.number = 0

    @property
    def now_ns(self) -> int:
        return round(self.now * SECOND)

    def tell(self, kind: str, **fields: Any) -> None:
        self.policy.hear(self.now_ns, {"kind": kind, "at_ns": WALL + self.now_ns, **fields})

    def world(self, *nodes: str) -> None:
        workers = [{"worker": f"w-{node}", "rank": rank, "host": node, "node": node} for rank, node in enumerate(nodes)]
        self.tell("world", generation=1, world_size=len(nodes), workers=workers)

    def steps(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.now += seconds
            self.number += 1
            self.tell("step", step=self.number, seconds=seconds)

    def lost(self, reason: str, stood: float = 0.1) -> None:
        self.now += stood
        self.tell("world_lost", generation=1, reason=reason, began_ns=WALL + self.now_ns - round(stood * SECOND))


def test_hang_limits_follow_the_steps_of_each_world() -> None:
    """Minutes for the first step, then the floor; an announced pause is allowed; a new world begins with allowance again."""
    played = Played()
    assert played.policy.hang_limit_ns() > 200 * SECOND
    played.world("a", "b")
    played.tell("pause", pause="first step")
    played.steps(40, 0.2)
    assert played.policy.hang_limit_ns() == 3 * SECOND
    played.tell("pause", pause="evaluation")
    assert played.policy.hang_limit_ns() == (3 + UNMEASURED[Pause.EVALUATION]) * SECOND
    played.now += 30.0
    played.steps(1, 0.2)
    assert played.policy.hang_limit_ns() == 3 * SECOND
    played.world("a")
    assert played.policy.hang_limit_ns() > 3 * SECOND
    played.tell("pause", pause="nobody knows")
    played.tell("log", lines=[])


def test_transitions_are_measured_by_what_they_were() -> None:
    """From where the old world stood still to the end of the new one's first step: chosen ones less that step, losses with
    it, since it was done before."""
    played = Played(capacity_of=lambda node: CapacityType.SPOT)
    played.world("a", "b", "c")
    played.steps(40, 0.2)
    played.lost("WorkerLost", stood=0.5)
    played.now += 0.3
    played.world("a", "b")
    played.steps(1, 0.2)
    assert (played.policy.sense.losing.count, played.policy.sense.joining.count) == (1, 0)
    assert played.policy.sense.losing.mean == pytest.approx((2 * 3.0 + 1.0) / 3)
    played.steps(5, 0.3)
    played.lost("Joined", stood=0.0)
    played.now += 0.4
    played.world("a", "b", "c")
    played.steps(1, 0.2)
    assert (played.policy.sense.losing.count, played.policy.sense.joining.count) == (1, 1)
    assert played.policy.sense.joining.mean == pytest.approx((2 * 2.0 + 0.4) / 3)
    assert played.policy.sense.observed[CapacityType.SPOT].interruptions == 1


def test_a_fault_while_forming_makes_one_longer_transition() -> None:
    """Two losses before a step are one pause, and two interruptions."""
    played = Played()
    played.world("a", "b", "c")
    played.steps(5, 0.2)
    played.lost("Notice", stood=0.0)
    played.now += 1.0
    played.world("a", "b")
    played.lost("WorkerLost", stood=0.0)
    played.now += 1.0
    played.world("a")
    played.steps(1, 0.2)
    assert (played.policy.sense.losing.count, played.policy.sense.joining.count) == (1, 0)
    assert played.policy.sense.losing.mean == pytest.approx((6.0 + 2.2) / 3)
    assert played.policy.sense.observed[CapacityType.ON_DEMAND].interruptions == 2


def test_growing_is_answered_with_a_reason() -> None:
    """The answer is short, the reason is kept; with the end near, nothing grows any more."""
    played = Played()
    played.tell("plan", total_steps=1_000)
    played.world("a", "b")
    played.steps(100, 0.2)
    assert played.policy.grow_to(played.now_ns, 2, 3) == 3
    assert played.policy.reasons["resize"].startswith("grow from 2 to 3 workers: ")
    assert played.policy.grow_to(played.now_ns, 2, 2) == 2
    played.steps(895, 0.2)
    assert played.policy.grow_to(played.now_ns, 2, 3) == 2
    assert "with work for 1 s left" in played.policy.reasons["resize"]


def test_standbys_that_warm_are_waited_for() -> None:
    """Known arrivals put a growth off, within bounds."""
    played = Played()
    played.world("a", "b")
    played.steps(100, 0.2)
    played.policy.warming([1.0])
    assert played.policy.grow_to(played.now_ns, 2, 3) == 2
    assert "one transition to 4 workers instead of two" in played.policy.reasons["resize"]


def test_how_long_before_a_deadline_a_node_is_left_is_learned() -> None:
    """From a cautious prior to what publishing and joining took, and the margin."""
    played = Played()
    aws = Notice("aws-instance-action", "a", NoticeKind.INTERRUPTION, 0, 120 * SECOND)
    azure = Notice("azure-scheduled-events", "a", NoticeKind.INTERRUPTION, 0, 120 * SECOND)
    before = played.policy.leave_at_ns(aws)
    for _ in range(10):
        played.tell("replication", every=1, bytes=10, seconds=0.02)
        played.policy.sense.joined(0.4)
    assert before < 114 * SECOND < played.policy.leave_at_ns(aws) < 115 * SECOND
    assert 104 * SECOND < played.policy.leave_at_ns(azure) < 105 * SECOND, "its margin is larger"
    played.policy.leave_at_ns(aws)
    assert "5 s to spare" in played.policy.reasons["hand-over"]


def test_a_bad_node_is_not_used_unless_it_must_be() -> None:
    """Three deaths there put it away; with too few slots elsewhere it is used, and the reason says so."""
    played = Played()
    played.policy.nodes({"a": 1, "b": 1, "c": 1}, 2)
    for _ in range(3):
        played.policy.fault("b", "WorkerLost", played.now_ns)
    assert played.policy.reasons["quarantine"] == "b is not used for 1 min: WorkerLost 3 times"
    assert not played.policy.usable("b", played.now_ns)
    assert played.policy.usable("a", played.now_ns)
    played.policy.nodes({"a": 1, "b": 1}, 2)
    assert played.policy.usable("b", played.now_ns)
    assert "used though in quarantine" in played.policy.reasons["quarantine"]
    assert played.policy.usable("b", played.now_ns + 61 * SECOND)


def test_growing_counts_workers_unless_measured_speed_is_asked_for() -> None:
    """Steps that take as long with three as with two: by workers it grows all the same, by measured speed it does not."""
    for by_workers in (True, False):
        played = Played(by_workers=by_workers)
        for nodes in (("a", "b"), ("a", "b", "c"), ("a", "b")):
            played.world(*nodes)
            played.steps(100, 0.2)
        assert (played.policy.grow_to(played.now_ns, 2, 3) == 3) is by_workers


def test_events_of_users_loops_do_no_harm() -> None:
    """Fields that are missing or of another type are let be; the next good step counts."""
    played = Played()
    played.world("a", "b")
    for event in (
        {},
        {"step": "x", "seconds": None},
        {"step": True, "seconds": float("nan")},
        {"seconds": -1, "at_ns": "now"},
    ):
        played.policy.hear(played.now_ns, {"kind": "step", **event})
    for kind in ("plan", "pause", "replication", "world_lost"):
        played.policy.hear(played.now_ns, {"kind": kind})
    played.policy.hear(played.now_ns, {"no": "kind"})
    played.steps(40, 0.2)
    assert played.policy.hangs.limit_seconds() == 3.0


def test_a_loop_that_announces_nothing_is_given_minutes() -> None:
    """A user's loop may evaluate between two steps without a word; after its first word it is held to seconds."""
    played = Played()
    played.world("a", "b")
    played.steps(40, 0.2)
    assert played.policy.hang_limit_ns() == 300 * SECOND
    assert played.policy.reasons["hang"] == "the limit is 5 min, as this loop announces no pauses"
    played.tell("pause", pause="checkpoint")
    played.steps(1, 0.5)
    assert played.policy.hang_limit_ns() == 3 * SECOND


def test_a_running_world_that_is_taken_over_is_judged_by_its_steps() -> None:
    """A coordinator that is new never heard of the world's beginning: steps count all the same, at no known size."""
    played = Played(by_workers=False)
    played.tell("pause", pause="data")
    played.steps(40, 0.2)
    assert played.policy.hang_limit_ns() == 3 * SECOND
    assert played.policy.grow_to(played.now_ns, 2, 3) == 3


def test_a_decision_is_told_once_and_again_in_the_next_world() -> None:
    """Asked at every beat whether to grow, the policy tells its answer once; in another world, and when it changes, anew."""
    played = Played(by_workers=False)
    played.world("a", "b")
    played.steps(5, 0.1)
    for _ in range(50):
        played.now += 0.1
        played.policy.grow_to(played.now_ns, 2, 3)
    words = [decision.word for decision in played.policy.decisions()]
    assert words
    assert len(words) == len(set(words))
    assert played.policy.decisions() == []
    played.world("a", "b")
    played.policy.grow_to(played.now_ns, 2, 3)
    (decision,) = played.policy.decisions()
    assert decision.because == played.policy.reasons["resize"]


def test_nodes_that_are_left_or_put_away_are_decisions_with_their_figures() -> None:
    """After a notice: how long before its deadline a node is left. After faults: for how long it is not used, and that it is
    used though it should not, each once."""
    played = Played()
    played.world("a", "b")
    played.policy.nodes({"a": 1, "b": 1}, 2)
    played.policy.leave_at_ns(Notice("gcp-preempted", "a", NoticeKind.INTERRUPTION, 0, 30 * SECOND))
    played.lost("Notice")
    (left,) = played.policy.decisions()
    assert (left.word, "before the deadline that gcp-preempted told" in left.because) == ("LeaveNode", True)
    for _ in range(3):
        played.policy.fault("b", "WorkerLost", played.now_ns)
    (put_away,) = played.policy.decisions()
    assert (put_away.word, "b is not used for 1 min" in put_away.because) == ("Quarantine", True)
    for _ in range(20):
        assert played.policy.usable("b", played.now_ns)
    (pardoned,) = played.policy.decisions()
    assert (pardoned.word, "2 workers are needed" in pardoned.because) == ("Pardon", True)


def test_running_out_of_memory_is_no_interruption() -> None:
    """The hazard of the machines does not grow with it."""
    played = Played()
    played.world("a", "b")
    played.steps(5, 0.1)
    played.lost("OutOfMemory")
    assert all(seen.interruptions == 0 for seen in played.policy.sense.observed.values())


def test_the_time_for_a_first_step_is_learned_from_worlds_that_were_seen_to_form() -> None:
    """From the plan to the first step; a world that was taken over in its middle teaches nothing."""
    played = Played()
    played.steps(3, 0.2)
    assert played.policy.forming_limit_ns() is None
    played.world("a", "b")
    played.steps(1, 12.0)
    played.steps(30, 0.2)
    assert played.policy.forming_limit_ns() == 60 * SECOND
    played.world("a", "b")
    played.lost("Hung", stood=60.0)
    assert played.policy.forming_limit_ns() == 240 * SECOND
