"""One rank of the times of `reshard`: a GPT-2 of about 41 million parameters, written and taken up as a plan says.

    python benchmarks/_reshard_times_rank.py PLAN.json   # RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set

Plan: {"write": true, "stage", "ours", "theirs"} writes one checkpoint of each kind after one step; {"stage", "ours",
"theirs", "other_ours", "other_theirs", "rounds", "scratch", "result"} takes them up in turn, into one engine: ours of this
size, DeepSpeed's of this size, ours of the other size, and the other size's of DeepSpeed through its converter, which rank
0 runs as the program that it is. Every time is from barrier to barrier. A first round warms up and is not told.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks._reshard_rank import join, leave, load, save
from orchestrator.training import fragments
from orchestrator.training.agreement import Peers
from orchestrator.training.engine import initialize
from orchestrator.training.presets import load_preset

TAG = "t"


def engine_of(stage: int, size: int) -> Any:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=24_000, n_positions=128, n_embd=512, n_layer=9, n_head=8, use_cache=False)
    preset = load_preset(f"zero{stage}")
    preset["optimizer"]["params"] |= {"lr": 1e-4, "weight_decay": 0.01}
    preset |= {"train_batch_size": size, "train_micro_batch_size_per_gpu": 1}
    return initialize(deepspeed, GPT2LMHeadModel(config), preset)


def step(engine: Any) -> None:
    ids = torch.randint(0, 24_000, (1, 16))
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()


def timed(work: Callable[[], Any]) -> float:
    torch.distributed.barrier()
    start = time.perf_counter()
    work()
    torch.distributed.barrier()
    return time.perf_counter() - start


def convert(source: Path, target: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "deepspeed.checkpoint.ds_to_universal",
            "--input_folder",
            str(source),
            "--output_folder",
            str(target),
            "--inject_missing_state",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def write(plan: dict[str, Any], peers: Peers) -> None:
    engine = engine_of(plan["stage"], peers.world_size)
    state = fragments.attach(engine, peers, deepspeed_version=deepspeed.__version__)
    step(engine)
    save(Path(plan["ours"]), state, peers)
    engine.save_checkpoint(plan["theirs"], tag=TAG)


def measure(plan: dict[str, Any], peers: Peers) -> None:
    engine = engine_of(plan["stage"], peers.world_size)
    attached: list[fragments.EngineState] = []
    attach_seconds = timed(
        lambda: attached.append(fragments.attach(engine, peers, deepspeed_version=deepspeed.__version__))
    )
    state = attached[0]
    step(engine)
    rows = []
    for number in range(plan["rounds"] + 1):
        universal = Path(plan["scratch"]) / f"universal-{number}"
        same = timed(lambda: load(Path(plan["ours"]), state, peers))
        deepspeed_same = timed(lambda: engine.load_checkpoint(plan["theirs"], tag=TAG))
        other = timed(lambda: load(Path(plan["other_ours"]), state, peers))
        source = Path(plan["other_theirs"]) / TAG
        converter = timed(
            lambda source=source, target=universal: convert(source, target / TAG) if peers.rank == 0 else None  # type: ignore[misc]
        )
        engine._config.load_universal_checkpoint = True
        loader = timed(lambda folder=universal: engine.load_checkpoint(str(folder), tag=TAG))  # type: ignore[misc]
        engine._config.load_universal_checkpoint = False
        if number:
            rows.append(
                {
                    "ours_same": same,
                    "deepspeed_same": deepspeed_same,
                    "ours_other": other,
                    "converter": converter,
                    "universal_load": loader,
                }
            )
        if peers.rank == 0:
            shutil.rmtree(universal)
    if peers.rank == 0:
        told = {"parameters": engine_size(engine), "attach": attach_seconds, "rounds": rows}
        Path(plan["result"]).write_text(json.dumps(told))


def engine_size(engine: Any) -> int:
    return sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in engine.module.parameters())


if __name__ == "__main__":
    peers = join()
    plan = json.loads(Path(sys.argv[1]).read_text())
    (write if plan.get("write") else measure)(plan, peers)
    leave()
