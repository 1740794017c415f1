"""Print the JSON schema of the job file, for editors and programs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_output

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_output(parser, ("json", "yaml"), default="json")


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.output import to_json, to_yaml
    from orchestrator.spec import json_schema

    schema = json_schema()
    context.write(to_json(schema) if args.output == "json" else to_yaml(schema))
    return 0
