"""The capacity policies over made-up markets: deadlines, what they cost next to on-demand machines, and that they can be read."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest

from orchestrator.domain.errors import UsageError
from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.capacity import (
    POLICY_NAMES,
    CapacityPolicy,
    Cause,
    Decision,
    Holding,
    Offer,
    RestartOverhead,
    Situation,
    SpotHistory,
    capacity_policy,
)
from orchestrator.policy.capacity.history import age_class
from orchestrator.policy.capacity.programme import Question, solve
from orchestrator.policy.capacity.rates import CLASS_HOURS, Prior
from orchestrator.policy.capacity.recorded import EDGES_SECONDS, RECORDED

HOUR = 3600 * 10**9
ON_DEMAND = Offer("a", CapacityType.ON_DEMAND, 3 * 10**9, 1)
SPOT = Offer("a", CapacityType.SPOT, 10**9, 1)
WORK = 20 * 3600.0

AUTO = capacity_policy("auto")
"""One for all tests, so that programmes are solved once."""


def policy(name: str) -> CapacityPolicy:
    return AUTO if name == "auto" else capacity_policy(name)


def situation(**changes: object) -> Situation:
    usual = Situation(
        0,
        0,
        WORK,
        WORK,
        30 * HOUR,
        (SPOT, ON_DEMAND),
        (),
        RestartOverhead(360.0, 360.0),
        history={"a": SpotHistory([(0, 1)])},
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


@cache
def play(
    name: str, seed: int, up_hours: float, down_hours: float, ratio: float, longest: float = 1.0
) -> tuple[float, bool]:
    """One job over a market with spells of these mean lengths: its cost next to on-demand machines, and whether it was on time.
    A restart takes 0.1 h, or by chance up to `longest` times that; the high estimate says so."""
    chance = random.Random(seed)
    asked, overhead = policy(name), RestartOverhead(360.0, 360.0 * longest)
    up, turn_ns, now_ns, left, spent = chance.random() < 0.5, 0, 0, WORK, 0.0
    deadline_ns = round(ratio * WORK * 1e9)
    history = SpotHistory([(0, int(up))])
    held: Holding | None = None
    since_ns: int | None = None
    ready_ns = 0
    turn_ns = round(chance.expovariate(1 / (up_hours if up else down_hours)) * HOUR)
    for _ in range(20_000):
        decision = asked.decide(
            situation(
                now_ns=now_ns,
                work_left_seconds=left,
                deadline_ns=deadline_ns,
                offers=(replace(SPOT, count=int(up)), ON_DEMAND),
                held=(held,) if held else (),
                overhead=overhead,
                restarting_since_ns=since_ns,
                spent_nanodollars=round(spent * 1e9),
                history={"a": history},
            )
        )
        if not decision.targets:
            held, since_ns = None, None
        elif held is None or held.capacity_type is not decision.targets[0].capacity_type:
            held, since_ns = Holding("a", decision.targets[0].capacity_type, 1, now_ns), now_ns
            ready_ns = now_ns + round(0.1 * HOUR * chance.uniform(1.0, longest))
        times = [turn_ns]
        times += [decision.until_ns] if decision.until_ns is not None else []
        times += [ready_ns] if since_ns is not None else []
        times += [now_ns + round(left * 1e9)] if held and since_ns is None else []
        next_ns = max(min(times), now_ns + 1)
        seconds = (next_ns - now_ns) / 1e9
        if held:
            spent += seconds / 3600 * (3.0 if held.capacity_type is CapacityType.ON_DEMAND else 1.0)
            left -= seconds if since_ns is None else 0.0
        now_ns = next_ns
        if left <= 1e-6:
            return spent / (3.0 * WORK / 3600), now_ns <= deadline_ns
        since_ns = since_ns if now_ns < ready_ns else None
        if now_ns >= turn_ns:
            up = not up
            turn_ns = now_ns + round(chance.expovariate(1 / (up_hours if up else down_hours)) * HOUR)
            history.observe(now_ns, int(up))
            if not up and held and held.capacity_type is CapacityType.SPOT:
                held, since_ns = None, None
    raise AssertionError("the job does not end")


SEEDS = [range(1), pytest.param(range(1, 6), marks=pytest.mark.faults)]


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", POLICY_NAMES)
@pytest.mark.parametrize(("up", "down"), [(0.08, 0.08), (0.5, 0.5), (0.3, 6.0), (30.0, 0.2)])
def test_no_deadline_is_missed(name: str, up: float, down: float, seeds: range) -> None:
    """On-demand machines are there, so every job is done in time, whatever the market does."""
    for seed in seeds:
        for ratio in (1.1, 2.0) if up == down else (1.05, 1.5):
            assert play(name, seed, up, down, ratio)[1], f"seed {seed}, ratio {ratio}"


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_restarts_up_to_the_high_estimate_miss_no_deadline(name: str, seeds: range) -> None:
    """Restarts that take up to three times their mean are inside the high estimate, so deadlines hold."""
    assert all(play(name, seed, 0.7, 0.7, 1.25, longest=3.0)[1] for seed in seeds)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("up", [0.08, 0.5])
def test_auto_never_costs_more_than_on_demand_machines(up: float, seeds: range) -> None:
    """A market that takes spot back before a start is over costs at most 1 % more than on-demand machines and one restart."""
    for seed in seeds:
        for ratio in (1.1, 2.0):
            assert play("auto", seed, up, up, ratio)[0] <= 1.01 * (WORK + 360) / WORK, f"seed {seed}"


def test_auto_costs_less_than_greedy_and_on_demand_on_a_middling_market() -> None:
    """Over six jobs where spot comes and goes by the hour, waiting for spot alone and never taking it are both dearer."""
    costs = {
        name: sum(play(name, seed, 1.5, 1.5, 1.25)[0] for seed in range(6)) for name in ("auto", "greedy", "on-demand")
    }
    assert min(costs, key=lambda name: costs[name]) == "auto", costs


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_decisions_repeat_and_say_why(name: str) -> None:
    """Equal situations get equal decisions, with a sentence that has a figure or a place in it."""
    for offers in ((SPOT, ON_DEMAND), (ON_DEMAND,), (SPOT,), ()):
        asked = situation(offers=offers)
        decision = policy(name).decide(asked)
        assert decision == policy(name).decide(asked)
        assert len(decision.reason) > 10


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_what_is_done_holds_nothing(name: str) -> None:
    """No work left: everything is given back."""
    assert policy(name).decide(situation(work_left_seconds=0.0)).cause is Cause.DONE


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_deadline_that_cannot_be_met_is_said_at_once(name: str) -> None:
    """On-demand machines from now on would be late: the decision says so and still hurries."""
    late = policy(name).decide(situation(deadline_ns=19 * HOUR, offers=(ON_DEMAND,)))
    assert late.deadline_at_risk is not None
    assert [target.capacity_type for target in late.targets] == [CapacityType.ON_DEMAND]
    assert policy(name).decide(situation()).deadline_at_risk is None


def _decide(**changes: object) -> Decision:
    return AUTO.decide(situation(**changes))


def test_without_on_demand_machines_spot_is_taken() -> None:
    """On demand is sold out at the last moment: spot works as well."""
    decision = _decide(deadline_ns=round(20.05 * HOUR), offers=(SPOT, replace(ON_DEMAND, count=0)))
    assert [target.capacity_type for target in decision.targets] == [CapacityType.SPOT]


def test_the_cheaper_zone_is_taken_and_a_little_cheaper_is_not_worth_a_move() -> None:
    """Of two zones the cheaper; a gang that works moves for a third of the price, not for a hundredth."""
    dear, cheap = Offer("a", CapacityType.SPOT, 2 * 10**9, 1), Offer("b", CapacityType.SPOT, 10**9, 1)
    histories = {zone: SpotHistory([(-20 * HOUR, 1)]) for zone in "ab"}
    assert _decide(offers=(dear, cheap, ON_DEMAND), history=histories).targets[0].zone == "b"
    held = (Holding("a", CapacityType.SPOT, 1, -HOUR),)
    assert _decide(offers=(dear, cheap, ON_DEMAND), history=histories, held=held).targets[0].zone == "b"
    near = replace(cheap, price_nanodollars_per_hour=1_980_000_000)
    assert _decide(offers=(dear, near, ON_DEMAND), history=histories, held=held).targets[0].zone == "a"


def test_without_a_deadline_a_job_still_ends() -> None:
    """Waiting has an end at twice the work."""
    assert _decide(deadline_ns=None, now_ns=21 * HOUR, offers=(ON_DEMAND,)).cause is Cause.SAFETY_NET


def test_uniform_progress_leaves_on_demand_only_for_an_offer() -> None:
    """Ahead of its line on demand: it stays while no spot is offered, and changes when it is."""
    ahead = {"now_ns": HOUR, "work_left_seconds": WORK - 3000.0, "held": (Holding("a", CapacityType.ON_DEMAND, 1, 0),)}
    asked = capacity_policy("uniform-progress")
    assert asked.decide(situation(**ahead, offers=(ON_DEMAND,))).cause is Cause.ON_DEMAND_KEPT
    assert asked.decide(situation(**ahead)).cause is Cause.SPOT_OFFERED


def test_an_unknown_policy_is_refused_with_the_nearest() -> None:
    """A typo gets the right name."""
    with pytest.raises(UsageError, match="did you mean greedy"):
        capacity_policy("gredy")


def test_history_sums_spells_by_age() -> None:
    """A spell of two hours has watched three classes and ended in the third; the one that goes on is not summed."""
    history = SpotHistory([(0, 2), (2 * HOUR, 1), (3 * HOUR, 2)], 4 * HOUR)
    seen = history.exposure(2)
    assert seen.ended == ((0, 0, 1, 0), (0, 0, 1, 0))
    assert seen.hours == ((0.25, 0.75, 0.0, 0.0), (0.25, 0.75, 1.0, 0.0))
    assert history.age_seconds(4 * HOUR, 2) == 3600
    assert history.age_seconds(4 * HOUR, 1) == 4 * 3600
    other = history.copy()
    other.observe(5 * HOUR, 0)
    assert (history.count, other.count, age_class(3600.0)) == (2, 0, 2)


def test_the_prior_can_leave_a_market_out() -> None:
    """Leaving out the market that is judged changes the rates; the table is of the same classes as the history."""
    from orchestrator.policy.capacity.history import AGE_EDGES_SECONDS

    assert tuple(EDGES_SECONDS) == AGE_EDGES_SECONDS
    assert Prior().up != Prior([RECORDED[0][0]]).up


def test_the_programme_knows_the_plain_cases() -> None:
    """Spot that stays is changed to as soon as the slack holds the restart; spot as dear as on-demand machines is never taken."""
    stays = solve(Question((1.0,) * 4, (0.001,) * 4, CLASS_HOURS, 0.1, 1 / 3, 12.0))
    assert stays.at(stays.hop, 0, 6.0) == pytest.approx(0.1, abs=0.03)
    moves = Question((1.0,) * 4, (0.001,) * 4, CLASS_HOURS, 0.1, 1 / 3, 12.0, (0.5,) * 4)
    assert (answer := solve(moves)).at(answer.take, 1, 8.0) > stays.at(stays.take, 1, 8.0)  # moves use slack up
    dear = solve(Question((1.0,) * 4, (0.5,) * 4, CLASS_HOURS, 0.1, 1.0, 12.0))
    assert dear.at(dear.hop, 0, 6.0) > 3.0
