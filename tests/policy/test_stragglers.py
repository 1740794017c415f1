"""Ranks that are slow by themselves are found, noise is not, and a node is left out when the gang is faster without it."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from orchestrator.policy.durations import Span
from orchestrator.policy.elasticity import Elasticity
from orchestrator.policy.quarantine import SLOW_SECONDS
from orchestrator.policy.resize import Situation
from orchestrator.policy.stragglers import (
    FOUND_WITHIN_STEPS,
    LEAST_FACTOR,
    MOST_FACTOR,
    SMOOTHED_STEPS,
    WATCHED,
    Stragglers,
    leaving,
)
from tests.policy.step_times import KINDS, own_work

SECOND = 1_000_000_000


def gangs(kinds: Iterable[str]) -> list[Any]:
    """(kind, ranks): gangs of two and three of every kind; of eight, which tell the least new, two kinds (all in `make faults`)."""
    return [
        pytest.param(name, ranks, marks=[pytest.mark.faults] if ranks == 8 and name not in ("steady", "stalls") else [])
        for name in kinds
        for ranks in (2, 3, 8)
    ]


@pytest.mark.parametrize(("name", "ranks"), gangs(KINDS))
def test_noise_makes_no_straggler(name: str, ranks: int) -> None:
    """Over 3,200 seeded steps of each of ten kinds, at three sizes (a million in `make faults`), of equal ranks none is slow."""
    watch, random = Stragglers(), Random(11)
    for sample in own_work(KINDS[name], ranks, 400, random):
        assert not watch.observe(sample), f"{name}, seed 11"


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_million_steps_and_no_false_alarm() -> None:
    """A hundred thousand steps of each kind, a million in all, in gangs of four equal ranks: nobody is called slow."""
    alarms = []
    for number, (name, kind) in enumerate(KINDS.items()):
        watch = Stragglers()
        for sample in own_work(kind, 4, 100_000 // SMOOTHED_STEPS, Random(number)):
            alarms += [(name, each) for each in watch.observe(sample)]
    assert not alarms


@pytest.mark.parametrize(("name", "ranks"), gangs(name for name in KINDS if name not in ("noisy", "short")))
def test_a_rank_that_becomes_twice_as_slow_is_found_in_time(name: str, ranks: int) -> None:
    """Within FOUND_WITHIN_STEPS (104) steps after it became slow it is told, once, and nobody else is."""
    for seed in range(4):
        watch, told = Stragglers(), []
        for number, sample in enumerate(own_work(KINDS[name], ranks, 60, Random(seed), slowed=1)):
            told += [(number, each) for each in watch.observe(sample)]
        assert [each.who for _, each in told] == ["rank 1"], f"seed {seed}"
        assert (told[0][0] + 1 - 30) * SMOOTHED_STEPS <= FOUND_WITHIN_STEPS, f"seed {seed}"
        assert told[0][1].ratio > 1.4


@pytest.mark.parametrize("name", ["noisy", "short"])
def test_in_a_noisy_gang_it_takes_longer(name: str) -> None:
    """Where steps scatter by half of their length, a rank that is twice as slow is found within 400 steps."""
    for seed in range(6):
        watch, told = Stragglers(), []
        for number, sample in enumerate(own_work(KINDS[name], 4, 100, Random(seed), slowed=1)):
            told += [(number, each.who) for each in watch.observe(sample)]
        assert [who for _, who in told][:1] == ["rank 1"], f"seed {seed}"
        assert (told[0][0] + 1 - 50) * SMOOTHED_STEPS <= 400, f"seed {seed}"


def test_it_is_told_once_and_its_recovery_once() -> None:
    """Slow, then among the others again: two changes, with the figures in words."""
    watch, random, told = Stragglers(), Random(9), []
    for number in range(8 * WATCHED):
        times = {who: random.lognormvariate(-1, 0.1) for who in ("a", "b", "c")}
        times["b"] *= 2.0 if WATCHED <= number < 4 * WATCHED else 1.0
        told += watch.observe(times)
        assert watch.slow <= {"b"}
    assert [(each.who, each.slow) for each in told] == [("b", True), ("b", False)], "seed 9"
    assert told[0].ratio == pytest.approx(2.0, rel=0.2)
    assert told[0].own_seconds == pytest.approx(2 * told[0].others_seconds, rel=0.2)
    assert told[0].reason.startswith("b is slow: 0.")


def test_what_is_slow_is_learned_from_the_others() -> None:
    """Ranks that always take the same are held to 1.25 times; in a gang that scatters it is up to 1.6, never so much that
    twice would pass."""
    quiet, noisy, random = Stragglers(), Stragglers(), Random(3)
    (found,) = [
        each for _ in range(WATCHED) for each in quiet.observe(dict(zip("abcde", (1, 1.01, 1.3, 1, 1), strict=True)))
    ]
    assert (found.who, found.factor) == ("c", LEAST_FACTOR)
    factors = set()
    for _ in range(20 * WATCHED):
        times = {who: random.lognormvariate(0, 0.3) for who in "abcd"}
        factors |= {each.factor for each in noisy.observe({**times, "e": 3.0})}
    assert factors == {MOST_FACTOR}, "seed 3"


def test_what_nobody_waits_for_is_no_harm() -> None:
    """Three times the others' work, but a hundredth of the step: nothing is said. The same where it is the step: it is."""
    watch = Stragglers()
    assert not [each for _ in range(40) for each in watch.observe({"a": 0.005, "b": 0.015, "c": 0.005}, 1.0)]
    assert [each.who for _ in range(40) for each in watch.observe({"a": 0.005, "b": 0.015, "c": 0.005}, 0.02)] == ["b"]
    watch.clear()
    assert not watch.slow
    assert not [each for _ in range(200) for each in Stragglers().observe({"alone": 9.0})]


def test_two_slow_ranks_of_one_node_are_both_found() -> None:
    """Two of five on one machine: their slowness does not make each other ordinary. Who left is forgotten."""
    watch = Stragglers()
    times = {"a": 1.0, "b": 1.05, "c": 0.95, "d": 2.0, "e": 2.1}
    assert {each.who for _ in range(WATCHED) for each in watch.observe(times)} == {"d", "e"}
    watch.observe({"a": 1.0, "b": 1.0})
    assert not watch.slow


def situation(present: int, available: int, left: float | None = None, joining: float = 1.0) -> Situation:
    sizes = (1, 2, 3, 4)
    return Situation(
        present=present,
        available=available,
        allowed=sizes,
        speeds={size: float(size) for size in sizes},
        interruptions_per_hour=dict.fromkeys(sizes, 0.1),
        joining=Span(joining, joining, joining),
        losing=Span(2.0, 2.0, 2.0),
        work_left_seconds=left,
    )


OWN = {"r0": 1.0, "r1": 1.0, "r2": 1.1, "r3": 3.0}


def test_a_node_is_left_out_when_the_gang_is_faster_without_it() -> None:
    """With room elsewhere the gang keeps its size; without, it shrinks where the slow rank costs more than its share."""
    same = leaving("d", OWN, {"r3"}, 3.2, situation(4, 4))
    assert (same.pays, same.target) == (True, 4)
    assert same.faster == pytest.approx(3.2 / (0.2 + 1.1))
    fewer = leaving("d", OWN, {"r3"}, 3.2, situation(4, 3))
    assert (fewer.pays, fewer.target) == (True, 3)
    assert fewer.faster == pytest.approx(3.2 / (0.2 + 1.1 * 4 / 3))
    assert fewer.reason.startswith("d is left out: 3 workers without it take 1.7 s a step instead of 3.2 s")


def test_a_node_is_kept_when_it_does_not_pay() -> None:
    """A gang of two of which one is twice as slow is no faster alone; nor is anything done for the last seconds of the work, or
    where nobody could train."""
    two = leaving("b", {"r0": 1.0, "r1": 2.0}, {"r1"}, 2.0, situation(2, 1))
    assert (two.pays, two.faster) == (False, pytest.approx(1.0))
    late = leaving("d", OWN, {"r3"}, 3.2, situation(4, 4, left=3.0))
    assert (late.pays, late.reason.split(":")[0]) == (False, "d is kept")
    assert not leaving("d", OWN, {"r3"}, 3.2, situation(4, 4, joining=1e6)).pays
    assert leaving("d", OWN, {"r3"}, 3.2, situation(4, 0)).reason == "d is kept: no allowed gang can do without it"
    assert leaving("d", OWN, {"r3"}, None, situation(4, 4)).reason == "d is kept: no step was measured yet"


def test_a_gang_leaves_a_slow_node_and_tries_it_again_later() -> None:
    """From events: steps of a known length, samples of own work, the verdict, and the node's quarantine, which doubles."""
    policy, now = Elasticity((1, 2, 3, 4)), 0
    nodes = [{"worker": f"w{rank}", "rank": rank, "host": "h", "node": node} for rank, node in enumerate("abcd")]
    policy.hear(now, {"kind": "world", "generation": 1, "world_size": 4, "workers": nodes, "at_ns": now})
    for step in range(1, 30):
        now = step * SECOND
        policy.hear(now, {"kind": "step", "step": step, "seconds": 1.0, "at_ns": now})
    own = {"a": 0.3, "b": 0.3, "c": 0.9, "d": 0.3}
    assert [each.who for _ in range(WATCHED) for each in policy.own_work(own)] == ["c"]
    assert policy.usable("c", now)
    assert not policy.leave_out(now, "c", own, {"c"}, 0).pays
    assert policy.leave_out(now, "c", own, {"c"}, 3).pays
    assert policy.reasons["straggler"].startswith("c is left out: ")
    policy.nodes(dict.fromkeys("abcd", 1), 1)
    assert not policy.usable("c", now + round((SLOW_SECONDS - 1) * SECOND))
    later = now + round((SLOW_SECONDS + 1) * SECOND)
    assert policy.usable("c", later)
    policy.hear(later, {"kind": "world", "generation": 2, "world_size": 4, "workers": nodes, "at_ns": later})
    assert not policy.stragglers.slow
    assert policy.leave_out(later, "c", own, {"c"}, 3).pays
    assert not policy.usable("c", later + round(1.9 * SLOW_SECONDS * SECOND))
