"""The reference page of the job document, and the text of `config explain`. Made from the models.

`python -m orchestrator.spec.reference > docs/job-reference.md` writes the page; a test regenerates it without a diff.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from orchestrator.spec.document import Path, dotted
from orchestrator.spec.fields import bare, choices_of, field_at, fields_of, model_at, model_in, walk
from orchestrator.spec.models import Part, TrainingJob
from orchestrator.spec.overrides import parse_path
from orchestrator.spec.validation import unknown_field
from orchestrator.spec.values import (
    AllowedSizes,
    ByteSize,
    CheckpointCadence,
    DeepSpeedConfig,
    Dollars,
    Duration,
    EvalCadence,
    FilterValue,
    MicroBatch,
    ReplicationCadence,
    Warmup,
)

_NAMED: tuple[tuple[Any, str], ...] = (
    (Duration, "duration (90s, 1h30m)"),
    (ByteSize, "size (512Mi, 16Gi)"),
    (Dollars, 'dollars ("12.50")'),
    (CheckpointCadence, "whole number, duration or Auto"),
    (Warmup, "fraction or whole number"),
    (MicroBatch, "whole number or Auto"),
    (ReplicationCadence, "whole number or Auto"),
    (EvalCadence, "whole number or epoch"),
    (AllowedSizes, "Auto, PowerOfTwo or list of whole numbers"),
    (DeepSpeedConfig, "preset, path or mapping"),
    (FilterValue, "text, number, true or false"),
)


def explain(path: str) -> str:
    """What one field is, for a terminal; the empty path explains the whole document.

    Raises KeyError with a sentence when there is no such field.
    """
    parsed = parse_path(path) if path else ()
    if parsed is None:
        raise KeyError(f'"{path}" is not a path; write dotted names, such as spec.workers.min')
    for length in range(1, len(parsed) + 1):
        if not isinstance(parsed[length - 1], int) and field_at(parsed[:length]) is None:
            finding = unknown_field(parsed[:length])
            raise KeyError(f"{finding.what}; {finding.hint}")
    field = field_at(parsed)
    lines = [f"{dotted(parsed) or 'TrainingJob'}: {_type(field) if field is not None else 'fields'}"]
    description = field.description if field is not None else (TrainingJob.__doc__ or "")
    lines += ["", f"  {description}"]
    if field is not None:
        lines += [f"  {fact}" for fact in _facts(field)]
    if (model := model_at(parsed)) is not None:
        width = max(len(name) for name in fields_of(model))
        lines += ["", "Fields:"]
        lines += [f"  {name:<{width}}  {inner.description}" for name, inner in fields_of(model).items()]
    return "\n".join(lines)


def markdown() -> str:
    """The reference page: one table for each section of the document."""
    lines = [
        "# Job reference",
        "",
        "Every field of a `TrainingJob`. This page is made from the models, by",
        "`python -m orchestrator.spec.reference > docs/job-reference.md`. `orchestrate config explain spec.workers` says the",
        "same in a terminal; `orchestrate schema` prints the JSON schema for an editor.",
        "",
        "Lower-case words such as `adamw` are names from a registry, words in CamelCase are closed sets. Durations carry a",
        "unit (`90s`, `12h`), so do sizes (`16Gi`). Fields marked *planned* are refused by name in this version.",
    ]
    for path, model in _sections():
        title = dotted(path) or "TrainingJob"
        lines += ["", f"## {title}", "", _first_sentence(model), ""]
        lines += ["| Field | Type | Default | What it is |", "|---|---|---|---|"]
        for name, field in fields_of(model).items():
            cells = [f"`{name}`", _type(field), _default(field), _described(field)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[tuple[Path, type[Part]]]:
    yield (), TrainingJob
    seen: set[type[Part]] = set()
    for path, field in walk():
        model = model_in(field.annotation)
        if model is None or model in seen:
            continue
        seen.add(model)
        yield path, model


def _first_sentence(model: type[Part]) -> str:
    return " ".join((model.__doc__ or "").split())


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    if field.metadata:
        annotation = Annotated[(annotation, *field.metadata)]  # type: ignore[assignment]
    return _type_of(annotation)


def _type_of(annotation: Any) -> str:
    for named, text in _NAMED:
        if annotation == named:
            return text
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return _type_of(next(item for item in get_args(annotation) if item is not type(None)))
    if choices := choices_of(annotation):
        return ", ".join(f"`{choice}`" for choice in choices)
    if origin is list:
        inner = get_args(annotation)[0]
        return "list of fields" if model_in(inner) is not None else f"list: {_type_of(inner)}"
    if origin in (dict, Mapping):
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return "fields"
    words: dict[Any, str] = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return words.get(annotation, "any value")


def _limits(field: FieldInfo) -> str | None:
    found: dict[str, Any] = {}
    queue: list[Any] = [*field.metadata, field.annotation]
    while queue:
        item = queue.pop()
        if get_origin(item) in (Annotated, Union, types.UnionType):
            arguments = get_args(item)
            queue += arguments
            queue += [data for argument in arguments if isinstance(argument, FieldInfo) for data in argument.metadata]
        for key in ("ge", "gt", "le", "lt"):
            value = getattr(item, key, None)
            if isinstance(value, int | float) and not (key == "le" and value > 2**40):
                found[key] = value
    words = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    return (
        ", ".join(
            words[key].format(found[key]) for key in words if key in found and not (key == "ge" and "gt" in found)
        )
        or None
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Part):
        return ""
    if value is None:
        return "none"
    if value == [] or value == {}:
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _planned(field: FieldInfo) -> str | None:
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        return None
    if capability := extra.get("x-planned"):
        return f"Planned: {capability}."
    values = extra.get("x-planned-values")
    return f"Planned: {', '.join(values)}." if isinstance(values, dict) else None


def _described(field: FieldInfo) -> str:
    parts = [field.description or ""]
    if limits := _limits(field):
        parts.append(f"({limits})")
    if planned := _planned(field):
        parts.append(f"*{planned}*")
    return " ".join(parts)


def _facts(field: FieldInfo) -> Iterator[str]:
    default = _default(field).strip("`")
    if default:
        yield f"Default: {default}" if default != "required" else "Required."
    if limits := _limits(field):
        yield f"Limits: {limits}"
    if planned := _planned(field):
        yield planned
    if field.examples and not isinstance(bare(field.examples[0]), dict):
        yield f"Example: {field.examples[0]}"


if __name__ == "__main__":
    sys.stdout.write(markdown())
