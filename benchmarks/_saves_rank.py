"""One rank of `saves`: a GPT-2 of about 41 million parameters, saved by DeepSpeed and by us in turn.

    torchrun --nproc_per_node 2 benchmarks/_saves_rank.py STAGE FOLDER ROUNDS SEGMENTS

First ROUNDS rounds, in alternating order: DeepSpeed's `save_checkpoint` (timed without and with an fsync of what it wrote),
and ours, from the call until it is committed; the data is the same. Then SEGMENTS pairs of ten steps, one without a save and one that begins
one. Rank 0 prints one JSON line.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

STEPS = 10
MICRO_BATCH, TOKENS = 4, 80
BALLAST_MIB = 1024


def main(stage: int, folder: Path, rounds: int, segments: int) -> None:
    import deepspeed
    import torch
    from deepspeed.ops import __compatible_ops__ as compatible
    from transformers import GPT2Config, GPT2LMHeadModel

    from orchestrator import storage
    from orchestrator.domain.clock import SystemClock
    from orchestrator.training import fragments
    from orchestrator.training.agreement import Peers
    from orchestrator.training.engine import initialize
    from orchestrator.training.presets import load_preset
    from orchestrator.training.run_state import RANGES, RunState
    from orchestrator.training.saving import Saved, Saver

    compatible["deepspeed_shm_comm"] = False  # no compiler needed
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=24_000, n_positions=128, n_embd=512, n_layer=9, n_head=8, use_cache=False)
    model = GPT2LMHeadModel(config)
    preset = load_preset(f"zero{stage}")
    preset["optimizer"]["params"] |= {"lr": 1e-4, "weight_decay": 0.01}
    preset |= {"train_batch_size": MICRO_BATCH * size, "train_micro_batch_size_per_gpu": MICRO_BATCH}
    engine = initialize(deepspeed, model, preset)
    peers = Peers(torch, rank, size, "cpu")
    store = storage.open_store(str(folder / "ours"))
    clock = SystemClock()
    saver = Saver(peers, store, clock, attempt=1, retention=storage.Retention(1), verify=False)
    state = RunState(
        torch,
        peers,
        store,
        fragments.attach(engine, peers, deepspeed_version=deepspeed.__version__),
        storage.Manifest(0, 0, storage.World(size), stage, RANGES, 0, 0, 1),
        {},
        frozen_once=True,
    )
    chance = torch.Generator().manual_seed(rank)
    steps_done = 0

    def step() -> None:
        nonlocal steps_done
        ids = torch.randint(0, config.vocab_size, (MICRO_BATCH, TOKENS), generator=chance)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        saver.agreed(*peers.sum(saver.flags()))
        engine.step()
        steps_done += 1

    acknowledged: list[Saved] = []

    def begin_save() -> None:
        saver.save(
            steps_done,
            lambda: (state.parts({}), replace(state.facts(), global_step=steps_done)),
            acknowledged.append,
        )

    def timed(work: Callable[[], Any]) -> float:
        torch.distributed.barrier()
        start = time.perf_counter()
        work()
        torch.distributed.barrier()
        return time.perf_counter() - start

    def have_pages() -> None:
        """A machine that gives idle memory back to its host pays for each page anew, whoever writes next: make them present."""
        if rank == 0:
            ballast = folder / "ballast"
            with ballast.open("wb") as file:
                for _ in range(BALLAST_MIB):
                    file.write(bytes(2**20))
            ballast.unlink()
        torch.distributed.barrier()

    def flush(tree: Path) -> None:
        for path in [*tree.rglob("*"), tree]:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    engine.train()
    step()
    rows = []
    theirs = folder / "theirs"

    def save_theirs() -> dict[str, float]:
        have_pages()
        plain = timed(lambda: engine.save_checkpoint(str(theirs), tag="t", save_latest=False))
        synced = plain + timed(lambda: flush(theirs) if rank == 0 else None)
        if rank == 0:
            shutil.rmtree(theirs)
        return {"deepspeed": plain, "deepspeed_synced": synced}

    def save_ours() -> dict[str, float]:
        have_pages()
        stall = timed(begin_save)
        saver.finish()
        return {"stall": stall, "ours": acknowledged[-1].seconds if rank == 0 else stall}

    for number in range(rounds + 1):
        step()
        found: dict[str, float] = {}
        for save in (save_theirs, save_ours) if number % 2 else (save_ours, save_theirs):
            found |= save()
        if number:  # the first one is a warm-up of both
            rows.append(found)

    def segment(*, saving: bool) -> float:
        def steps() -> None:
            for number in range(STEPS):
                step()
                if saving and number == 0:
                    begin_save()

        return timed(steps)

    pairs = []
    for number in range(segments):
        have_pages()
        order = (True, False) if number % 2 else (False, True)
        times = {saving: segment(saving=saving) for saving in order}
        saver.finish()
        pairs.append({"without": times[False], "with": times[True]})
    saver.close()
    parameters = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in model.parameters())
    if rank == 0:
        (listed,) = store.list()
        assert listed.manifest is not None
        size_bytes = listed.manifest.total_bytes
        print(json.dumps({"parameters": parameters, "bytes": size_bytes, "saves": rows, "segments": pairs}))
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may complain when the interpreter tears them down


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
