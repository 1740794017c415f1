"""Starts the ranks of small jobs as real processes, and reads what they told."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.spec import parse_text

SCRIPT = Path(__file__).with_name("one_rank.py")
ROOT = Path(__file__).parents[2]


def job(**overrides: Any) -> dict[str, Any]:
    """A tiny classifier from scratch; keys of `overrides` are dotted paths below spec."""
    spec: dict[str, Any] = {
        "model": {
            "source": "bert",
            "task": "text-classification",
            "init": "Scratch",
            "precision": "FP32",
            "config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 64,
            },
        },
        "data": {"source": {"uri": "reviews.csv"}, "maxLength": 24, "splits": {}},
        "training": {"maxSteps": 8, "globalBatchSize": 12, "learningRate": 0.002, "evalEvery": 100, "warmup": 2},
        "deepspeed": {"stage": 2},
        "workers": {"max": 2},
        "checkpoint": {"every": 3},
    }
    for path, value in overrides.items():
        *parents, name = path.split("__")
        place = spec
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(name, None)
        else:
            place[name] = value
    return {
        "apiVersion": "orchestrate.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "tiny"},
        "spec": spec,
    }


NO_DROPOUT = {"model__config__hidden_dropout_prob": 0.0, "model__config__attention_probs_dropout_prob": 0.0}


def write_reviews(path: Path, rows: int = 180) -> None:
    """A two-class text file whose classes differ in a few words; the same for the same number of rows."""
    chance = random.Random(7)
    common = [
        "the",
        "film",
        "plot",
        "actor",
        "scene",
        "music",
        "end",
        "story",
        "was",
        "is",
        "very",
        "quite",
        "and",
        "so",
    ]
    telling = {"pos": ["fine", "lovely", "bright", "warm", "clever"], "neg": ["dull", "poor", "weak", "cold", "silly"]}
    with path.open("w") as file:
        file.write("text,label\n")
        for number in range(rows):
            label = "pos" if number % 2 else "neg"
            words = [chance.choice(common) for _ in range(chance.randint(3, 12))] + chance.choices(telling[label], k=3)
            chance.shuffle(words)
            file.write(f"{' '.join(words)} n{number},{label}\n")


@dataclass
class Run:
    """One run in a launch: its document, its folder, and the faults on its way."""

    folder: Path
    document: Mapping[str, Any]
    working_dir: Path
    attempt: int = 1
    faults: Sequence[Mapping[str, int]] = ()
    world_size: int = 2

    def plan(self) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        document = parse_text(json.dumps(self.document)).model_dump(mode="json", by_alias=True, exclude_none=True)
        return {
            "assignment": {
                "job": {"namespace": "default", "name": "tiny", "uid": "u"},
                "spec": document,
                "attempt": self.attempt,
                "workers": self.world_size,
                "world_size": self.world_size,
                "run_dir": str(self.folder),
                "checkpoint_uri": str(self.folder / "checkpoints"),
                "working_dir": str(self.working_dir),
                "threads": 1,
            },
            "events": str(self.folder),
            "faults": list(self.faults),
        }

    def events(self, kind: str, rank: int = 0) -> list[dict[str, Any]]:
        lines = (self.folder / f"events-{rank}.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    def losses(self) -> dict[int, float]:
        """Loss by step, the newest attempt's where a step was repeated."""
        return {event["step"]: event["loss"] for event in self.events("step")}

    def outcome(self, rank: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"result-{rank}.json").read_text())
        return found

    def injected(self, rank: int = 0) -> list[str]:
        path = self.folder / f"events-{rank}.injected"
        return path.read_text().split() if path.exists() else []

    def checkpoints(self) -> list[str]:
        """Names in the store, the shared files aside."""
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir() if path.name != "shared")


@dataclass
class Launched:
    codes: list[int | None]
    output: str
    pids: list[int] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def launch(runs: Sequence[Run], timeout_seconds: float = 240, dies: bool = False) -> Launched:
    """Run the plans on their ranks in one set of processes. With `dies`, the rest is killed when the first rank ends."""
    world_size = runs[0].world_size
    plan = runs[0].folder / "plan.json"
    plans = [run.plan() for run in runs]
    plan.write_text(json.dumps(plans))
    port = str(free_port())
    log = (runs[0].folder / "log").open("w+")
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(plan)],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world_size),
                LOCAL_WORLD_SIZE=str(world_size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]
    deadline = time.monotonic() + timeout_seconds
    try:
        for process in processes:
            process.wait(max(0.1, deadline - time.monotonic()))
            if dies:
                break
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        output = log.read()
        log.close()
    return Launched([process.returncode for process in processes], output, [process.pid for process in processes])
