"""List a job's checkpoints, verify them, or save one now."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_job, add_output, positive_seconds, words
from orchestrator.cli.output import emit, table
from orchestrator.cli.view import NOTHING, JobView, metrics_line
from orchestrator.domain.errors import ExitCode

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    verbs = words(parser, "what", "WHAT")
    listing = verbs.add_parser(
        "list", help="list checkpoints, newest first", description="List a job's checkpoints, newest first."
    )
    verifying = verbs.add_parser(
        "verify",
        help="read every checkpoint and compare its hashes",
        description="Read every checkpoint of a job and compare its hashes. Exit code 1 when one is not whole.",
    )
    for leaf in (listing, verifying):
        add_job(leaf)
        add_output(leaf)
        add_connection(leaf)
    now = verbs.add_parser(
        "now",
        help="save one at the next step",
        description="Save a checkpoint at the next step and wait until it is durable.",
    )
    add_job(now)
    now.add_argument("--no-wait", action="store_true", help="return at once")
    now.add_argument(
        "--timeout", type=positive_seconds, default=300.0, metavar="TIME", help="longest wait (default 5m)"
    )
    add_connection(now)


def run(args: argparse.Namespace, context: Context) -> int:
    if args.what == "now":
        return _now(args, context)
    namespace, name = context.job(args.job)
    verify = args.what == "verify"
    items = context.client().checkpoints(namespace, name, verify=verify)
    if not items and args.output in ("table", "wide"):
        context.say(f"{args.job} has no checkpoint yet.")
        return 0
    emit(
        context,
        args.output,
        items,
        whole={"items": items},
        as_table=lambda: checkpoints_table(items, wide=args.output == "wide"),
        names=lambda item: str(item["uri"]),
    )
    torn = [item for item in items if not item["whole"]]
    return int(ExitCode.PLATFORM) if verify and torn else 0


def checkpoints_table(items: list[dict[str, Any]], *, wide: bool) -> str:
    from orchestrator.domain.quantities import format_bytes

    headings = ["STEP", "WHOLE", "SIZE", "SAVED (UTC)", "BEST", "METRICS"]
    if wide:
        headings.append("URI")
    rows = []
    for item in items:
        size = item.get("bytes")
        row = [
            NOTHING if item.get("step") is None else f"{item['step']:,}",
            "yes" if item["whole"] else f"no: {item.get('why') or 'unknown'}",
            NOTHING if size is None else format_bytes(size),
            str(item.get("time") or NOTHING)[:19].replace("T", " "),
            "best" if item.get("best") else "",
            metrics_line(item.get("metrics") or {}),
        ]
        rows.append([*row, str(item.get("uri", ""))] if wide else row)
    return table(headings, rows, right=("STEP", "SIZE"))


def _now(args: argparse.Namespace, context: Context) -> int:
    namespace, name = context.job(args.job)
    client = context.client()
    before = JobView(client.get(namespace, name)).checkpoint.get("time")
    resource = client.request(namespace, name, "checkpoint")
    if args.no_wait:
        context.say(f"{namespace}/{name}: a checkpoint is asked for")
        return 0
    from orchestrator.cli.attach import Follower, outcome_code

    context.when_interrupted = f"Stopped waiting; the checkpoint of {args.job} is still asked for."

    def saved(job: JobView) -> bool:
        return job.ended or job.checkpoint.get("time") != before

    job = Follower(context, client, resource, display=None).until(saved, args.timeout)
    if job.checkpoint.get("time") == before:
        context.say(f"{job.full_name} has ended as {job.phase}; no checkpoint was saved.")
        return outcome_code(job) or int(ExitCode.CONFLICT)
    context.say(f"Step {job.checkpoint['step']:,} is durable.")
    context.print(str(job.checkpoint["uri"]))
    return 0
