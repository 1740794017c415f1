"""A worker loop for replays: counts steps, keeps the count in memory and in a file, and pretends to train."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.domain.clock import SystemClock
from orchestrator.storage import Fragment

STEP_SECONDS = 0.05


def train(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """One rank. Continues from the state in memory, else from the file that it saved when it was stopped."""
    pause, clock, source = threading.Event(), SystemClock(), link.memory.source
    saved = Path(assignment["run_dir"]) / "step"
    step = source.step if source is not None else int(saved.read_text()) if saved.exists() else 0
    link.memory.open([Fragment("w", "master", "float32", 0, 4, file="", offset=0)], 16)
    now_ns = clock.now_ns()
    where: dict[str, Any] = {
        "source": "memory" if source is not None else "checkpoint",
        "uri": None,
        "refused": [],
        "at_ns": now_ns,
    }
    link.send({"kind": "restored", "step": step, "covers_ns": now_ns if step else None, **where})
    while True:
        pause.wait(STEP_SECONDS)
        step += 1
        link.memory.buffer(step)[:] = step.to_bytes(16, "little")
        link.memory.publish(step, {"step": step})
        now_ns = clock.now_ns()
        report = {
            "loss": 1 / step,
            "lr": 0.1,
            "samples": 1,
            "samples_seen": step,
            "epoch": 0.0,
            "seconds": STEP_SECONDS,
        }
        link.send({"kind": "step", "step": step, **report, "at_ns": now_ns})
        wishes = link.wishes()
        if wishes.stop:
            saved.write_text(str(step))
            cost = {"bytes": 16, "seconds": 0.0, "stall_seconds": 0.0, "covers_ns": now_ns, "wish": 0, "best": False}
            link.send({"kind": "checkpoint", "step": step, "uri": str(saved), **cost, "at_ns": now_ns})
            return {"outcome": "stopped", "reason": "Stopped", "step": step, "metrics": {}, "model_uri": None}
        if wishes.regroup:
            return {"outcome": "regrouped", "reason": "Regrouped", "step": step, "metrics": {}, "model_uri": None}
