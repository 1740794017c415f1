"""What cancel, suspend and resume have in common: ask for a change, and wait for it when told to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_connection, add_namespace, add_output
from orchestrator.cli.output import print_resource
from orchestrator.cli.view import JobView
from orchestrator.domain.errors import OrchestrateError

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_steering_arguments(parser: Parser, waits_for: str) -> None:
    parser.add_argument("jobs", metavar="JOB", nargs="+", help="names of jobs, or namespace/name")
    add_namespace(parser)
    parser.add_argument("-w", "--wait", action="store_true", help=f"return when the job {waits_for}")
    add_output(parser, ("none", "name", "json", "yaml"), default="none")
    add_connection(parser)


def steer(
    args: argparse.Namespace,
    context: Context,
    verb: str,
    done_phases: tuple[str, ...],
    asked: str,
    limit_usd: str | None = None,
) -> int:
    """Ask for `verb` for every job; goes on past one that is refused, and returns the code of the first refusal."""
    client = context.client()
    code = 0
    for text in args.jobs:
        namespace, name = context.job(text)
        try:
            resource = client.request(namespace, name, verb, limit_usd)
            job = JobView(resource)
            context.say(
                f"{job.full_name}: {asked}" if job.phase not in done_phases else f"{job.full_name}: {job.phase}"
            )
            if args.wait:
                from orchestrator.cli.attach import Follower, detach_notice
                from orchestrator.cli.progress import Display

                context.when_interrupted = detach_notice(context, resource)
                follower = Follower(context, client, resource, display=Display(context))
                job = follower.until(lambda seen: seen.ended or seen.phase in done_phases)
                client = follower.client
        except OrchestrateError as error:
            if len(args.jobs) == 1:
                raise
            context.say(f"orchestrate: error: {error}")
            code = code or int(error.exit_code)
        else:
            if args.output != "none":
                print_resource(context, args.output, job.resource)
    return code
