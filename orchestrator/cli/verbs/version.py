"""Print the version of orchestrate and of the interfaces it speaks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_output

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_output(parser, ("table", "json", "yaml"))


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator import __version__

    if args.output == "table":
        context.print(f"orchestrate {__version__}")
        return 0
    from orchestrator.cli.output import to_json, to_yaml

    facts = {"version": __version__, "api": "v1", "apiVersion": "orchestrate.dev/v1alpha1"}
    context.write(to_json(facts) if args.output == "json" else to_yaml(facts))
    return 0
