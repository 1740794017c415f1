"""Print a job's story: what happened, when, what it led to, and why."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_job, add_output
from orchestrator.cli.output import emit, table, to_json_line

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_job(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    add_output(parser, ("table", "json", "yaml", "jsonl", "name"))
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    namespace, name = context.job(args.job)
    client = context.client()
    resource = client.get(namespace, name) if args.follow else None
    items = client.events(namespace, name)
    if resource is None:
        emit(
            context,
            args.output,
            items,
            whole={"items": items},
            as_table=lambda: story_table(items),
            names=lambda item: str(item["event"]),
        )
        return 0
    from orchestrator.cli.attach import Follower, rests
    from orchestrator.cli.view import JobView

    context.when_interrupted = f"Stopped reading; {args.job} goes on. Again: orchestrate events {args.job} -f"
    follower = Follower(context, client, resource, display=None)
    last = 0

    def news(job: JobView) -> bool:
        nonlocal last
        for item in follower.client.events(namespace, name, after=last):
            context.write(to_json_line(item) if args.output != "table" else "  ".join(_row(item)) + "\n")
            last = int(item["number"])
        context.finish()
        return context.unread or rests(job)

    follower.until(news)
    return 0


def _row(item: Mapping[str, Any]) -> list[str]:
    before, after = item.get("phaseBefore") or "", item.get("phase") or ""
    arrow = f"{before} -> {after}" if before and before != after else after
    return [
        str(item.get("time", ""))[:19].replace("T", " "),
        arrow,
        str(item.get("reason") or ""),
        str(item.get("message") or ""),
    ]


def story_table(items: Sequence[Mapping[str, Any]]) -> str:
    return table(("TIME (UTC)", "PHASE", "REASON", "MESSAGE"), [_row(item) for item in items])
