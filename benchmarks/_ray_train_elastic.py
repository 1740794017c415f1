"""The rival of `node_loss`: Ray Train's own elastic mode, and DeepSpeed, on the model of a job file.

    python -m benchmarks._ray_train_elastic benchmarks/node_loss.yaml --stage 2 --event kill --start-timeout 20

A training script as one would write it for Ray Train 2.60: `num_workers=(1, 3)`, unlimited failures, a checkpoint every
20 steps. Three small nodes and a head on this machine; after some steps one node is lost with all its processes (or gets a
notice, or a third one joins), and the times of the steps tell when training went on. One JSON object is printed.

What is made easy for it: batches are drawn from a seed instead of read from a file, and a checkpoint is the model alone,
which loads at any size and costs next to nothing (so the optimizer's state is lost, which a real user would not accept).
Without `--start-timeout` all of Ray Train's settings are its defaults.

Limits: one event a run; Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks._node_scenes import EVENTS, SIZE, Event, play

CHECKPOINT_EVERY_STEPS = 20
GLOBAL_BATCH, LENGTH = 24, 48
PATIENCE_SECONDS = 300.0
ONCE_TUNED = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}


def train(config: dict[str, Any]) -> None:
    """On every rank. Each finished step of rank 0 is a line of the steps' file."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import ray.train
    import torch
    from deepspeed.ops import __compatible_ops__ as compatible
    from transformers import BertConfig, BertForSequenceClassification

    compatible["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**config["model"]))
    first = 1
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            found = torch.load(f"{folder}/model.pt", weights_only=True)
        model.load_state_dict(found["model"])
        first = found["step"] + 1
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config={
            "train_batch_size": GLOBAL_BATCH,
            "train_micro_batch_size_per_gpu": GLOBAL_BATCH // world_size,
            "zero_optimization": {"stage": config["stage"]},
            "optimizer": {"type": "AdamW", "params": {"lr": 5e-4, "torch_adam": True}},
            "steps_per_print": 10**9,
        },
        dist_init_required=False,
    )
    engine.train()
    with open(config["steps"], "a", buffering=1, encoding="utf-8") as steps:
        for step in range(first, config["total_steps"] + 1):
            chance = torch.Generator().manual_seed(step * 1000 + rank)
            ids = torch.randint(
                10, config["model"]["vocab_size"], (GLOBAL_BATCH // world_size, LENGTH), generator=chance
            )
            loss = engine(input_ids=ids, labels=ids[:, 0] % 2).loss
            engine.backward(loss)
            engine.step()
            loss.item()
            if rank == 0:
                row = {"step": step, "end_ns": time.monotonic_ns(), "world": os.getpid(), "size": world_size}
                steps.write(json.dumps({**row, "node": ray.get_runtime_context().get_node_id()}) + "\n")
            if step % CHECKPOINT_EVERY_STEPS == 0:
                _save(ray.train, torch, engine, config["stage"], step, rank)


def _save(train_api: Any, torch: Any, engine: Any, stage: int, step: int, rank: int) -> None:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=stage == 3):
        state = {name: value.detach().clone() for name, value in engine.module.state_dict().items()}
    if rank != 0:
        train_api.report({})
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model": state, "step": step}, f"{folder}/model.pt")
        train_api.report({"step": step}, checkpoint=train_api.Checkpoint.from_directory(folder))


def fit(job: str, stage: int, monitor_seconds: float, steps: Path, storage: Path) -> None:
    """Blocks for as long as the run goes."""
    import ray.train
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from orchestrator.spec import load_file
    from orchestrator.training.preparation import prepare

    loaded = load_file(job)
    spec = loaded.spec
    assert spec.model is not None
    assert spec.data is not None
    vocabulary = len(prepare(spec.model, spec.data, Path(job).resolve().parent).tokenizer)
    model = {**dict(spec.model.config or {}), "vocab_size": vocabulary, "num_labels": 2}
    scaling: Any = ray.train.ScalingConfig  # declared as the class of Ray Train's first form
    TorchTrainer(
        train,
        train_loop_config={"model": model, "stage": stage, "steps": str(steps), "total_steps": 10**6},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling(num_workers=(1, SIZE), elastic_resize_monitor_interval_s=monitor_seconds),
        run_config=RunConfig(
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=-1),
        ),
    ).fit()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("--stage", type=int, default=2, choices=(1, 2, 3))
    parser.add_argument("--event", default="kill", choices=EVENTS)
    parser.add_argument("--start-timeout", type=float, default=None, metavar="SECONDS", help="else Ray Train's default")
    parser.add_argument("--victim", type=int, default=0, help="0: the node of rank 0; else another")
    given = parser.parse_args()
    tuned = given.start_timeout is not None
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    if tuned:
        os.environ.update({**ONCE_TUNED, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(given.start_timeout)})
    monitor_seconds = 5.0 if tuned else 60.0
    with tempfile.TemporaryDirectory(prefix="bench-ray-train-") as folder:
        steps, storage = Path(folder) / "steps.jsonl", Path(folder) / "storage"

        def begin() -> None:
            run = threading.Thread(
                target=fit, args=(given.job, given.stage, monitor_seconds, steps, storage), daemon=True
            )
            run.start()

        def rows() -> list[dict[str, Any]]:
            lines = steps.read_text(encoding="utf-8").splitlines(keepends=True) if steps.exists() else []
            return [json.loads(line) for line in lines if line.endswith("\n")]

        (result,) = play([Event(given.event, given.victim)], begin, rows, PATIENCE_SECONDS)
    print(json.dumps({"stage": given.stage, "start_timeout": given.start_timeout, **result}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # the thread of `fit` goes on looking for its cluster


if __name__ == "__main__":
    main()
