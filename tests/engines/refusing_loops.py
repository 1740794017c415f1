"""A worker loop that imports well but whose preload fails, as where a library is missing in part."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def preload() -> None:
    raise ImportError("no such library")


def run(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Tells who its parent is."""
    return {"outcome": "succeeded", "reason": "Completed", "parent": os.getppid()}
