"""An engine without a cluster: every rank is a thread of this process.

It runs any worker loop whose ranks use their link now and then, passes the engine contract tests, and lets a test take
a worker away (`lose_worker`), and from an elastic gang also give one (`join`) or announce that one goes (`notice`); see
`fake_gang`. `pretend` is a worker loop that trains nothing: it makes steps, losses and checkpoints of
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.domain.clock import Clock, SystemClock, seconds_between
from orchestrator.platforms.engines.base import Listener, Outcome, RunRequest, WishBoard
from orchestrator.platforms.engines.fake_gang import Elastic, Gang, Link

PRETEND = "orchestrator.platforms.engines.fake:pretend"


class FakeEngine:
    """See the module."""

    name = "fake"

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._gang: Gang | None = None
        self._elastic: Elastic | None = None
        self._lock = threading.Lock()

    def run(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> Outcome:
        module, _, function = request.worker_loop.partition(":")
        loop = getattr(importlib.import_module(module), function)
        if request.elastic:
            elastic = Elastic(request, listener, wishes, self._clock)
            with self._lock:
                self._elastic = elastic
            outcome = elastic.run(loop)
            with self._lock:
                self._elastic = None
            return outcome
        gang = Gang(request, listener, wishes, request.world_size)
        with self._lock:
            self._gang = gang
        gang.run(loop)
        with self._lock:
            self._gang = None
        ended = gang.outcome()
        assert ended is not None
        return ended

    def kill(self) -> None:
        with self._lock:
            if self._gang is not None:
                self._gang.killed = True
            if self._elastic is not None:
                self._elastic.kill()

    def lose_worker(self, rank: int, *, memory: bool = True) -> bool:
        """Take one worker away, as a preemption would; without `memory` an elastic gang loses all copies of its state with
        it. True when there was a gang to take it from."""
        with self._lock:
            if self._elastic is not None:
                return self._elastic.lose(rank, memory=memory)
            if self._gang is None:
                return False
            self._gang.lost.add(rank)
            return True

    def join(self) -> str:
        """A slot comes to the elastic gang that runs; its name."""
        return self._running().join()

    def notice(self, rank: int) -> None:
        """The node of a rank of the elastic gang that runs is announced to go."""
        self._running().notice(rank)

    def _running(self) -> Elastic:
        with self._lock:
            assert self._elastic is not None, "no elastic gang runs"
            return self._elastic


def pretend(assignment: Mapping[str, Any], link: Link, clock: Clock | None = None) -> dict[str, Any]:
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
    memory = getattr(link, "memory", None)
    source = None if memory is None else memory.source
    start, covers_ns = _kept(kept) if source is None else (source.step, source.document["covers_ns"])
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
            "uri": str(kept) if start and source is None else None,
            "source": "checkpoint" if source is None else "memory",
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
        if memory is not None:
            memory.publish(step, {"covers_ns": now_ns})
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
