"""Show what a job would be before anything runs: gang, batch arithmetic, ZeRO stage, memory, time, money, what would be created.

Needs no server and no network. Memory is worked out term by term; time from the arithmetic of all steps and what GPUs reach of
their peak; cost from the prices in force, and on spot machines from simulated markets like those that were recorded. What is
unknown is said to be. With --probe, a few real steps on this machine are measured. See docs/planning.md.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_namespace, add_output, count_from_one, positive_seconds
from orchestrator.cli.verbs.validate import add_set

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="job file (YAML or JSON)")
    add_set(parser)
    parser.add_argument("--name", help="name of the job, instead of the one in the file")
    parser.add_argument(
        "--deadline", type=positive_seconds, metavar="TIME", help="time within which the job must be done"
    )
    parser.add_argument(
        "--restart-overhead", type=positive_seconds, default=360.0, metavar="TIME",
        help="from a machine's start until it trains, for the cost on spot (default 6m)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the simulated markets (default 0)")
    parser.add_argument(
        "--probe",
        type=count_from_one,
        nargs="?",
        const=20,
        metavar="STEPS",
        help="measure so many real steps here (20)",
    )
    add_namespace(parser)
    add_output(parser, ("table", "json", "yaml"))


def run(args: argparse.Namespace, context: Context) -> int:
    from pathlib import Path

    from orchestrator.cli import estimates
    from orchestrator.cli.jobfile import read_for_submission
    from orchestrator.planning.plan import plan
    from orchestrator.platforms.prices import load_prices

    job, document = read_for_submission(context, args.file, args.overrides, name=args.name, namespace=args.namespace)
    planned = plan(job)
    settings = context.settings
    prices = load_prices(Path(settings.prices).expanduser() if settings.prices else None)
    wishes = estimates.Wishes(
        None if args.deadline is None else args.deadline / 3600,
        args.restart_overhead / 3600,
        args.seed,
        args.probe or 0,
        context.say,
    )
    found = estimates.estimates(job, planned, Path(document["spec"]["runtime"]["workingDir"]), prices, wishes)
    if args.output == "table":
        context.write("\n".join([*planned.lines(), *estimates.lines(found)]) + "\n")
        return 0
    from orchestrator.cli.output import to_json, to_yaml

    whole = {**planned.to_dict(), "estimates": estimates.document(found)}
    context.write(to_json(whole) if args.output == "json" else to_yaml(whole))
    return 0
