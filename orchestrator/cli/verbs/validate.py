"""Check job files. Says everything that is wrong with them, with line and column; needs no server and no network.

Also looks whether the files and folders that the job names are there, unless ORCHESTRATE_URL names a controller elsewhere.
Exit code 0 when all files are right, else 2.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_output
from orchestrator.cli.output import emit
from orchestrator.domain.errors import ExitCode, InvalidSpec

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="job files (YAML or JSON)")
    add_set(parser)
    add_output(parser, ("table", "json", "yaml", "jsonl", "name"))


def add_set(parser: Parser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="FIELD=VALUE",
        help="change a field, such as spec.training.maxSteps=10; may be given again",
    )


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.jobfile import read_job

    verdicts: list[dict[str, Any]] = []
    for file in args.files:
        try:
            job = read_job(context, file, args.overrides)
        except InvalidSpec as error:
            problems = [
                {
                    "path": problem.path,
                    "what": problem.what,
                    "hint": problem.hint,
                    "line": problem.line,
                    "column": problem.column,
                    "file": problem.file,
                }
                for problem in error.problems
            ]
            verdicts.append({"file": file, "valid": False, "job": None, "problems": problems})
            if args.output == "table":
                for problem in error.problems:
                    context.say(str(problem))
        else:
            name = f"{job.metadata.namespace}/{job.metadata.name}"
            verdicts.append({"file": file, "valid": True, "job": name, "problems": []})
    emit(
        context,
        args.output,
        verdicts,
        whole=verdicts,
        as_table=lambda: "".join(map(_line, verdicts)),
        names=lambda verdict: verdict["job"] or verdict["file"],
    )
    return int(ExitCode.OK if all(verdict["valid"] for verdict in verdicts) else ExitCode.USAGE)


def _line(verdict: dict[str, Any]) -> str:
    if verdict["valid"]:
        return f"{verdict['file']}: {verdict['job']} is valid\n"
    count = len(verdict["problems"])
    return f"{verdict['file']}: {count} problem{'s' if count > 1 else ''}\n"
