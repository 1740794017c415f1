"""List jobs, newest first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_output, count
from orchestrator.cli.output import emit, table
from orchestrator.cli.view import NOTHING, JobView

if TYPE_CHECKING:
    from orchestrator.cli.context import Context

PHASES = (
    "Pending",
    "Queued",
    "Provisioning",
    "Running",
    "Resizing",
    "Recovering",
    "Suspended",
    "Succeeded",
    "Failed",
    "Cancelled",
)


def add_arguments(parser: Parser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "-n", "--namespace", metavar="NAME", help="jobs of this namespace; instead of $ORCHESTRATE_NAMESPACE"
    )
    which.add_argument("-A", "--all-namespaces", action="store_true", help="jobs of all namespaces")
    parser.add_argument("--phase", choices=PHASES, metavar="PHASE", help=f"jobs in this phase: {', '.join(PHASES)}")
    parser.add_argument(
        "--limit", type=count, default=500, metavar="N", help="at most so many jobs; 0 means all (default 500)"
    )
    add_output(parser)
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    namespace = None if args.all_namespaces else context.settings.namespace
    if not context.remote and not context.used_before():
        whole: dict[str, Any] = {"kind": "TrainingJobList", "items": [], "metadata": {}}
    else:
        whole = context.client().list(namespace, phase=args.phase, limit=args.limit)
    items: list[dict[str, Any]] = whole["items"]
    if not items and args.output in ("table", "wide"):
        where = "" if namespace is None else f" in the namespace {namespace}"
        phase = f" {args.phase}" if args.phase else ""
        context.say(f"No{phase} jobs{where}. `orchestrate submit job.yaml` starts one.")
        return 0
    emit(
        context,
        args.output,
        items,
        whole=whole,
        as_table=lambda: jobs_table(
            [JobView(item) for item in items],
            context.clock.now_ns(),
            namespaces=namespace is None,
            wide=args.output == "wide",
        ),
        names=context.short,
    )
    if (whole.get("metadata") or {}).get("continue"):
        context.say(f"There are more than these {len(items)}; --limit 0 lists all.")
    return 0


def jobs_table(jobs: Sequence[JobView], now_ns: int, *, namespaces: bool, wide: bool) -> str:
    headings = ["NAME", "PHASE", "STEP", "DONE", "LOSS", "WORKERS", "RESTARTS", "COST", "AGE"]
    if namespaces:
        headings.insert(0, "NAMESPACE")
    if wide:
        headings += ["TEAM", "REASON", "UID"]
    rows = []
    for job in jobs:
        row = [
            job.name,
            job.phase,
            job.steps,
            NOTHING if job.percent is None else f"{job.percent:.0f} %",
            job.loss,
            job.workers,
            str(job.restarts),
            job.total_cost,
            job.age(now_ns),
        ]
        if namespaces:
            row.insert(0, job.namespace)
        if wide:
            row += [(job.metadata.get("labels") or {}).get("team", NOTHING), job.reason or NOTHING, job.uid]
        rows.append(row)
    return table(headings, rows, right=("STEP", "DONE", "LOSS", "WORKERS", "RESTARTS", "COST", "AGE"))
