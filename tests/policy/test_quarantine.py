"""Nodes that fail again and again by themselves are put away for a while, and never the last ones unsaid."""

from __future__ import annotations

from random import Random

import pytest

from orchestrator.policy.quarantine import FIRST_SECONDS, LONGEST_SECONDS, Fault, Quarantine

SECOND = 1_000_000_000
HOUR = 3_600 * SECOND


def put_away(quarantine: Quarantine, now_ns: int, node: str = "b") -> float:
    """Three deaths of workers one after the other; seconds of quarantine that follow."""
    quarantine.fault(now_ns, node, "WorkerLost", 3)
    quarantine.fault(now_ns, node, "WorkerLost", 3)
    until = quarantine.fault(now_ns, node, "WorkerLost", 3).until_ns
    assert until is not None
    return (until - now_ns) / SECOND


def test_the_third_fault_within_minutes_puts_a_node_away() -> None:
    """The first two are watched, the third counts; one hours later is a first one again."""
    quarantine = Quarantine()
    assert quarantine.fault(0, "b", "WorkerLost", 3).reason == "b is watched: WorkerLost"
    first = quarantine.fault(0, "b", "WorkerLost", 3)
    assert (first.until_ns, first.reason) == (None, "b is watched: WorkerLost 2 times")
    second = quarantine.fault(600 * SECOND, "b", "Hung", 3)
    assert second.until_ns == 600 * SECOND + round(FIRST_SECONDS * SECOND)
    assert second.reason == "b is not used for 1 min: WorkerLost 2 times, Hung"
    assert quarantine.until_ns(601 * SECOND, "b") == second.until_ns
    assert quarantine.until_ns(700 * SECOND, "b") is None
    assert quarantine.fault(10 * HOUR, "b", "WorkerLost", 3).until_ns is None


@pytest.mark.parametrize("word", ["Preempted", "NodeLost", "ApplicationError", "OutOfMemory", "SomethingNew"])
def test_what_is_not_the_nodes_own_is_not_held_against_it(word: str) -> None:
    """A market, a job's code and a batch that is too large do not make a node bad."""
    quarantine = Quarantine()
    for number in range(20):
        judged = quarantine.fault(number * SECOND, "b", word, 3)
        assert (judged.until_ns, judged.reason) == (None, f"{word} on b is not held against the node")


def test_each_time_is_twice_as_long_and_good_hours_are_forgiven() -> None:
    """One minute, two, four; after a day without a fault it is a minute again, nearly; never more than four hours."""
    quarantine, now, lengths = Quarantine(), 0, []
    for _ in range(3):
        lengths.append(put_away(quarantine, now))
        quarantine_ends = quarantine.until_ns(now, "b")
        assert quarantine_ends is not None
        now = quarantine_ends + 3 * HOUR
    assert lengths[0] == FIRST_SECONDS
    assert 1.4 < lengths[1] / lengths[0] <= 2.0
    assert 1.4 < lengths[2] / lengths[1] <= 2.0
    assert put_away(quarantine, now + 48 * HOUR) < 1.1 * FIRST_SECONDS
    longest = [put_away(quarantine, now + 60 * HOUR + number * SECOND) for number in range(50)]
    assert longest[-1] == pytest.approx(LONGEST_SECONDS)


def test_what_strikes_everybody_is_nobodys_own() -> None:
    """A soak that kills workers on all nodes alike puts none away; one that is worse than the others it does."""
    quarantine, random = Quarantine(), Random(6)
    nodes = ["a", "b", "c", "d"]
    for number in range(4):
        quarantine.fault(number * SECOND, nodes[number], "WorkerLost", 4)
    for number in range(100):
        order = random.sample(nodes, 4)
        for node in order:
            assert quarantine.fault((10 + number) * SECOND, node, "WorkerLost", 4).until_ns is None, "seed 6"
    judged = [quarantine.fault((200 + number) * SECOND, "a", "WorkerLost", 4) for number in range(400)]
    assert "the other nodes fail nearly as often" in judged[0].reason
    assert judged[-1].until_ns is not None


def test_a_slow_node_takes_longer_to_convince() -> None:
    """Being slow weighs half as much as a death."""
    quarantine = Quarantine()
    assert Fault.SLOW.weight == Fault.HUNG.weight / 2
    judged = [quarantine.fault(number * SECOND, "b", "Slow", 3).until_ns for number in range(6)]
    assert judged[:5] == [None] * 5
    assert judged[5] is not None


def test_the_last_capacity_is_used_and_it_is_said() -> None:
    """When too few could train, the node that would be free first is taken, by name; with enough, none is."""
    quarantine = Quarantine()
    put_away(quarantine, 0, "a")
    put_away(quarantine, 20 * SECOND, "b")
    slots = {"a": 1, "b": 1, "c": 1}
    enough = quarantine.admit(30 * SECOND, slots, 1)
    assert (enough.nodes, enough.pardoned) == ({"c"}, frozenset())
    assert enough.reason == "a is in quarantine for 30 s more; b is in quarantine for 50 s more"
    needed = quarantine.admit(30 * SECOND, slots, 2)
    assert (needed.nodes, needed.pardoned) == ({"a", "c"}, {"a"})
    assert "a is used though in quarantine for 30 s more: 2 workers are needed" in needed.reason
    assert quarantine.admit(30 * SECOND, slots, 9).pardoned == {"a", "b"}
    assert quarantine.admit(HOUR, slots, 3).reason == "no node is in quarantine"


def test_memory_is_bounded_by_who_fails_now() -> None:
    """A thousand nodes that failed once are forgotten after some days."""
    quarantine = Quarantine()
    for number in range(1_000):
        quarantine.fault(number * HOUR, f"node-{number}", "WorkerLost", 3)
    assert len(quarantine._records) < 100
