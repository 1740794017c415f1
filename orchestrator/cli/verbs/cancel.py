"""End jobs for good. What was trained since the last checkpoint is lost; checkpoints and receipts stay."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser
from orchestrator.cli.steering import add_steering_arguments, steer

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_steering_arguments(parser, "has ended")


def run(args: argparse.Namespace, context: Context) -> int:
    return steer(args, context, "cancel", ("Cancelled",), "is being cancelled")
