"""Where data and models lie, and rows read from files: CSV, JSON lines, plain text. Standard library only.

A place is a path (relative to the job's working folder), `file://`, or `package://python_package/path/inside`. Files are
read whole: an in-memory reader is enough for the data sets that fit one machine, which is what the first form trains on.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.training.errors import WorkerFailed, data_invalid


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    line: int
    """Line in the file where the row ends (CSV) or stands (others), from 1."""
    fields: dict[str, Any]


def locate(uri: str, working_dir: Path) -> Path:
    """The path behind a URI. Raises DataInvalid for a scheme that cannot be read and for a missing package.

    Does not look whether the path exists.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return working_dir / uri
    if scheme == "file":
        return Path(rest)
    if scheme == "package":
        name, _, inside = rest.partition("/")
        found = find_spec(name) if name.isidentifier() else None
        folders = list(found.submodule_search_locations or ()) if found is not None else []
        if not folders:
            raise data_invalid(
                f"{uri}: the Python package {name!r} is not installed here", "install it on every worker"
            )
        return Path(folders[0]) / inside
    raise data_invalid(f"{uri}: {scheme}:// cannot be read yet", "use a path, file:// or package://")


def read_rows(uri: str, format_name: str, encoding: str, working_dir: Path) -> list[Row]:
    """All rows of one file. Raises DataInvalid, naming file and line."""
    path = locate(uri, working_dir)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise data_invalid(f"there is no file {path} ({uri})", "check data.*.uri and runtime.workingDir") from error
    except OSError as error:
        raise data_invalid(f"cannot read {path}: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise data_invalid(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not {encoding} text",
            "set data.cleaning.encoding, for example to latin-1 or cp1252",
        ) from error
    except LookupError as error:
        raise data_invalid(f"there is no text encoding {encoding!r}", "use a name such as utf-8 or latin-1") from error
    readers = {"CSV": _csv_rows, "JSONL": _json_rows, "Text": _text_rows}
    return list(readers[format_name](text, path))


def _csv_rows(text: str, path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise data_invalid(f"{path} is empty", "a CSV file begins with a line of column names")
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise data_invalid(f"{path}:1: column {repeated[0]!r} stands there twice")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise data_invalid(
                    f"{path}:{reader.line_num}: {len(values)} fields, but {len(header)} columns",
                    "quote texts that contain commas or line breaks",
                )
            yield Row(reader.line_num, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise data_invalid(f"{path}:{reader.line_num}: {error}", "the file is not well-formed CSV") from error


def _json_rows(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise data_invalid(f"{path}:{number}: not JSON: {error}", "write one JSON object a line") from error
        if not isinstance(value, dict):
            raise data_invalid(f"{path}:{number}: not a JSON object", "write one JSON object a line")
        yield Row(number, value)


def _text_rows(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Row(number, {"text": line.rstrip("\r")})


def local_model(source: str, working_dir: Path) -> Path | None:
    """The folder of a model source; None when the source is a hub id (or an architecture's name)."""
    if "://" in source:
        folder = locate(source, working_dir)
        if not folder.is_dir():
            raise data_invalid(f"{source}: there is no folder {folder}", "check model.source")
        return folder
    folder = working_dir / source
    if folder.is_dir():
        return folder
    if source.startswith((".", "/")):
        raise WorkerFailed(
            "ConfigInvalid", f"model.source: there is no folder {folder}", "check model.source and runtime.workingDir"
        )
    return None
