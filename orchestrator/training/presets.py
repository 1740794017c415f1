"""DeepSpeed's configuration: a reviewed preset, the job's overrides, and what only the job document may say.

Presets are `deepspeed_configs/*.json`: at the top of a checkout, inside this package in an installed wheel. They hold
what a stage needs and nothing about batch sizes, precision, learning rate or clipping: those come from the job document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.planning.batch import Batch
from orchestrator.planning.stage import StageChoice
from orchestrator.spec.deepspeed_keys import deepspeed_findings
from orchestrator.training.errors import config_invalid


def presets_folder() -> Path:
    """The folder of the reviewed presets."""
    package = Path(__file__).parent
    installed = package / "deepspeed_configs"
    return installed if installed.is_dir() else package.parents[1] / "deepspeed_configs"


def preset_names() -> list[str]:
    return sorted(path.stem for path in presets_folder().glob("*.json"))


def load_preset(name: str) -> dict[str, Any]:
    """One reviewed preset. Raises ConfigInvalid for an unknown name."""
    path = presets_folder() / f"{name}.json"
    if not path.is_file():
        raise config_invalid(
            f"deepspeed.config: there is no preset {name!r}", f"use one of {', '.join(preset_names())}"
        )
    return _read(path)


def configuration(
    choice: StageChoice,
    config: str | Mapping[str, Any] | None,
    batch: Batch,
    *,
    working_dir: Path,
    precision: str,
    learning_rate: float,
    weight_decay: float,
    max_gradient_norm: float,
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: the preset of the chosen stage, the job's overrides, the job's numbers.

    Raises ConfigInvalid for keys that the job document decides, and for files that cannot be read.
    """
    base = load_preset(choice.preset)
    if isinstance(config, str) and config not in preset_names():
        base = merge(base, _checked(_read(working_dir / config), config))
    elif isinstance(config, Mapping):
        base = merge(base, _checked(config, "deepspeed.config"))
    base["optimizer"]["params"] |= {"lr": learning_rate, "weight_decay": weight_decay}
    base |= {
        "train_batch_size": batch.global_batch,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": max_gradient_norm,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    if precision == "bf16" and choice.stage == 0:
        base["data_types"] = {"grad_accum_dtype": "bf16"}  # DeepSpeed has no fp32 accumulation without ZeRO
    return base


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, deeply: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _checked(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The same rules as for overrides in the job document, which could not be applied to a file on another machine."""
    for path, what, hint in deepspeed_findings(dict(config)):
        raise config_invalid(f"{where}: {'.'.join(map(str, path))} {what}", hint)
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
