"""A model as a folder that transformers, and those who serve models, can load."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import storage
from orchestrator.domain.errors import StorageError
from orchestrator.storage import storage_error
from orchestrator.training import models
from orchestrator.training.preparation import Prepared
from orchestrator.training.saving import as_worker_failure


def small_files(model: Any, prepared: Prepared, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """What a reader of the weights needs to know beside them: the model's configuration and tokenizer, as files."""
    with tempfile.TemporaryDirectory() as name:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(name)
        prepared.tokenizer.save_pretrained(name)
        models.describe(Path(name), prepared.labels, dict(facts))
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


def replace(
    final: Path, model: Any, state: dict[str, Any] | None, prepared: Prepared, facts: Mapping[str, Any], attempt: int
) -> None:
    """Write the folder aside and give it its name, in place of an earlier one. Raises WorkerFailed for what the disk says.

    `state`: all weights, by name.
    """
    partial = final.with_name(f"model.partial-{attempt}")
    try:
        for leftover in final.parent.glob("model.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        model.save_pretrained(partial, state_dict=state)
        prepared.tokenizer.save_pretrained(partial)
        models.describe(partial, prepared.labels, dict(facts))
        files = storage.LocalFiles()
        for name in files.tree(partial):
            files.sync(partial / name)
        files.sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        files.sync(final.parent)
    except OSError as error:
        raise as_worker_failure(storage_error("write the model to", final, error), error) from error
    except StorageError as error:
        raise as_worker_failure(error, error.__cause__) from error
