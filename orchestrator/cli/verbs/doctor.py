"""Look for what would keep jobs from running on this machine, and say how to mend it.

Takes at most two seconds, starts nothing and changes nothing. Exit code 1 when something must be mended.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_output
from orchestrator.cli.output import emit

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_output(parser, ("table", "json", "yaml", "jsonl", "name"))
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.checkup import Verdict, examine

    findings = list(examine(context))
    items: list[dict[str, Any]] = [
        {"check": finding.check, "verdict": finding.verdict.value, "what": finding.what, "fix": finding.fix}
        for finding in findings
    ]
    emit(
        context,
        args.output,
        items,
        whole=items,
        as_table=lambda: "".join(map(_line, items)),
        names=lambda item: str(item["check"]),
    )
    failed = sum(finding.verdict is Verdict.FAIL for finding in findings)
    warned = sum(finding.verdict is Verdict.WARN for finding in findings)
    if failed:
        context.say(f"{failed} of {len(findings)} checks failed.")
    else:
        context.say(f"Jobs can run here{f'; {warned} warnings' if warned else ''}.")
    return int(bool(failed))


def _line(item: dict[str, Any]) -> str:
    line = f"{item['verdict']:<4}  {item['check']:<15} {item['what']}\n"
    return line + (f"{'':<22}fix: {item['fix']}\n" if item["fix"] else "")
