"""Print a completion script: `source <(orchestrate completion bash)`, the same with zsh, or `completion fish | source`.

The scripts are made from the verbs' own parsers. Names of jobs are completed while a controller runs; none is started.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "shell",
        metavar="SHELL",
        choices=("bash", "zsh", "fish", "jobs"),
        help="bash, zsh or fish; jobs prints the names of jobs",
    )


def run(args: argparse.Namespace, context: Context) -> int:
    if args.shell == "jobs":
        return _jobs(context)
    from orchestrator.cli.completions import script

    context.write(script(args.shell))
    return 0


def _jobs(context: Context) -> int:
    """Names for a shell that waits: nothing is started, and silence is better than an error."""
    from orchestrator.domain.errors import OrchestrateError

    try:
        client = context.client_if_running(timeout_seconds=1.0)
        if client is not None:
            for item in client.list(context.settings.namespace)["items"]:
                context.print(context.short(item))
    except OrchestrateError:
        return 0
    return 0
