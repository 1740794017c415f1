"""Arguments that several verbs share, and a parser that says the nearest right name when one is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from orchestrator.cli.context import Context

FORMATS = ("table", "wide", "json", "yaml", "jsonl", "name")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are `UsageError` and whose help goes where results go."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False, add_help=False)
        self._positionals.title = "Arguments"
        self._optionals.title = "Options"
        self.add_argument("-h", "--help", action="store_true", help="explain this verb and stop")

    def format_help(self) -> str:
        return super().format_help().replace("usage:", "Usage:", 1)

    def parse(self, argv: Sequence[str], context: Context) -> argparse.Namespace | None:
        """The arguments, or None when help was asked for and printed. Raises `UsageError`."""
        written = argv[: argv.index("--")] if "--" in argv else argv
        if not {"-h", "--help"}.isdisjoint(written):
            context.write(self._for_words(argv).format_help())
            return None
        known = {*self.flags(), *self._for_words(argv).flags()}
        for word in written:  # before argparse complains about what is missing: the mistyped flag is why it is
            if word.startswith("--") and word.partition("=")[0] not in known:
                self._for_words(argv)._refuse(word)
        args, unknown = self.parse_known_args(argv)
        if unknown:
            self._for_words(argv)._refuse(unknown[0])
        return args

    def choices(self) -> dict[str, Parser]:
        """Parsers of the words that may follow (`checkpoint list`), by word."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def flags(self) -> list[str]:
        return sorted(flag for action in self._actions for flag in action.option_strings)

    def shown(self) -> list[argparse.Action]:
        """Arguments and flags that are documented."""
        return [action for action in self._actions if action.help != argparse.SUPPRESS]

    def _for_words(self, argv: Sequence[str]) -> Parser:
        choices = self.choices()
        return next((choices[word] for word in argv if word in choices), self)

    def _refuse(self, word: str) -> NoReturn:
        from difflib import get_close_matches

        flag = word.partition("=")[0]
        if flag.startswith("-") and flag != "-":
            near = get_close_matches(flag, self.flags(), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"`{self.prog} --help` lists the flags"
            self._fail(f"{self.prog} has no flag {flag}", hint)
        self._fail(f"{word!r} is one argument too many", f"`{self.prog} --help` shows what it takes")

    def error(self, message: str) -> NoReturn:
        import re

        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            from difflib import get_close_matches

            known = [word.strip("'") for word in found[2].split(", ")]
            near = get_close_matches(found[1], known, n=1, cutoff=0.5)
            subject = re.match(r"argument (.+?): ", message)
            name = subject[1] if subject else "argument"
            meant = f"did you mean {near[0]}? " if near else ""
            self._fail(f"{name}: {found[1]!r} is none of {', '.join(known)}", f"{meant}see `{self.prog} --help`")
        for old, new in (
            ("the following arguments are required: ", "missing: "),
            ("one of the arguments", "missing: one of"),
        ):
            message = message.replace(old, new)
        self._fail(f"{self.prog}: {message}", f"see `{self.prog} --help`")

    def _fail(self, what: str, hint: str) -> NoReturn:
        from orchestrator.domain.errors import UsageError

        raise UsageError(what, hint=hint)


def words(parser: Parser, dest: str, metavar: str, required: bool = True) -> Any:
    """Sub-words of a verb, such as `checkpoint list`."""
    return parser.add_subparsers(dest=dest, metavar=metavar, required=required, parser_class=Parser)


def add_everywhere(parser: Parser) -> None:
    """Options of every verb. `--home` and `--url` are shown only where they matter, and taken everywhere."""
    for each in (parser, *parser.choices().values()):
        default = argparse.SUPPRESS
        each.add_argument(
            "--debug", action="store_true", default=default, help="show a traceback when something goes wrong"
        )
        if "--home" not in each.flags():
            each.add_argument("--home", default=default, help=argparse.SUPPRESS)
            each.add_argument("--url", default=default, help=argparse.SUPPRESS)


def add_connection(parser: Parser) -> None:
    """How to reach the controller."""
    group = parser.add_argument_group("controller")
    # Without defaults, so that one given before the second word (`server --home DIR start`) is not forgotten after it.
    absent = argparse.SUPPRESS
    group.add_argument("--home", metavar="DIR", default=absent, help="home folder; instead of $ORCHESTRATE_HOME")
    group.add_argument(
        "--url", metavar="URL", default=absent, help="a controller that runs elsewhere; instead of $ORCHESTRATE_URL"
    )


def add_namespace(parser: Parser) -> None:
    parser.add_argument(
        "-n", "--namespace", metavar="NAME", help="namespace of the job; instead of $ORCHESTRATE_NAMESPACE"
    )


def add_job(parser: Parser) -> None:
    parser.add_argument("job", metavar="JOB", help="name of the job, or namespace/name")
    add_namespace(parser)


def add_output(parser: Parser, formats: Sequence[str] = FORMATS, default: str = "table") -> None:
    parser.add_argument(
        "-o",
        "--output",
        choices=formats,
        default=default,
        metavar="FORMAT",
        help=f"{', '.join(formats)} (default {default})",
    )


def positive_seconds(text: str) -> float:
    """Seconds from a duration such as `90s` or `1h30m`; a bare number is seconds."""
    from orchestrator.domain.quantities import parse_duration_ns

    try:
        return parse_duration_ns(f"{text}s" if text.replace(".", "", 1).isdigit() else text) / 1e9
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count_from_one(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def byte_size(text: str) -> int:
    """Bytes from a size such as `5G` or `512Mi`."""
    from orchestrator.domain.quantities import parse_bytes

    try:
        found = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size")
    return found


def count(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)
