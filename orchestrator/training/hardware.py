"""Which number format a machine should compute in, and why, said in a sentence.

On a CPU without avx512_bf16 or amx_bf16, bf16 is emulated: a training step took 8.4 times as long in bf16 as in fp32
(measured on an AVX2 machine). GPUs compute bf16 from Ampere (compute capability 8.0) on; V100 (7.0) and T4 (7.5) have fp16.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.training.errors import config_invalid

FP32, BF16, FP16 = "fp32", "bf16", "fp16"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What decides the precision."""

    device: str
    """`cpu` or `cuda`."""
    name: str
    cpu_flags: frozenset[str] = frozenset()
    capability: tuple[int, int] | None = None
    """CUDA compute capability; None for a CPU."""

    @property
    def fast_bf16(self) -> bool:
        if self.capability is not None:
            return self.capability >= (8, 0)
        return bool(self.cpu_flags & {"avx512_bf16", "amx_bf16"})

    @property
    def fp16(self) -> bool:
        return self.capability is not None and self.capability >= (7, 0)


def choose_precision(wish: str, hardware: Hardware) -> tuple[str, str]:
    """(precision, reason) for a wish of Auto, FP32, BF16 or FP16. Raises ConfigInvalid for what cannot be."""
    match wish.upper():
        case "FP32":
            return FP32, "asked for"
        case "BF16":
            if hardware.capability is not None and not hardware.fast_bf16:
                raise config_invalid(
                    f"{hardware.name} has no bf16 (compute capability {hardware.capability[0]}.{hardware.capability[1]} < 8.0)",
                    "set model.precision to FP16 or Auto",
                )
            return BF16, "asked for" if hardware.fast_bf16 else f"asked for, though {hardware.name} emulates it, slowly"
        case "FP16":
            if not hardware.fp16:
                raise config_invalid(
                    f"DeepSpeed has no fp16 on {hardware.name}", "set model.precision to FP32, BF16 or Auto"
                )
            return FP16, "asked for, with loss scaling"
        case "AUTO":
            return _automatic(hardware)
    raise config_invalid(f"model.precision {wish!r} is not known", "use Auto, FP32, BF16 or FP16")


def _automatic(hardware: Hardware) -> tuple[str, str]:
    if hardware.fast_bf16:
        return BF16, f"{hardware.name} computes bf16"
    if hardware.fp16:
        return FP16, f"{hardware.name} has fp16 but no bf16; with loss scaling"
    if hardware.device == "cpu":
        return FP32, f"{hardware.name} has neither avx512_bf16 nor amx_bf16, so bf16 would be emulated and slower"
    return FP32, f"{hardware.name} has neither bf16 nor usable fp16"


def read_cpu_flags(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """(model name, flags) from the text of Linux' cpuinfo; a generic name and no flags from anything else."""
    name, flags = "this CPU", frozenset[str]()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name":
                name = value.strip()
            case "flags" | "Features":
                flags = frozenset(value.split())
        if flags and name != "this CPU":
            break
    return name, flags
