"""Show what a job would be before anything runs: gang, batch arithmetic, ZeRO stage, what would be created.

Needs no server and no network. What data, hardware or prices decide is said to be decided there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_namespace, add_output
from orchestrator.cli.verbs.validate import add_set

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="job file (YAML or JSON)")
    add_set(parser)
    parser.add_argument("--name", help="name of the job, instead of the one in the file")
    add_namespace(parser)
    add_output(parser, ("table", "json", "yaml"))


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.jobfile import read_for_submission

    job, _ = read_for_submission(context, args.file, args.overrides, name=args.name, namespace=args.namespace)
    from orchestrator.planning.plan import plan

    planned = plan(job)
    if args.output == "table":
        context.write("\n".join(planned.lines()) + "\n")
        return 0
    from orchestrator.cli.output import to_json, to_yaml

    context.write(to_json(planned.to_dict()) if args.output == "json" else to_yaml(planned.to_dict()))
    return 0
