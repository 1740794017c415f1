"""The small value types of the job document: names, labels, durations, sizes, and "a number or a word".

Each is an annotated type with its own validator, so that a wrong value is explained in our words and not in those of
the validation library. Values stay as the user wrote them (`90s` stays `90s`); models give the number beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from orchestrator.domain.quantities import parse_bytes, parse_duration_ns

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

NAME_MAX_LENGTH = 52
"""Characters of a job's name. Names of its driver and workers are made from it and must stay within 63."""
DURATION_PATTERN = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"


def shown(value: Any, limit: int = 60) -> str:
    """A value as the user would write it, cut to `limit` characters."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = f'"{_one_line(value)}"'
    elif isinstance(value, dict):
        text = (
            "{" + ", ".join(f"{_one_line(str(key))}: {shown(item, 20)}" for key, item in list(value.items())[:4]) + "}"
        )
    elif isinstance(value, list):
        text = "[" + ", ".join(shown(item, 20) for item in value[:6]) + "]"
    else:
        text = str(value)
    return text if len(text) <= limit else text[: limit - 4] + "..." + text[-1]


def _one_line(text: str) -> str:
    """Line breaks and other unprintable characters escaped, so that a problem stays one line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def wrong(what: str, hint: str) -> PydanticCustomError:
    """The error that a validator raises: a sentence and what to do about it."""
    return PydanticCustomError("orchestrate", "{what}; {hint}", {"what": what, "hint": hint})


def _dns_name(text: str) -> str:
    if not text:
        raise wrong("is empty", "write a name such as my-job")
    if len(text) > NAME_MAX_LENGTH:
        raise wrong(
            f"{shown(text, 24)} has {len(text)} characters, more than {NAME_MAX_LENGTH}",
            "shorten it (names of workers are made from it)",
        )
    if not _DNS_LABEL.fullmatch(text):
        better = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        example = f", such as {better}" if better else ""
        raise wrong(
            f"{shown(text)} is not a valid name",
            f"use lower-case letters, digits and '-', beginning and ending with a letter or digit{example}",
        )
    return text


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if slash and not (_DNS_SUBDOMAIN.fullmatch(prefix) and len(prefix) <= 253):
        raise wrong(f"{shown(prefix)} is not a valid prefix of a label", "write a DNS name such as example.com/team")
    if not _LABEL_NAME.fullmatch(name) or len(name) > 63:
        raise wrong(
            f"{shown(text)} is not a valid label name",
            "use at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        )
    return text


def _label_value(text: str) -> str:
    if text and (len(text) > 63 or not _LABEL_NAME.fullmatch(text)):
        raise wrong(
            f"{shown(text)} is not a valid label value",
            "use at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        )
    return text


def _env_name(text: str) -> str:
    if not _ENV_NAME.fullmatch(text):
        raise wrong(
            f"{shown(text)} is not a name of an environment variable",
            "use letters, digits and '_', not beginning with a digit",
        )
    return text


def _function(text: str) -> str:
    if not _FUNCTION.fullmatch(text):
        hint = "write module:function, such as my_package.train:main"
        if text.endswith(".py") or "/" in text:
            hint += " (a module is named with dots and without .py)"
        elif ":" not in text and "." in text:
            module, _, name = text.rpartition(".")
            hint = f"write module:function, such as {module}:{name}"
        raise wrong(f"{shown(text)} does not name a function", hint)
    return text


def _text(text: str) -> str:
    if not text.strip():
        raise wrong("is empty", "write a value or remove the field")
    return text


def _parsed(parse: Callable[[str], int], kind: str, example: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise wrong(f"{shown(value)} has no unit", f"write {kind} with its unit, such as {example}")
        try:
            amount = parse(value)
        except ValueError as error:
            what, _, hint = str(error).partition("; ")
            raise wrong(what.replace("'", '"'), hint) from error
        if amount <= 0:
            raise wrong(f"{shown(value)} is nothing", f"write {kind} above zero, such as {example}")
        return value

    return check


_check_duration = _parsed(parse_duration_ns, "a duration", "90s")


def whole_number_or(words: tuple[str, ...], minimum: int, unit: str) -> Callable[[Any], Any]:
    """Validator of a whole number (of `unit`, at least `minimum`) or one of a few words."""
    expected = " or ".join([f"a whole number of {unit}", *words])

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            near = next((w for w in words if isinstance(value, str) and w.lower() == value.lower()), None)
            raise wrong(f"{shown(value)} is not {expected}", f"write {near}" if near else f"write {expected}")
        if value < minimum:
            raise wrong(f"{value} is below the smallest value, {minimum}", f"write {expected}")
        return value

    return check


def _every(value: Any) -> Any:
    if value == "Auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    if isinstance(value, str):
        if value.lower() == "auto":
            raise wrong(f"{shown(value)} is not a cadence", "write Auto")
        return _check_duration(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 1:
        raise wrong(
            f"{shown(value)} is below the smallest value, 1", "write a number of steps or a duration such as 10m"
        )
    raise wrong(f"{shown(value)} is not a cadence", "write a whole number of steps or a duration such as 10m")


def _warmup(value: Any) -> Any:
    hint = "write a fraction of all steps from 0 to below 1 (0.1), or a whole number of steps (100)"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"{shown(value)} is not a length of warm-up", hint)
    if value != value or value < 0 or (isinstance(value, float) and value >= 1):
        raise wrong(f"{shown(value)} is not a length of warm-up", hint)
    return value


def _dollars(value: Any) -> str:
    from orchestrator.domain.money import parse_dollars

    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong(f"{shown(value)} is not an amount of dollars", 'write a decimal such as "12.50"')
    text = str(value)
    try:
        parse_dollars(text)
    except ValueError as error:
        raise wrong(f"{shown(value)} is not an amount of dollars", 'write a decimal such as "12.50"') from error
    return text


DnsName = Annotated[str, AfterValidator(_dns_name)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
EnvName = Annotated[str, AfterValidator(_env_name)]
FunctionName = Annotated[str, AfterValidator(_function)]
Text = Annotated[str, AfterValidator(_text)]
"""A string with something in it."""

Duration = Annotated[
    str, PlainValidator(_check_duration), WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})
]
ByteSize = Annotated[
    str,
    PlainValidator(_parsed(parse_bytes, "a size", "16Gi")),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?([kMGTP]|K|[KMGTP]i)?$"}),
]
Dollars = Annotated[
    str,
    PlainValidator(_dollars),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^\d+(\.\d{1,9})?$"}, {"type": "number", "minimum": 0}]}),
]
CheckpointCadence = Annotated[
    int | str,
    PlainValidator(_every),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^Auto$|{DURATION_PATTERN}"}]}
    ),
]
Warmup = Annotated[
    int | float,
    PlainValidator(_warmup),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"type": "integer", "minimum": 1}]}
    ),
]
MicroBatch = Annotated[
    int | str,
    PlainValidator(whole_number_or(("Auto",), 1, "samples")),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "Auto"}]}),
]
ReplicationCadence = Annotated[
    int | str,
    PlainValidator(whole_number_or(("Auto",), 1, "steps")),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "Auto"}]}),
]
EvalCadence = Annotated[
    int | str,
    PlainValidator(whole_number_or(("epoch",), 1, "steps")),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "epoch"}]}),
]


def _allowed_sizes(value: Any) -> Any:
    hint = "write Auto, PowerOfTwo or a list of numbers of workers such as [1, 2, 4]"
    if value in ("Auto", "PowerOfTwo"):
        return value
    if not isinstance(value, list) or not value:
        raise wrong(f"{shown(value)} does not say which sizes are allowed", hint)
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or item < 1:
            raise wrong(f"{shown(item)} is not a number of workers", hint)
    return value


AllowedSizes = Annotated[
    str | list[int],
    PlainValidator(_allowed_sizes),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["Auto", "PowerOfTwo"]},
                {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1}},
            ]
        }
    ),
]


def not_a_bool(value: Any) -> Any:
    """Refuses true and false where a number is one of the choices: Python counts them as 1 and 0."""
    if isinstance(value, bool):
        raise wrong(f"{shown(value)} is not a number", "write a number without quotes")
    return value


def _deepspeed_config(value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, dict):
        return value
    raise wrong(
        f"{shown(value)} is not a DeepSpeed configuration",
        "write the name of a preset, the path of a JSON file, or the overrides themselves",
    )


DeepSpeedConfig = Annotated[
    str | dict[str, Any],
    PlainValidator(_deepspeed_config),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "object", "additionalProperties": True}]}),
]


def _scalar(value: Any) -> Any:
    if isinstance(value, str | int | float):
        return value
    raise wrong(f"{shown(value)} is not a single value", "write a text, a number, true or false")


FilterValue = Annotated[
    str | int | float | bool, PlainValidator(_scalar), WithJsonSchema({"type": ["string", "number", "boolean"]})
]
