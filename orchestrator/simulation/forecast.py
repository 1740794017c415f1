"""What a job would cost on spot machines: the capacity policy on many markets like those that were recorded.

The spread is that of the markets alone: the price is taken as it is now, the work as known. The policy has not watched the
market before the job begins; it knows what recorded ones did.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.capacity import capacity_policy
from orchestrator.simulation.market import DOLLAR, HOUR_NS, market
from orchestrator.simulation.synthetic import drawn_trace
from orchestrator.simulation.traces import Series
from orchestrator.simulation.world import Job, simulate


@dataclass(frozen=True, slots=True)
class Forecast:
    """Over the markets drawn. Amounts are nano-dollars, times hours."""

    p10: int
    p50: int
    p90: int
    hours_p50: float
    hours_p90: float
    missed: int
    """Jobs that ended after their deadline."""
    jobs: int
    preemptions: float
    """Mean a job."""


def spot_forecast(
    *,
    work_hours: float,
    deadline_hours: float,
    overhead_hours: float,
    on_demand_nanodollars_per_hour: int,
    spot_nanodollars_per_hour: int,
    policy: str = "auto",
    jobs: int = 60,
    seed: int = 0,
) -> Forecast:
    """Of a gang that costs so much an hour. `work_hours`: what the gang takes without interruption. Raises UsageError for a
    deadline that leaves no room."""
    ratio = spot_nanodollars_per_hour / on_demand_nanodollars_per_hour
    job = Job(round(work_hours * HOUR_NS), round(deadline_hours * HOUR_NS), round(overhead_hours * HOUR_NS))
    job.check()
    chosen = capacity_policy(policy)
    runs = []
    for number in range(jobs):
        trace = drawn_trace(seed * jobs + number, hours=deadline_hours + overhead_hours)
        if trace.most == 0:
            trace = type(trace)(trace.name, trace.gap_seconds, (*trace.available[:-1], 1))
        world = market(Series(trace.name, (trace,)), 1, 1, spot_price_ratio=ratio)
        runs.append(simulate(world, job, chosen, 0))
    costs = sorted(run.cost_nanodollars * on_demand_nanodollars_per_hour // DOLLAR for run in runs)
    lengths = sorted(
        ((run.finish_ns if run.finish_ns is not None else run.start_ns + job.deadline_ns) - run.start_ns) / HOUR_NS
        for run in runs
    )

    def part(share: float) -> int:
        return min(jobs - 1, int(share * jobs))

    return Forecast(
        costs[part(0.1)],
        costs[part(0.5)],
        costs[part(0.9)],
        lengths[part(0.5)],
        lengths[part(0.9)],
        sum(not run.met_deadline for run in runs),
        jobs,
        sum(run.preemptions for run in runs) / jobs,
    )
