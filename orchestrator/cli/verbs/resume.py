"""Continue suspended jobs from their last checkpoints."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser
from orchestrator.cli.steering import add_steering_arguments, steer

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_steering_arguments(parser, "trains again")


def run(args: argparse.Namespace, context: Context) -> int:
    return steer(args, context, "resume", ("Running",), "waits for room")
