"""A worker loop that trains nothing, on real processes: it paces steps, keeps the newest in a file, and obeys wishes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.domain.clock import SystemClock

SECONDS_PER_STEP = 0.05


def train(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Ranks do not talk to each other, so that losing one shows what the engine does and not a broken collective."""
    clock, pause, rank = SystemClock(), threading.Event(), link.rank
    total = assignment["spec"]["spec"]["training"]["maxSteps"]
    kept = Path(assignment["checkpoint_uri"]) / "kept.json"
    start = json.loads(kept.read_text())["step"] if kept.exists() else 0
    fields = {"pid": os.getpid(), "host": "here", "device": "none", "precision": "none", "precision_reason": "a test"}
    link.send({"kind": "started", "rank": rank, "at_ns": clock.now_ns(), **fields})
    if rank == 0:
        link.send({"kind": "plan", "total_steps": total, "at_ns": clock.now_ns()})
        uri = str(kept) if start else None
        taken_up: dict[str, Any] = {"step": start, "uri": uri, "source": "checkpoint", "covers_ns": None, "refused": []}
        link.send({"kind": "restored", **taken_up, "at_ns": clock.now_ns()})
    for step in range(start + 1, total + 1):
        pause.wait(SECONDS_PER_STEP)
        wishes = link.wishes()
        ends = wishes.stop or wishes.regroup
        if rank == 0:
            told = {"epoch": 0.0, "loss": 1 / step, "lr": 0.0, "samples": 32, "seconds": SECONDS_PER_STEP}
            link.send({"kind": "step", "step": step, **told, "at_ns": clock.now_ns()})
            if ends or step % 10 == 0:
                _keep(kept, step)
                saved = {"step": step, "uri": str(kept), "bytes": 1, "seconds": 0.0, "stall_seconds": 0.0, "wish": 0}
                covers_ns = clock.now_ns()
                link.send({"kind": "checkpoint", **saved, "covers_ns": covers_ns, "at_ns": covers_ns, "best": False})
        else:
            link.send({"kind": "running", "step": step})
        if ends:
            outcome = "stopped" if wishes.stop else "regrouped"
            return {"outcome": outcome, "reason": outcome.capitalize(), "step": step}
    return {"outcome": "succeeded", "reason": "Completed", "step": total, "metrics": {}, "model_uri": None}


def _keep(file: Path, step: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".partial")
    aside.write_text(json.dumps({"step": step}))
    aside.replace(file)
