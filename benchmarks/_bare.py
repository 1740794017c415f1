"""The rival of `throughput` and `start`: bare torchrun and DeepSpeed on the model and data of a job file.

    torchrun --nproc_per_node 1 benchmarks/_bare.py job.yaml

A training script as one would write it by hand: no orchestrator around it, no checkpoints, no report but the time of each
step, printed at the end as one JSON line. The data is read, and the batches are cut, by the same functions as in the
built-in trainer, so that both compute the same numbers. `elastic_throughput` lets it wait at a gate between windows of steps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks._gate import Gate

FIRST_LINE_NS = time.time_ns()

os.environ.setdefault("DS_ACCELERATOR", "cpu")


def main(file: str, overrides: list[str], gate: Gate | None) -> None:
    import deepspeed
    import torch
    from deepspeed.ops import __compatible_ops__ as compatible

    from orchestrator.spec import load_file
    from orchestrator.training import models
    from orchestrator.training.order import SampleOrder, micro_batches, share
    from orchestrator.training.preparation import prepare

    compatible["deepspeed_shm_comm"] = False  # no compiler needed, as in the rival
    job = load_file(file, overrides)
    spec, folder = job.spec, Path(file).resolve().parent
    assert spec.model is not None
    assert spec.data is not None
    assert spec.training.max_steps is not None
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.distributed.init_process_group("gloo")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    prepared = prepare(spec.model, spec.data, folder)
    torch.manual_seed(spec.training.seed)
    model = models.create(spec.model, prepared.labels, prepared.tokenizer, spec.data.max_length, folder)
    batch = spec.training.global_batch_size
    stage = spec.deepspeed.stage
    config = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // world_size,
        "gradient_clipping": spec.training.max_gradient_norm,
        "zero_optimization": {"stage": 0 if stage == "Auto" else stage},
        "optimizer": {"type": "AdamW", "params": {"lr": spec.training.learning_rate, "torch_adam": True}},
        "steps_per_print": 10**9,
    }
    engine, _, _, _ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config, dist_init_required=False
    )
    tokens = prepared.splits["train"]
    order = SampleOrder(len(tokens), spec.training.seed, batch, None)
    engine.train()
    ends = []
    for step in range(spec.training.max_steps):
        (mine,) = micro_batches(share(order.batch(step), rank, world_size), batch // world_size, 1)
        loss = engine(**_padded(torch, tokens, mine, model.config.pad_token_id or 0)).loss
        engine.backward(loss)
        engine.step()
        loss.item()
        ends.append(time.time_ns())
        if gate is not None and rank == 0 and gate.step(ends[-1]):
            gate.wait()
    if rank == 0:
        print(json.dumps({"first_line_ns": FIRST_LINE_NS, "step_ends_ns": ends}))
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may complain when the interpreter tears them down


def _gate(folder: str) -> Gate:
    from benchmarks._gate import Gate

    return Gate(Path(folder))


def _padded(torch: Any, tokens: Any, indices: Any, pad: int) -> dict[str, Any]:
    samples = [torch.as_tensor(tokens.sample(int(index)).astype("int64")) for index in indices]
    ids = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(sample) for sample in samples])
    mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.as_tensor(tokens.labels[indices])}


if __name__ == "__main__":
    # job file, folder of a gate or "", and fields of the job to set
    main(sys.argv[1], sys.argv[3:], _gate(sys.argv[2]) if sys.argv[2:] and sys.argv[2] else None)
