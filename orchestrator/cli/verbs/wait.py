"""Wait until a job has ended, or is in some phase.

The exit code is the job's outcome (0 succeeded, 10 failed, 11 cancelled, ...), or 124 when --timeout passed first.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_connection, add_job, add_output, positive_seconds
from orchestrator.cli.verbs.list import PHASES
from orchestrator.cli.view import JobView

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_job(parser)
    parser.add_argument(
        "--for",
        dest="target",
        choices=("ended", *PHASES),
        default="ended",
        metavar="WHAT",
        help=f"ended, or a phase: {', '.join(PHASES)} (default ended)",
    )
    parser.add_argument("--timeout", type=positive_seconds, metavar="TIME", help="longest wait, such as 90s or 1h30m")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    add_output(parser, ("none", "receipt", "name", "json", "yaml"), default="none")
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.attach import Follower, detach_notice, outcome_code
    from orchestrator.cli.progress import Display

    namespace, name = context.job(args.job)
    client = context.client()
    resource = client.get(namespace, name)
    context.when_interrupted = detach_notice(context, resource)

    def done(job: JobView) -> bool:
        return job.ended or job.phase == args.target

    follower = Follower(context, client, resource, display=None if args.quiet else Display(context))
    job = follower.until(done, args.timeout)
    if args.output == "receipt":
        from orchestrator.cli.receipt import print_receipt

        print_receipt(context, follower.client, job)
    elif args.output != "none":
        from orchestrator.cli.output import print_resource

        print_resource(context, args.output, job.resource)
    if args.target not in ("ended", job.phase):
        context.say(f"{job.full_name} has ended as {job.phase} without having been {args.target}.")
        return outcome_code(job) or 10
    return 0 if args.target == job.phase else outcome_code(job)
