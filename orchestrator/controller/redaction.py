"""Keeping secrets out of what the API says.

A variable of `spec.runtime.env` whose name looks secret is shown as `***`, and its value is struck out of every other
text about the job: messages, events and log lines. Limits: the value must be known to us, so a secret that the user's
code obtains by itself and prints is not recognised; a value shorter than four characters is hidden only where it is
declared, since it would be found in half of all words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST_SOUGHT = 4

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)


class Redactor:
    """Strikes the secrets of one job document out of texts and documents."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        runtime = document.get("spec", {}).get("runtime") or {}
        variables = runtime.get("env") or []
        secret = [v for v in variables if _SECRET_NAME.search(str(v.get("name", ""))) and v.get("value")]
        self._names = {v["name"] for v in secret}
        # The longest first, so that a secret that contains another leaves nothing behind.
        self._values = sorted({v["value"] for v in secret if len(v["value"]) >= SHORTEST_SOUGHT}, key=len, reverse=True)

    def text(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return text

    def clean(self, document: Any) -> Any:
        """The document without secrets; the very same object when the job has none."""
        return self._cleaned(document) if self._names else document

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            if value.get("name") in self._names and "value" in value:
                return {**value, "value": HIDDEN}
            return {key: self._cleaned(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._cleaned(item) for item in value]
        return value
