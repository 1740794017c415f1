"""Explain a field of the job file, or the settings in force and where each comes from.

Settings come from flags, environment variables, ./.orchestrate.yaml, config.yaml in the home folder, in this order.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_output, words
from orchestrator.cli.output import emit, table
from orchestrator.domain.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    verbs = words(parser, "what", "WHAT")
    explain = verbs.add_parser(
        "explain",
        help="a field of the job file, or all settings",
        description="With a FIELD such as spec.workers.min: its meaning, unit and default. Without: every setting in force.",
    )
    explain.add_argument("field", metavar="FIELD", nargs="?", help="a field of the job file, or the name of a setting")
    add_output(explain, ("table", "json", "yaml", "jsonl", "name"))
    add_connection(explain)


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.controller.settings import documented

    settings = {name: (variable, doc, default) for name, variable, doc, default in documented()}
    if args.field and args.field not in settings:
        from orchestrator.spec import explain

        try:
            text = explain("" if args.field == "TrainingJob" else args.field)
        except KeyError as error:
            hint = "fields begin with spec or metadata; without a field all settings are shown"
            raise UsageError(str(error.args[0]), hint=hint) from None
        context.print(text)
        return 0
    names = [args.field] if args.field else list(settings)
    items: list[dict[str, Any]] = []
    for name in names:
        variable, doc, default = settings[name]
        value = getattr(context.settings, name)
        shown = "(set)" if name == "token" and value else value
        origin = context.settings.origins.get(name, "default")
        items.append(
            {
                "name": name,
                "value": shown,
                "origin": origin,
                "default": default,
                "variable": variable,
                "description": doc,
            }
        )
    emit(
        context,
        args.output,
        items,
        whole=items,
        as_table=lambda: _text(items),
        names=lambda item: str(item["name"]),
    )
    return 0


def _text(items: list[dict[str, Any]]) -> str:
    rows = [(item["name"], str(item["value"]) or "-", item["origin"], item["variable"]) for item in items]
    text = table(("SETTING", "VALUE", "FROM", "VARIABLE"), rows)
    return text + f"\n{items[0]['description']}\n" if len(items) == 1 else text
