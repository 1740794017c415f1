"""When a gang grows: the formula's properties, hysteresis, waiting for more, and simulated markets next to simpler rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.durations import Durations, Span
from orchestrator.policy.hazard import Observed
from orchestrator.policy.resize import DWELL, ResizeSense, Situation, advantages, decide
from orchestrator.policy.speed import Speed
from tests.policy.market import SECOND, Outcome, history, play

SIZES = (1, 2, 3, 4)
few = settings(max_examples=40, deadline=None)
costs = st.floats(0.01, 600)
rates = st.floats(1e-3, 600)


def situation(
    present: int = 2,
    available: int = 4,
    *,
    join: float = 1.0,
    lose: float = 2.0,
    per_hour: float = 0.5,
    serial: float = 0.1,
    left: float | None = None,
) -> Situation:
    """A gang whose machines each go so often, and whose steps have a share that more workers do not shorten."""
    return Situation(
        present=present,
        available=available,
        allowed=SIZES,
        speeds={size: 1 / (serial + (1 - serial) / size) for size in SIZES},
        interruptions_per_hour={size: per_hour * size for size in SIZES},
        joining=Span(join, 2 * join, 3 * join, 5),
        losing=Span(lose, 2 * lose, 3 * lose, 5),
        work_left_seconds=left,
    )


@few
@given(costs, costs, costs, rates, st.floats(0, 0.9))
def test_growing_is_monotone_in_cost_hazard_and_work(
    join: float, lose: float, more: float, per_hour: float, serial: float
) -> None:
    """What is not worth it does not become so by dearer transitions, more hazard or less work left."""
    here = situation(join=join, lose=lose, per_hour=per_hour, serial=serial)
    worth = advantages(here, 2)
    for worse in (
        situation(join=join, lose=lose + more, per_hour=per_hour, serial=serial),
        situation(join=join, lose=lose, per_hour=per_hour * (1 + more), serial=serial),
        situation(join=join, lose=lose, per_hour=per_hour, serial=serial, left=more),
    ):
        assert all(max(0.0, advantages(worse, 2)[size]) <= max(0.0, worth[size]) + 1e-9 for size in (3, 4))
        assert decide(worse).target <= 2 or decide(here).target > 2
    dearer = situation(join=join + more, lose=lose, per_hour=per_hour, serial=serial)
    assert decide(dearer).target <= 2 or decide(here).target > 2


@few
@given(st.integers(0, 4), st.integers(0, 5), costs, rates)
def test_the_target_is_allowed_and_to_be_had(present: int, available: int, cost: float, per_hour: float) -> None:
    """Whatever the figures, the target is an allowed size within what is available; it falls only when workers are gone."""
    verdict = decide(situation(present, available, join=cost, per_hour=per_hour))
    assert verdict.target in (0, *SIZES)
    assert verdict.target <= available
    assert verdict.target >= (0 if available < present else present)
    assert verdict.reason
    assert not verdict.reason.endswith(".")


def test_the_formula_by_hand() -> None:
    """One machine more, no serial share, no end: worth (s - 1 - l b) / (2 l) seconds for a gang that doubles."""
    here = replace(situation(1, 2, serial=0.0, per_hour=6.0, lose=30.0), allowed=(1, 2))
    rate = 6 / 3600
    assert advantages(here, 1)[2] == pytest.approx((2 - 1 - rate * 30) / (2 * rate))


def test_work_that_is_nearly_done_is_not_worth_a_pause() -> None:
    """With 4 s of work left, doubling the speed gains 2 s at most: not for a pause of 3 s, but for one of 1 s."""
    assert decide(replace(situation(1, 2, join=3.0, left=4.0, serial=0.0), allowed=(1, 2))).target == 1
    assert decide(replace(situation(1, 2, join=1.0, left=4.0, serial=0.0), allowed=(1, 2))).target == 2


def test_a_size_that_is_slower_is_not_taken_even_for_nothing() -> None:
    """Four workers measured slower than three: three train, also when the gang forms anyway."""
    slower = replace(situation(2, 4), speeds={1: 1.0, 2: 1.9, 3: 2.5, 4: 2.0})
    assert decide(slower).target == 3
    verdict = decide(replace(slower, present=0))
    assert verdict.target == 3
    assert "4 would get less done" in verdict.reason


def test_too_few_for_any_gang_is_said() -> None:
    """Below the smallest allowed size nothing trains, with the reason."""
    verdict = decide(replace(situation(0, 1), allowed=(2, 4), speeds={2: 2.0, 4: 4.0}))
    assert (verdict.target, verdict.reason) == (0, "1 worker can train; the smallest allowed gang is 2")


def test_after_a_change_it_dwells() -> None:
    """A growth waits its dwell after any change, and says when to ask again; a loss never waits."""
    changed = replace(situation(2, 4, join=3.0), since_change_seconds=1.0)
    verdict = decide(changed)
    assert (verdict.target, verdict.again_seconds) == (2, pytest.approx(DWELL * 3.0 - 1.0))
    assert decide(replace(changed, since_change_seconds=DWELL * 3.0)).target == 4
    assert decide(replace(changed, available=1)).target == 1


def test_it_waits_for_a_standby_that_is_about_to_be_ready() -> None:
    """Waiting is worth it while it costs less than the transition it saves, counted from when growing became possible."""
    soon = replace(situation(2, 3, join=2.0, serial=0.0), warming_seconds=(9.0, 1.5))
    verdict = decide(soon)
    assert verdict.target == 2
    assert verdict.again_seconds == pytest.approx(4.0), "half as fast again, so 2 s are lost in 4"
    assert decide(replace(soon, warming_seconds=(9.0,))).target == 3, "9 s of waiting cost more than a transition"
    assert decide(replace(soon, waited_seconds=3.0)).target == 3, "enough was waited"
    assert decide(replace(soon, present=4, available=4)).again_seconds is None


def test_the_sentences_have_the_numbers() -> None:
    """A person reads what growing is worth, what it costs, and from what that follows."""
    grow = decide(situation(2, 4, per_hour=0.05, serial=0.0, left=7200.0))
    assert grow.reason == (
        "grow from 2 to 4 workers: 4 are worth 52 min 46 s of training at this size, at 2.00 times the speed and interrupted "
        "once in 5 h, with work for 2 h left; joining costs 1 s (measured 5 times)"
    )
    stay = decide(situation(3, 4, join=60.0, lose=60.0, per_hour=60.0))
    assert stay.reason.startswith("stay at 3 though 4 could train: 4 are worth -")


MARKETS = [(60.0, 30.0), (60.0, 600.0), (600.0, 120.0), (600.0, 3600.0)]
"""Mean seconds that a machine is away, and that it stays."""


def concave(size: int) -> float:
    return 1 / (0.3 + 0.7 / size)


def outcomes(
    away: float, life: float, cost: float, speed: Callable[[int], float], known: bool, seed: int = 1
) -> tuple[Outcome, Outcome, Outcome]:
    """Always, never and ours over one history of about 250 changes; `known`: the hazard beforehand, exactly."""
    observed = {CapacityType.ON_DEMAND: Observed(1_000_000, 1_000_000 * life / 3600)} if known else None
    changes = history(Random(seed), 4, lambda now: life, away, (life + away) * 35)
    sense = ResizeSense(SIZES, observed=observed)
    always, never, ours = (play(changes, SIZES, speed, cost, 1.2 * cost, rule) for rule in ("always", "never", sense))
    return always, never, ours


@pytest.mark.parametrize(("away", "life"), MARKETS)
@pytest.mark.parametrize("cost", [1.0, 5.0, 20.0])
def test_it_is_never_much_worse_than_always_or_never_growing(away: float, life: float, cost: float) -> None:
    """Over hazards and costs, with the hazard learned on the way, the work done is at least 97 % of the better rule's."""
    always, never, ours = outcomes(away, life, cost, concave, known=False)
    assert ours.work >= 0.97 * max(always.work, never.work), "seed 1"


@pytest.mark.parametrize(
    ("away", "life", "cost", "speed"),
    [(60.0, 120.0, 20.0, float), (600.0, 600.0, 60.0, concave)],
    ids=("short", "long"),
)
def test_between_the_extremes_it_is_better_than_both(
    away: float, life: float, cost: float, speed: Callable[[int], float]
) -> None:
    """Where growing pays from some sizes and not from others, it does more work than always and than never growing."""
    played = [outcomes(away, life, cost, speed, known=False, seed=seed) for seed in (1, 2, 3)]
    always, never, ours = (sum(each[rule].work for each in played) for rule in range(3))
    assert ours >= 1.02 * max(always, never), "seeds 1, 2 and 3"
    assert all(0 < ours.chosen < always.chosen for always, _, ours in played)


def test_it_does_not_flap() -> None:
    """In a market where a machine comes and goes every few seconds, growths stay within one each dwell, and where a
    growth lives shorter than it costs there are next to none."""
    changes = history(Random(3), 4, lambda now: 20.0, 5.0, 3_600.0)
    for cost, most in ((1.0, 3_600 / (1.0 + DWELL)), (30.0, 12)):
        sense = ResizeSense(SIZES)
        assert play(changes, SIZES, float, cost, cost, sense).chosen <= most


def test_a_storm_is_believed_before_the_long_run_is() -> None:
    """The prior's hours do not outweigh three losses in a minute; after quiet hours the long run counts again."""
    sense = ResizeSense(SIZES)
    sense.world(0, 3, {CapacityType.ON_DEMAND: 3})
    calm = sense.situation(0, 3, 4).interruptions_per_hour[4]
    for number in range(3):
        sense.interrupted((20 + 20 * number) * SECOND, CapacityType.ON_DEMAND)
    storm = sense.situation(60 * SECOND, 3, 4).interruptions_per_hour[4]
    assert storm > 100
    sense.step(100 * 3600 * SECOND, 3, 1.0)
    later = sense.situation(100 * 3600 * SECOND, 3, 4).interruptions_per_hour[4]
    assert calm < later < 0.1


def test_the_sense_learns_what_transitions_cost() -> None:
    """Measured pauses outweigh the prior within a few; the work left follows from steps."""
    sense = ResizeSense(SIZES)
    sense.world(0, 2, {CapacityType.SPOT: 2})
    for number in range(30):
        sense.step(number * SECOND, 2, 0.5, steps_left=1_000 - number)
    for _ in range(8):
        sense.joined(0.4)
        sense.lost(1.0)
    assert sense.joining.mean == pytest.approx(0.72)
    here = sense.situation(60 * SECOND, 2, 3)
    assert here.work_left_seconds == pytest.approx(971 * 0.5, rel=0.01)
    assert here.losing.count == 8
    assert sense.worth_growing(60 * SECOND, 2, 3).target == 3


def test_how_long_growth_was_possible_is_remembered() -> None:
    """The wait for warming standbys is counted from the first moment in which it could have grown, and anew after it could not."""
    sense = ResizeSense(SIZES)
    assert sense.worth_growing(0, 2, 3, (3.0,)).target == 2
    assert sense.worth_growing(2 * SECOND, 2, 3, (3.0,)).target == 2, "2 of 5.2 s are waited"
    assert sense.worth_growing(3 * SECOND, 2, 3, (3.0,)).target == 3
    sense.worth_growing(7 * SECOND, 2, 2)
    assert sense.worth_growing(8 * SECOND, 2, 3, (3.0,)).target == 2


def test_speed_is_measured_where_it_was_seen_and_expected_elsewhere() -> None:
    """Before any step: nearly in proportion. From one size: a tenth is not divided. From two: the fit of both."""
    speed = Speed()
    assert speed.at(0, (1, 2)) == {1: pytest.approx(1.0), 2: pytest.approx(1 / 0.55)}
    for _ in range(64):
        speed.observe(0, 2, 1.0)
    assert speed.at(0, (2,))[2] == pytest.approx(1.0, rel=0.01)
    assert speed.at(0, (4,))[4] == pytest.approx(1 / 0.55, rel=0.02)
    for _ in range(64):
        speed.observe(0, 4, 0.9)
    found = speed.at(0, (3, 4, 8))
    assert found[4] == pytest.approx(1 / 0.9, rel=0.03)
    assert 1 / 0.98 < found[3] < 1 / 0.9
    assert found[8] < 1 / 0.8


def test_a_size_that_was_slow_is_tried_again_some_hours_later() -> None:
    """What was measured fades towards what is expected of the sizes seen since."""
    speed = Speed()
    for _ in range(64):
        speed.observe(0, 2, 1.0)
        speed.observe(0, 4, 3.0)
    assert speed.at(0, (4,))[4] < 0.4
    hours = 5 * 3600 * SECOND
    for _ in range(64):
        speed.observe(hours, 2, 1.0)
    assert speed.at(hours, (4,))[4] > 1.0


def test_speed_by_workers_asks_no_steps() -> None:
    """For who counts worker-seconds, a gang of four is twice one of two."""
    speed = Speed(by_workers=True)
    speed.observe(0, 2, 9.0)
    assert speed.at(0, (2, 4)) == {2: 2.0, 4: 4.0}


def test_durations_have_a_prior_and_follow_what_is_measured() -> None:
    """Few measurements: the prior counts, and high percentiles are not believed below it; many: the measured ones."""
    durations = Durations(2.0, 10.0)
    assert durations.span == Span(2.0, 10.0, 10.0, 0)
    for _ in range(8):
        durations.observe(1.0)
    assert durations.span == Span(1.2, 1.5, 1.5, 8)
    for number in range(200):
        durations.observe(number / 100)
    assert durations.span.count == 128
    assert (durations.span.p95, durations.span.p99) == (1.93, 1.98)
