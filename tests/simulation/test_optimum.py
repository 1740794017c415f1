"""The exact optimum and the fluid bound, next to what trying everything finds."""

from __future__ import annotations

from functools import cache
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import UsageError
from orchestrator.simulation.market import DOLLAR, HOUR_NS, Change, Market, fluid_bound, market
from orchestrator.simulation.optimum import rigid_optimum
from orchestrator.simulation.traces import Series, Trace


def tried(counts: list[list[int]], prices: list[list[int]], on_demand: int, work: int, overhead: int) -> float | None:
    """The least cost in price units x ticks, by trying each choice at each tick. `counts[zone][tick]`."""
    ticks, zones = len(counts[0]), len(counts)

    @cache
    def least(tick: int, left: int, held: int, warming: int) -> float:
        if left <= 0:
            return 0.0
        if tick == ticks:
            return inf
        best = least(tick + 1, left, -1, 0)  # idle
        for place in range(zones + 1):
            if place < zones and not counts[place][tick]:
                continue
            price = on_demand if place == zones else prices[place][tick]
            still = warming if place == held else overhead
            after = least(tick + 1, left - (still == 0), place, max(0, still - 1))
            best = min(best, price + after)
        return best

    found = least(0, work, -1, 0)
    return None if found == inf else found


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], int, int]:
    """Availability, prices, work and overhead of a small market."""
    ticks, zones = draw(st.integers(3, 13)), draw(st.integers(1, 3))
    counts = [draw(st.lists(st.integers(0, 1), min_size=ticks, max_size=ticks)) for _ in range(zones)]
    if draw(st.booleans()):
        prices = [draw(st.lists(st.integers(1, 12), min_size=ticks, max_size=ticks)) for _ in range(zones)]
    else:
        prices = [[3] * ticks for _ in range(zones)]
    return counts, prices, draw(st.integers(1, ticks)), draw(st.integers(0, 3))


def as_market(counts: list[list[int]], prices: list[list[int]], tick_ns: int, on_demand: int = 9) -> Market:
    changes = [
        Change(tick * tick_ns, zone, row[tick], prices[zone][tick] * DOLLAR)
        for zone, row in enumerate(counts)
        for tick in range(len(row))
        if tick == 0 or (row[tick], prices[zone][tick]) != (row[tick - 1], prices[zone][tick - 1])
    ]
    names = tuple(f"zone-{zone}" for zone in range(len(counts)))
    return Market("m", names, tuple(sorted(changes)), on_demand * DOLLAR, 1, 1, len(counts[0]) * tick_ns)


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(1, 4))
def test_no_schedule_is_cheaper_than_the_optimum_and_one_is_as_cheap(
    case: tuple[list[list[int]], list[list[int]], int, int], part: int
) -> None:
    """One or several zones, fixed or changing prices: the same cost as trying every choice at every tick; finer ticks change
    nothing."""
    counts, prices, work, overhead = case
    tick_ns = part * HOUR_NS
    found = rigid_optimum(
        as_market(counts, prices, tick_ns), 0, work * tick_ns, len(counts[0]) * tick_ns, overhead * tick_ns
    )
    expected = tried(counts, prices, 9, work, overhead)
    assert found == (None if expected is None else pytest.approx(expected * part * DOLLAR))
    if expected is not None and part == 2:
        fine = [[value for value in row for _ in range(2)] for row in counts]
        dear = [[value for value in row for _ in range(2)] for row in prices]
        assert tried(fine, dear, 9, 2 * work, 2 * overhead) == pytest.approx(expected * 2)


def test_a_job_may_start_in_the_middle_of_a_spell_and_end_after_the_trace() -> None:
    """Instants count from the start; after the trace there is only on demand."""
    here = as_market([[1, 1, 1, 1, 0, 0]], [[3] * 6], HOUR_NS)
    assert rigid_optimum(here, 2 * HOUR_NS, 3 * HOUR_NS, 8 * HOUR_NS, 0) == pytest.approx((2 * 3 + 9) * DOLLAR)


def test_lengths_without_a_common_measure_are_refused() -> None:
    """An optimum that would not be exact, or would take all memory, is no answer."""
    here = as_market([[1] * 6], [[3] * 6], HOUR_NS)
    with pytest.raises(UsageError, match="levels of slack"):
        rigid_optimum(here, 0, HOUR_NS + 1, 6 * HOUR_NS, 7)


def test_the_fluid_bound_buys_the_cheapest_hours() -> None:
    """Four workers: half of them on spot for two hours, all of them for one, the rest on demand."""
    series = Series("s", (Trace("z", 3600.0, (2, 2, 4, 0, 0, 0)),))
    gang = market(series, 1, 4, spot_price_ratio=0.25)
    assert fluid_bound(gang, 0, 2 * HOUR_NS, 6 * HOUR_NS) == pytest.approx(2 * 0.25 * DOLLAR)
    assert fluid_bound(gang, 0, 3 * HOUR_NS, 6 * HOUR_NS) == pytest.approx((2 * 0.25 + 1) * DOLLAR)
    assert fluid_bound(gang, 0, 7 * HOUR_NS, 6 * HOUR_NS) is None


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_fluid_bound_is_no_more_than_the_optimum_of_the_rigid_gang(
    case: tuple[list[list[int]], list[list[int]], int, int],
) -> None:
    """What may do more costs no more."""
    counts, prices, work, overhead = case
    here = as_market(counts, prices, HOUR_NS)
    exact = rigid_optimum(here, 0, work * HOUR_NS, len(counts[0]) * HOUR_NS, overhead * HOUR_NS)
    if exact is not None:
        bound = fluid_bound(here, 0, work * HOUR_NS, len(counts[0]) * HOUR_NS)
        assert bound is not None
        assert bound <= exact * (1 + 1e-9)
