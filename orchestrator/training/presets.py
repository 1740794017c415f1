"""DeepSpeed's configuration: a reviewed preset, the job's overrides, and what only the job document may say.

Presets are `deepspeed_configs/*.json`: beside the package in a checkout, inside it in an installed wheel. They hold
what a stage needs and nothing about batch sizes, precision, learning rate or clipping: those come from the spec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.training.errors import config_invalid

OWNED = {
    "train_batch_size": "training.globalBatchSize",
    "train_micro_batch_size_per_gpu": "training.microBatchSize",
    "gradient_accumulation_steps": "training.globalBatchSize and training.microBatchSize",
    "gradient_clipping": "training.maxGradientNorm",
    "fp16": "model.precision: FP16",
    "bf16": "model.precision: BF16",
    "scheduler": "training.schedule and training.warmup",
    "optimizer": "training.optimizer, training.learningRate and training.weightDecay",
}
"""Keys of a DeepSpeed configuration that the job document decides, with the field that does."""


def presets_folder() -> Path:
    """The folder of the reviewed presets."""
    package = Path(orchestrator.__file__).parent
    installed = package / "training" / "deepspeed_configs"
    return installed if installed.is_dir() else package.parent / "deepspeed_configs"


def preset_names() -> list[str]:
    return sorted(path.stem for path in presets_folder().glob("*.json"))


def load_preset(name: str) -> dict[str, Any]:
    """One reviewed preset. Raises ConfigInvalid for an unknown name."""
    path = presets_folder() / f"{name}.json"
    if not path.is_file():
        raise config_invalid(f"deepspeed.config: there is no preset {name!r}", f"use one of {', '.join(preset_names())}")
    return _read(path)


def configuration(
    stage: int,
    offload: str,
    config: str | Mapping[str, Any] | None,
    *,
    working_dir: Path,
    micro_batch: int,
    accumulation: int,
    world_size: int,
    precision: str,
    learning_rate: float,
    weight_decay: float,
    max_gradient_norm: float,
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`. Raises ConfigInvalid for contradictions and unreadable files."""
    name = f"zero{stage}" + ("-offload" if offload == "CPU" else "")
    base = load_preset(name)
    match config:
        case None:
            pass
        case str() if config in preset_names():
            base = load_preset(config)
        case str():
            base = merge(base, _checked(_read(working_dir / config), config))
        case _:
            base = merge(base, _checked(config, "deepspeed.config"))
    zero = base.setdefault("zero_optimization", {})
    if zero.get("stage", 0) != stage:
        raise config_invalid(
            f"deepspeed.config has ZeRO stage {zero.get('stage', 0)}, deepspeed.stage says {stage}", "say it once, in deepspeed.stage"
        )
    optimizer = base["optimizer"]["params"]
    optimizer |= {"lr": learning_rate, "weight_decay": weight_decay}
    base |= {
        "train_batch_size": micro_batch * accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_gradient_norm,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    if precision == "bf16" and stage == 0:
        base["data_types"] = {"grad_accum_dtype": "bf16"}
    return base


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, deeply: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _checked(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for key in config:
        if key in OWNED:
            raise config_invalid(f"{where}: {key} is decided by the job document", f"set {OWNED[key]} instead")
    if config.get("zero_optimization", {}).get("round_robin_gradients"):
        raise config_invalid(
            f"{where}: round_robin_gradients corrupts saved and converted weights in this DeepSpeed", "leave it out"
        )
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise config_invalid(f"deepspeed.config: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise config_invalid(f"deepspeed.config: {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise config_invalid(f"deepspeed.config: {path} is not a JSON object")
    return value
