"""One scene of `node_loss` on the native engine: the real worker loop, three small Ray nodes, one event.

    python -m benchmarks._native_scene benchmarks/node_loss.yaml --stage 2 --event kill

The engine lives in this process, its agents in Ray actors, its workers below them. The event comes when every slot has its
standby again: a loss in the first seconds of a run waits for workers that are still starting. Prints one JSON object, with the same
figures as the rival's (benchmarks/_node_scenes.py says what they are) and what the engine told of the transition.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._node_scenes import EVENTS, NANOSECONDS, Rows, Scene, play
from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import WORKER_LOOP, Outcome, RunRequest, WishBoard
from orchestrator.platforms.engines.native.messages import READY, STATES
from orchestrator.spec import load_file

STORY = ("world", "world_lost", "restored", "notice", "replication", "hung", "stage", "slot", "failed")
TOLD_LINES = 40


class Run:
    """The attempt, and what it told."""

    def __init__(self, job: str, stage: int, folder: Path) -> None:
        loaded = load_file(job, [f"spec.deepspeed.stage={stage}"])
        workers = loaded.spec.workers
        self._events: list[Mapping[str, Any]] = []
        self._apart_ns = time.time_ns() - time.monotonic_ns()
        self._wishes = WishBoard()
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run)
        self._engine: Any = None
        self._standbys: list[str] = []
        assignment = {
            "job": {"namespace": "default", "name": loaded.metadata.name, "uid": folder.name},
            "spec": loaded.model_dump(mode="json", by_alias=True, exclude_none=True),
            "attempt": 1,
            "workers": workers.max,
            "world_size": workers.max,
            "run_dir": str(folder),
            "checkpoint_uri": str(folder / "checkpoints"),
            "working_dir": str(Path(job).resolve().parent),
            "threads": 1,
        }
        self._request = RunRequest(
            uid=folder.name,
            namespace="default",
            name=loaded.metadata.name,
            attempt=1,
            workers=workers.max,
            cpus_per_worker=workers.cpus,
            gpus_per_worker=0,
            memory_bytes_per_worker=None,
            worker_loop=WORKER_LOOP,
            assignment=assignment,
            min_workers=1,
            elastic=True,
        )

    def begin(self) -> None:
        """Ray is connected by now."""
        import ray

        from orchestrator.platforms.engines.native import NativeEngine
        from orchestrator.platforms.engines.native.ray_launcher import RayLauncher

        clock = SystemClock()
        self._engine = NativeEngine(
            lambda request: RayLauncher(request, f"driver-{request.uid}", clock, sources=""),
            clock,
            environ=dict(os.environ),
            host=ray.util.get_node_ip_address(),
        )
        self._thread.start()

    def _run(self) -> None:
        self._outcome = self._engine.run(self._request, self._heard, self._wishes)

    def _heard(self, events: Sequence[Mapping[str, Any]]) -> None:
        self._events.extend(events)

    def rows(self) -> list[dict[str, Any]]:
        """Finished steps of rank 0, each with its world. A step is of the world that began from a state before it."""
        if self._outcome is not None:
            raise RuntimeError(f"the attempt ended: {self._outcome}; {self.logs()}")
        told = list(self._events)
        worlds = {event["generation"]: event for event in told if event["kind"] == "world"}
        begun = [(event["at_ns"], event["generation"]) for event in told if event["kind"] == "restored"]
        rows = []
        for event in told:
            if event["kind"] != "step":
                continue
            world = worlds[max((generation for at_ns, generation in begun if at_ns <= event["at_ns"]), default=1)]
            node = next(worker["node"] for worker in world["workers"] if worker["rank"] == 0)
            row = {"step": event["step"], "end_ns": event["at_ns"] - self._apart_ns, "world": world["generation"]}
            rows.append({**row, "size": world["world_size"], "node": node})
        return rows

    def story(self, since_ns: int) -> list[dict[str, Any]]:
        """What the engine told from that instant of the monotonic clock on, with `at` in seconds from it."""
        told = [event for event in list(self._events) if event["kind"] in STORY]
        placed = [{**event, "at": (event["at_ns"] - self._apart_ns - since_ns) / NANOSECONDS} for event in told]
        return [event for event in placed if event["at"] >= 0]

    def settled(self) -> bool:
        """Whether every slot has its standby again, as in a run that did not begin just now. (A look at the engine's own
        state, which no port shows.)"""
        agents = self._agents()
        self._standbys = [f"{agent.agent}: {[worker.state for worker in agent.standbys(*STATES)]}" for agent in agents]
        return bool(agents) and all(len(agent.standbys(READY)) >= agent.slots for agent in agents)

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("--stage", type=int, default=2, choices=(1, 2, 3))
    parser.add_argument("--event", default="kill", choices=EVENTS)
    parser.add_argument("--victim", type=int, default=0, help="0: the node of rank 0; else another")
    parser.add_argument("--story", action="store_true", help="print what the engine told, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-native-", ignore_cleanup_errors=True) as folder:
        run = Run(given.job, given.stage, Path(folder))
        scene = Scene(given.event, given.victim, patience_seconds=150.0)
        rows: Rows = run.rows
        try:
            result = play(scene, run.begin, rows, run.finish, run.settled)
        except BaseException:
            print("\n".join([*map(str, run.story(0)), *run.logs(), *run.standbys()]), file=sys.stderr)
            raise
    if given.story:
        for event in run.story(result["event_ns"]):
            print(event, file=sys.stderr)
    print(json.dumps({"stage": given.stage, **result}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
