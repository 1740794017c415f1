"""A worker loop whose preload is killed, as where the imports of all libraries together take too much memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def preload() -> None:
    """Killed every time; where KILLED_ONCE names a file, only as long as it is not there."""
    once = os.environ.get("KILLED_ONCE")
    if once is not None:
        if Path(once).exists():
            return
        Path(once).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def run(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Tells who its parent is."""
    return {"outcome": "succeeded", "reason": "Completed", "parent": os.getppid()}
