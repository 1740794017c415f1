"""Start a job and follow it: progress on stderr, the receipt on stdout.

Starts Ray and the controller on this machine when none is there. Ctrl-C detaches, and the job goes on. Submitting an
active job again changes nothing and follows it; the same name with another spec is a conflict (exit code 4). The exit
code is the job's outcome: 0 succeeded, 7 no capacity, 10 failed, 11 cancelled, 12 preempted and out of retries.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_namespace, add_output
from orchestrator.cli.output import print_resource
from orchestrator.cli.verbs.validate import add_set

if TYPE_CHECKING:
    from orchestrator.cli.context import Context
    from orchestrator.spec import TrainingJob


def add_arguments(parser: Parser) -> None:
    from orchestrator.controller.settings import ENGINES

    parser.add_argument("file", metavar="FILE", help="job file (YAML or JSON)")
    add_set(parser)
    parser.add_argument("--name", help="name of the job, instead of the one in the file")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, and stop")
    parser.add_argument("-d", "--detach", action="store_true", help="return as soon as the job is durable")
    parser.add_argument("--rerun", action="store_true", help="run again a job of this name that has ended")
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="submitting twice with one key makes one job, whatever happens between"
    )
    add_namespace(parser)
    add_output(parser, ("receipt", "name", "json", "yaml"), default="receipt")
    group = parser.add_argument_group("controller that is started when none is there")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        help="what runs gangs of fixed size (native runs all elastic ones); fake trains nothing",
    )
    group.add_argument("--port", type=int, metavar="NUMBER", help="port of the REST API; instead of $ORCHESTRATE_PORT")
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.jobfile import read_for_submission

    planned, document = read_for_submission(
        context, args.file, args.overrides, name=args.name, namespace=args.namespace
    )
    if args.dry_run:
        return _dry_run(args, context, planned, document)
    context.when_interrupted = "Interrupted. `orchestrate list` tells whether the job was taken."
    client = context.client(start=True)
    resource, result = client.submit(document, idempotency_key=args.idempotency_key, rerun=args.rerun)
    from orchestrator.cli.attach import Follower, detach_notice, outcome_code, rests
    from orchestrator.cli.view import JobView

    job = JobView(resource)
    context.when_interrupted = detach_notice(context, resource)
    words = {"created": "Submitted", "unchanged": "Unchanged:", "replayed": "Submitted before with this key:"}
    context.say(f"{words.get(result, result)} {job.full_name} (uid {job.uid})")
    if args.detach:
        print_resource(context, args.output, resource)
        return 0
    if args.output == "name":
        print_resource(context, "name", resource)
        context.finish()
    from orchestrator.cli.progress import Display

    follower = Follower(context, client, resource, display=Display(context))
    job = follower.until(rests)
    if args.output == "receipt":
        from orchestrator.cli.receipt import print_receipt

        print_receipt(context, follower.client, job)
    elif args.output != "name":
        print_resource(context, args.output, job.resource)
    return outcome_code(job)


def _dry_run(args: argparse.Namespace, context: Context, job: TrainingJob, document: dict[str, Any]) -> int:
    """The plan for people; the document that would be submitted for programs."""
    if args.output != "receipt":
        print_resource(context, args.output, document)
        return 0
    from orchestrator.planning.plan import plan

    context.write("\n".join(plan(job).lines()) + "\n")
    context.say(f"{args.file} is valid; nothing was submitted.")
    return 0
