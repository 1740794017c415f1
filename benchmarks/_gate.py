"""A gate between windows of steps, so that two runs that are both up can be measured in turn: one steps, the other waits.

The runs and who measures them meet in a folder. `_gate:run` is the real worker loop with a gate after its steps: rank 0 waits
there, the other ranks for it. The wait is told to the engine as a pause, as an evaluation's is, or it would pass for a hang.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.training import worker
from orchestrator.training.worker import preload, warm

__all__ = ["Gate", "preload", "run", "warm"]
WINDOW_STEPS = 15
LOOK_SECONDS = 0.005


class Gate:
    """Of one run. Its rank 0 calls `step`; who measures calls `window`."""

    def __init__(self, folder: Path) -> None:
        self._may, self._ends = folder / "may", folder / "ends.json"
        self._taken: list[int] = []
        self._measured = 0

    def step(self, end_ns: int) -> bool:
        """A step has ended; whether the gate is to be waited at."""
        self._taken.append(end_ns)
        return len(self._taken) % WINDOW_STEPS == 0

    def wait(self) -> None:
        """Tell the window's steps, and wait for the next."""
        _write(self._ends, json.dumps(self._taken))
        while _read(self._may, 0) <= len(self._taken):
            time.sleep(LOOK_SECONDS)

    def window(self, patience_seconds: float = 120.0) -> list[int]:
        """Let the run make a window's steps; when each ended. Raises TimeoutError."""
        first = self._measured
        _write(self._may, str(first + 1))
        end = time.monotonic() + patience_seconds
        while len(ends := _read(self._ends, [])) < first + WINDOW_STEPS:
            if time.monotonic() > end:
                raise TimeoutError(f"{self._ends.parent.name} makes no step: {len(ends)} after {patience_seconds} s")
            time.sleep(LOOK_SECONDS)
        self._measured += WINDOW_STEPS
        return [int(end_ns) for end_ns in ends[first : self._measured]]


class _GatedLink:
    """The engine's link; steps of rank 0 wait at the gate."""

    def __init__(self, link: Any, gate: Gate) -> None:
        self._link, self._gate = link, gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def send(self, event: dict[str, Any]) -> None:
        self._link.send(event)
        if event["kind"] == "step" and self._gate.step(event["at_ns"]):
            self._link.send({"kind": "pause", "pause": "evaluation", "at_ns": time.time_ns()})
            self._gate.wait()


def run(assignment: Mapping[str, Any], link: Any, warm: Any = None) -> dict[str, Any]:
    """What the engine calls."""
    return worker.run(assignment, _GatedLink(link, Gate(Path(assignment["run_dir"]))), warm)


def _write(file: Path, text: str) -> None:
    aside = file.with_suffix(".partial")
    aside.write_text(text)
    aside.replace(file)


def _read(file: Path, absent: Any) -> Any:
    return json.loads(file.read_text()) if file.exists() else absent
