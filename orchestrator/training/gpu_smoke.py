"""`python -m orchestrator.training.gpu_smoke`: does this machine's GPU train? Without a GPU it says so and exits 0.

One rank runs the ordinary worker loop on text that is made here: a GPT-2 of 124 million parameters from scratch, bf16 (fp16
before Ampere), ZeRO-2 and ZeRO-3, each with the optimizer state on the GPU and offloaded to main memory. Printed for each:
tokens per second after warm-up, the highest GPU memory beside the planned one, the loss at both ends. Exit 1 when a run fails or does not learn.

Limits: one GPU, no NCCL traffic, torch's Adam also for offload (DeepSpeed's own needs a compiler), so offload looks slow.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from orchestrator.planning.memory import estimate
from orchestrator.planning.shapes import read_shape
from orchestrator.planning.stage import Stage
from orchestrator.spec.models import TrainingJob
from orchestrator.training import environment
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.probe import Collector
from orchestrator.training.worker import run

STEPS = 30
WARM_UP_STEPS = 10
BATCH = 16
BLOCK_TOKENS = 512
PORT = 29_512
_WORDS = "a the of to and in that was he it his is with as for had you not be her on at by which have or from this him but".split()  # noqa: SIM905 - a sentence, easier to read so


def document(
    stage: int, offload: str, *, model: dict[str, Any], steps: int, batch: int, block: int, gpus: int = 1
) -> dict[str, Any]:
    """The job of one run, as a resource document."""
    job = {
        "apiVersion": "orchestrate.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": f"gpu-smoke-{stage}-{offload.lower()}"},
        "spec": {
            "model": {"source": "gpt2", "task": "causal-lm", "init": "Scratch", "config": model},
            "data": {
                "source": {"uri": "text.txt", "format": "Text"},
                "splits": {"train": 0.98, "validation": 0.0, "test": 0.02},
                "cleaning": {"leakage": "Allow"},
                "maxLength": block,
            },
            "training": {"maxSteps": steps, "globalBatchSize": batch, "learningRate": 3e-4, "warmup": 5},
            "deepspeed": {"stage": stage, "offload": offload},
            "workers": {"max": 1, "gpus": gpus},
            "checkpoint": {"every": 1_000_000},
        },
    }
    return TrainingJob.model_validate(job).model_dump(mode="json", by_alias=True, exclude_none=True)


def one_run(folder: Path, stage: int, offload: str, **sizes: Any) -> list[dict[str, Any]]:
    """Train once in `folder`; the events. Raises WorkerFailed."""
    chance = random.Random(1)
    working_dir = folder / "work"
    working_dir.mkdir(parents=True, exist_ok=True)
    lines = (" ".join(chance.choices(_WORDS, k=40)) for _ in range(20_000))
    (working_dir / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    link = Collector()
    run(
        {
            "job": {"namespace": "default", "name": "gpu-smoke", "uid": "gpu-smoke"},
            "spec": document(stage, offload, **sizes),
            "attempt": 1,
            "workers": 1,
            "world_size": 1,
            "run_dir": str(folder),
            "checkpoint_uri": str(folder / "checkpoints"),
            "working_dir": str(working_dir),
            "threads": 8,
        },
        link,
    )
    return link.events


def throughput(events: list[dict[str, Any]], warm_up: int, tokens_per_sample: int) -> float:
    """Tokens per second over the steps after the warm-up."""
    steps = [event for event in events if event["kind"] == "step"][warm_up:]
    samples: int = sum(step["samples"] for step in steps)
    seconds: float = sum(step["seconds"] for step in steps)
    return samples * tokens_per_sample / seconds


def main(out: TextIO) -> int:
    import torch

    if not torch.cuda.is_available():
        out.write("gpu-smoke: no GPU here, nothing was run\n")
        return 0
    environment.lone_process_defaults(environment.process_environment(), PORT)
    out.write(f"gpu-smoke: {torch.cuda.get_device_name(0)}, torch {torch.__version__}\n")
    code = 0
    stages: tuple[Stage, ...] = (2, 3)
    for stage in stages:
        for offload in ("None", "CPU"):
            torch.cuda.reset_peak_memory_stats()
            with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as name:
                try:
                    events = one_run(Path(name), stage, offload, model={}, steps=STEPS, batch=BATCH, block=BLOCK_TOKENS)
                except WorkerFailed as error:
                    out.write(f"ZeRO-{stage} offload {offload}: failed: {error}\n")
                    code = 1
                    continue
                config = json.loads((Path(name) / "model" / "config.json").read_text(encoding="utf-8"))
            losses = [event["loss"] for event in events if event["kind"] == "step"]
            precision = next(event["precision"] for event in events if event["kind"] == "started")
            planned = estimate(
                read_shape(config, language_model=True),
                stage=stage,
                ranks=1,
                precision=precision,
                micro_batch=BATCH,
                tokens=BLOCK_TOKENS,
                offload=offload == "CPU",
            )
            out.write(
                f"ZeRO-{stage} offload {offload} {precision}: {throughput(events, WARM_UP_STEPS, BLOCK_TOKENS):,.0f} tokens/s, "
                f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most (planned "
                f"{planned.peak / 2**30:.2f}), loss {losses[0]:.3f} -> {losses[-1]:.3f}\n"
            )
            code = code if losses[-1] < losses[0] else 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.stdout))
