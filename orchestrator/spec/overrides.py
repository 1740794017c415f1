"""`--set spec.training.maxSteps=10`: values that the command line puts over those of the file.

The value is read as a YAML scalar or flow value; `null` sets null. The result is validated like the file itself, and a
problem with such a value names the option instead of a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from orchestrator.domain.errors import Problem
from orchestrator.spec.document import Document, Path, Place, Unreadable, dotted, read_document
from orchestrator.spec.fields import all_paths, fields_of, model_at, nearest, probable_home
from orchestrator.spec.values import shown

OPTION = "--set"
_SEGMENT = re.compile(r'([\w-]+)|\[(\d+)\]|\["([^"]+)"\]')


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[Problem]:
    """Put each `path=value` into the document; the problems of those that cannot be applied."""
    problems = []
    for override in overrides:
        problem = _apply(document, override)
        if problem is not None:
            problems.append(problem)
    return problems


def _apply(document: Document, override: str) -> Problem | None:
    where = f"{OPTION} {override if len(override) <= 60 else override[:57] + '...'}"
    left, equals, right = override.partition("=")
    if not equals:
        return Problem("", "there is no '='", "write --set path=value, such as spec.training.maxSteps=10", where)
    path = parse_path(left.strip())
    if path is None:
        return Problem(
            "", f"{shown(left)} is not a path", "write dotted names, such as spec.runtime.env[0].value", where
        )
    if (problem := _unknown(path, where)) is not None:
        return problem
    try:
        read = read_document(f"value: {right}\n", where) if right.strip() else None
    except Unreadable:
        read = Document({}, where)
    if read is not None and (read.problems or not isinstance(read.value, dict) or list(read.value) != ["value"]):
        return Problem(dotted(path), f"{shown(right)} is not a value", "quote it as YAML wants it", where)
    value = "" if read is None else read.value["value"]
    return _put(document, path, value, where)


def parse_path(text: str) -> Path | None:
    """`spec.runtime.env[0].name` as its parts; None when the text is no path."""
    parts: list[str | int] = []
    position = 0
    while position < len(text):
        if text[position] == "." and parts:
            position += 1
        match = _SEGMENT.match(text, position)
        if match is None:
            return None
        parts.append(int(match[2]) if match[2] is not None else match[1] or match[3])
        position = match.end()
    return tuple(parts) if parts else None


def _unknown(path: Path, where: str) -> Problem | None:
    for length in range(1, len(path) + 1):
        part = path[length - 1]
        owner = model_at(path[: length - 1])
        if isinstance(part, int) or owner is None:
            continue
        known = list(fields_of(owner))
        if part in known:
            continue
        near, home = nearest(part, known), probable_home(part)
        if near is not None:
            hint = f"did you mean {dotted((*path[: length - 1], near, *path[length:]))}?"
        elif home is not None:
            hint = f"did you mean {dotted((*home, *path[length:]))}?"
        else:
            hint = f"there are {', '.join(known)}"
        return Problem(
            dotted(path), f"{dotted(path[: length - 1]) or 'a TrainingJob'} has no field {shown(part)}", hint, where
        )
    if path[0] == "status":
        return Problem(dotted(path), "status is written by the controller", "set a field of spec", where)
    return None


def _put(document: Document, path: Path, value: Any, where: str) -> Problem | None:
    holder: Any = document.value
    for at, part in enumerate(path):
        last = at == len(path) - 1
        if isinstance(part, int):
            if not isinstance(holder, list) or part > len(holder) or (part == len(holder) and not last):
                size = len(holder) if isinstance(holder, list) else 0
                what = f"there is no item {part} (the list has {size})"
                return Problem(dotted(path), what, f"use an index up to {max(0, size - 1)}, or {size} to append", where)
            if last:
                holder[part : part + 1] = [value]
            else:
                holder = holder[part]
            continue
        if not isinstance(holder, dict):
            what = f"{dotted(path[:at]) or 'the document'} is {shown(holder)}, not fields"
            return Problem(dotted(path), what, "set it as a whole", where)
        if last:
            holder[part] = value
        else:
            following: Any = [] if isinstance(path[at + 1], int) else {}
            if holder.get(part) is None:
                holder[part] = following
            holder = holder[part]
    for known in [place for place in document.places if place[: len(path)] == path]:
        del document.places[known]
    document.places[path] = Place(where)
    document.problems = [(spot, problem) for spot, problem in document.problems if spot[: len(path)] != path]
    return None


def complete(prefix: str) -> list[str]:
    """Paths that begin with `prefix`, for shell completion: fields that hold a value, not sections."""
    leaves = [dotted(path) for path in all_paths() if model_at(path) is None]
    return [path for path in leaves if path.startswith(prefix)]
