"""Set the number of workers that is wished for, within spec.workers.min and max. The job trains on, and changes its size between two steps."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_connection, add_job, add_output, count_from_one
from orchestrator.cli.output import print_resource
from orchestrator.cli.view import JobView

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_job(parser)
    parser.add_argument(
        "workers", metavar="N", type=count_from_one, help="number of workers; fewer when there is no room"
    )
    parser.add_argument("-w", "--wait", action="store_true", help="return when the job trains with so many workers")
    add_output(parser, ("none", "name", "json", "yaml"), default="none")
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    namespace, name = context.job(args.job)
    client = context.client()
    resource = client.scale(namespace, name, args.workers)
    job = JobView(resource)
    context.say(f"{job.full_name}: {args.workers} {'worker is' if args.workers == 1 else 'workers are'} asked for")
    if args.wait:
        from orchestrator.cli.attach import Follower, detach_notice, rests
        from orchestrator.cli.progress import Display

        context.when_interrupted = detach_notice(context, resource)
        follower = Follower(context, client, resource, display=Display(context))
        job = follower.until(lambda seen: rests(seen) or (seen.phase == "Running" and seen.ready == args.workers))
    if args.output != "none":
        print_resource(context, args.output, job.resource)
    return 0
