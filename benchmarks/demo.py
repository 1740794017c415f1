"""What `make demo` costs and reaches, after set-up: `make bench-demo`.

Runs the demo's job, attached, from nothing (Ray and controller are started too) and counts the CPU time of every process
of ours: the command's own by its exit, those of Ray, controller, driver and workers by looking at them twice a second (a
process' last half second may be missed).

Bars: test accuracy of at least 0.82 in at most 12 CPU-minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude, quiet
from benchmarks.kills import World
from benchmarks.throughput import stop_server

JOB = REPOSITORY / "examples" / "sentiment" / "job.yaml"
ACCURACY_BAR, CPU_BAR_MINUTES = 0.82, 12.0
LOOK_SECONDS = 0.5


class CpuOfMany:
    """CPU seconds of all processes of a home's Ray, dead ones included as far as they were seen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[tuple[int, float], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def seconds(self) -> float:
        self._over.set()
        self._thread.join()
        self._look()
        return sum(self._seen.values())

    def _look_on(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for process in self._world.processes():
            try:
                times = process.cpu_times()
                self._seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue


def run(world: World) -> dict[str, Any]:
    cpu = CpuOfMany(world)
    began = time.monotonic()
    command = [sys.executable, "-m", "orchestrator.cli.main", "submit", str(JOB)]
    done = subprocess.run(command, env=dict(world.environ), capture_output=True, text=True, check=True)
    wall = time.monotonic() - began
    print(done.stdout)
    status = world.client.get("default", "sentiment")["status"]
    return {
        "accuracy": status["result"]["metrics"]["test_accuracy"],
        "precision": status["hardware"]["precision"],
        "cpu_minutes": cpu.seconds() / 60,
        "wall_minutes": wall / 60,
        "total": status["cost"]["totalUSD"],
    }


def main() -> int:
    given = arguments(__doc__, samples=1).parse_args()
    samples = Samples("demo")
    for _ in samples.missing("demo", given.samples):
        with tempfile.TemporaryDirectory(prefix="bench-demo-") as folder, samples.sample("demo") as sample:
            world = World(Path(folder))
            try:
                sample |= run(world)
            finally:
                stop_server(world.environ)
    rows = samples.rows("demo")
    for row in rows:
        print(json.dumps(row["sample"]), "quiet machine" if quiet(row) else f"load {row['load_before']}")
    accuracy = [row["sample"]["accuracy"] for row in rows]
    minutes = [row["sample"]["cpu_minutes"] for row in rows]
    return conclude(
        [
            Verdict("test accuracy", ACCURACY_BAR, min(accuracy), "", len(rows), "minimum", at_most=False),
            Verdict("CPU", CPU_BAR_MINUTES, median(minutes), "minutes", len(rows)),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
