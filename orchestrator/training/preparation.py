"""What of a run does not depend on who trains it: data and tokenizer, and the model with its first weights.

All of it is the same on every rank and at every number of ranks, so a worker that waits for a place has it done already.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.spec.models import Data, Model
from orchestrator.training import dataset, models, tokens
from orchestrator.training.assignment import Assignment
from orchestrator.training.errors import Reason, WorkerFailed
from orchestrator.training.sources import read_rows


@dataclass(frozen=True)
class Prepared:
    """Data and tokenizer of a run, the same on every rank."""

    tokenizer: Any
    splits: dict[str, tokens.Tokens]
    labels: tuple[str, ...]
    counts: dict[str, Any]

    def digest(self) -> str:
        parts = [*(self.splits[name].digest() for name in dataset.SPLITS), *self.labels]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def prepare(model: Model, data: Data, working_dir: Path) -> Prepared:
    """Read, clean, split and tokenise. Every rank does all of it: seconds for what fits in memory, and no shared folder."""
    causal = model.task == "causal-lm"
    places = {"source": data.source, "train": data.train, "validation": data.validation, "test": data.test}
    files = {
        name: read_rows(place.uri, place.format, data.cleaning.encoding, working_dir)
        for name, place in places.items()
        if place is not None
    }
    found = dataset.build(files, data, labelled=not causal)
    texts = {name: [sample.text for sample in samples] for name, samples in found.splits.items()}
    tokenizer = models.tokenizer_for(model, texts["train"], working_dir)
    if causal:
        splits = {name: tokens.pack(tokenizer, texts[name], data.max_length) for name in dataset.SPLITS}
    else:
        number = {label: index for index, label in enumerate(found.labels)}
        splits = {
            name: tokens.encode(tokenizer, texts[name], [number[s.label or ""] for s in samples], data.max_length)
            for name, samples in found.splits.items()
        }
    if not len(splits["train"]):
        raise WorkerFailed(Reason.DATA_INVALID, "the training texts hold no block of two tokens", "give more text")
    return Prepared(tokenizer, splits, found.labels, found.counts)


@dataclass(frozen=True)
class Ready:
    """What a worker has before it has a rank."""

    prepared: Prepared
    model: Any
    """With its first weights, in no engine yet."""


def specified(assignment: Assignment) -> tuple[Model, Data]:
    """Model and data of a job for the built-in trainer. Raises ConfigInvalid when one is missing."""
    spec = assignment.spec
    if spec.model is None or spec.data is None:
        raise WorkerFailed(
            Reason.CONFIG_INVALID, "the built-in trainer needs spec.model and spec.data", "or set spec.entrypoint"
        )
    return spec.model, spec.data


def create_model(torch: Any, assignment: Assignment, prepared: Prepared) -> Any:
    """The model with its first weights, in fp32 on the host: read from its source, or drawn by the job's seed."""
    model, data = specified(assignment)
    torch.manual_seed(assignment.spec.training.seed)
    return models.create(model, prepared.labels, prepared.tokenizer, data.max_length, assignment.working_dir)
