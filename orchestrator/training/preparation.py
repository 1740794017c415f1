"""What of a run does not depend on who trains it: data and tokenizer, and the model with its first weights.

All of it is the same on every rank and at every number of ranks, so a worker that waits for a place has it done already.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

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


def prepare_once(work: Assignment) -> Prepared:
    """What `prepare` gives, made by one process of this machine for its attempt and read by all others: workers that stand by
    are made again and again, beside those that train.

    Kept in the run's folder, with a hash; what is torn, or cannot be written, is made anew.
    """
    folder = work.run_dir / "prepared"
    file = folder / f"{work.attempt}-{socket.gethostname()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"lock-{socket.gethostname()}").open("w")
    except OSError:  # no room, or read-only: whoever can, writes; this worker prepares for itself
        return prepare(*specified(work), work.working_dir)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = file.read_bytes() if file.is_file() else b""
        if xxhash.xxh3_128_digest(content[16:]) == content[:16]:
            found: Prepared = pickle.loads(content[16:])  # noqa: S301 - this attempt wrote it, into a folder of the job's own
            return found
        prepared = prepare(*specified(work), work.working_dir)
        for old in folder.glob(f"*-{socket.gethostname()}*"):
            if not old.name.startswith("lock-"):
                old.unlink()
        content = pickle.dumps(prepared, pickle.HIGHEST_PROTOCOL)
        with suppress(OSError):
            aside = file.with_name(f"{file.name}.unfinished")
            aside.write_bytes(xxhash.xxh3_128_digest(content) + content)
            os.replace(aside, file)
    return prepared


def prepare(model: Model, data: Data, working_dir: Path) -> Prepared:
    """Read, clean, split and tokenise. A rank that was not warmed up does all of it itself: seconds for what fits in memory,
    and no shared folder."""
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
