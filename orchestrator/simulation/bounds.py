"""Bounds that were worked out once, kept in files: one a market, named by what it offers. An exact optimum costs tens of
milliseconds, more than the policies that are measured by it. A file that cannot be read is worked out anew; one that cannot be
written is not missed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator.simulation.market import Market
from orchestrator.simulation.world import Job

FORM = 1
"""Of the files, and of the way in which bounds are worked out: another number, and old files are not read."""


class Bounds:
    """The bounds of one market. Not safe over threads; two processes that write at once keep one of the two files."""

    def __init__(self, market: Market, folder: Path | None) -> None:
        """`folder`: None keeps nothing."""
        what = (FORM, market.changes, market.on_demand, market.workers_min, market.workers_max, market.length_ns)
        digest = hashlib.sha256(repr(what).encode()).hexdigest()[:32]
        self._file = None if folder is None else folder / f"{digest}.json"
        self._known: dict[str, float | None] = {}
        self._fresh = False
        if self._file is not None:
            with suppress(OSError, ValueError):
                kept = json.loads(self._file.read_text(encoding="utf-8"))
                if isinstance(kept, dict):
                    self._known = kept

    def of(self, job: Job, start_ns: int, work_out: Callable[[], float | None]) -> float | None:
        """The bound of a job that starts there."""
        key = f"{start_ns}:{job.work_ns}:{job.deadline_ns}:{job.overhead_ns}"
        if key not in self._known:
            self._known[key] = work_out()
            self._fresh = True
        return self._known[key]

    def keep(self) -> None:
        """Write what is new."""
        if self._file is None or not self._fresh:
            return
        aside = self._file.with_suffix(".new")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(self._known), encoding="utf-8")
            aside.replace(self._file)
            self._fresh = False
