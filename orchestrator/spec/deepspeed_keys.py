"""Keys of a DeepSpeed configuration that a job may not carry, and what to write instead.

The removed keys are those that DeepSpeed 0.19.8 refuses (`deepspeed/runtime/config.py`, the two `_REMOVED_*` tables);
a test compares this data with the installed version. The owned keys are set by orchestrate from fields of the job:
were they given twice, one of the two would be ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.spec.document import Path
from orchestrator.spec.fields import nearest

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
    "cpu_offload_param": "write offload_param: {device: cpu}",
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
    "bfloat16": "spec.model.precision",
    "torch_autocast": "spec.model.precision",
}
OWNED_ZERO = {"stage": "spec.deepspeed.stage"}
KNOWN = frozenset(
    [
        "activation_checkpointing",
        "aio",
        "checkpoint",
        "comms_logger",
        "communication_data_type",
        "compile",
        "csv_monitor",
        "comet",
        "data_efficiency",
        "data_types",
        "dataloader_drop_last",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "expert_parallel",
        "flops_profiler",
        "gradient_allreduce_op",
        "gradient_predivide_factor",
        "hybrid_engine",
        "log_level",
        "managed_gradient_accumulation",
        "memory_breakdown",
        "pipeline",
        "prescale_gradients",
        "seq_parallel_communication_data_type",
        "sequence_parallel_size",
        "steps_per_print",
        "tensor_parallel",
        "tensorboard",
        "timers",
        "use_data_before_expert_parallelism",
        "vocabulary_size",
        "wall_clock_breakdown",
        "wandb",
        "weight_quantization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    ]
)
"""Keys that DeepSpeed 0.19.8 reads at the top. It ignores any other in silence, so any other is refused here."""
KNOWN_ZERO = frozenset(
    [
        "contiguous_gradients",
        "reduce_scatter",
        "reduce_bucket_size",
        "round_robin_gradients",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
        "allgather_bucket_size",
        "overlap_comm",
        "compute_grad_norm",
        "load_from_fp32_weights",
        "elastic_checkpoint",
        "offload_param",
        "offload_optimizer",
        "zenflow",
        "sub_group_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_model_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential",
        "ignore_unused_parameters",
        "legacy_stage1",
        "parameter_alignment",
        "zero_hpz_partition_size",
        "zero_quantized_weights",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_gradients",
        "memory_efficient_linear",
        "pipeline_loading_checkpoint",
        "override_module_apply",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
        "save_muon_momentum_buffer_in_memory",
        "leaf_module",
    ]
)
"""Fields of `zero_optimization` in DeepSpeed 0.19.8 that a job may set."""
PRESETS = {f"zero{stage}{suffix}": stage for stage in range(4) for suffix in ("", "-offload") if stage or not suffix}
"""Names of the reviewed presets (files of `deepspeed_configs`) with their ZeRO stage."""


def deepspeed_findings(config: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """(path inside the configuration, what is wrong, what to do) of every key that may not stand there."""
    for key, value in config.items():
        yield from _key((key,), REMOVED, {}, OWNED, KNOWN)
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
        path: Path = ("zero_optimization", key)
        yield from _key(path, REMOVED_ZERO, RENAMED_ZERO, OWNED_ZERO, KNOWN_ZERO)
    offload = zero.get("offload_optimizer")
    if isinstance(offload, dict) and "device" in offload:
        device: Path = ("zero_optimization", "offload_optimizer", "device")
        yield device, "is set by orchestrate", "remove it and set spec.deepspeed.offload"


def _key(
    path: Path, removed: dict[str, str], renamed: dict[str, str], owned: dict[str, str], known: frozenset[str]
) -> Iterator[tuple[Path, str, str]]:
    key = str(path[-1])
    if key in removed:
        yield path, "was removed from DeepSpeed", removed[key]
    elif key in renamed:
        yield path, "is an old spelling of DeepSpeed", renamed[key]
    elif key in owned:
        yield path, "is set by orchestrate", f"remove it and set {owned[key]}"
    elif key not in known:
        near = nearest(key, sorted(known))
        yield (
            path,
            "is no key of DeepSpeed 0.19.8, which would ignore it",
            f"did you mean {near}?" if near else "remove it",
        )


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
