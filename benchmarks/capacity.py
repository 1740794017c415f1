"""Capacity policies on recorded markets, next to the exact optimum: `make bench-capacity`.

    python -m benchmarks.capacity [--traces FOLDER] [--reversed] [--starts 24] [--tail-starts 120] [--overhead 0.1,0.02]

FOLDER holds traces of the public repository skypilot-org/spot-traces in its own layout; without it they are looked for beside
this repository, in `../shared/traces`, and where they are not, nothing is measured. Every trace is one zone; the gang has
all its machines, 48 hours of work (20 on Google Cloud, whose traces are short), and a deadline of 1.1, 1.25, 1.5 and 2 times
that. What `auto` knows of recorded markets leaves out the folder of the trace that it is judged on. Means and percentiles over
the optimum are taken over 24 starts a trace and ratio; missed deadlines, and jobs above 1.01 times on-demand machines, over 120.
Each job's cost, availability and work is worked out again from its segments and the trace alone.

Six zones with their recorded prices come after, where FOLDER has them: each, the two of each region, and all, `auto` next to `uniform-progress`; bar 1.04
over the optimum in the mean of these ten.

Everything is counted, nothing timed, so it does not matter what else the machine does. Bars: mean over the optimum at most 1.040 at
an overhead of 0.1 h and 1.012 at 0.02 h, p99 1.30, below every other policy; no miss in 10,000 jobs, none above 1.01.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude, percentile
from orchestrator.policy.capacity import DEFAULT_POLICY, POLICY_NAMES
from orchestrator.simulation.market import HOUR_NS, market, turned_round
from orchestrator.simulation.study import Result, Terms, find, study
from orchestrator.simulation.traces import Series, read_series

RATIOS = (1.1, 1.25, 1.5, 2.0)
WORK_HOURS, GOOGLE_WORK_HOURS = 48, 20
BARS = {0.1: 1.040, 0.02: 1.012}
P99_BAR, ON_DEMAND_BAR, JOBS_BAR = 1.30, 1.01, 10_000
TRACES = REPOSITORY.parent / "shared" / "traces"
PRICED, PRICED_GROUP = "spot-prices-v100-6-zones.json", "availability/1-node/aws-02-15-2023"
REGIONS = ("us-east-1", "us-east-2", "us-west-2", "us")
ZONES_BAR, RIVAL = 1.040, "uniform-progress"
CACHE = REPOSITORY / ".make" / "bounds"
Group = tuple[str, Sequence[tuple[str, Series]]]
Row = dict[str, Any]


def groups(folder: Path, backwards: bool) -> list[Group]:
    """One-zone traces by their folder."""
    found: dict[str, list[tuple[str, Series]]] = {}
    for name, series in find([folder])[0]:
        if backwards:
            series = replace(series, zones=tuple(map(turned_round, series.zones)))
        found.setdefault(PurePosixPath(name).parent.as_posix(), []).append((name, series))
    return list(found.items())


def run_group(group: Group, overhead_hours: float, starts: int, policies: tuple[str, ...]) -> list[Row]:
    """Every job of the group's traces, one row each. Raises AssertionError for a run whose segments tell another story."""
    folder, traces = group
    work_hours = GOOGLE_WORK_HOURS if "gcp" in folder else WORK_HOURS
    terms = Terms(work_hours * HOUR_NS, RATIOS, round(overhead_hours * HOUR_NS), starts, policies, without=(folder,))
    rows = []
    for name, series in traces:
        for result in study([market(series, series.most, series.most)], terms, CACHE):
            check(result, series)
            rows.append(_row(result, name))
    return rows


def check(result: Result, series: Series) -> None:
    """Cost, recorded prices, availability and work of a run, worked out from its segments and the trace in integers. Raises
    AssertionError."""
    run, job, document = result.run, result.job, result.to_document()
    segments: list[Mapping[str, Any]] = document["segments"]
    cost = sum(each["price_nanodollars_per_hour"] * (each["end_ns"] - each["start_ns"]) // HOUR_NS for each in segments)
    assert cost == run.cost_nanodollars == sum(each["cost_nanodollars"] for each in segments), document
    assert all(before["end_ns"] <= after["start_ns"] for before, after in pairwise(segments)), document
    for each in segments:
        if each["capacity_type"] == "spot":
            (zone,) = (zone for zone in series.zones if zone.name == each["zone"])
            gap_ns = round(zone.gap_seconds * 1_000_000_000)
            ticks = range(each["start_ns"] // gap_ns, -(-each["end_ns"] // gap_ns))
            assert all(zone.available[tick] >= each["workers"] for tick in ticks), (document["trace"], each)
            if series.prices is not None:
                prices = series.prices[series.zones.index(zone)]
                told_prices = {prices.at(tick) * each["workers"] for tick in ticks}
                assert told_prices == {each["price_nanodollars_per_hour"]}, (document["trace"], each)
    worked = sum(max(0, end - start - job.overhead_ns) for start, end in _unbroken(segments))
    assert worked == job.work_ns, (document["trace"], worked, job.work_ns)
    assert run.finish_ns is not None, document
    assert run.finish_ns == segments[-1]["end_ns"], document
    assert run.met_deadline == (run.finish_ns <= run.start_ns + job.deadline_ns), document


def _unbroken(segments: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """From each start to the next end or change: a new price alone is none."""
    start = 0
    for place, each in enumerate(segments):
        before = segments[place - 1] if place else None
        if before is None or (before["end_ns"], *_place(before)) != (each["start_ns"], *_place(each)):
            start = each["start_ns"]
        after = segments[place + 1] if place + 1 < len(segments) else None
        if after is None or (each["end_ns"], *_place(each)) != (after["start_ns"], *_place(after)):
            yield start, each["end_ns"]


def _place(segment: Mapping[str, Any]) -> tuple[str, str, int]:
    return segment["zone"], segment["capacity_type"], segment["workers"]


def every(found: Sequence[Group], processes: int, overhead: float, starts: int, policies: tuple[str, ...]) -> list[Row]:
    """The jobs of all groups."""
    one = partial(run_group, overhead_hours=overhead, starts=starts, policies=policies)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return [row for rows in pool.map(one, found) for row in rows]


def summed(rows: Sequence[Row]) -> Row:
    """What is kept of one policy's jobs."""
    over = [row["over"] for row in rows if row["over"] is not None]
    return {
        "jobs": len(rows),
        "mean": sum(over) / len(over),
        "p99": percentile(over, 99),
        "worst": max(over),
        "worst_on_demand": max(row["on_demand"] for row in rows),
        "missed": sum(not row["met"] for row in rows),
    }


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--traces", type=Path, default=TRACES, metavar="FOLDER", help="where the traces are")
    parser.add_argument("--reversed", action="store_true", help="run every market backwards")
    parser.add_argument("--starts", type=int, default=24, help="a trace and ratio, for means (default 24)")
    parser.add_argument("--tail-starts", type=int, default=120, help="for misses (default 120; 0: leave it out)")
    parser.add_argument("--overhead", default="0.1,0.02", help="restart overheads in hours (default 0.1,0.02)")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    if not given.traces.is_dir():
        print(f"there are no traces in {given.traces}: nothing is measured")
        return 0
    found, samples, verdicts = groups(given.traces, given.reversed), Samples("capacity"), []
    which = "reversed, " if given.reversed else ""
    for overhead in map(float, given.overhead.split(",")):
        kinds = {name: f"{which}{name}, overhead {overhead:g} h, {given.starts} starts" for name in POLICY_NAMES}
        if any(samples.missing(kind, 1) for kind in kinds.values()):
            rows = every(found, given.processes, overhead, given.starts, POLICY_NAMES)
            for name, kind in kinds.items():
                with samples.sample(kind) as sample:
                    sample |= summed([row for row in rows if row["policy"] == name])
        means = {name: samples.rows(kind)[0]["sample"] for name, kind in kinds.items()}
        for name, kept in means.items():
            print(f"overhead {overhead:g} h, {name}: {told(kept)}")
        auto = means[DEFAULT_POLICY]
        others = min(kept["mean"] for name, kept in means.items() if name != DEFAULT_POLICY)
        what = f"auto, overhead {overhead:g} h"
        if overhead in BARS:
            verdicts.append(
                Verdict(f"{what}, over the optimum", BARS[overhead], auto["mean"], "", auto["jobs"], "mean")
            )
        verdicts.append(Verdict(f"{what}, over the best other", 1.0, auto["mean"] / others, "", auto["jobs"], "mean"))
        verdicts.append(Verdict(f"{what}, over the optimum", P99_BAR, auto["p99"], "", auto["jobs"], "p99"))
        if not given.reversed and (given.traces / PRICED).is_file():
            verdicts += zones(samples, given.traces / PRICED, overhead, given.starts)
        if given.tail_starts:
            verdicts += tails(samples, found, which, given.processes, overhead, given.tail_starts)
    return conclude(verdicts)


def zones(samples: Samples, file: Path, overhead: float, starts: int) -> list[Verdict]:
    """The zones with prices, by sets."""
    kind = f"zones with prices, overhead {overhead:g} h, {starts} starts"
    if samples.missing(kind, 1):
        series = read_series(file)
        policies = (DEFAULT_POLICY, RIVAL)
        terms = Terms(
            WORK_HOURS * HOUR_NS, RATIOS, round(overhead * HOUR_NS), starts, policies, without=(PRICED_GROUP,)
        )
        kept: dict[str, dict[str, Row]] = {}
        for name in (*(zone.name for zone in series.zones), *REGIONS):
            chosen = _only(series, name)
            rows = []
            for result in study([market(chosen, 1, 1, recorded_prices=True)], terms, CACHE):
                check(result, chosen)
                rows.append(_row(result, name))
            kept[name] = {policy: summed([row for row in rows if row["policy"] == policy]) for policy in policies}
            print(
                f"{kind}, {name}: {told(kept[name][DEFAULT_POLICY])}; {RIVAL} {kept[name][RIVAL]['mean']:.4f}",
                flush=True,
            )
        with samples.sample(kind) as sample:
            sample |= kept
    sets = samples.rows(kind)[0]["sample"].values()
    means = {name: sum(each[name]["mean"] for each in sets) / len(sets) for name in (DEFAULT_POLICY, RIVAL)}
    missed, jobs = (sum(each[DEFAULT_POLICY][what] for each in sets) for what in ("missed", "jobs"))
    print(f"{kind}: auto {means[DEFAULT_POLICY]:.4f}, {RIVAL} {means[RIVAL]:.4f}")
    return [
        Verdict(f"auto, {kind}, over the optimum", ZONES_BAR, means[DEFAULT_POLICY], "", len(sets), "mean of sets"),
        Verdict(f"auto, {kind}, deadlines missed", 0, missed, "", jobs, "total"),
    ]


def _only(series: Series, beginning: str) -> Series:
    """The zones whose names begin so."""
    assert series.prices is not None
    chosen = [pair for pair in zip(series.zones, series.prices, strict=True) if pair[0].name.startswith(beginning)]
    return replace(series, zones=tuple(zone for zone, _ in chosen), prices=tuple(prices for _, prices in chosen))


def _row(result: Result, trace: str) -> Row:
    return {
        "trace": trace,
        "policy": result.policy,
        "over": result.cost_ratio_optimum,
        "on_demand": result.cost_ratio_on_demand,
        "met": result.run.met_deadline,
    }


def tails(
    samples: Samples, found: Sequence[Group], which: str, processes: int, overhead: float, starts: int
) -> list[Verdict]:
    """Of `auto` alone."""
    kind = f"{which}{DEFAULT_POLICY}, overhead {overhead:g} h, {starts} starts"
    if samples.missing(kind, 1):
        rows = every(found, processes, overhead, starts, (DEFAULT_POLICY,))
        with samples.sample(kind) as sample:
            sample |= summed(rows)
    kept = samples.rows(kind)[0]["sample"]
    print(f"overhead {overhead:g} h, {DEFAULT_POLICY}, {starts} starts: {told(kept)}")
    what, jobs = f"auto, overhead {overhead:g} h", kept["jobs"]
    return [
        Verdict(f"{what}, deadlines missed", 0, kept["missed"], "", jobs, "total"),
        Verdict(f"{what}, over on-demand", ON_DEMAND_BAR, kept["worst_on_demand"], "", jobs, "worst"),
        Verdict(f"{what}, jobs", JOBS_BAR, jobs, "", jobs, "total", at_most=False),
    ]


def told(kept: Row) -> str:
    return (
        f"{kept['mean']:.4f} of the optimum, p99 {kept['p99']:.3f}, worst {kept['worst']:.3f}; on-demand at worst "
        f"{kept['worst_on_demand']:.4f}; {kept['missed']} of {kept['jobs']} missed"
    )


if __name__ == "__main__":
    sys.exit(main())
