"""Many jobs over many markets: which starts, each policy on each, and the bound of each job worked out once.

Starts lie evenly on a grid of 72 s over what the trace can hold (from its first tick to the last start whose deadline is within
it), for each deadline ratio by itself. The bound is the exact optimum for a rigid gang, the fluid bound for an elastic one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import NotFound, UsageError
from orchestrator.policy.capacity import capacity_policy
from orchestrator.simulation.bounds import Bounds
from orchestrator.simulation.market import HOUR_NS, SECOND_NS, Market, fluid_bound
from orchestrator.simulation.traces import Series, read_series
from orchestrator.simulation.trouble import NO_TROUBLE, Trouble
from orchestrator.simulation.world import Job, Run, simulate

GRID_NS = 72 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Terms:
    """What is run on each market. Times are ns."""

    work_ns: int
    ratios: tuple[float, ...]
    overhead_ns: int
    starts: int
    policies: tuple[str, ...]
    notice: bool = True
    checkpoint_interval_ns: int | None = None
    without: tuple[str, ...] = ()
    """Recorded markets that no policy may know (beginnings of their names): those that it is judged on."""
    trouble: Trouble = NO_TROUBLE
    """What no policy can know."""


@dataclass(frozen=True, slots=True)
class Result:
    """One job under one policy, next to the bound (nano-dollars; None: nothing could have met the deadline)."""

    market: Market
    ratio: float
    policy: str
    job: Job
    run: Run
    bound: float | None

    @property
    def on_demand_nanodollars(self) -> float:
        """The work on demand, without an overhead."""
        return self.market.on_demand * self.job.work_ns / HOUR_NS

    @property
    def cost_ratio_on_demand(self) -> float:
        return self.run.cost_nanodollars / self.on_demand_nanodollars

    @property
    def cost_ratio_optimum(self) -> float | None:
        return None if not self.bound else self.run.cost_nanodollars / self.bound

    def to_document(self) -> dict[str, Any]:
        """As `orchestrate simulate -o json` prints it: times in hours since the first tick, amounts in on-demand-hours of the
        whole gang."""
        unit, run = self.market.on_demand, self.run
        return {
            "trace": self.market.name,
            "start_hours": run.start_ns / HOUR_NS,
            "deadline_ratio": self.ratio,
            "policy": self.policy,
            "cost": run.cost_nanodollars / unit,
            "cost_ratio_on_demand": self.cost_ratio_on_demand,
            "optimum_cost": None if self.bound is None else self.bound / unit,
            "cost_ratio_optimum": self.cost_ratio_optimum,
            "met_deadline": run.met_deadline,
            "finish_hours": None if run.finish_ns is None else run.finish_ns / HOUR_NS,
            "preemptions": run.preemptions,
            "lost_work_hours": run.lost_ns / HOUR_NS,
            "segments": [
                {
                    "start_hours": each.start_ns / HOUR_NS,
                    "end_hours": each.end_ns / HOUR_NS,
                    "start_ns": each.start_ns,
                    "end_ns": each.end_ns,
                    "zone": each.zone,
                    "capacity_type": str(each.capacity_type),
                    "workers": each.workers,
                    "price": each.price_nanodollars_per_hour / unit,
                    "price_nanodollars_per_hour": each.price_nanodollars_per_hour,
                    "cost_nanodollars": each.cost_nanodollars,
                }
                for each in run.segments
            ],
        }


def find(paths: Sequence[Path]) -> tuple[list[tuple[str, Series]], list[str]]:
    """The traces at these paths, by the name relative to the path that led to them (a file: its own name), and what was left
    out of the folders. Raises NotFound and UsageError."""
    found: list[tuple[str, Series]] = []
    left: list[str] = []
    for path in paths:
        if path.is_dir():
            files = sorted(path.rglob("*.json"))
            if not files:
                raise NotFound(f"there is no trace in {path}", hint="a trace is a file whose name ends in .json")
            for file in files:
                series = read_series(file)
                name = file.relative_to(path).as_posix()
                if len(series.zones) > 1:
                    left.append(f"{name} has several zones and is left out: name the file itself")
                else:
                    found.append((name, series))
        else:
            found.append((path.name, read_series(path)))
    return found, left


def starts(market: Market, terms: Terms, ratio: float) -> list[int]:
    """In ns. Raises UsageError when the trace is shorter than the deadline."""
    last = (market.length_ns - round(terms.work_ns * ratio)) // GRID_NS
    if last < 0:
        raise UsageError(
            f"{market.name} has {market.length_ns / HOUR_NS:.1f} hours; a deadline of {ratio:g} x {terms.work_ns / HOUR_NS:g} h "
            "does not fit in",
            hint="lower --compute or --deadline-ratio",
        )
    count = min(terms.starts, last + 1)
    return [last * place // max(1, count - 1) * GRID_NS for place in range(count)]


def study(markets: Sequence[Market], terms: Terms, cache: Path | None = None) -> Iterator[Result]:
    """Every policy on every start of every ratio of every market, in this order from the inside out. `cache`: a folder where
    bounds are kept for the next time."""
    policies = {name: capacity_policy(name, terms.without) for name in terms.policies}
    for market in markets:
        bounds = Bounds(market, cache)
        for ratio in terms.ratios:
            job = Job(
                terms.work_ns,
                round(terms.work_ns * ratio),
                terms.overhead_ns,
                terms.notice,
                terms.checkpoint_interval_ns,
            )
            job.check()
            for start_ns in starts(market, terms, ratio):
                bound = bounds.of(job, start_ns, partial(_bound, market, job, start_ns))
                for name, policy in policies.items():
                    yield Result(
                        market, ratio, name, job, simulate(market, job, policy, start_ns, terms.trouble), bound
                    )
        bounds.keep()


def _bound(market: Market, job: Job, start_ns: int) -> float | None:
    deadline_ns = start_ns + job.deadline_ns
    if not market.rigid:
        return fluid_bound(market, start_ns, job.work_ns, deadline_ns)
    from orchestrator.simulation.optimum import rigid_optimum

    return rigid_optimum(market, start_ns, job.work_ns, deadline_ns, job.overhead_ns)


def summary(results: Sequence[Result]) -> list[Mapping[str, Any]]:
    """Means by policy and ratio, in the order in which they came; percentiles of cost over the bound."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.policy, result.ratio), []).append(result)
    rows: list[Mapping[str, Any]] = []
    for (policy, ratio), group in groups.items():
        over = sorted(value for result in group if (value := result.cost_ratio_optimum) is not None)
        rows.append(
            {
                "policy": policy,
                "ratio": ratio,
                "jobs": len(group),
                "on_demand": sum(result.cost_ratio_on_demand for result in group) / len(group),
                "worst_on_demand": max(result.cost_ratio_on_demand for result in group),
                "optimum": sum(over) / len(over) if over else None,
                "p99": over[min(len(over) - 1, (99 * len(over)) // 100)] if over else None,
                "misses": sum(not result.run.met_deadline for result in group),
                "preemptions": sum(result.run.preemptions for result in group) / len(group),
            }
        )
    return rows
