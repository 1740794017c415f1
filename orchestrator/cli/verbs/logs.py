"""Print what a job's workers wrote. -f goes on until the job has ended."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_connection, add_job, count

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def _rank(text: str) -> str:
    if text in ("all", "driver"):
        return text
    try:
        return str(count(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rank; write a number, all or driver") from None


def add_arguments(parser: Parser) -> None:
    add_job(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written later")
    parser.add_argument("--rank", type=_rank, default="all", metavar="N", help="a rank, driver, or all (default all)")
    parser.add_argument("--tail", type=count, metavar="N", help="only the last N lines of what is there")
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    namespace, name = context.job(args.job)
    client = context.client()
    if args.follow:
        context.when_interrupted = f"Stopped reading; {args.job} goes on. Again: orchestrate logs {args.job} -f"
    for rank, line in client.logs(namespace, name, rank=args.rank, follow=args.follow, tail=args.tail):
        context.print(f"{rank:>6} | {line}" if args.rank == "all" else line)
        if args.follow:
            context.finish()
        if context.unread:
            break
    return 0
