"""Every how many steps shards are copied: after each while that is cheap, else what the budget and the hazard say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.replication import BUDGET, LARGEST, replicate_every

times = st.floats(1e-4, 50)


def test_a_cheap_copy_is_made_after_every_step() -> None:
    """The prototype's figures: 12.7 ms of 820 ms; and the sentence says so."""
    plan = replicate_every(0.0127, 0.3, 0.820, 1.0)
    assert (plan.every, plan.overhead) == (1, pytest.approx(0.0127 / 0.82))
    assert (
        plan.reason == "after every step: a copy holds up the step for 0.013 s, a step takes 0.82 s, 1.5 % of the time"
    )


def test_a_dear_copy_is_made_as_seldom_as_keeps_the_budget() -> None:
    """10 % of a step for each copy: every fifth step, which is 2 %."""
    plan = replicate_every(0.1, 0.1, 1.0, 0.01)
    assert (plan.every, plan.overhead) == (5, pytest.approx(0.02))
    assert "the fewest steps that keep it within 2.0 % of the time" in plan.reason


def test_shipping_has_to_be_done_before_the_next() -> None:
    """Shipping that takes four steps is waited for unless there are four between two copies."""
    plan = replicate_every(0.001, 0.4, 0.1, 0.01)
    assert plan.every == 4


def test_where_machines_go_all_the_time_the_budget_gives_way() -> None:
    """With a loss every minute and long steps, doing work again costs more than copying."""
    plan = replicate_every(3.0, 3.0, 10.0, 60.0)
    assert 1 <= plan.every < 15
    assert plan.overhead > BUDGET
    assert "saving more of it would cost more in redone steps at 60 interruptions an hour" in plan.reason


@settings(max_examples=40, deadline=None)
@given(times, times, times, st.floats(1e-4, 100))
def test_one_or_within_the_budget_or_the_least_in_all(copy: float, ship: float, step: float, per_hour: float) -> None:
    """k = 1 keeps the budget; a larger k keeps it too and no smaller does, or it wastes least in all, or is the largest."""
    plan = replicate_every(copy, ship, step, per_hour)
    assert 1 <= plan.every <= LARGEST
    if plan.every > 1 and plan.overhead <= BUDGET:
        path = (plan.every - 1) * step
        assert (copy + max(0.0, ship - path)) / path > BUDGET
    elif plan.every < LARGEST and plan.overhead > BUDGET:
        for other in (plan.every - 1, plan.every + 1):
            if other >= 1:
                path = other * step
                waste = (copy + max(0.0, ship - path)) / path + per_hour / 3600 * step * (other + 1) / 2
                assert plan.overhead + plan.redone <= waste + 1e-9


@settings(max_examples=40, deadline=None)
@given(times, times, times, st.floats(1e-4, 100), st.floats(1, 10))
def test_more_hazard_never_copies_less_often(
    copy: float, ship: float, step: float, per_hour: float, more: float
) -> None:
    """k falls with hazard."""
    calm, storm = (replicate_every(copy, ship, step, rate).every for rate in (per_hour, per_hour * more))
    assert storm <= calm


def test_a_step_takes_time() -> None:
    """No step time, no plan."""
    with pytest.raises(ValueError, match="a step takes time"):
        replicate_every(0.1, 0.1, 0.0, 1.0)
