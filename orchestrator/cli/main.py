"""The way in: find the verb, load its module alone, run it, and turn whatever goes wrong into one clear message.

Only this module knows all verbs, as a table of words: `orchestrate --help` loads no verb, and a verb loads only what it
needs. Results go to stdout, talk goes to stderr. Whoever closes stdout early (`| head`) is no error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import ModuleType

    from orchestrator.cli.arguments import Parser
    from orchestrator.cli.context import Context

PROGRAM = "orchestrate"

GROUPS: dict[str, dict[str, str]] = {
    "Begin": {
        "init": "write a job file to start from",
        "validate": "check job files: every error at once; needs no server and no network",
        "plan": "show what a job would be: gang, batch, ZeRO stage, what is created",
        "submit": "start a job and follow it to its receipt",
    },
    "Watch": {
        "list": "list jobs, newest first",
        "status": "show a job: phase, step, time left, loss, dollars",
        "describe": "show all that is known of a job: spec, story, checkpoints, cost",
        "logs": "print what the workers wrote",
        "events": "print a job's story: what happened, when and why",
        "wait": "wait until a job has ended, or is in some phase",
    },
    "Steer": {
        "cancel": "end a job for good",
        "suspend": "save a checkpoint and give the machines back",
        "resume": "continue a suspended job from its last checkpoint",
        "scale": "set the number of workers of an elastic job",
        "checkpoint": "list, verify, save, export or delete checkpoints",
    },
    "Money": {
        "cost": "show what a job has cost, and what for",
        "prices": "show the prices in force, or check a price file",
    },
    "Spot markets": {
        "simulate": "say what a job would cost under each capacity policy on recorded markets",
        "replay": "run a job here while a recorded spot market gives and takes its machines",
    },
    "This machine": {
        "server": "start, stop or look at the controller of this machine",
        "doctor": "look for what would keep jobs from running, and say how to mend it",
        "config": "explain a field of the job file, or the settings in force",
        "schema": "print the JSON schema of the job file",
        "completion": "print a completion script for bash, zsh or fish",
        "version": "print the version",
    },
}
MODULES = {verb: f"orchestrator.cli.verbs.{verb}" for verbs in GROUPS.values() for verb in verbs}

OPTIONS = """\
Options of every verb
  -h, --help    explain the verb
  --debug       show a traceback when something goes wrong
"""
GLOBAL_FLAGS = {"--debug": False, "--home": True, "--url": True}
"""Flags that may stand before the verb, and whether a value follows."""


def top_level_help() -> str:
    lines = [
        f"Usage: {PROGRAM} VERB [ARGUMENT ...] [--OPTION ...]",
        "",
        "Trains and fine-tunes models on machines that may vanish, and knows what every dollar did.",
        f"To begin: `{PROGRAM} init job.yaml`, then `{PROGRAM} submit job.yaml`.",
        "",
    ]
    for title, verbs in GROUPS.items():
        lines.append(title)
        lines += [f"  {verb:<13} {text}" for verb, text in verbs.items()]
        lines.append("")
    return "\n".join([*lines, OPTIONS + f"\n`{PROGRAM} VERB --help` explains a verb.\n"])


def parser_of(verb: str) -> tuple[Parser, ModuleType]:
    """The verb's parser and its module."""
    from orchestrator.cli.arguments import Parser, add_everywhere

    module = import_module(MODULES[verb])
    sentence = next(verbs[verb] for verbs in GROUPS.values() if verb in verbs)
    description = module.__doc__ or f"{sentence[0].upper()}{sentence[1:]}."
    parser = Parser(prog=f"{PROGRAM} {verb}", description=description)
    module.add_arguments(parser)
    add_everywhere(parser)
    return parser, module


def _split(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Flags before the verb, the verb, and the rest."""
    before: list[str] = []
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        before.append(flag)
        if GLOBAL_FLAGS.get(flag) and rest:
            before.append(rest.pop(0))
    return before, (rest[0] if rest else None), rest[1:]


def _unknown_verb(verb: str) -> NoReturn:
    from difflib import get_close_matches

    from orchestrator.domain.errors import UsageError

    near = get_close_matches(verb, MODULES, n=1, cutoff=0.5)
    hint = f"did you mean `{PROGRAM} {near[0]}`?" if near else f"`{PROGRAM} --help` lists the verbs"
    raise UsageError(f"there is no verb {verb!r}", hint=hint)


def _dispatch(argv: Sequence[str], context: Context) -> int:
    before, verb, rest = _split(argv)
    if verb == "help" or not {"-h", "--help"}.isdisjoint(before):
        topic = next((word for word in ([] if verb in (None, "help") else [str(verb)]) + rest if word in MODULES), None)
        if topic is None:
            context.write(top_level_help())
            return 0
        verb, before, rest = topic, [], ["--help"]
    if "--version" in before:
        verb, before, rest = "version", [], []
    if verb is None:
        from orchestrator.domain.errors import UsageError

        raise UsageError("name a verb", hint=f"`{PROGRAM} --help` lists them; to begin: `{PROGRAM} init`")
    if verb not in MODULES:
        _unknown_verb(verb)
    parser, module = parser_of(verb)
    # Flags that stood before the verb go first, so that whatever follows the verb wins.
    first = 1 if rest and rest[0] in parser.choices() else 0
    args = parser.parse([*rest[:first], *before, *rest[first:]], context)
    if args is None:
        return 0
    context.take_flags(args)
    code: int = module.run(args, context)
    return code


def main(argv: Sequence[str], context: Context) -> int:
    """Run one command line; never raises. Returns the exit code."""
    debug = "--debug" in argv
    try:
        code = _dispatch(argv, context)
        context.finish()
        return int(code)
    except KeyboardInterrupt:
        context.say("\n" + (context.when_interrupted or f"{PROGRAM}: interrupted"))
        return 130
    except Exception as error:  # noqa: BLE001 - the process's edge: a person gets one message, a traceback only on request
        if debug:
            import traceback

            context.say("".join(traceback.format_exception(error)).rstrip())
        return _report(error, context)


def _report(error: Exception, context: Context) -> int:
    from orchestrator.domain.errors import InvalidSpec, OrchestrateError

    if isinstance(error, InvalidSpec):
        for problem in error.problems:
            context.say(str(problem))
        return int(error.exit_code)
    if isinstance(error, OrchestrateError):
        context.say(f"{PROGRAM}: error: {error}")
        return int(error.exit_code)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        context.say(f"{PROGRAM}: error: {place}{error.strerror or error}")
        return 1
    context.say(f"{PROGRAM}: error: a defect of {PROGRAM} itself: {type(error).__name__}: {error}")
    context.say("Please report it with the output of the same command and --debug.")
    return 70


def entry() -> int:
    """The console script: the one place that touches the process's own arguments, environment and streams."""
    try:
        from orchestrator.cli.context import Context

        try:
            cwd = os.getcwd()
        except FileNotFoundError:
            cwd = "/"
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # both are text files here
        return main(sys.argv[1:], Context(os.environ, cwd, sys.stdout, sys.stderr))
    except KeyboardInterrupt:
        return 130  # before anything was begun, or while the last word was said


if __name__ == "__main__":
    sys.exit(entry())
