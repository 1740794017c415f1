"""Promises of the capacity policies when what they are told is wrong: `make bench-robustness`.

Every policy on all recorded one-zone markets (beside the repository, or `--traces`), 24 h of work (20 h where a trace is short),
ratios 1.1, 1.25, 1.5 and 2, in trouble: work thought to be 20 % less or more than it is until half of it is done, restarts of
lognormal length cut at 4 times the mean, four half hours a day without on-demand machines, and all of it. A breach is a deadline
that was missed though on-demand machines from the moment of knowledge on would have met it, by the high estimate of a restart, or
one that was missed without DeadlineAtRisk at once (of work) or before the deadline (of stock-outs).

Bar: 0 breaches. Not measured: offers that are seen late.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude
from orchestrator.domain.errors import UsageError
from orchestrator.policy.capacity import POLICY_NAMES
from orchestrator.simulation.market import HOUR_NS, market
from orchestrator.simulation.study import Result, Terms, find, starts, study
from orchestrator.simulation.trouble import Trouble

TRACES = REPOSITORY.parent / "shared" / "traces"
RATIOS = (1.1, 1.25, 1.5, 2.0)
CASES = {
    "none": Trouble(),
    "work thought 20 % less": Trouble(work_believed=0.8),
    "work thought 20 % more": Trouble(work_believed=1.2),
    "restarts of lognormal length": Trouble(overhead_sigma=1.0),
    "4 stock-outs a day": Trouble(stock_outs_per_day=4),
    "all": Trouble(overhead_sigma=1.0, stock_outs_per_day=4, work_believed=0.8),
}
SECOND_NS = 1_000_000_000


def breach(result: Result, trouble: Trouble) -> bool:
    """Whether a promise was broken."""
    run = result.run
    if run.met_deadline:
        return False
    deadline_ns = run.start_ns + result.job.deadline_ns
    if run.warned_ns is None or run.warned_ns > deadline_ns:
        return True
    if run.known_ns is None or run.spare_ns is None:
        return not trouble.stock_outs_per_day
    if trouble.stock_outs_per_day:
        return False  # machines may have been sold out since
    return run.spare_ns >= 2 * SECOND_NS or run.warned_ns > run.known_ns + SECOND_NS


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder of the recorded markets")
    parser.add_argument("--starts", type=int, default=12, help="jobs a trace and ratio (default 12)")
    given = parser.parse_args()
    if not given.traces.is_dir():
        print(f"there are no traces in {given.traces}: nothing is measured")
        return 0
    found, _ = find([given.traces])
    samples = Samples("robustness")
    breaches = jobs = 0
    for name, trouble in CASES.items():
        kind = f"{name}, {given.starts} starts"
        for _ in samples.missing(kind, given.samples):
            with samples.sample(kind) as values:
                results: list[Result] = []
                for trace, series in found:
                    place = market(series, series.most, series.most, spot_price_ratio=0.3333)
                    hours = 20 if "gcp" in trace else 24
                    terms = Terms(hours * HOUR_NS, RATIOS, HOUR_NS // 10, given.starts, POLICY_NAMES, trouble=trouble)
                    try:
                        for ratio in RATIOS:
                            starts(place, terms, ratio)
                    except UsageError:  # shorter than the deadline
                        continue
                    results += study([place], terms, REPOSITORY / ".make" / "bounds")
                for policy in POLICY_NAMES:
                    mine = [result for result in results if result.policy == policy]
                    over = [value for result in mine if (value := result.cost_ratio_optimum) is not None]
                    values[policy] = {
                        "jobs": len(mine),
                        "missed": sum(not result.run.met_deadline for result in mine),
                        "breaches": sum(breach(result, trouble) for result in mine),
                        "overOptimum": fmean(over),
                        "worstOnDemand": max(result.cost_ratio_on_demand for result in mine),
                    }
        for row in samples.rows(kind):
            print(name)
            for policy, told in row["sample"].items():
                breaches, jobs = breaches + told["breaches"], jobs + told["jobs"]
                print(
                    f"    {policy:17} {told['jobs']:5} jobs, {told['missed']:4} missed, {told['breaches']} breaches, "
                    f"{told['overOptimum']:.3f} of the optimum, at most {told['worstOnDemand']:.3f} of on-demand"
                )
    return conclude([Verdict("broken promises", 0, breaches, "", jobs, "count")])


if __name__ == "__main__":
    sys.exit(main())
