"""One rank that makes real DeepSpeed folders for tests: `python importing_rank.py PLAN.json`.

The plan: {"cases": [...], "out": folder}. A case: name, stage, dtype (fp32, bf16), zero and more (settings).
For each case it builds a small GPT-2 with the awkward parts (odd sizes, tied embeddings, a frozen weight, one of one
element, a buffer), trains three steps, calls plain `engine.save_checkpoint` and writes what the live engine holds, whole,
as `expected.pt` (rank 0): {"master": {name: tensor}, "exp_avg": ..., "exp_avg_sq": ..., "weight": ..., "buffer": ...}.
With "load" in the case, plain `engine.load_checkpoint` opens that folder instead, with "take_up" `importing.take_up` does;
the same is written of what came.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from orchestrator.training.errors import WorkerFailed

WIDTH = 15
VOCABULARY = 67


class Scale(torch.nn.Module):
    """A parameter of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((1,), 1.5))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float() * self.factor.float()


def model() -> Any:
    """The same weights on every rank and in every process."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    config = GPT2Config(
        n_layer=2,
        n_head=3,
        n_embd=WIDTH,
        vocab_size=VOCABULARY,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    made = GPT2LMHeadModel(config)
    made.transformer.wpe.weight.requires_grad_(False)
    made.scale = Scale()
    made.register_buffer("seen", torch.arange(5, dtype=torch.int64))
    return made


def groups(made: Any, one: bool = False) -> list[dict[str, Any]]:
    """Weight decay for matrices only, as the built-in trainer and most scripts have it."""
    trained = [p for p in made.parameters() if p.requires_grad]
    if one:
        return [{"params": trained}]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def configuration(case: dict[str, Any], world_size: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 6 // world_size,
        "train_batch_size": 6,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 2, "total_num_steps": 50}},
        "zero_optimization": {"stage": case["stage"], **case.get("zero", {})},
        **case.get("more", {}),
    }
    if case["dtype"] == "bf16":
        made["bf16"] = {"enabled": True}
        if case["stage"] == 0:
            made["data_types"] = {"grad_accum_dtype": "bf16"}
    return made


def step(engine: Any, number: int, rank: int, world_size: int) -> float:
    """One optimizer step; the loss over the whole batch."""
    chance = torch.Generator().manual_seed(100 + number)
    ids = torch.randint(0, VOCABULARY, (6, 9), generator=chance)
    mine = ids[rank * 6 // world_size : (rank + 1) * 6 // world_size]
    logits = engine.module.scale(engine(input_ids=mine).logits)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), mine[:, 1:].reshape(-1))
    engine.backward(loss)
    engine.step()
    whole = loss.detach().double()
    torch.distributed.all_reduce(whole)
    return float(whole) / world_size


def mark(engine: Any) -> None:
    """Moments that tell where they belong, made from the master: 3 x, and its square + 1, set on each rank's own flat state."""
    optimizer = engine.optimizer
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
        for flat in getattr(optimizer, name, ()):
            state = optimizer.optimizer.state[flat]
            state["exp_avg"].copy_(3 * flat.detach())
            state["exp_avg_sq"].copy_(flat.detach() ** 2 + 1)


def live(engine: Any, stage: int, dtype: str) -> dict[str, dict[str, Any]]:
    """Whole values of the engine by kind and name, without the code under test and without DeepSpeed's mapping of moments
    (wrong with round_robin_gradients): moments of ZeRO stages are what `mark` made of the masters."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    found: dict[str, dict[str, Any]] = {"master": {}, "exp_avg": {}, "exp_avg_sq": {}, "weight": {}}
    optimizer = engine.optimizer
    masters: dict[int, Any] = {}
    if stage == 0 and dtype != "fp32":
        for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            masters |= {id(low): high for low, high in zip(lows, highs, strict=True)}
    for name, p in engine.module.named_parameters():
        with zero.GatheredParameters([p], enabled=stage == 3):
            found["weight"][name] = p.detach().clone().cpu()
        if not p.requires_grad:
            continue
        if stage == 0:
            master = masters.get(id(p), p)
            state = getattr(optimizer, "optimizer", optimizer).state[master]
            for kind in ("exp_avg", "exp_avg_sq"):
                found[kind][name] = state[kind].detach().clone()
        else:
            master = found["weight"][name] if dtype == "fp32" else safe_get_full_fp32_param(p)
            found["exp_avg"][name], found["exp_avg_sq"][name] = 3 * master, master**2 + 1
        found["master"][name] = master.detach().clone()
    found["buffer"] = dict(engine.module.named_buffers())
    return found


def held(engine: Any, rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    """The same of an engine that took up a state: what each rank holds, as the adapter of checkpoints finds it."""
    import deepspeed

    from orchestrator.training.agreement import Peers
    from orchestrator.training.fragments import attach

    state = attach(engine, Peers(torch, rank, world_size, "cpu"), deepspeed_version=deepspeed.__version__)
    mine = [(local.name, local.kind, local.start, local.end, local.view.cpu()) for local in state.to_save()]
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, mine)
    found: dict[str, dict[str, Any]] = {"master": {}, "exp_avg": {}, "exp_avg_sq": {}, "frozen": {}, "buffer": {}}
    shapes = {parameter.name: parameter.shape for parameter in state.parameters}
    for name, kind, start, end, view in (item for part in gathered for item in part):
        whole = found[kind].setdefault(name, torch.full(shapes[name], 77, dtype=view.dtype))
        whole.view(-1)[start:end] = view
    return found


def take_up(engine: Any, folder: str, rank: int, world_size: int) -> None:
    """Import as the built-in trainer does; the schedule, which the trainer computes itself, is set by hand."""
    import deepspeed

    from orchestrator.training import importing
    from orchestrator.training.agreement import Peers
    from orchestrator.training.fragments import attach

    peers = Peers(torch, rank, world_size, "cpu")
    source = importing.take_up(attach(engine, peers, deepspeed_version=deepspeed.__version__), peers, folder)
    engine.lr_scheduler.step(source.global_steps - 1)


def main(plan_file: Path) -> None:
    import deepspeed

    plan = json.loads(plan_file.read_text())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    for case in plan["cases"]:
        made = model()
        if case.get("unfrozen"):
            made.transformer.wpe.weight.requires_grad_(True)
        engine, _, _, _ = deepspeed.initialize(
            model=made,
            model_parameters=groups(made, bool(case.get("one_group"))),
            config=configuration(case, world_size),
            dist_init_required=False,
        )
        folder = Path(plan["out"]) / case["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if "load" in case:
            engine.load_checkpoint(case["load"])
        elif "take_up" in case:
            try:
                take_up(engine, case["take_up"], rank, world_size)
            except WorkerFailed as error:
                (folder / f"refused-{rank}").write_text(str(error))
                continue
        else:
            for number in range(3):
                step(engine, number, rank, world_size)
            if case["stage"]:
                mark(engine)
            engine.save_checkpoint(str(folder), client_state={"note": "kept"})
        if "load" in case or "take_up" in case:
            found = held(engine, rank, world_size)
        else:
            found = live(engine, case["stage"], case["dtype"])
        counters: dict[str, Any] = {
            "global_steps": engine.global_steps,
            "global_samples": engine.global_samples,
            "lr": engine.get_lr(),
            "losses": [step(engine, number, rank, world_size) for number in range(3, 6)],
        }
        if rank == 0:
            torch.save(found, folder / "expected.pt")
            (folder / "counters.json").write_text(json.dumps(counters))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
