"""The time between two checkpoints: against the exact waste, against simulated interruptions, and at its bounds."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.cadence import (
    FIRST_SECONDS,
    LONGEST_SECONDS,
    MOST_WRITING,
    SHORTEST_SECONDS,
    Plan,
    SaveCost,
    best_seconds,
    checkpoint_interval,
    slowdown_seconds,
    typical,
    wasted_share,
)
from orchestrator.policy.hazard import Hazard, Observed, hazard

costs = st.floats(0.001, 600)
rates = st.floats(1e-5, 20)


def spot(per_hour: float) -> Hazard:
    """A gang that is interrupted so often."""
    return Hazard(per_hour, CapacityType.SPOT, 4, Observed(2, 6.0), 4)


def planned(stall: float, write: float, per_hour: float, step: float | None = None) -> float:
    return checkpoint_interval([SaveCost(stall, write)], spot(per_hour), step_seconds=step).every_seconds


@given(costs, rates)
def test_the_best_interval_is_the_brute_force_minimum_of_the_exact_waste(cost: float, per_hour: float) -> None:
    """No interval on a fine grid around it wastes less, whatever the write time and the restart cost."""
    best = best_seconds(cost, per_hour)
    for write, restart in ((cost, 0.0), (cost + 10, 120.0)):
        save = SaveCost(cost, write)
        least = wasted_share(best, save, per_hour, restart)
        for number in range(-60, 61):
            assert least <= wasted_share(best * 1.05**number, save, per_hour, restart) + 1e-12


@given(costs, rates)
def test_young_and_daly_are_its_expansions(cost: float, per_hour: float) -> None:
    """It agrees with Daly's higher order to one part in 100 where that is meant to hold, and with Young's first order as
    saving gets cheap."""
    mean = 3600 / per_hour
    ratio = cost / (2 * mean)
    best, young = best_seconds(cost, per_hour), math.sqrt(2 * cost * mean)
    if ratio < 0.25:
        daly = young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost
        assert best == pytest.approx(daly, rel=0.01)
    if ratio < 1e-6:
        assert best == pytest.approx(young, rel=0.002)
    assert 0 < best < mean


@given(costs, costs, rates, rates, st.floats(0.01, 100))
def test_it_is_monotone_in_each_argument(stall: float, more: float, rate: float, faster: float, step: float) -> None:
    """Dearer saves, slower writes and longer steps never shorten it; more interruptions never lengthen it."""
    every = planned(stall, stall, rate, step)
    assert planned(stall + more, stall + more, rate, step) >= every
    assert planned(stall, stall + more, rate, step) >= every
    assert planned(stall, stall, rate, step + more) >= every
    assert planned(stall, stall, rate + faster, step) <= every * (1 + 1e-9)


@given(costs, costs, rates, st.floats(0.01, 5_000))
def test_it_keeps_within_its_bounds(stall: float, beside: float, rate: float, step: float) -> None:
    """Never shorter than a step or than what bounds the share of writing; longer than half an hour only for those."""
    write = stall + beside
    every = planned(stall, write, rate, step)
    lower = max(SHORTEST_SECONDS, step, write / MOST_WRITING)
    assert lower <= every <= max(lower, LONGEST_SECONDS)


@pytest.mark.parametrize(("stall", "write", "per_hour"), [(0.3, 2.0, 2.0), (5.0, 5.0, 1.0), (20.0, 60.0, 0.5)])
def test_over_simulated_interruptions_it_wastes_hardly_more_than_the_best_fixed_interval(
    stall: float, write: float, per_hour: float
) -> None:
    """Over 3,000 seeded interruptions the planned interval wastes at most 3 % more than the best of forty others, and the
    exact formula foretells its waste."""
    restart = 90.0
    random = Random(7)
    lives = [random.expovariate(per_hour / 3600) for _ in range(3_000)]

    def simulated(every: float) -> float:
        # each life holds the checkpoints that are durable in time: number n begins after n x every + (n - 1) x stall
        whole = (max(0, math.floor((life - every - write) / (every + stall)) + 1) for life in lives)
        return 1 - every * sum(whole) / (sum(lives) + restart * len(lives))

    save = SaveCost(stall, write)
    every = checkpoint_interval([save], spot(per_hour)).every_seconds
    others = [every * 1.08**number for number in range(-20, 20)]
    assert simulated(every) <= 1.03 * min(map(simulated, others)), "seed 7"
    assert simulated(every) == pytest.approx(wasted_share(every, save, per_hour, restart), rel=0.05), "seed 7"


@pytest.mark.parametrize(
    ("capacity", "per_hour"),
    [
        (CapacityType.SPOT, 0.05),
        (CapacityType.SPOT, 0.5),
        (CapacityType.SPOT, 4.0),
        (CapacityType.ON_DEMAND, 0.3),
        (CapacityType.ON_DEMAND, 3.0),
    ],
)
def test_a_hazard_that_is_learned_on_the_way_costs_little_more_than_one_known_before(
    capacity: CapacityType, per_hour: float
) -> None:
    """From the shipped prior on, planning anew after each checkpoint and interruption wastes, over 200 lives, at most a
    tenth more than the best fixed interval that knew the true rate from the beginning."""
    save, restart = SaveCost(0.5, 3.0), 60.0
    random = Random(11)
    lives = [random.expovariate(per_hour / 3600) for _ in range(200)]
    paid = sum(lives) + restart * len(lives)

    def fixed(every: float) -> float:
        whole = (max(0, math.floor((life - every - save.write) / (every + save.stall)) + 1) for life in lives)
        return 1 - sum(number * every for number in whole) / paid

    seen, useful = Observed(), 0.0
    for life in lives:
        now = 0.0
        while True:
            every = checkpoint_interval([save], hazard(capacity, 1, seen + Observed(0, now / 3600))).every_seconds
            if now + every + save.write > life:
                break
            useful += every
            now += every + save.stall
        seen += Observed(1, life / 3600)
    best = min(fixed(best_seconds(save.stall, per_hour) * 1.15**number) for number in range(-8, 9))
    assert 1 - useful / paid <= 1.1 * best, "seed 11"


def test_without_a_measurement_the_first_comes_soon() -> None:
    """Before any checkpoint was measured there is one after a minute, and the sentence says why."""
    plan = checkpoint_interval([], hazard(CapacityType.SPOT, 2, Observed()))
    assert plan.every_seconds == FIRST_SECONDS
    assert plan.because.startswith(
        "the first checkpoint comes after 1 min, to measure what one costs; interruptions: 1 in 2.8 h "
    )


def test_the_sentence_has_the_numbers_with_their_units() -> None:
    """What is planned, what a save costs, how often interruptions come, and what is lost."""
    plan = checkpoint_interval([SaveCost(0.12, 3.1, 0.3)] * 7, spot(0.31), step_seconds=2.0, restart_seconds=38.0)
    assert plan.because == (
        "a checkpoint after every 1 min 38 s of training; one stalls training for 0.12 s and slows the steps by 0.3 s, and "
        "is durable after 3.1 s (medians of 5); interruptions: 1 in 3.2 h expected of 4 spot machines; seen here: 2 in 6 "
        "machine-hours; so 1.2 % of the time is lost to saving, redone work and restarts of 38 s each"
    )


@pytest.mark.parametrize(
    ("save", "per_hour", "step", "seconds", "why"),
    [
        (SaveCost(60.0, 60.0), 0.01, 1.0, LONGEST_SECONDS, "no more than this is ever put at risk"),
        (SaveCost(0.01, 30.0), 5.0, 1.0, 120.0, "a save must be durable well before the next begins"),
        (SaveCost(0.01, 0.1), 5.0, 45.0, 45.0, "a step is that long"),
        (SaveCost(0.0, 0.0), 5.0, 0.1, SHORTEST_SECONDS, "that is the shortest"),
        (SaveCost(0.1, 900.0), 0.1, 1.0, 3_600.0, "a save must be durable well before the next begins"),
    ],
)
def test_a_bound_is_named(save: SaveCost, per_hour: float, step: float, seconds: float, why: str) -> None:
    """Where a bound and not the optimum decides, the sentence says which."""
    plan = checkpoint_interval([save], spot(per_hour), step_seconds=step)
    assert plan.every_seconds == seconds
    assert why in plan.because


def test_one_slow_save_does_not_move_the_plan() -> None:
    """The medians of the newest five count; a slowdown that is negative by chance is none."""
    saves = [SaveCost(9.0, 9.0)] * 3 + [SaveCost(0.1, 1.0, 0.2), SaveCost(5.0, 50.0), SaveCost(0.1, 1.0, -0.5)] * 2
    assert typical(saves[-5:]) == SaveCost(0.1, 1.0, 0.0)


def test_the_steps_beside_a_save_tell_its_slowdown() -> None:
    """Steps that overlap the writing are compared with the median of the others; too few of these tell nothing."""
    second = 10**9
    steps = [(second * (number + 1), 1.0) for number in range(6)]
    steps += [(round(7.5 * second), 1.5), (9 * second, 1.5), (10 * second, 1.0)]
    save = SaveCost(0.1, 2.5)
    assert slowdown_seconds(steps, 6 * second, save) == pytest.approx(1.0)
    assert slowdown_seconds(steps[4:8], 6 * second, save) is None
    assert slowdown_seconds(steps, 20 * second, save) is None
    assert slowdown_seconds(steps, 6 * second, SaveCost(2.5, 2.5)) == 0.0, "nothing ran beside it"


def test_a_plan_is_told_when_it_moves_by_a_fifth() -> None:
    """Changes of up to 20 % are not worth a word; the first plan is."""
    plan = Plan(100.0, "so it is")
    assert plan.moved_from(None)
    assert not plan.moved_from(120.0)
    assert plan.moved_from(126.0)
    assert plan.moved_from(80.0)
