"""One rank of `reshard`: small runs one after another in one process, each saved and taken up as a plan says.

    python benchmarks/_reshard_rank.py PLAN.json      # RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set

The model is awkward on purpose: a GPT-2 of odd sizes with tied embeddings, a frozen position embedding, a parameter of one
element, buffers that change, two param groups, clipping, a scheduler. A step's batch depends on its number alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops import __compatible_ops__ as compatible
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from transformers import GPT2Config, GPT2LMHeadModel

from orchestrator import storage
from orchestrator.domain.clock import SystemClock
from orchestrator.training import fragments
from orchestrator.training.agreement import Peers
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.run_state import RANGES, RunState
from orchestrator.training.saving import Saver

GLOBAL_BATCH, TOKENS, VOCABULARY = 12, 16, 131
RATE = 0.002


@dataclass(frozen=True)
class Setup:
    """How an engine is made."""

    stage: int
    precision: str = "fp32"
    accumulation: int = 1
    zero: Mapping[str, Any] = field(default_factory=dict)
    """Keys laid over those of zero_optimization."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keys laid over the whole configuration."""
    trained: str = ""
    """Train only parameters whose name holds this; empty: all but the position embedding."""
    torch_adam: bool = True
    scheduler: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """One engine's life: load, train, save, train on. Folders are paths; empty ones are left out."""

    setup: Setup
    result: str
    load: str = ""
    steps_before: int = 0
    save: str = ""
    losses: int = 0
    first_step: int = 0
    """Number of the first step that is trained here."""
    getters: bool = False
    """Hash what DeepSpeed's own getters say after the load as well."""
    middle: bool = False
    """Save in the middle of a step's micro-batches."""
    unmapped: bool = False
    """Take DeepSpeed's own mapping of parameters to masters away before anything is read from the engine."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Run:
        return cls(**{**document, "setup": Setup(**document["setup"])})


class Awkward(torch.nn.Module):
    """The model of the matrix."""

    def __init__(self, trained: str) -> None:
        super().__init__()
        config = GPT2Config(
            n_layer=2,
            n_head=5,
            n_embd=65,
            vocab_size=VOCABULARY,
            n_positions=TOKENS + 1,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.language = GPT2LMHeadModel(config)
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros(3))
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
        for name, parameter in self.named_parameters():
            parameter.requires_grad = trained in name if trained else "wpe" not in name

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
            self.mean = self.mean * 0.9 + 0.1  # another tensor in its place, each time
        logits: torch.Tensor = self.language(ids).logits
        return logits * self.gain


def engine_of(setup: Setup, world_size: int) -> Any:
    torch.manual_seed(setup.seed)
    model = Awkward(setup.trained)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    config = {
        "train_batch_size": GLOBAL_BATCH,
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // world_size // setup.accumulation,
        "gradient_accumulation_steps": setup.accumulation,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": setup.precision == "bf16"},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": RATE, "torch_adam": setup.torch_adam, "adam_w_mode": True},
        },
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": setup.stage,
            "overlap_comm": False,
            "sub_group_size": 20_000,
            "stage3_param_persistence_threshold": 500,
            "memory_efficient_linear": False,  # it replaces torch's linear function for the rest of the process
            **setup.zero,
        },
        **setup.config,
    }
    if setup.scheduler:
        steps = {"total_num_steps": 40, "warmup_num_steps": 3, "warmup_max_lr": RATE, "warmup_min_lr": 0}
        config["scheduler"] = {"type": "WarmupDecayLR", "params": steps}
    if setup.precision == "bf16" and setup.stage == 0:
        config["data_types"] = {"grad_accum_dtype": "bf16"}
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        model_parameters=[group for group in groups if group["params"]],
        config=config,
        dist_init_required=False,
    )
    return engine


def train(engine: Any, peers: Peers, accumulation: int, first: int, steps: int) -> list[float]:
    """The losses of the global batches of steps [first, first + steps)."""
    losses = []
    for number in range(first, first + steps):
        ids = torch.randint(0, VOCABULARY, (GLOBAL_BATCH, TOKENS), generator=torch.Generator().manual_seed(number))
        share = GLOBAL_BATCH // peers.world_size
        total = 0.0
        for part in ids[peers.rank * share : (peers.rank + 1) * share].chunk(accumulation):
            total += micro_step(engine, part, peers.world_size * accumulation)
        losses.append(peers.sum([total])[0] / (GLOBAL_BATCH * (TOKENS - 1)))
    return losses


def micro_step(engine: Any, ids: torch.Tensor, parts: int) -> float:
    logits = engine(ids)[:, :-1].reshape(-1, VOCABULARY).float()
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1), reduction="sum")
    engine.backward(loss * (parts / (GLOBAL_BATCH * (TOKENS - 1))))
    engine.step()
    return float(loss.detach())


# --- what is compared --------------------------------------------------------------------------------------------------
def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def digests(state: fragments.EngineState, peers: Peers) -> dict[str, str]:
    """Digest of every parameter's every kind, put together from what all ranks would save."""
    mine = [(local.name, local.kind, local.start, raw(local.view)) for local in state.to_save()]
    whole: dict[str, list[tuple[int, bytes]]] = {}
    for name, kind, start, content in (item for part in peers.gather(mine) for item in part):
        whole.setdefault(f"{name} {kind}", []).append((start, content))
    return {key: digest(b"".join(content for _, content in sorted(parts))) for key, parts in whole.items()}


def weight_digests(engine: Any) -> dict[str, str]:
    """Digest of the weights that the forward pass uses, gathered where they are spread."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            found[name] = digest(raw(parameter.data))
    return found


def getter_digests(engine: Any) -> dict[str, str]:
    """What DeepSpeed's own getters say of masters and moments; they know nothing of stage 0."""
    found: dict[str, str] = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and (hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")):
            values = {"master": safe_get_full_fp32_param(parameter)} | {
                kind: safe_get_full_optimizer_state(parameter, kind) for kind in ("exp_avg", "exp_avg_sq")
            }
            found |= {f"{name} {kind}": digest(raw(value)) for kind, value in values.items()}
    return found


# --- one run -----------------------------------------------------------------------------------------------------------
def live(run: Run, peers: Peers) -> dict[str, Any]:
    """What one run has to tell; with a failure, what was known before it."""
    told: dict[str, Any] = {}
    setup = run.setup
    engine = engine_of(setup, peers.world_size)
    if run.unmapped:
        for parameter in engine.module.parameters():
            parameter._hp_mapping = None
    try:
        state = fragments.attach(engine, peers, deepspeed_version=deepspeed.__version__)
        told["class"] = type(engine.optimizer).__name__
        if run.load:
            load(Path(run.load), state, peers)
            state.check()
            told |= {"loaded": digests(state, peers), "weights": weight_digests(engine)}
            if run.getters:
                told["getters"] = getter_digests(engine)
        before = train(engine, peers, setup.accumulation, run.first_step, run.steps_before)
        told["before"] = before
        if run.middle:
            micro_step(engine, torch.zeros((1, TOKENS), dtype=torch.int64), 1)
        if run.save:
            save(Path(run.save), state, peers)
            told |= {"saved": digests(state, peers), "saved_weights": weight_digests(engine)}
        told["losses"] = train(engine, peers, setup.accumulation, run.first_step + run.steps_before, run.losses)
        told["counters"] = {
            "global_steps": engine.global_steps,
            "micro_steps": engine.micro_steps,
            "global_samples": engine.global_samples,
        }
    except WorkerFailed as error:
        told["error"] = {"reason": error.reason, "message": error.message, "hint": error.hint}
    finally:
        if hasattr(engine.optimizer, "destroy"):
            engine.destroy()
    return told


def run_state(folder: Path, state: fragments.EngineState, peers: Peers) -> tuple[storage.Store, RunState]:
    store = storage.open_store(str(folder))
    facts = storage.Manifest(0, 0, storage.World(peers.world_size), None, RANGES, 0, 0, 1)
    return store, RunState(torch, peers, store, state, facts, {}, frozen_once=True)


def save(folder: Path, state: fragments.EngineState, peers: Peers) -> None:
    """One checkpoint, durable on return, through the same classes as the trainer."""
    store, whole = run_state(folder, state, peers)
    saver = Saver(peers, store, SystemClock(), attempt=1, retention=storage.Retention(1), verify=False)
    step = state.scalars()["engine"]["global_steps"]
    saver.save(step, lambda: (whole.parts({}), replace(whole.facts(), global_step=step)), lambda _: None)
    saver.finish()
    saver.close()


def load(folder: Path, state: fragments.EngineState, peers: Peers) -> None:
    """Take up the only checkpoint of the folder."""
    store, whole = run_state(folder, state, peers)
    (listed,) = peers.first(store.list)
    whole.load(listed)


def join() -> Peers:
    """Become a rank of the gang."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    compatible["deepspeed_shm_comm"] = False  # no compiler needed
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    return Peers(torch, torch.distributed.get_rank(), torch.distributed.get_world_size(), "cpu")


def leave() -> None:
    """End the process together with the others."""
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may complain when the interpreter tears them down


def main(plan: Path) -> None:
    peers = join()
    for document in json.loads(plan.read_text()):
        run = Run.from_document(document)
        told = live(run, peers)
        if peers.rank == 0 or "error" in told:
            Path(f"{run.result}.{peers.rank}").write_text(json.dumps(told))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
