"""The model and its tokenizer: pretrained from a folder or package, or from scratch by a configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.spec.models import Model
from orchestrator.training.errors import config_invalid, out_of_memory
from orchestrator.training.sources import local_model
from orchestrator.training.tokens import build_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def quiet() -> None:
    """No progress bars and no notices of transformers in a worker's log."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def tokenizer_for(model: Model, texts: Sequence[str], working_dir: Path) -> PreTrainedTokenizerFast:
    """The source's tokenizer; with `init: Scratch` and a source without one, a tokenizer built from the training texts."""
    folder = local_model(model.source, working_dir)
    if model.init == "Scratch" and (folder is None or not any((folder / name).is_file() for name in _TOKENIZER_FILES)):
        return build_tokenizer(texts)
    try:
        if folder is not None:
            return load_tokenizer(folder)
        return load_tokenizer(model.source, revision=model.revision or "main", local_files_only=True)
    except (OSError, ValueError) as error:
        raise _not_here(model, error) from error


def create(
    model: Model, labels: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int, working_dir: Path
) -> PreTrainedModel:
    """The model in fp32 on the CPU. Random weights come from torch's current seed. Raises ConfigInvalid."""
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError

    folder = local_model(model.source, working_dir)
    config = _config(model, folder)
    if model.task == "text-classification":
        from transformers import AutoModelForSequenceClassification as Auto

        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    else:
        from transformers import AutoModelForCausalLM as Auto  # type: ignore[assignment]
    if config.pad_token_id is None or model.init == "Scratch":
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and max_length > longest:
        raise config_invalid(
            f"data.maxLength {max_length} exceeds the model's {longest} positions", f"set it to at most {longest}"
        )
    if model.init == "Scratch":
        config.vocab_size = max(len(tokenizer), 1)
        for name in ("bos_token_id", "eos_token_id"):
            if (getattr(config, name, None) or 0) >= len(tokenizer):
                setattr(config, name, tokenizer.sep_token_id)
        try:
            created: PreTrainedModel = Auto.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, AttributeError) as error:
            raise config_invalid(f"model.config: transformers cannot build {model.source}: {error}") from error
        return created
    try:
        loaded: PreTrainedModel = Auto.from_pretrained(
            folder if folder is not None else model.source, config=config, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise _not_here(model, error) from error
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        if out_of_memory(error) is not None:
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise config_invalid(
            f"model.source {model.source!r}: its weights cannot be read: {first[:200]}",
            "fetch or save the model again; the file may be cut off",
        ) from error
    return loaded


def _config(model: Model, folder: Path | None) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        if folder is None and model.init == "Scratch" and "/" not in model.source:
            return AutoConfig.for_model(model.source, **model.config)
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder if folder is not None else model.source, revision=model.revision or "main", local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise _not_here(model, error) from error
    for name, value in model.config.items():
        if not hasattr(config, name):
            raise config_invalid(
                f"model.config: {config.model_type} has no field {name!r}",
                "see the configuration class in transformers",
            )
        setattr(config, name, value)
    return config


def _not_here(model: Model, error: Exception) -> Exception:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return config_invalid(
        f"model.source {model.source!r} cannot be loaded here: {first[:200]}",
        "name a folder, a package:// resource, or a hub id that is in the local cache (workers do not download models)",
    )


def describe(folder: Path, labels: Sequence[str], facts: dict[str, Any]) -> None:
    """Write what a server of the model wants to know beside its weights: labels and how it was made."""
    (folder / "orchestrate.json").write_text(
        json.dumps({"labels": list(labels), **facts}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
