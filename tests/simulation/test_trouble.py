"""Jobs in trouble: restarts of other lengths, on-demand machines sold out, work that was thought to be less or more."""

from __future__ import annotations

from itertools import islice, pairwise
from statistics import fmean

import pytest

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.capacity import POLICY_NAMES, capacity_policy
from orchestrator.simulation.market import HOUR_NS, Market, market
from orchestrator.simulation.synthetic import drawn_trace
from orchestrator.simulation.traces import Series
from orchestrator.simulation.trouble import CAP, Trouble
from orchestrator.simulation.world import Job, Run, simulate

WORK_NS = 10 * HOUR_NS
OVERHEAD_NS = HOUR_NS // 10
SPOT = [name for name in POLICY_NAMES if name != "on-demand"]


def drawn_market(seed: int, hours: float = 40.0) -> Market:
    trace = drawn_trace(seed, hours=hours)
    return market(Series(trace.name, (trace,)), 1, 1, spot_price_ratio=0.3) if trace.most else drawn_market(seed + 1000)


def runs(name: str, trouble: Trouble, ratio: float, seeds: range) -> list[Run]:
    job = Job(WORK_NS, round(WORK_NS * ratio), OVERHEAD_NS)
    return [simulate(drawn_market(seed), job, capacity_policy(name), 0, trouble) for seed in seeds]


def test_nothing_of_it_changes_nothing() -> None:
    """Without trouble the seed has no effect."""
    assert runs("auto", Trouble(seed=1), 1.5, range(3)) == runs("auto", Trouble(seed=2), 1.5, range(3))


def test_overheads_keep_their_mean_and_their_cap() -> None:
    """Lognormal lengths: by hand the mean of min(4, x) with sigma 0.5 is just below 1; none is above 4 times the mean."""
    lengths = list(islice(Trouble(overhead_sigma=0.5).overheads(1_000_000, 0), 20_000))
    assert max(lengths) <= CAP * 1_000_000
    assert abs(fmean(lengths) / 1_000_000 - 1) < 0.02
    assert Trouble(overhead_sigma=0.5).high_ns(10) == 40


def test_stock_outs_are_in_order_and_as_many_as_asked() -> None:
    """Four a day over 250 days, half an hour each, none begins in another."""
    found = Trouble(stock_outs_per_day=4).stock_outs(0, 6000 * HOUR_NS)
    assert all(until - since == HOUR_NS // 2 for since, until in found)
    assert all(before[1] < after[0] for before, after in pairwise(found))
    assert 800 < len(found) < 1000  # 1,000 less the time that outages themselves take


@pytest.mark.parametrize("name", SPOT)
def test_restarts_of_any_length_miss_no_deadline(name: str) -> None:
    """The high estimate is kept in reserve, so a restart of up to 4 times its mean costs money and no deadline."""
    for ratio in (1.1, 1.5):
        assert all(run.met_deadline for run in runs(name, Trouble(overhead_sigma=1.0), ratio, range(4)))


@pytest.mark.parametrize("name", SPOT)
@pytest.mark.parametrize("believed", [0.8, 1.2])
def test_wrong_work_breaks_no_promise(name: str, believed: float) -> None:
    """From the moment when the work is known: met where on-demand machines sufficed, and warned at once where they did not."""
    seen = 0
    for ratio in (1.1, 1.25, 2.0):
        for run in runs(name, Trouble(work_believed=believed), ratio, range(4)):
            assert run.known_ns is not None
            assert run.spare_ns is not None
            if run.spare_ns >= 2_000_000_000:
                assert run.met_deadline
            elif not run.met_deadline:
                seen += 1
                assert run.warned_ns is not None
                assert run.warned_ns <= run.known_ns
    assert seen or believed > 1 or name != "greedy"


def test_who_holds_on_demand_machines_keeps_them_when_they_sell_out() -> None:
    """A stock-out right after the start takes nothing away from the policy on-demand; nobody rents one while it lasts."""
    job, trouble = Job(WORK_NS, 2 * WORK_NS, OVERHEAD_NS), Trouble(stock_outs_per_day=30)
    run = simulate(drawn_market(0), job, capacity_policy("on-demand"), 0, trouble)
    assert [segment.capacity_type for segment in run.segments] == [CapacityType.ON_DEMAND]
    for seed in range(5):
        outages = Trouble(seed=seed, stock_outs_per_day=10).stock_outs(0, 4 * 2 * WORK_NS)
        found = simulate(drawn_market(seed), job, capacity_policy("auto"), 0, Trouble(seed=seed, stock_outs_per_day=10))
        held_before = 0
        for segment in found.segments:
            begins = segment.capacity_type is CapacityType.ON_DEMAND and segment.start_ns != held_before
            assert not (begins and any(since <= segment.start_ns < until for since, until in outages))
            held_before = segment.end_ns if segment.capacity_type is CapacityType.ON_DEMAND else 0


def test_a_miss_by_a_stock_out_was_warned_of() -> None:
    """With on-demand machines sold out most of the time some jobs are late; each was warned of before its deadline."""
    late = [
        run
        for name in SPOT
        for run in runs(name, Trouble(stock_outs_per_day=30), 1.1, range(6))
        if not run.met_deadline
    ]
    assert late
    assert all(run.warned_ns is not None and run.warned_ns <= round(1.1 * WORK_NS) for run in late)
