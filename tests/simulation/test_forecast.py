"""Forecasts of spot cost, and the markets that they are drawn from."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from orchestrator.domain.errors import UsageError
from orchestrator.policy.capacity.recorded import RECORDED
from orchestrator.simulation.forecast import spot_forecast
from orchestrator.simulation.synthetic import drawn_trace

TERMS: dict[str, Any] = {
    "work_hours": 10.0,
    "deadline_hours": 15.0,
    "overhead_hours": 0.1,
    "on_demand_nanodollars_per_hour": 3_060_000_000,
    "spot_nanodollars_per_hour": 918_000_000,
    "jobs": 10,
}


def test_a_forecast_lies_between_spot_and_on_demand() -> None:
    """No job is late or dearer than 1.01 of on-demand and one start; none is cheaper than all of it on spot; the seed decides."""
    found = spot_forecast(**TERMS)
    assert found.missed == 0
    assert 9_180_000_000 <= found.p10 <= found.p50 <= found.p90 <= 1.01 * 3_060_000_000 * 10.1
    assert 10.0 <= found.hours_p50 <= found.hours_p90 <= 15.0
    assert spot_forecast(**TERMS) == found
    assert spot_forecast(**TERMS, seed=1) != found


def test_a_price_scales_a_forecast() -> None:
    """Twice the machines cost twice as much, to the nano-dollar of rounding."""
    double = {name: 2 * value for name, value in TERMS.items() if "nanodollars" in name}
    assert abs(spot_forecast(**TERMS | double).p50 - 2 * spot_forecast(**TERMS).p50) <= 2


def test_a_deadline_without_room_is_refused() -> None:
    """A deadline before the work is done is an error, not a forecast."""
    with pytest.raises(UsageError, match="deadline"):
        spot_forecast(**TERMS | {"deadline_hours": 9.0})


def test_drawn_markets_have_the_spells_of_recorded_ones() -> None:
    """Over many drawn markets the share of time with spot, and the mean spell, are within a quarter of the recorded markets'."""
    up = total = spells = 0
    for seed in range(300):
        counts = drawn_trace(seed, hours=200.0).available
        up, total = up + sum(counts), total + len(counts)
        spells += len(list(groupby(counts)))
    kept = [row for row in RECORDED if sum(row[1]) + sum(row[3]) > 20]
    share = sum(sum(row[4]) / (sum(row[2]) + sum(row[4])) for row in kept) / len(kept)
    length = sum((sum(row[2]) + sum(row[4])) / (sum(row[1]) + sum(row[3])) for row in kept) / len(kept)
    assert abs(up / total / share - 1) < 0.25
    assert 0.5 < total * 300 / 3600 / spells / length < 1.5
