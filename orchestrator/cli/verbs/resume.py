"""Continue suspended jobs from their last checkpoints. A job that has cost what its budget allows needs a larger one: --budget."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser
from orchestrator.cli.steering import add_steering_arguments, steer

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_steering_arguments(parser, "trains again")
    parser.add_argument("--budget", metavar="DOLLARS", help="what the job may cost in all from now on")


def run(args: argparse.Namespace, context: Context) -> int:
    return steer(args, context, "resume", ("Running",), "waits for room", args.budget)
