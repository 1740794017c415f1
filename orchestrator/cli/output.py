"""Results in the forms that a person or a program wants: table, JSON, YAML, JSON lines, names.

JSON and YAML carry the resource itself, as the controller gave it. Tables are for people: their columns may change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.cli.context import Context

Resource = Mapping[str, Any]


def to_json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def to_json_line(value: Any) -> str:
    import json

    return json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n"


def to_yaml(value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    return text


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Columns two spaces apart; the headings in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = []
    for row in (headings, *rows):
        cells = [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def pairs(rows: Sequence[tuple[str, str]], indent: str = "") -> str:
    """`Name:  value` lines, with the values in one column."""
    if not rows:
        return ""
    width = max(len(name) for name, _ in rows) + 1
    return "".join(f"{indent}{name + ':':<{width}}  {value}".rstrip() + "\n" for name, value in rows)


def emit(
    context: Context,
    form: str,
    items: Sequence[Any],
    *,
    whole: Any,
    as_table: Callable[[], str],
    names: Callable[[Any], str],
) -> None:
    """Write `items` in a form. JSON and YAML take `whole`, JSON lines and names one item a line."""
    if form == "json":
        context.write(to_json(whole))
    elif form == "yaml":
        context.write(to_yaml(whole))
    elif form == "jsonl":
        for item in items:
            context.write(to_json_line(item))
    elif form == "name":
        for item in items:
            context.print(names(item))
    else:
        context.write(as_table())


def print_resource(context: Context, form: str, resource: Resource) -> None:
    """One resource as JSON or YAML, or the name that means it."""
    if form == "json":
        context.write(to_json(resource))
    elif form == "yaml":
        context.write(to_yaml(resource))
    else:
        context.print(context.short(resource))
