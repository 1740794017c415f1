"""The reference page of the command line, made from the parsers: `python -m orchestrator.cli.reference > docs/cli.md`.

The page does not depend on the terminal or on the version of Python: the flags are written here, not by argparse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from orchestrator.cli.arguments import Parser
from orchestrator.cli.main import GROUPS, parser_of
from orchestrator.domain.errors import ExitCode

MEANINGS = {
    ExitCode.OK: "done; for `submit`, `wait`: the job succeeded",
    ExitCode.PLATFORM: "something around us failed: a disk, an engine",
    ExitCode.USAGE: "wrong usage, or a job file with problems",
    ExitCode.NOT_FOUND: "there is no such job",
    ExitCode.CONFLICT: "it contradicts what is there: the name with another spec, a verb that the phase forbids",
    ExitCode.AUTH: "the token is missing or wrong",
    ExitCode.UNREACHABLE: "no controller answers, or one that this version cannot talk to",
    ExitCode.NO_CAPACITY: "no room for the job",
    ExitCode.BUDGET: "the budget is spent",
    ExitCode.JOB_FAILED: "the job failed",
    ExitCode.CANCELLED: "the job was cancelled",
    ExitCode.PREEMPTED_OUT: "more machines were lost than the job allows",
    ExitCode.INTERNAL: "a defect of orchestrate itself",
    ExitCode.WAIT_TIMEOUT: "the wait timed out",
    ExitCode.INTERRUPTED: "Ctrl-C; the job goes on",
}


def markdown() -> str:
    lines = [
        "# Command line",
        "",
        "Every verb of `orchestrate`. This page is made from the parsers, by `python -m orchestrator.cli.reference > docs/cli.md`.",
        "",
        "Results go to stdout, talk goes to stderr. `--debug` shows a traceback when something goes wrong; without it there is",
        "one line that says what, and what to do. `--home`, `--url` and `--debug` may also stand before the verb.",
        "",
        "## Exit codes",
        "",
        "| Code | Meaning |",
        "|---|---|",
    ]
    lines += [f"| {int(code)} | {MEANINGS[code]} |" for code in ExitCode]
    for title, verbs in GROUPS.items():
        lines += ["", f"## {title}"]
        for verb in verbs:
            parser, _ = parser_of(verb)
            lines += ["", f"### orchestrate {verb}", "", *_body(parser)]
            for word, inner in parser.choices().items():
                lines += ["", f"#### orchestrate {verb} {word}", "", *_body(inner)]
    return "\n".join(lines) + "\n"


def _body(parser: Parser) -> Iterator[str]:
    yield from _description(parser.description or "")
    arguments = [action for action in parser.shown() if not action.option_strings and action.metavar]
    options = [action for action in parser.shown() if action.option_strings and action.dest not in ("help", "debug")]
    usage = [parser.prog, *(["[options]"] if options else []), *map(_place, arguments)]
    yield from ("", "```console", f"$ {' '.join(usage)}", "```")
    rows = [
        (f"`{action.metavar}`", action) for action in arguments if not isinstance(action, argparse._SubParsersAction)
    ]
    rows += [(_flags(action), action) for action in options]
    if rows:
        yield from ("", "| Argument | What it is |", "|---|---|")
        yield from (f"| {name} | {(action.help or '').replace('|', chr(92) + '|')} |" for name, action in rows)


def _description(text: str) -> Iterator[str]:
    """Paragraphs as they are; indented lines as a block of code."""
    code = False
    for line in text.strip().splitlines():
        if line.startswith("  ") and not code:
            yield "```yaml"
        elif code and not line.startswith("  "):
            yield "```"
        code = line.startswith("  ")
        yield line.removeprefix("  ") if code else line


def _place(action: argparse.Action) -> str:
    name = str(action.metavar)
    if isinstance(action, argparse._SubParsersAction):
        return name if action.required else f"[{name}]"
    return {"+": f"{name} ...", "?": f"[{name}]"}.get(str(action.nargs), name)


def _flags(action: argparse.Action) -> str:
    value = (
        "" if action.nargs == 0 else f" {action.metavar or '|'.join(map(str, action.choices or [action.dest.upper()]))}"
    )
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(markdown())
