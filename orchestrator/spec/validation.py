"""Structure: types, bounds and names, with every error said in our own words.

Also the refusal of fields whose capability does not exist yet, and `repaired`: the document with its wrong values taken
out, so that checks across fields can still run on the rest.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from orchestrator.spec.document import Path, dotted
from orchestrator.spec.fields import (
    alias_of,
    bare,
    choices_of,
    field_at,
    fields_of,
    model_at,
    model_in,
    nearest,
    probable_home,
    squeezed,
)
from orchestrator.spec.models import KIND, Part, TrainingJob
from orchestrator.spec.values import shown


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong at a path, before the path is given its line."""

    path: Path
    what: str
    hint: str
    meant: Path | None = None
    """For an unknown field: the field that was probably meant. Its default says nothing about what the user wants."""


def structural_findings(value: Any) -> tuple[list[Finding], TrainingJob | None]:
    """What is wrong with the structure of a document; the job when nothing is."""
    if not isinstance(value, Mapping):
        hint = "begin with apiVersion, kind, metadata and spec; `orchestrate init` makes a file to start from"
        return [Finding((), f"a TrainingJob is expected, got {_kind_of(value)}", hint)], None
    try:
        return [], TrainingJob.model_validate(value)
    except ValidationError as error:
        findings = [_translated(item, value) for item in error.errors(include_url=False)]
        found = _of_this_kind([finding for finding in findings if finding is not None], value)
        return found or [
            Finding((), "the document does not fit a TrainingJob", "compare it with `orchestrate init`")
        ], None


def _of_this_kind(findings: list[Finding], document: Mapping[str, Any]) -> list[Finding]:
    """Of a document of another kind, only that it is one: everything else in it is right in its own world."""
    kind = document.get("kind")
    if isinstance(kind, str) and squeezed(kind) != squeezed(KIND):
        return [finding for finding in findings if finding.path in (("apiVersion",), ("kind",))]
    return findings


def repaired(value: Any) -> TrainingJob | None:
    """The document with examples for missing values and without wrong ones; None when nothing usable is left."""
    if not isinstance(value, Mapping) or (
        isinstance(value.get("kind"), str) and squeezed(value["kind"]) != squeezed(KIND)
    ):
        return None
    document = cast(dict[str, Any], copy.deepcopy(dict(value)))
    for _ in range(8):
        try:
            return TrainingJob.model_validate(document)
        except ValidationError as error:
            for item in sorted(error.errors(include_url=False), key=lambda item: len(item["loc"]), reverse=True):
                _repair(document, _clean(item["loc"]))
    return None


def _repair(document: dict[str, Any], path: Path) -> None:
    first_index = next((at for at, part in enumerate(path) if isinstance(part, int)), None)
    if first_index is not None:
        path = path[:first_index]
    holder: Any = document
    for part in path[:-1]:
        if not isinstance(holder, dict) or part not in holder:
            return
        holder = holder[part]
    if not isinstance(holder, dict):
        return
    field = field_at(path)
    if field is not None and field.is_required() and field.examples:
        holder[str(path[-1])] = copy.deepcopy(field.examples[0])
    else:
        holder.pop(str(path[-1]), None)


def planned_findings(job: TrainingJob, spoilt: Sequence[Path]) -> Iterator[Finding]:
    """Fields and values whose capability does not exist yet."""
    for path, field, value in _given(job, ()):
        if touches(path, spoilt) or not isinstance(field.json_schema_extra, dict):
            continue
        extra = cast(dict[str, Any], field.json_schema_extra)
        if capability := extra.get("x-planned"):
            if value is not None and value != field.get_default(call_default_factory=True):
                yield Finding(path, "is not available in this version", f"remove it (planned: {capability})")
        elif isinstance(value, str) and (capability := extra.get("x-planned-values", {}).get(value)):
            default = field.get_default()
            yield Finding(path, f"{value} is not available in this version", f"write {default} (planned: {capability})")


def touches(path: Path, spoilt: Sequence[Path]) -> bool:
    """Whether `path` is, holds or lies in one of the spoilt paths."""
    return any(path[: len(other)] == other[: len(path)] for other in spoilt)


def _given(part: Part, prefix: Path) -> Iterator[tuple[Path, FieldInfo, Any]]:
    for name, field in type(part).model_fields.items():
        if name not in part.model_fields_set:
            continue
        value = getattr(part, name)
        path = (*prefix, alias_of(name, field))
        yield path, field, value
        if isinstance(value, Part):
            yield from _given(value, path)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Part):
                    yield from _given(item, (*path, index))


def _clean(location: Sequence[str | int]) -> Path:
    return tuple(part for part in location if part != "[key]")


def _is_written(document: Any, path: Path) -> bool:
    for part in path:
        if isinstance(document, list):
            if not isinstance(part, int) or part >= len(document):
                return False
            document = document[part]
        elif isinstance(document, Mapping) and part in document:
            document = document[part]
        else:
            return False
    return True


def _translated(error: Any, document: Any) -> Finding | None:
    path = _clean(error["loc"])
    kind: str = error["type"]
    if kind == "missing":
        return Finding(path, "is required", _how_to_add(path))
    if not _is_written(document, path):
        return None
    if kind == "extra_forbidden":
        return unknown_field(path)
    what, hint = _sentence(kind, error["input"], error.get("ctx", {}), field_at(path), path)
    return Finding(path, what, hint)


def _how_to_add(path: Path) -> str:
    name = str(path[-1])
    field = field_at(path)
    if field is None:
        return f"add {name}"
    choices = choices_of(field.annotation)
    if len(choices) > 1:
        return f"add {name}: with one of {_listed(choices)}"
    example = field.examples[0] if field.examples else None
    if example is None or isinstance(example, dict | list):
        inner = model_in(field.annotation)
        if inner is None:
            return f"add {name}"
        known = fields_of(inner)
        needed = [key for key, item in known.items() if item.is_required()] or list(known)[:4]
        return f"add {name}: with {_listed(needed)} below it"
    return f"add {name}, such as {name}: {example}"


def unknown_field(path: Path) -> Finding:
    """What to say about a field that does not exist: the nearest right name, or where it belongs, or what there is."""
    name = str(path[-1])
    parent = path[:-1]
    owner = model_at(parent)
    known = list(fields_of(owner)) if owner is not None else []
    home = probable_home(name)
    near = nearest(name, known)
    exact = near is not None and squeezed(near) == squeezed(name)
    where = dotted(parent) or "a TrainingJob"
    what = f"{where} has no field {shown(name)}"
    first, dot, rest = name.partition(".")
    if dot and first in known:
        return Finding(path, what, f"write {first}: and, indented below it, {rest}:", (*parent, first))
    beside = home is not None and home[:-1] == parent
    if near is not None and (exact or home is None):
        return Finding(path, what, f"did you mean {near}?", (*parent, near))
    if home is not None and beside:
        return Finding(path, what, f"did you mean {home[-1]}?", home)
    if home is not None:
        place = dotted(home[:-1]) or "the top of the file"
        hint = f"{home[-1]} belongs under {place}" if name == home[-1] else f"did you mean {dotted(home)}?"
        return Finding(path, what, hint, home)
    return Finding(path, what, f"its fields are {_listed(known)}")


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(str(name) for name in names)


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return shown(value)
    if isinstance(value, int | float):
        return f"the number {shown(value)}"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    if isinstance(value, list):
        return f"the list {shown(value)}" if value else "an empty list"
    return "fields (a mapping)"


_BELOW = {"greater_than_equal": ("ge", "below the smallest value, {}"), "greater_than": ("gt", "not above {}")}
_ABOVE = {"less_than_equal": ("le", "above the largest value, {}"), "less_than": ("lt", "not below {}")}
_TRUE_WORDS = {
    "yes": "true",
    "on": "true",
    "y": "true",
    "1": "true",
    "no": "false",
    "off": "false",
    "n": "false",
    "0": "false",
}


def _sentence(
    kind: str, value: Any, context: Mapping[str, Any], field: FieldInfo | None, path: Path
) -> tuple[str, str]:
    if kind == "orchestrate":
        if value is None:
            return "is empty", "write a value, or remove the line"
        return context["what"], context["hint"]
    if value is None:
        if kind in ("model_type", "model_attributes_type", "dict_type"):
            return "is empty", "indent its fields below it, or remove the line"
        return "is empty", "write a value, or remove the line"
    if kind == "literal_error":
        return _wrong_choice(value, choices_of(field.annotation) if field is not None else ())
    if kind in _BELOW or kind in _ABOVE:
        key, words = (_BELOW | _ABOVE)[kind]
        limit = f"{context[key]:g}" if isinstance(context[key], float) else context[key]
        direction = "more" if kind in _BELOW else "less"
        word = "" if kind in ("greater_than", "less_than") else f"{limit} or "
        return f"{shown(value)} is {words.format(limit)}", f"write {word}{direction}" + (
            f" than {limit}" if not word else ""
        )
    if kind == "finite_number":
        return f"{shown(value)} is not a finite number", "write a number"
    if kind in ("int_type", "int_from_float", "int_parsing", "int_parsing_size"):
        return f"a whole number is expected, got {_kind_of(value)}", _number_hint(value, whole=True)
    if kind in ("float_type", "float_parsing"):
        return f"a number is expected, got {_kind_of(value)}", _number_hint(value, whole=False)
    if kind in ("bool_type", "bool_parsing"):
        meant = _TRUE_WORDS.get(str(value).lower())
        if str(value).lower() in ("true", "false"):
            return f"true or false is expected, got {_kind_of(value)}", f"write {str(value).lower()} without quotes"
        return f"true or false is expected, got {_kind_of(value)}", f"write {meant}" if meant else "write true or false"
    if kind == "string_type":
        if isinstance(value, bool | int | float):
            return f"a text is expected, got {_kind_of(value)}", f'write it in quotes: "{shown(value)}"'
        return f"a text is expected, got {_kind_of(value)}", "write one text"
    if kind == "list_type":
        example = f"[{value}]" if isinstance(value, str | int | float) else "- and one item to a line"
        return f"a list is expected, got {_kind_of(value)}", f"write {example}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        owner = model_in(field.annotation) if field is not None else model_at(path)
        names = (
            f" ({_listed(list(fields_of(owner))[:5])}{', ...' if len(fields_of(owner)) > 5 else ''})" if owner else ""
        )
        return f"fields are expected, got {_kind_of(value)}", f"indent its fields{names} below it"
    if kind == "too_short":
        return "the list is empty", "write at least one item, or remove it"
    return f"{shown(value)} does not fit", f"write {_expected(field)}"


def _expected(field: FieldInfo | None) -> str:
    if field is None:
        return "another value"
    annotation = bare(field.annotation)
    if choices := choices_of(annotation):
        return f"one of {_listed(choices)}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(annotation, "a list" if get_origin(annotation) is list else "its fields below it")


def _wrong_choice(value: Any, choices: Sequence[Any]) -> tuple[str, str]:
    what = (
        f"{shown(value)} is not one of {_listed(choices)}" if len(choices) > 1 else f"{shown(value)} is not known here"
    )
    if len(choices) == 1:
        return what, f"write {choices[0]}"
    same = next((choice for choice in choices if isinstance(value, str) and str(choice) == value), None)
    if same is not None:
        return what, f"write {same} without quotes"
    near = nearest(value, [str(choice) for choice in choices], cutoff=0.6) if isinstance(value, str) and value else None
    return what, f"did you mean {near}?" if near else "write one of them"


def _number_hint(value: Any, *, whole: bool) -> str:
    if isinstance(value, float) and whole and value == value and abs(value) < 1e15 and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, str):
        text = value.strip()
        plain = re.sub(r"[_,]", "", text)
        if re.fullmatch(r"[-+]?0\d+", text):
            return f"write {int(text)} (a leading zero means octal to some readers)"
        if re.fullmatch(r"\d+(:\d+)+", text):
            return "write a plain number (some readers take the colon for base 60)"
        if re.fullmatch(r"[-+]?\d+" if whole else r"[-+]?\d*\.?\d+([eE][-+]?\d+)?", text):
            return f"write {text} without quotes"
        if plain != text and re.fullmatch(r"[-+]?\d+(\.\d+)?", plain):
            return f"write {plain}"
        if percent := re.fullmatch(r"(\d+(\.\d+)?)\s*%", text):
            return f"write {float(percent[1]) / 100:g}" if not whole else "write a plain number"
        if shortened := re.fullmatch(r"(\d+(?:\.\d+)?)([kKM])", text):
            return f"write {round(float(shortened[1]) * {'k': 1_000, 'K': 1_000, 'M': 1_000_000}[shortened[2]])}"
    return "write a whole number" if whole else "write a number"
