"""GPUs and the machines that carry them: memory, arithmetic, and which share of it training reaches. Facts with their sources.

What is not in these tables is unknown, and said to be: no machine is taken for a similar one.

Peaks: dense half precision, tensor cores, from the makers' data sheets as torchtitan and nanochat quote them. Memory: what torch
reports, a little below what is sold. Share of the peak (model FLOPs utilisation): `high` is from MosaicML's public tables of tuned
training (llm-foundry, scripts/train/benchmarking), or assumed where there is none. What the built-in trainer reaches was measured
on one H100 (`benchmarks/gpu_memory.py`): 0.18 with Llamas of 1 and 3 billion parameters, taken as the same part of `high` elsewhere;
25 TFLOP/s with BERT-base, where starting kernels takes the time, so that a faster GPU hardly helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "fp16", "fp32"]
PRECISIONS: dict[str, Precision] = {"BF16": "bf16", "FP16": "fp16", "FP32": "fp32"}
"""`model.precision`, but Auto, as the arithmetic names it."""
GIB = 2**30
_MEASURED_LOW, _PUBLIC_HIGH = 0.18, 0.46
_SMALL_TERAFLOPS = 25.0
_SMALL = 500_000_000
"""Parameters below which a model counts as small."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int
    peak_teraflops: float
    """Dense, in bf16, or in fp16 where there is no bf16."""
    bf16: bool
    high: float
    """Share of the peak that tuned training reaches."""
    source: str
    """Of `high`."""

    def reached_teraflops(self, parameters: int, *, attention_dropout: bool) -> float:
        """By the built-in trainer, with a model of this size; dropout in attention writes the weights out, which is slow."""
        large = self.peak_teraflops * self.high * _MEASURED_LOW / _PUBLIC_HIGH
        return min(large, _SMALL_TERAFLOPS) if attention_dropout or parameters < _SMALL else large


def _gpu(name: str, gib: float, peak: float, high: float, source: str, *, bf16: bool = True) -> Gpu:
    return Gpu(name, round(gib * GIB), peak, bf16, high, source)


_PUBLIC, _ASSUMED = "public tables", "assumed"
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("H200", 139.0, 989, _PUBLIC_HIGH, "taken from the H100"),
        _gpu("H100", 79.1, 989, _PUBLIC_HIGH, _PUBLIC),
        _gpu("A100-80GB", 79.1, 312, 0.55, _PUBLIC),
        _gpu("A100-40GB", 39.3, 312, 0.51, _PUBLIC),
        _gpu("L4", 22.0, 121, 0.30, _ASSUMED),
        _gpu("A10G", 22.0, 70, 0.30, _ASSUMED),
        _gpu("T4", 14.5, 65, 0.25, _ASSUMED, bf16=False),
        _gpu("V100-16GB", 15.7, 125, 0.30, _ASSUMED, bf16=False),
        _gpu("V100-32GB", 31.7, 125, 0.30, _ASSUMED, bf16=False),
    )
}
MACHINES: dict[str, tuple[str, int]] = {
    "p3.2xlarge": ("V100-16GB", 1),
    "p3.8xlarge": ("V100-16GB", 4),
    "p3.16xlarge": ("V100-16GB", 8),
    "p3dn.24xlarge": ("V100-32GB", 8),
    "g4dn.xlarge": ("T4", 1),
    "g4dn.12xlarge": ("T4", 4),
    "g5.xlarge": ("A10G", 1),
    "g5.12xlarge": ("A10G", 4),
    "g5.48xlarge": ("A10G", 8),
    "g6.xlarge": ("L4", 1),
    "g6.12xlarge": ("L4", 4),
    "g6.48xlarge": ("L4", 8),
    "p4d.24xlarge": ("A100-40GB", 8),
    "p4de.24xlarge": ("A100-80GB", 8),
    "p5.4xlarge": ("H100", 1),
    "p5.48xlarge": ("H100", 8),
    "p5e.48xlarge": ("H200", 8),
    "p5en.48xlarge": ("H200", 8),
    "g2-standard-4": ("L4", 1),
    "a2-highgpu-1g": ("A100-40GB", 1),
    "a2-highgpu-8g": ("A100-40GB", 8),
    "a2-ultragpu-1g": ("A100-80GB", 1),
    "a2-ultragpu-8g": ("A100-80GB", 8),
    "a3-highgpu-1g": ("H100", 1),
    "a3-highgpu-8g": ("H100", 8),
    "Standard_NC24ads_A100_v4": ("A100-80GB", 1),
    "Standard_ND96amsr_A100_v4": ("A100-80GB", 8),
    "Standard_ND96isr_H100_v5": ("H100", 8),
}
"""Instance type: its GPUs. From the providers' own lists of machine types."""


def gpus_of(instance_type: str) -> tuple[Gpu, int] | None:
    """Kind and number of a machine's GPUs; None when the machine is not known here."""
    found = MACHINES.get(instance_type)
    return None if found is None else (GPUS[found[0]], found[1])


def precision_on(wish: str, gpu: Gpu) -> Precision | None:
    """bf16, fp16 or fp32 for a job's `model.precision` on this GPU, as a worker would choose; None where it has none such."""
    asked = PRECISIONS.get(wish)
    if asked is None:
        return "bf16" if gpu.bf16 else "fp16"
    return None if asked == "bf16" and not gpu.bf16 else asked
