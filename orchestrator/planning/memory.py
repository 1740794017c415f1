"""How much memory one rank's training takes, with the arithmetic: weights, gradients, optimizer, activations, buffers. Pure.

The terms are DeepSpeed 0.19's with our presets (Adam, 50 million elements a bucket), as measured on one H100 for N = 1; what is
divided by N follows its partitioning (Rajbhandari et al. 2020, arxiv.org/abs/1910.02054). Activations are bytes a token and
layer that transformers keeps for the backward pass, by family, also as measured. `benchmarks/gpu_memory.py` repeats both, and
docs/planning.md shows how far the estimate is off.

P parameters, T of them trained, N ranks, w bytes of a weight (2 in bf16 and fp16, 4 in fp32).

Limits: dense transformers; fp32 on ZeRO keeps its gradients twice, which is counted; without dropout in attention a fused
kernel is taken for granted; memory that the allocator holds in pieces too small for a use is not counted, see `HEADROOM`.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.quantities import format_bytes
from orchestrator.planning.hardware import Precision
from orchestrator.planning.shapes import GATED, ModelShape
from orchestrator.planning.stage import Stage

BUCKET = 50_000_000
"""Elements of a communication bucket in `deepspeed_configs`."""
SUB_GROUP = 1_000_000_000
"""Parameters that ZeRO-3 updates at a time, DeepSpeed's default."""
WORKSPACE = 68_000_000
"""Bytes that the matrix library keeps, whatever the model; measured."""
CONTEXT = 800_000_000
"""Bytes of a GPU that CUDA and NCCL take beside torch's allocator; measured without NCCL: 0.6 GB."""
HEADROOM = 0.92
"""Part of a GPU's memory that an estimate may fill: the rest is lost in pieces between allocations."""
_LOGIT_BYTES = {True: 11, False: 12}
"""Of each number of a language model's output, in half precision or not: itself, as fp32, its log-softmax, and gradients."""
_KEPT = {"gated": (23.0, 8.0), "gpt2": (20.6, 10.3), "encoder": (20.6, 4.0)}
"""Bytes kept for the backward pass a token and layer in half precision: (a hidden number, an intermediate number)."""
_SCORE_BYTES = {True: 7, False: 9}
"""Of each attention weight that is written out, in half precision or not: itself in fp32, its mask, what dropout leaves."""
_WIDER = 1.82
"""Activations in fp32 over those in half precision: masks and some norms take the same in both."""


@dataclass(frozen=True, slots=True)
class Term:
    """One line of the arithmetic."""

    name: str
    bytes: int
    formula: str
    """`2P = 2 x 1.10 billion`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one rank."""

    resident: tuple[Term, ...]
    """What lies there all the time."""
    backward: tuple[Term, ...]
    """What the forward and backward pass add."""
    update: tuple[Term, ...]
    """What the optimizer's step adds, after the activations are gone."""
    host: tuple[Term, ...]
    """In main memory, for each rank; empty without offload."""

    @property
    def peak(self) -> int:
        """Most bytes at one time on the device."""
        return _sum(self.resident) + max(_sum(self.backward), _sum(self.update))

    @property
    def host_bytes(self) -> int:
        return _sum(self.host)

    def fits(self, device_bytes: int) -> bool:
        """Whether a device with so much memory can be expected to hold it."""
        return self.peak + CONTEXT <= HEADROOM * device_bytes

    def lines(self) -> list[str]:
        """`weights       2.0 GiB  2P = 2 x 1.10 billion`, the larger of backward and update last."""
        larger, name = (
            (self.backward, "backward") if _sum(self.backward) >= _sum(self.update) else (self.update, "update")
        )
        rows = [(term.name, term.bytes, term.formula) for term in (*self.resident, *larger)]
        rows.append(("at most", self.peak, f"in the {name}"))
        rows += [(f"{term.name} (main memory)", term.bytes, term.formula) for term in self.host]
        width = max(len(row[0]) for row in rows)
        return [f"{name:<{width}}  {format_bytes(size):>9}  {formula}".rstrip() for name, size, formula in rows]


def estimate(
    shape: ModelShape,
    *,
    stage: Stage,
    ranks: int,
    precision: Precision,
    micro_batch: int,
    tokens: int,
    offload: bool = False,
    lora_rank: int | None = None,
    checkpointed: bool = False,
) -> Memory:
    """Of one rank of `ranks`, training samples of `tokens` tokens. `lora_rank` freezes all weights but LoRA's;
    `checkpointed` computes activations again instead of keeping them."""
    weight = 4 if precision == "fp32" else 2
    every, trained = shape.parameters, shape.parameters
    if lora_rank is not None:
        trained = shape.lora_parameters(lora_rank)
        every += trained
    own = trained / ranks
    whole = f"P = {_count(every)}" if lora_rank is None else f"P = {_count(every)}, T = {_count(trained)}"
    letter = "P" if lora_rank is None else "T"
    over = "" if ranks == 1 else f"/{ranks}"
    resident = [
        Term("weights", round(weight * every / (ranks if stage == 3 else 1)),
             f"{weight}P{over if stage == 3 else ''}, {whole}"),
    ]  # fmt: skip
    backward: list[Term] = []
    update: list[Term] = []
    host: list[Term] = []
    master = 0 if weight == 4 and stage == 0 else 4
    parts = f"{master + 8}{letter}{over if stage else ''}"
    states = (master + 8) * (own if stage else trained)
    if offload:
        host.append(Term("optimizer", round(states), f"{parts}: master weights and Adam's two moments"))
        host.append(Term("gradients", round(4 * own), f"4{letter}{over}"))
    else:
        said = "master weights and Adam's two moments" if master else "Adam's two moments"
        resident.append(Term("optimizer", round(states), f"{parts}: {said}"))
    if stage == 3 and not offload:
        resident.append(Term("gradients", round(weight * own), f"{weight}{letter}{over}"))
    elif not offload:
        kept = own if stage == 2 else trained
        twice = weight == 4 and stage > 0
        backward_gradients = round(weight * kept + (4 * own if twice else 0))
        formula = f"{weight}{letter}{over if stage == 2 else ''}" + (f" + 4{letter}{over}" if twice else "")
        update.append(Term("gradients", backward_gradients, formula))
    buffers = WORKSPACE
    if stage == 3 or (ranks > 1 and stage > 0):
        buffers += BUCKET * weight
    resident.append(Term("buffers", buffers, "one bucket, and the matrix library's workspace"))
    if stage == 3 and ranks > 1:
        backward.append(
            Term("gathered layer", weight * shape.largest_layer, f"{weight} x {_count(shape.largest_layer)}")
        )
    backward += _activations(shape, precision, micro_batch, tokens, checkpointed)
    if not offload:
        at_once = min(own, SUB_GROUP) if stage == 3 else (own if stage else trained)
        update.append(
            Term("update", round(8 * at_once), "8 x what is updated at once: gradients in fp32, a copy of Adam's")
        )
    return Memory(tuple(resident), tuple(backward), tuple(update), tuple(host))


def _activations(
    shape: ModelShape, precision: Precision, micro_batch: int, tokens: int, checkpointed: bool
) -> list[Term]:
    half = precision != "fp32"
    positions = micro_batch * tokens
    hidden, inner = _KEPT[_kind(shape)]
    wide = 1.0 if half else _WIDER
    layer = wide * (hidden * shape.hidden + inner * shape.intermediate)
    if shape.attention_dropout:
        layer += _SCORE_BYTES[half] * shape.heads * tokens
    if checkpointed:
        inputs = shape.layers * (2 if half else 4) * shape.hidden
        kept, formula = (
            positions * (inputs + layer),
            f"x ({inputs:,} B of layers' inputs + {layer:,.0f} B of one layer)",
        )
    else:
        kept, formula = positions * shape.layers * layer, f"x {shape.layers} layers x {layer:,.0f} B"
    terms = [Term("activations", round(kept), f"{positions:,} tokens {formula}")]
    if shape.language_model:
        each = _LOGIT_BYTES[half]
        size = positions * shape.vocabulary * each
        terms.append(Term("logits", size, f"{positions:,} tokens x {shape.vocabulary:,} words x {each} B"))
    return terms


def _kind(shape: ModelShape) -> str:
    if shape.family in GATED:
        return "gated"
    return "gpt2" if shape.family == "gpt2" else "encoder"


def _sum(terms: tuple[Term, ...]) -> int:
    return sum(term.bytes for term in terms)


def _count(number: int) -> str:
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)
