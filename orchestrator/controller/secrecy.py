"""Keeping secrets out of the journal, the logs and everything that the API says.

A variable of `spec.runtime.env` whose name looks secret is a secret. On submit its value is cut out of the document and
kept in a file of its own (0600, durable before the submit is acknowledged); the journal and all that is shown hold `***`.
The value is put back only into what a job's own workers get, and the driver strikes it out of every line and message
that it hears from them.

Limits: the value must be known to us, so a secret that the user's code obtains by itself and prints is not recognised; a
value shorter than four characters is not sought in texts, since it would be found in half of all words.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import StorageError

HIDDEN = "***"
SHORTEST_SOUGHT = 4

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)


def looks_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def cut_out(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The document with `***` for its secrets, and the secrets by variable; the very same document when it has none."""
    env = document["spec"].get("runtime", {}).get("env", [])
    found = {v["name"]: v["value"] for v in env if v.get("value") and looks_secret(v["name"])}
    return (_with_values(document, dict.fromkeys(found, HIDDEN)), found) if found else (document, {})


def put_back(document: Mapping[str, Any], values: Mapping[str, str]) -> Mapping[str, Any]:
    """The document as it was submitted."""
    return _with_values(document, values) if values else document


def _with_values(document: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    spec = document["spec"]
    env = [{**v, "value": values[v["name"]]} if v["name"] in values else v for v in spec["runtime"]["env"]]
    return {**document, "spec": {**spec, "runtime": {**spec["runtime"], "env": env}}}


def keep(file: Path, values: Mapping[str, str]) -> None:
    """Write the secrets of a job where only this user can read them; on return they are durable. Raises `StorageError`."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            json.dump(values, out)
            out.flush()
            os.fsync(out.fileno())
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(
            f"the job's secrets cannot be kept in {file} ({error.strerror})", hint="make room"
        ) from error


def recall(file: Path) -> dict[str, str]:
    """The secrets of a job; none when it has none. Raises `StorageError` when they cannot be read."""
    try:
        values: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"the job's secrets in {file} cannot be read ({error})", hint="submit the job again"
        ) from error
    return values


class Redactor:
    """Strikes secret values out of texts and events."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first, so that a secret that contains another leaves nothing behind.
        self._values = sorted({v for v in secrets if len(v) >= SHORTEST_SOUGHT}, key=len, reverse=True)

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Redactor:
        """For the variables that a gang gets."""
        return cls(value for name, value in env.items() if looks_secret(name))

    def text(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return text

    def clean(self, value: Any) -> Any:
        """The value with every text in it cleaned; the very same object when there are no secrets."""
        return self._cleaned(value) if self._values else value

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self._cleaned(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._cleaned(item) for item in value]
        return value
