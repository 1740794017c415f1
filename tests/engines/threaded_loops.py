"""A worker loop whose import leaves a thread behind, as some libraries do: no process may be copied from there."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

_thread = threading.Thread(target=threading.Event().wait, daemon=True)
_thread.start()


def run(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Tells who its parent is."""
    return {"outcome": "succeeded", "reason": "Completed", "parent": os.getppid()}
