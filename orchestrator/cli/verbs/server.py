"""Start, stop or look at the controller of this machine. `submit` starts it by itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_connection, add_output, words
from orchestrator.domain.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    from orchestrator.controller.settings import ENGINES

    verbs = words(parser, "what", "WHAT")
    start = verbs.add_parser(
        "start",
        help="start it, or find it running",
        description="Start Ray and the controller here, or find them running.",
    )
    start.add_argument(
        "--engine",
        choices=ENGINES,
        help="what runs gangs of fixed size (native runs all elastic ones); fake trains nothing",
    )
    start.add_argument("--host", metavar="ADDRESS", help="address to listen on; instead of $ORCHESTRATE_HOST")
    start.add_argument("--port", type=int, metavar="NUMBER", help="port of the REST API; instead of $ORCHESTRATE_PORT")
    start.add_argument("--cpus", type=int, metavar="N", help="CPUs that jobs may use; 0 means all")
    stop = verbs.add_parser(
        "stop",
        help="stop it; jobs that run go on when it is started again",
        description="Stop the controller and the Ray that it started. Jobs that run go on, from their last checkpoints, "
        "when it is started again.",
    )
    status = verbs.add_parser(
        "status", help="where it is and how it does", description="Where the controller is and how it does."
    )
    add_output(status, ("table", "json", "yaml"))
    for leaf in (start, stop, status):
        add_connection(leaf)


def run(args: argparse.Namespace, context: Context) -> int:
    if context.remote:
        raise UsageError(
            f"the controller at {context.settings.url} runs elsewhere",
            hint="unset ORCHESTRATE_URL to mean this machine's",
        )
    from orchestrator.controller import local

    settings = context.settings
    if args.what == "start":
        endpoint = local.ensure_server(settings, context.say, context.environ, context.clock)
        if not endpoint.started:
            context.say("The controller runs already.")
        context.print(endpoint.url)
        return 0
    if args.what == "stop":
        if not local.stop_server(settings, context.say):
            context.say("No controller runs here.")
        return 0
    status = local.server_status(settings)
    if args.output == "table":
        from orchestrator.cli.output import pairs

        context.write(pairs([(_words(name), _text(value)) for name, value in status.items()]))
    else:
        from orchestrator.cli.output import to_json, to_yaml

        context.write(to_json(status) if args.output == "json" else to_yaml(status))
    return int(ExitCode.OK if status.get("running") else ExitCode.UNREACHABLE)


def _text(value: object) -> str:
    """A fact for people; of several facts under one name, each with its own."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return "-" if value is None else str(value)


def _words(name: str) -> str:
    """`startedAt` as `Started at`."""
    spaced = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)
    return spaced[:1].upper() + spaced[1:]
