"""A worker loop with all three parts: what the template imports, the warm-up, and the loop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

_preloaded_in: list[int] = []


def preload() -> None:
    _preloaded_in.append(os.getpid())


def warm(assignment: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    if assignment.get("warm") == "fails":
        raise RuntimeError("cannot build the operator")
    print("warming")  # noqa: T201 - to be heard
    return {"pid": os.getpid(), "colour": env.get("COLOUR"), "niceness": os.nice(0)}


def run(assignment: Mapping[str, Any], link: Any, warmed: Mapping[str, Any]) -> dict[str, Any]:
    """Tells who imported, who warmed up, and who is its parent."""
    return {
        "outcome": "succeeded",
        "reason": "Completed",
        "preloaded_in": _preloaded_in,
        "warmed": warmed,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "niceness": os.nice(0),
    }
