"""An attempt of the elastic engine with the real worker loop, for benchmarks: what it told, and whether it has settled.

The engine lives in this process; where its agents live is the launcher's business.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import WORKER_LOOP, Outcome, RunRequest, WishBoard
from orchestrator.platforms.engines.native.messages import READY, STATES
from orchestrator.spec import TrainingJob, load_file

STORY = ("world", "world_lost", "restored", "notice", "replication", "hung", "stage", "slot", "failed")
TOLD_LINES = 40
NANOSECONDS = 1e9

Row = dict[str, Any]


def elastic_request(loaded: TrainingJob, job: Path, folder: Path, uid: str, loop: str = WORKER_LOOP) -> RunRequest:
    """The first attempt of the job of a file, with any number of workers up to its largest; all it writes goes to `folder`."""
    workers = loaded.spec.workers
    assignment = {
        "job": {"namespace": "default", "name": loaded.metadata.name, "uid": uid},
        "spec": loaded.model_dump(mode="json", by_alias=True, exclude_none=True),
        "attempt": 1,
        "workers": workers.max,
        "world_size": workers.max,
        "run_dir": str(folder),
        "checkpoint_uri": str(folder / "checkpoints"),
        "working_dir": str(job.resolve().parent),
        "threads": 1,
    }
    return RunRequest(
        uid=uid,
        namespace="default",
        name=loaded.metadata.name,
        attempt=1,
        workers=workers.max,
        cpus_per_worker=workers.cpus,
        gpus_per_worker=0,
        memory_bytes_per_worker=None,
        worker_loop=loop,
        assignment=assignment,
        min_workers=1,
        elastic=True,
    )


class Run:
    """The attempt, and what it told."""

    def __init__(self, job: str | Path, fields: Sequence[str], folder: Path, loop: str = WORKER_LOOP) -> None:
        """`fields` of the job's file are set anew, as `--set` does."""
        loaded = load_file(str(job), fields)
        self._events: list[Mapping[str, Any]] = []
        self._worlds: dict[int, Mapping[str, Any]] = {}
        self._begun: list[tuple[int, int]] = []
        self._rows: list[Row] = []
        self._apart_ns = time.time_ns() - time.monotonic_ns()
        self._wishes = WishBoard()
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run)
        self._engine: Any = None
        self._standbys: list[str] = []
        self._request = elastic_request(loaded, Path(job), folder, folder.name, loop)

    def begin(self, launcher: Callable[[RunRequest], Any], host: str = "127.0.0.1") -> None:
        """`launcher` makes what starts agents; they reach this process at `host`."""
        from orchestrator.platforms.engines.native import NativeEngine

        self._engine = NativeEngine(launcher, SystemClock(), environ=dict(os.environ), host=host)
        self._thread.start()

    def _run(self) -> None:
        self._outcome = self._engine.run(self._request, self._heard, self._wishes)

    def _heard(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Rows are made as steps are heard: a look at them must cost nothing beside what is measured."""
        for event in events:
            match event["kind"]:
                case "step":
                    self._rows.append(self._row(event))
                    continue
                case "world":
                    self._worlds[event["generation"]] = event
                case "restored":
                    self._begun.append((event["at_ns"], event["generation"]))
            self._events.append(event)

    def _row(self, event: Mapping[str, Any]) -> Row:
        """A step is of the world that began from a state before it."""
        generation = max((number for at_ns, number in self._begun if at_ns <= event["at_ns"]), default=1)
        world = self._worlds[generation]
        node = next(worker["node"] for worker in world["workers"] if worker["rank"] == 0)
        row = {"step": event["step"], "end_ns": event["at_ns"] - self._apart_ns, "world": generation}
        return {**row, "size": world["world_size"], "node": node}

    def told(self, *kinds: str) -> list[Mapping[str, Any]]:
        """Events of these kinds, but steps."""
        return [event for event in list(self._events) if event["kind"] in kinds]

    @property
    def outcome(self) -> Outcome | None:
        """None while it runs."""
        return self._outcome

    def rows(self) -> list[Row]:
        """Finished steps of rank 0, each with its world."""
        if self._outcome is not None:
            raise RuntimeError(f"the attempt ended: {self._outcome}; {self.logs()}")
        return self._rows

    def story(self, since_ns: int) -> list[dict[str, Any]]:
        """What the engine told from that instant of the monotonic clock on, with `at` in seconds from it."""
        told = [event for event in list(self._events) if event["kind"] in STORY]
        placed = [{**event, "at": (event["at_ns"] - self._apart_ns - since_ns) / NANOSECONDS} for event in told]
        return [event for event in placed if event["at"] >= 0]

    def settled(self, nodes: int) -> bool:
        """Whether every slot of so many nodes has its standby again, as in a run that did not begin just now. (A look at the
        engine's own state, which no port shows.)"""
        agents = self._agents()
        self._standbys = [f"{agent.agent}: {[worker.state for worker in agent.standbys(*STATES)]}" for agent in agents]
        return len(agents) == nodes and all(len(agent.standbys(READY)) >= agent.slots for agent in agents)

    def standbys(self) -> list[str]:
        """States of the workers without a place, by agent, when they were last looked at."""
        return self._standbys

    def _agents(self) -> list[Any]:
        coordinator = self._engine._running
        return [] if coordinator is None else list(coordinator._gang.roster.agents.values())

    def logs(self) -> list[str]:
        lines = [line for event in list(self._events) if event["kind"] == "log" for line in event["lines"]]
        return lines[-TOLD_LINES:]

    def finish(self) -> None:
        """Kill what runs; the scene is over."""
        if self._thread.is_alive():
            self._engine.kill()
            self._thread.join()
