"""Keys of a DeepSpeed configuration that a job may not carry, and what to write instead.

The removed keys are those that DeepSpeed 0.19.8 refuses (`deepspeed/runtime/config.py`, the two `_REMOVED_*` tables);
a test compares this data with the installed version. The owned keys are set by orchestrate from fields of the job:
were they given twice, one of the two would be ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.spec.document import Path

REMOVED = {
    "nebula": "remove it; checkpoints are written by orchestrate (spec.checkpoint)",
    "compression_training": "remove it; the compression library is gone from DeepSpeed",
    "amp": "remove it and set spec.model.precision",
    "quantize_training": "remove it; quantised training is gone from DeepSpeed",
    "sparse_gradients": "remove it; embeddings made with sparse=True need no key",
    "eigenvalue": "remove it; it belonged to quantised training",
    "sparse_attention": "remove it; choose the attention in the model's own configuration",
    "elasticity": "remove it and set spec.workers and spec.training.globalBatchSize",
    "graph_harvesting": "remove it; DeepSpeed has no replacement",
    "curriculum_learning": "write it under data_efficiency.data_sampling.curriculum_learning",
    "progressive_layer_drop": "remove it; DeepSpeed has no replacement",
}
REMOVED_ZERO = {
    "mics_shard_size": "remove it; use zero_hpz_partition_size for groups of ranks",
    "mics_hierarchical_params_gather": "remove it; use zero_hpz_partition_size for groups of ranks",
    "zeropp_loco_param": "remove it; zero_quantized_gradients works without it",
}
RENAMED_ZERO = {
    "cpu_offload": "set spec.deepspeed.offload: CPU",
    "cpu_offload_params": "write offload_param: {device: cpu}",
    "cpu_offload_use_pin_memory": "write offload_optimizer: {pin_memory: true}",
    "stage3_gather_fp16_weights_on_model_save": "write stage3_gather_16bit_weights_on_model_save",
}
OWNED = {
    "train_batch_size": "spec.training.globalBatchSize",
    "train_micro_batch_size_per_gpu": "spec.training.microBatchSize",
    "gradient_accumulation_steps": "spec.training.globalBatchSize and microBatchSize (it follows from them)",
    "gradient_clipping": "spec.training.maxGradientNorm",
    "optimizer": "spec.training.optimizer, learningRate and weightDecay",
    "scheduler": "spec.training.schedule and warmup",
    "fp16": "spec.model.precision",
    "bf16": "spec.model.precision",
    "torch_autocast": "spec.model.precision",
}
OWNED_ZERO = {"stage": "spec.deepspeed.stage"}


def deepspeed_findings(config: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """(path inside the configuration, what is wrong, what to do) of every key that may not stand there."""
    for key, value in config.items():
        yield from _key((key,), key, REMOVED, {}, OWNED)
        yield from _autos((key,), value)
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        if "zero_optimization" in config:
            yield (
                ("zero_optimization",),
                "fields are expected",
                "write its fields below it; the stage is spec.deepspeed.stage",
            )
        return
    for key in zero:
        yield from _key(("zero_optimization", key), key, REMOVED_ZERO, RENAMED_ZERO, OWNED_ZERO)
    offload = zero.get("offload_optimizer")
    if isinstance(offload, dict) and "device" in offload:
        path = ("zero_optimization", "offload_optimizer", "device")
        yield path, "is set by orchestrate", "remove it and set spec.deepspeed.offload"


def _key(
    path: Path, key: str, removed: dict[str, str], renamed: dict[str, str], owned: dict[str, str]
) -> Iterator[tuple[Path, str, str]]:
    if key in removed:
        yield path, "was removed from DeepSpeed", removed[key]
    elif key in renamed:
        yield path, "is an old spelling of DeepSpeed", renamed[key]
    elif key in owned:
        yield path, "is set by orchestrate", f"remove it and set {owned[key]}"


def _autos(path: Path, value: Any) -> Iterator[tuple[Path, str, str]]:
    if value == "auto" and path[0] not in OWNED:
        yield (
            path,
            '"auto" means nothing to DeepSpeed (only to the Trainer of transformers)',
            "write a value or remove the key",
        )
    elif isinstance(value, dict) and path[0] not in OWNED:
        for key, item in value.items():
            yield from _autos((*path, key), item)
