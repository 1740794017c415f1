"""`python -m orchestrator.training.probe`: a few real steps of a job on this machine, to measure what cannot be known beforehand.

Reads a job document from stdin with the number of samples that one rank computes at a time, and trains one rank alone on the real
data and model. Prints one JSON object: seconds of each step after the first, tokens, the device, the most memory. Nothing is kept.
Exit 1 and `{"error": ...}` when the job cannot be trained here.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from orchestrator.training import environment
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.link import Wishes
from orchestrator.training.worker import run

WARM_UP_STEPS = 5
PORT = 29_513


class Collector:
    """A link that keeps the events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def send(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def wishes(self) -> Wishes:
        return Wishes()

    def close(self) -> None:
        """Nothing is buffered."""


def shortened(document: Mapping[str, Any], micro_batch: int, steps: int) -> dict[str, Any]:
    """The job as one rank with one micro-batch a step, without evaluation and checkpoints."""
    spec = dict(document["spec"])
    kept = ("optimizer", "learningRate", "schedule", "weightDecay", "maxGradientNorm", "seed")
    training = {name: value for name, value in spec.get("training", {}).items() if name in kept}
    training |= {
        "maxSteps": steps,
        "globalBatchSize": micro_batch,
        "microBatchSize": micro_batch,
        "evalEvery": steps + 1,
    }
    data = dict(spec["data"])
    data["limit"] = {**data.get("limit", {}), "validation": 1, "test": 1}
    workers = {name: value for name, value in spec["workers"].items() if name in ("gpus", "cpus")}
    spec |= {
        "training": training,
        "data": data,
        "workers": {"min": 1, "max": 1, **workers, "gpus": min(1, int(workers.get("gpus", 0)))},
        "checkpoint": {"every": steps + 1, "keepBest": False},
    }
    return {**document, "spec": spec}


def measure(document: Mapping[str, Any], working_dir: Path, micro_batch: int, steps: int) -> dict[str, Any]:
    """Train, and tell what it took. Raises WorkerFailed."""
    with tempfile.TemporaryDirectory(prefix="orchestrate-probe-") as folder:
        link = Collector()
        run(
            {
                "job": {"namespace": "default", "name": "probe", "uid": "probe"},
                "spec": shortened(document, micro_batch, steps + WARM_UP_STEPS),
                "attempt": 1,
                "workers": 1,
                "world_size": 1,
                "run_dir": folder,
                "checkpoint_uri": str(Path(folder) / "checkpoints"),
                "working_dir": str(working_dir),
                "threads": int(document["spec"]["workers"].get("cpus", 1)),
            },
            link,
        )
    done = [event for event in link.events if event["kind"] == "step"][WARM_UP_STEPS:]
    started = next(event for event in link.events if event["kind"] == "started")
    found = {
        "seconds": [event["seconds"] for event in done],
        "microBatch": micro_batch,
        "device": started["device"],
        "precision": started["precision"],
    }
    return found | _memory(started["device"])


def _memory(device: str) -> dict[str, Any]:
    import torch

    if device.startswith("cuda"):
        index = torch.device(device)
        return {"hardware": torch.cuda.get_device_name(index), "peakBytes": torch.cuda.max_memory_allocated(index)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"hardware": environment.detect(torch, 0, gpu=False).name, "peakBytes": peak}


def main(source: TextIO, out: TextIO) -> int:
    asked = json.load(source)
    environment.lone_process_defaults(environment.process_environment(), PORT)
    try:
        found = measure(asked["document"], Path(asked["workingDir"]), asked["microBatch"], asked["steps"])
    except WorkerFailed as error:
        out.write(json.dumps({"error": str(error)}) + "\n")
        return 1
    out.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin, sys.stdout))
