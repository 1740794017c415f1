"""The world of the simulator: what is held, paid and done follows from the market, and can be recomputed from the segments."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.accounting import CategoryBooked, Entry, Ledger, MachineHeld, MachineReleased
from orchestrator.domain.errors import NotFound, UsageError
from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.capacity import POLICY_NAMES, capacity_policy
from orchestrator.simulation.bounds import Bounds
from orchestrator.simulation.market import HOUR_NS, SECOND_NS, Market, market, turned_round
from orchestrator.simulation.study import Result, Terms, find, starts, study, summary
from orchestrator.simulation.traces import Series, Trace, ZonePrices, flags, read_series
from orchestrator.simulation.world import Job, Run, simulate


def series(seed: int, zones: int = 1, most: int = 1, hours: int = 60, priced: bool = False) -> Series:
    """A market from a seed: spells of random length, in ticks of ten minutes."""
    chance = random.Random(seed)
    traces, prices = [], []
    for zone in range(zones):
        counts: list[int] = []
        while len(counts) < hours * 6:
            counts += [chance.choice([0, most, chance.randint(0, most)])] * chance.randint(1, 40)
        traces.append(Trace(f"zone-{zone}", 600.0, (most, *counts[1 : hours * 6])))
        ticks = sorted({0, *(chance.randrange(hours * 6) for _ in range(5))})
        prices.append(ZonePrices(tuple(ticks), tuple(chance.randint(800_000_000, 1_900_000_000) for _ in ticks)))
    return Series(f"s{seed}", tuple(traces), tuple(prices) if priced else None, 3_060_000_000 if priced else None)


def ledger_total(run: Run) -> int:
    """The same segments through the ledger of real jobs."""
    entries: list[Entry] = []
    for number, each in enumerate(run.segments):
        price = each.price_nanodollars_per_hour
        name = f"m{number}"
        entries += [
            MachineHeld(
                each.start_ns, name, "gang", each.zone, str(each.capacity_type), 0, price, price, "t", False, 1, 0
            ),
            CategoryBooked(each.start_ns, "at_risk"),
            MachineReleased(each.end_ns, name),
        ]
    entries.sort(key=lambda entry: (entry.at_ns, not isinstance(entry, MachineReleased)))
    total = Ledger(entries).statement(0).total
    assert total is not None
    return int(total)


def work_of(here: Market, run: Run, overhead_ns: int) -> int:
    """Worker-ns, from the segments alone: a change of what is held costs one overhead; a change of price does not."""
    instants = sorted({at for each in run.segments for at in (each.start_ns, each.end_ns)})
    done, ready, before = 0, 0, None
    for start, end in pairwise(instants):
        now = {(s.zone, s.capacity_type, s.workers) for s in run.segments if s.start_ns <= start < s.end_ns}
        if now != before:
            ready = start + overhead_ns
        before = now
        workers = sum(workers for _, _, workers in now)
        if workers >= here.workers_min:
            done += workers * max(0, end - max(start, ready))
    return done


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 4), (1, 4), (2, 3)]),
    st.sampled_from(POLICY_NAMES),
    st.sampled_from([1.0, 1.1, 1.5, 2.0]),
    st.booleans(),
)
def test_money_work_and_offers_follow_from_the_segments(
    seed: int, zones: int, gang: tuple[int, int], policy: str, ratio: float, priced: bool
) -> None:
    """To the nano-dollar by the real ledger, to the nanosecond of work, and nothing is held that was not offered."""
    data = series(seed, zones, 4 if gang[1] > 1 else 1, priced=priced)
    here = market(data, *gang, recorded_prices=priced)
    overhead_ns = 360 * SECOND_NS
    start_ns = (seed % 50) * 72 * SECOND_NS
    job = Job(20 * HOUR_NS, round(20 * HOUR_NS * ratio), overhead_ns)
    run = simulate(here, job, capacity_policy(policy), start_ns)
    by_hand = sum(each.price_nanodollars_per_hour * (each.end_ns - each.start_ns) // HOUR_NS for each in run.segments)
    assert run.cost_nanodollars == by_hand == ledger_total(run)
    assert run.finish_ns is not None
    whole = job.work_ns * here.workers_max
    assert whole <= work_of(here, run, overhead_ns) < whole + here.workers_max
    assert run.finish_ns == max(each.end_ns for each in run.segments)
    if ratio > 1.0 and here.rigid:
        assert run.met_deadline
    for each in run.segments:
        if each.capacity_type is CapacityType.SPOT:
            zone = next(zone for zone in data.zones if zone.name == each.zone)
            ticks = range(int(each.start_ns // (600 * SECOND_NS)), -int(-each.end_ns // (600 * SECOND_NS)))
            assert min(zone.available[tick] for tick in ticks) >= each.workers


def test_a_preemption_without_a_notice_loses_what_no_checkpoint_holds() -> None:
    """Spot for 5.5 h with 0.5 h overhead, saved each 2 h: one hour is done again, on demand."""
    here = market(Series("s", (Trace("z", 1800.0, (1,) * 11 + (0,) * 60),)), 1, 1, spot_price_ratio=0.5)
    job = Job(10 * HOUR_NS, 20 * HOUR_NS, HOUR_NS // 2, notice=False, checkpoint_interval_ns=2 * HOUR_NS)
    run = simulate(here, job, capacity_policy("uniform-progress"), 0)
    assert run.lost_ns == HOUR_NS
    assert run.preemptions == 1
    assert work_of(here, run, job.overhead_ns) == 11 * HOUR_NS
    kept = simulate(here, Job(10 * HOUR_NS, 20 * HOUR_NS, HOUR_NS // 2), capacity_policy("uniform-progress"), 0)
    assert kept.lost_ns == 0
    assert work_of(here, kept, job.overhead_ns) == 10 * HOUR_NS


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 10), marks=pytest.mark.faults)])
def test_no_policy_beats_the_optimum_and_greedy_meets_its_deadlines(seeds: range) -> None:
    """Over markets from seeds (more in `make faults`), also reversed: every ratio to the optimum is 1 or more, none above 1.01 of on-demand."""
    traces = [series(seed, hours=120).zones[0] for seed in seeds]
    both = [Series(each.name, (each,)) for trace in traces for each in (trace, turned_round(trace))]
    markets = [market(each, 1, 1) for each in both]
    results = list(study(markets, Terms(20 * HOUR_NS, (1.1, 1.5), 360 * SECOND_NS, 4, POLICY_NAMES)))
    assert len(results) == 2 * len(seeds) * 2 * 4 * len(POLICY_NAMES)
    for result in results:
        assert result.cost_ratio_optimum is not None
        assert result.cost_ratio_optimum >= 1 - 1e-9
        assert result.run.met_deadline
        assert result.cost_ratio_on_demand <= 1.02
    rows = summary(results)
    assert [row["policy"] for row in rows[: len(POLICY_NAMES)]] == list(POLICY_NAMES)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 20), marks=pytest.mark.faults)])
def test_an_elastic_gang_meets_its_deadlines_under_every_policy(seeds: range) -> None:
    """A gang that got fewer workers than it wanted falls behind; it is on demand before that costs the deadline, also when
    workers come and go, and it takes in others only where another start is safe. No job above 1.02 of on-demand."""
    markets = [market(series(seed, most=4, hours=70), 1, 4) for seed in seeds]
    terms = Terms(20 * HOUR_NS, (1.02, 1.1, 1.25, 2.0), 360 * SECOND_NS, 6, POLICY_NAMES)
    partial = 0
    for result in study(markets, terms):
        assert result.run.met_deadline, result.to_document()
        assert result.cost_ratio_on_demand <= 1.02
        partial += any(0 < segment.workers < 4 for segment in result.run.segments)
    assert partial > 10 * len(seeds)


def test_a_document_tells_the_run_in_on_demand_hours() -> None:
    """On demand costs 1.0 an hour; times are hours since the first tick; the document is plain JSON."""
    here = market(series(1, most=4), 4, 4)
    terms = Terms(10 * HOUR_NS, (1.5,), 360 * SECOND_NS, 2, ("on-demand",))
    result: Result = next(study([here], terms))
    document = json.loads(json.dumps(result.to_document()))
    assert document["cost"] == pytest.approx(10.1)
    assert document["cost_ratio_on_demand"] == pytest.approx(1.01)
    (segment,) = document["segments"]
    assert (segment["price"], segment["price_nanodollars_per_hour"], segment["workers"]) == (1.0, 10**9, 4)
    assert (segment["start_hours"], segment["end_hours"]) == (0.0, pytest.approx(10.1))
    assert document["finish_hours"] == segment["end_hours"]


def test_starts_lie_evenly_on_the_grid() -> None:
    """From the first tick to the last that holds the deadline; a trace that is too short is refused with its length."""
    here = market(series(1), 1, 1)
    found = starts(here, Terms(20 * HOUR_NS, (1.5,), 0, 4, ()), 1.5)
    assert found == [0, 500 * 72 * SECOND_NS, 1000 * 72 * SECOND_NS, 30 * HOUR_NS]
    with pytest.raises(UsageError, match=r"s1 has 60\.0 hours; a deadline of 2 x 40 h does not fit in"):
        starts(here, Terms(40 * HOUR_NS, (2.0,), 0, 4, ()), 2.0)


def test_wrong_jobs_and_gangs_are_refused() -> None:
    """With the numbers, before anything runs."""
    data = series(1, most=4)
    with pytest.raises(UsageError, match="never had more than 4 machines"):
        market(data, 5, 5)
    with pytest.raises(UsageError, match="has no prices"):
        market(data, 1, 1, recorded_prices=True)
    with pytest.raises(UsageError, match="has no zone zone-9"):
        data.only(["zone-9"])
    with pytest.raises(UsageError, match=r"is 0\.5 times the compute"):
        Job(2, 1, 0).check()
    with pytest.raises(UsageError, match="longer than the deadline"):
        Job(HOUR_NS, HOUR_NS, 2 * HOUR_NS).check()
    with pytest.raises(UsageError, match="--checkpoint-interval"):
        Job(HOUR_NS, HOUR_NS, 0, notice=False).check()


def test_twins_and_opposites_are_flagged(tmp_path: Path) -> None:
    """The same data twice, and data that is another's opposite; a folder's names are relative to it."""
    gap = {"gap_seconds": 60}
    (tmp_path / "sub").mkdir()
    for name, values in {"a": [1, 0, 0], "sub/b": [1, 0, 0], "sub/c": [0, 1, 1]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"metadata": gap, "data": values}))
    found, left = find([tmp_path])
    assert [name for name, _ in found] == ["a.json", "sub/b.json", "sub/c.json"]
    assert not left
    said = flags(found)
    assert said[0] == "sub/b.json holds the same data as a.json: it counts twice"
    assert said[1].startswith("sub/c.json is the exact opposite of a.json")
    with pytest.raises(NotFound, match="there is no trace"):
        find([tmp_path / "none.json"])


def test_a_series_of_zones_is_read_with_its_prices(tmp_path: Path) -> None:
    """Prices are held until the next change; one of zero is refused with its place."""
    zone = {"available": [1, 0, 1], "spot_price_changes": [[0, 1.2054], [2, 0.918]]}
    document = {"metadata": {"gap_seconds": 60, "on_demand_price_per_hour": 3.06}, "zones": {"z": zone}}
    path = tmp_path / "s.json"
    path.write_text(json.dumps(document))
    data = read_series(path)
    assert data.prices is not None
    assert [data.prices[0].at(tick) for tick in range(3)] == [1_205_400_000, 1_205_400_000, 918_000_000]
    assert [(c.at_ns // SECOND_NS, c.workers, c.price) for c in market(data, 1, 1, recorded_prices=True).changes] == [
        (0, 1, 1_205_400_000),
        (60, 0, 1_205_400_000),
        (120, 1, 918_000_000),
    ]
    zone["spot_price_changes"] = [[0, 0]]
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"zones\.z\.spot_price_changes\[0\] is the price 0"):
        read_series(path)


def test_bounds_are_kept_and_a_broken_file_is_worked_out_anew(tmp_path: Path) -> None:
    """The second time nothing is worked out; another market has another file; a file that is none is not believed."""
    job = Job(HOUR_NS, 2 * HOUR_NS, 0)
    here, there = market(series(1), 1, 1), market(series(2), 1, 1)
    first = Bounds(here, tmp_path / "cache")
    assert first.of(job, 0, lambda: 5.0) == 5.0
    first.keep()
    again = Bounds(here, tmp_path / "cache")
    assert again.of(job, 0, lambda: 7.0) == 5.0
    assert again.of(job, HOUR_NS, lambda: None) is None
    assert Bounds(there, tmp_path / "cache").of(job, 0, lambda: 9.0) == 9.0
    (file,) = (tmp_path / "cache").glob("*.json")
    file.write_text("{")
    assert Bounds(here, tmp_path / "cache").of(job, 0, lambda: 8.0) == 8.0
