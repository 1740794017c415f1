"""Write a job file to start from. It is valid as it stands; every template says in comments what to change."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser
from orchestrator.domain.errors import Conflict, StorageError, UsageError

if TYPE_CHECKING:
    from orchestrator.cli.context import Context

DEFAULT_TEMPLATE = "text-classification"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="job.yaml", help="where to write it (default job.yaml); - is stdout"
    )
    parser.add_argument(
        "-t", "--template", metavar="NAME", help=f"what to start from (default {DEFAULT_TEMPLATE}); see --list"
    )
    parser.add_argument("--list", action="store_true", help="list the templates")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.spec import templates

    known = templates()
    if args.list:
        for name, text in known.items():
            context.print(f"{name:<22}{_first_comment(text)}".rstrip())
        return 0
    name = args.template or DEFAULT_TEMPLATE
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no template {name!r}", hint=f"{meant}the templates are {', '.join(known)}")
    if args.file == "-":
        context.write(known[name])
        return 0
    path = Path(args.file)
    try:
        with path.open("w" if args.force else "x", encoding="utf-8") as file:
            file.write(known[name])
    except FileExistsError:
        raise Conflict(f"{path} is there already", hint="name another file, or overwrite it with --force") from None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error})", hint="name another place"
        ) from error
    context.say(f"Wrote {path} from the template {name}. Next: orchestrate validate {path}")
    return 0


def _first_comment(text: str) -> str:
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
