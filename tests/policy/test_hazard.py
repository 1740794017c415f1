"""The hazard of a gang: where its prior comes from, and how it follows what is seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.hazard import PRIORS, Observed, exposure_hours, hazard
from tests.policy.spot_prior import COUNTS, PROBED_TOGETHER, Count, count, fit, spread

capacities = st.sampled_from(list(CapacityType))
machines = st.integers(1, 1_000)
seen = st.builds(Observed, st.integers(0, 1_000), st.floats(0, 1e6))


def test_the_spot_prior_is_the_fit_of_the_recorded_markets() -> None:
    """Shape and hours that ship are those of the fit, within the two digits that they are written with."""
    prior = PRIORS[CapacityType.SPOT]
    assert fit(COUNTS, prior.spread) == pytest.approx((prior.interruptions, prior.machine_hours), rel=0.03)


def test_the_spot_spread_lies_within_what_was_recorded() -> None:
    """Gangs of 4 and of 16 were interrupted 16**0 to 4**0.5 times as often as one machine; what ships lies between."""
    found = [spread(zone) for zone in (*COUNTS, *PROBED_TOGETHER) if zone.machines > 1]
    assert min(found) == pytest.approx(0.0, abs=0.02)
    assert max(found) == pytest.approx(0.49, abs=0.01)
    assert min(found) < PRIORS[CapacityType.SPOT].spread < max(found)


def test_interruptions_of_a_series_are_counted() -> None:
    """A gang is interrupted when it was whole and is not any more; machines are counted one by one."""
    assert count("zone", [4, 4, 2, 4, 0, 1, 4, 3], 0.5) == Count("zone", 3, 2.0, 4, 7, 11.0)


def test_the_on_demand_prior_is_rarer_than_what_clusters_report_at_worst() -> None:
    """One interruption in 4,000 hours of a machine, and three in two hours weigh more than that."""
    assert 1 / hazard(CapacityType.ON_DEMAND, 1, Observed()).per_hour == pytest.approx(4_000)
    assert 1 / hazard(CapacityType.ON_DEMAND, 1, Observed(3, 2.0)).per_hour < 30


@given(capacities, machines, seen)
def test_more_interruptions_raise_it_and_more_quiet_hours_lower_it(
    capacity: CapacityType, gang: int, before: Observed
) -> None:
    """The hazard is positive, rises with each interruption seen, and falls with each hour without one."""
    rate = hazard(capacity, gang, before).per_hour
    assert 0 < rate < hazard(capacity, gang, before + Observed(1)).per_hour
    assert rate >= hazard(capacity, gang, before + Observed(0, 1.0)).per_hour


@given(capacities, machines, seen)
def test_more_machines_never_lower_it(capacity: CapacityType, gang: int, before: Observed) -> None:
    """A larger gang is interrupted at least as often, and at most as often as its machines are together."""
    one, many = hazard(capacity, 1, before).per_hour, hazard(capacity, gang, before).per_hour
    assert one <= many <= one * gang * (1 + 1e-9)


@given(capacities, machines, st.integers(1, 100))
def test_what_is_seen_of_a_gang_is_what_is_expected_of_it(capacity: CapacityType, gang: int, per_day: int) -> None:
    """After a long time the hazard of a gang is the rate at which that gang was interrupted."""
    days = 10_000
    watched = Observed(per_day * days, exposure_hours(capacity, gang, 24.0 * days))
    assert hazard(capacity, gang, watched).per_hour == pytest.approx(per_day / 24, rel=0.01)


def test_the_sentence_has_the_numbers() -> None:
    """A person reads how often, of what, and what was seen."""
    told = hazard(CapacityType.SPOT, 4, Observed(2, 30.0)).because
    assert told == "1 in 7.8 h expected of 4 spot machines; seen here: 2 in 30 machine-hours"
    told = hazard(CapacityType.ON_DEMAND, 1, Observed(0, 1e-6)).because
    assert told == "1 in 4,000 h expected of 1 on-demand machine; seen here: 0 in under 0.01 machine-hours"
    told = hazard(CapacityType.ON_DEMAND, 1, Observed(), workers=2).because
    assert told == ("1 in 4,000 h expected of 1 on-demand machine (2 workers share it); nothing seen here yet")


def test_what_was_seen_adds_up_and_can_be_taken_back() -> None:
    """Sums over jobs are kept by adding a job's newest state and taking back its older one."""
    assert Observed(2, 3.0) + Observed(1, 0.5) - Observed(2, 3.0) == Observed(1, 0.5)
