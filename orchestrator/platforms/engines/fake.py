"""An engine without a cluster: every rank is a thread of this process.

It runs any worker loop whose ranks use their link now and then, passes the engine contract tests, and lets a test take
a worker away (`lose_worker`). `pretend` is a worker loop that trains nothing: it makes steps, losses and checkpoints of
a job file at once, so that the controller can be driven by thousands of jobs.

Limits: threads cannot be killed, so `kill` takes effect when a rank next uses its link; they share one process, so the
request's environment variables are not set.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.domain.clock import Clock, SystemClock, seconds_between
from orchestrator.platforms.engines.base import Listener, Outcome, RunRequest, WishBoard, Wishes

PRETEND = "orchestrator.platforms.engines.fake:pretend"


class _Taken(BaseException):
    """Raised in a rank's thread when its worker is taken away; nothing a worker loop catches."""


class _Link:
    """What a rank talks through."""

    def __init__(self, gang: _Gang, rank: int) -> None:
        self.rank = rank
        self._gang = gang

    def send(self, event: Mapping[str, Any]) -> None:
        self._gang.check(self.rank)
        self._gang.listener([dict(event)])

    def wishes(self) -> Wishes:
        self._gang.check(self.rank)
        return self._gang.wishes.read()

    def close(self) -> None:
        """Nothing is buffered."""


class _Gang:
    def __init__(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> None:
        self.request = request
        self.listener = listener
        self.wishes = wishes
        self.lost: set[int] = set()
        self.killed = False
        self.results: dict[int, Mapping[str, Any]] = {}
        self.errors: dict[int, Exception] = {}

    def check(self, rank: int) -> None:
        """A gang lives and dies together: one lost or failed rank takes the others with it."""
        if self.killed or self.lost or self.errors:
            raise _Taken(rank)

    def run_rank(self, loop: Callable[..., Mapping[str, Any]], rank: int) -> None:
        try:
            self.results[rank] = loop(self.request.assignment, _Link(self, rank))
        except _Taken:
            return
        except Exception as error:  # noqa: BLE001 - the edge of a worker: its error becomes the attempt's outcome
            self.errors[rank] = error
            lines = traceback.format_exception(error)
            self.listener([{"kind": "log", "rank": rank, "lines": "".join(lines).splitlines()}])

    def outcome(self) -> Outcome:
        if self.errors:
            rank, error = min(self.errors.items())
            reason = getattr(error, "reason", "ApplicationError")
            return Outcome(str(reason), f"rank {rank}: {type(error).__name__}: {error}")
        if self.lost:
            return Outcome("WorkerLost", f"rank {min(self.lost)} is gone")
        if self.killed:
            return Outcome("WorkerLost", "the gang was killed")
        result = self.results[0]
        return Outcome(str(result["reason"]), "", result)


class FakeEngine:
    """See the module."""

    name = "fake"

    def __init__(self) -> None:
        self._gang: _Gang | None = None
        self._lock = threading.Lock()

    def run(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> Outcome:
        module, _, function = request.worker_loop.partition(":")
        loop = getattr(importlib.import_module(module), function)
        gang = _Gang(request, listener, wishes)
        with self._lock:
            self._gang = gang
        others = [
            threading.Thread(target=gang.run_rank, args=(loop, rank), name=f"rank-{rank}", daemon=True)
            for rank in range(1, request.world_size)
        ]
        for thread in others:
            thread.start()
        gang.run_rank(loop, 0)
        for thread in others:
            thread.join()
        with self._lock:
            self._gang = None
        return gang.outcome()

    def kill(self) -> None:
        with self._lock:
            if self._gang is not None:
                self._gang.killed = True

    def lose_worker(self, rank: int) -> bool:
        """Take one worker away, as a preemption would. True when there was a gang to take it from."""
        with self._lock:
            if self._gang is None:
                return False
            self._gang.lost.add(rank)
            return True


def pretend(assignment: Mapping[str, Any], link: _Link, clock: Clock | None = None) -> dict[str, Any]:
    """A worker loop that trains nothing. Loss is 1/step; the step is kept in a file, so that an attempt continues.

    Steps follow each other at once, or `PRETEND_SECONDS_PER_STEP` of `spec.runtime.env` apart. Checkpoints are said to have
    stalled training for `PRETEND_STALL_SECONDS`, and under `checkpoint.every: Auto` come by the time that is wished."""
    clock = clock or SystemClock()
    training = assignment["spec"]["spec"].get("training", {})
    total, batch = training.get("maxSteps") or 10, training.get("globalBatchSize", 32)
    every = assignment["spec"]["spec"].get("checkpoint", {}).get("every", 100)
    automatic, every = every == "Auto", every if isinstance(every, int) else 100
    env = {v["name"]: v.get("value") for v in assignment["spec"]["spec"].get("runtime", {}).get("env", [])}
    seconds_per_step = float(env.get("PRETEND_SECONDS_PER_STEP") or 0)
    stall_seconds = float(env.get("PRETEND_STALL_SECONDS") or 0)
    pace = threading.Event()
    kept = Path(assignment["checkpoint_uri"]) / "pretend.json"
    start, covers_ns = _kept(kept)
    link.send(
        {
            "kind": "started",
            "rank": link.rank,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "at_ns": clock.now_ns(),
            "device": "none",
            "precision": "none",
            "precision_reason": "nothing is trained",
        }
    )
    if link.rank != 0:
        return {"outcome": "succeeded", "reason": "Completed", "step": total, "metrics": {}, "model_uri": None}
    link.send({"kind": "plan", "total_steps": total, "world_size": assignment["world_size"], "at_ns": clock.now_ns()})
    link.send(
        {
            "kind": "restored",
            "step": start,
            "uri": str(kept) if start else None,
            "covers_ns": covers_ns,
            "refused": [],
            "at_ns": clock.now_ns(),
        }
    )
    saved, saved_ns = 0, clock.monotonic_ns()
    for step in range(start + 1, total + 1):
        if seconds_per_step:
            pace.wait(seconds_per_step)
        now_ns = clock.now_ns()
        link.send(
            {
                "kind": "step",
                "step": step,
                "epoch": step / total,
                "loss": 1 / step,
                "lr": 0.0,
                "samples": batch,
                "samples_seen": step * batch,
                "seconds": 0.0,
                "at_ns": now_ns,
            }
        )
        wishes = link.wishes()
        every_seconds = wishes.checkpoint_every_seconds
        late = every_seconds is not None and seconds_between(saved_ns, clock.monotonic_ns()) >= every_seconds
        due = late if automatic else step % every == 0
        if due or wishes.checkpoint > saved or wishes.stop:
            saved, saved_ns = wishes.checkpoint, clock.monotonic_ns()
            _keep(kept, step, now_ns)
            link.send(
                {
                    "kind": "checkpoint",
                    "step": step,
                    "uri": str(kept),
                    "bytes": kept.stat().st_size,
                    "seconds": stall_seconds,
                    "stall_seconds": stall_seconds,
                    "covers_ns": now_ns,
                    "at_ns": clock.now_ns(),
                    "wish": saved,
                    "best": False,
                }
            )
        if wishes.stop:
            return {"outcome": "stopped", "reason": "Stopped", "step": step, "metrics": {}, "model_uri": None}
    return {
        "outcome": "succeeded",
        "reason": "Completed",
        "step": total,
        "metrics": {"loss": 1 / total},
        "model_uri": None,
    }


def _kept(file: Path) -> tuple[int, int | None]:
    """The step that is kept, and when it ended; 0 and None when there is none."""
    if not file.exists():
        return 0, None
    kept = json.loads(file.read_text())
    return kept["step"], kept["covers_ns"]


def _keep(file: Path, step: int, covers_ns: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".partial")
    aside.write_text(json.dumps({"step": step, "covers_ns": covers_ns}))
    aside.replace(file)
