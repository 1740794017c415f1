"""Saving and restoring the whole state of a run, all ranks together, through `orchestrator.storage`.

A checkpoint holds DeepSpeed's own files (model, optimizer, loss scaler), one file of random-number state a rank, and
`trainer.json`: step, samples seen, early stopping. Every byte goes through `HashingWriter`, so that a full disk is
noticed as such, on whichever rank, and told to all before the next collective.

First form: the files can be read only by the same world size and ZeRO stage; anything else is refused with a reason.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from orchestrator import storage
from orchestrator.domain.errors import StorageError
from orchestrator.storage.checkpoints import is_full, storage_error
from orchestrator.training.agreement import Peers
from orchestrator.training.errors import Reason, WorkerFailed, config_invalid
from orchestrator.training.reporting import StepReports

LAYOUT = "deepspeed"
TRAINER_FILE = "trainer.json"
Open = Callable[[Path], BinaryIO]


@dataclass
class Progress:
    """Where a run is: what must survive a restart beside weights and random numbers."""

    step: int = 0
    samples_seen: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_without_improvement: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest validation metrics."""
    stopped_early: bool = False
    reports: StepReports = field(default_factory=StepReports)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Progress:
        return cls(**(document | {"reports": StepReports(**document["reports"])}))


def open_for_writing(path: Path) -> BinaryIO:
    return path.open("wb")


class _Hashed(io.RawIOBase):
    """A file for writing that remembers the sha256 and size of what it was given, and the OSError it met."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            self.error = error  # torch wraps it in a RuntimeError without the errno
            raise
        self.sha256.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()


class HashingWriter:
    """DeepSpeed's checkpoint-engine interface (create, save, load, commit, makedirs). Failures of `save` are kept.

    They must not be raised inside `save_checkpoint`: other ranks wait there in barriers. `settle` raises them.
    """

    def __init__(self, torch: Any, open_file: Open | None = None) -> None:
        self._torch = torch
        self._open = open_file if open_file is not None else open_for_writing
        self.name = "orchestrate"
        self.written: dict[Path, storage.FileEntry] = {}
        self.failure: WorkerFailed | None = None

    def reset(self) -> None:
        self.written = {}
        self.failure = None

    def save(self, state_dict: Any, path: str) -> None:
        self._write(Path(path), lambda file: self._torch.save(state_dict, file))

    def save_json(self, value: Mapping[str, Any], path: Path) -> None:
        text = json.dumps(value, indent=1, sort_keys=True) + "\n"
        self._write(path, lambda file: file.write(text.encode()))

    def load(self, path: str, map_location: Any = None) -> Any:
        # The folder is this job's own and was verified; DeepSpeed's files hold objects that weights_only refuses.
        return self._torch.load(path, map_location=map_location, weights_only=False)

    def create(self, info: Any) -> None:
        """Nothing to prepare: the folder is made before DeepSpeed is asked to save."""

    def commit(self, info: Any) -> bool:
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            Path(path).mkdir(parents=True, exist_ok=exist_ok)
        except OSError as error:
            self._failed(Path(path), error)

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        return False

    def set_commit_info(self, info: Any) -> None:
        """Only decoupled engines keep it."""

    def get_commit_info(self) -> None:
        return None

    def cleanup(self) -> None:
        """No background work to wait for."""

    def preserves_storage_sharing(self) -> bool:
        return True

    def _write(self, path: Path, write: Callable[[Any], Any]) -> None:
        if self.failure is not None:
            return
        hashed: _Hashed | None = None
        try:
            with self._open(path) as file:
                hashed = _Hashed(file)
                write(hashed)
        except OSError as error:
            self._failed(path, error)
            return
        except RuntimeError:
            if hashed is None or hashed.error is None:
                raise
            self._failed(path, hashed.error)
            return
        self.written[path] = storage.FileEntry(path.name, hashed.size, hashed.sha256.hexdigest())

    def _failed(self, path: Path, error: OSError) -> None:
        self.failure = as_worker_failure(storage_error("write", path, error), error)
        self.failure.__cause__ = error


def as_worker_failure(error: StorageError, cause: BaseException | None) -> WorkerFailed:
    """A storage error with the reason that the controller tells apart: full, or failed otherwise."""
    full = isinstance(cause, OSError) and is_full(cause)
    return WorkerFailed(Reason.STORAGE_FULL if full else Reason.STORAGE_FAILED, error.what, error.hint)


def stored(work: Callable[[], Any]) -> Any:
    """Run a storage operation; its StorageError leaves as WorkerFailed."""
    try:
        return work()
    except StorageError as error:
        raise as_worker_failure(error, error.__cause__) from error


@dataclass
class Saver:
    """Saves and restores one run's checkpoints. Every method is called by all ranks at the same step."""

    torch: Any
    peers: Peers
    uri: str
    attempt: int
    stage: int
    fingerprint: str
    keep: int
    verify: bool
    world: storage.World
    versions: Mapping[str, str]

    def newest(self) -> tuple[storage.Listed | None, list[storage.Listed]]:
        """The newest whole checkpoint and those refused, as rank 0 sees them, after clearing dead attempts' leftovers."""

        def look() -> tuple[storage.Listed | None, list[storage.Listed]]:
            stored(lambda: storage.clean_leftovers(self.uri, self.attempt))
            found, refused = stored(lambda: storage.newest_whole(self.uri))
            if found is not None:
                self._refuse_foreign(found)
            return found, refused

        return self.peers.first(look)

    def restore(self, engine: Any, listed: storage.Listed) -> Progress:
        """Load weights, optimizer and random numbers of a verified checkpoint; returns where the run was."""
        engine.checkpoint_engine = HashingWriter(self.torch)
        engine.load_checkpoint(str(listed.folder), tag=LAYOUT)

        def rest() -> Progress:
            self._set_random_state(self.torch.load(listed.folder / self._rank_file(), weights_only=True))
            return Progress.from_document(json.loads((listed.folder / TRAINER_FILE).read_text(encoding="utf-8")))

        return self.peers.settle(rest)

    def load_weights(self, engine: Any, listed: storage.Listed) -> None:
        """Only what evaluation and export need; the whole state is read, since ZeRO keeps the weights in it."""
        engine.load_checkpoint(str(listed.folder), tag=LAYOUT)

    def save(
        self, engine: Any, progress: Progress, *, covers_ns: int, now_ns: Callable[[], int], best: bool
    ) -> storage.Listed:
        """Write and commit one checkpoint; on return it is durable. Raises WorkerFailed on every rank."""
        writer = HashingWriter(self.torch)

        def start() -> Path:
            partial: Path = stored(lambda: storage.begin(self.uri, progress.step, self.attempt))
            stored(lambda: storage.LocalFiles().make_folder(partial / LAYOUT))
            return partial

        partial = self.peers.first(start)
        engine.checkpoint_engine = writer
        engine.save_checkpoint(str(partial), tag=LAYOUT, save_latest=False)
        writer.save(self._random_state(), str(partial / self._rank_file()))
        if self.peers.rank == 0:
            writer.save_json(asdict(progress), partial / TRAINER_FILE)

        def written() -> dict[str, storage.FileEntry]:
            if writer.failure is not None:
                raise writer.failure
            names = {path: path.relative_to(partial).as_posix() for path in writer.written}
            return {
                names[path]: storage.FileEntry(names[path], entry.bytes, entry.sha256)
                for path, entry in writer.written.items()
            }

        parts = self.peers.share(written)

        def finish() -> storage.Listed:
            facts = storage.Manifest(
                global_step=progress.step,
                samples_seen=progress.samples_seen,
                world=self.world,
                zero_stage=self.stage,
                layout=LAYOUT,
                created_ns=now_ns(),
                covers_ns=covers_ns,
                attempt=self.attempt,
                metrics=progress.metrics,
                best=best,
                fingerprint=self.fingerprint,
                versions=self.versions,
            )
            expected = {name: entry for part in parts for name, entry in part.items()}
            committed: storage.Listed = stored(
                lambda: storage.commit(partial, facts, expected=expected, read_back=self.verify)
            )
            return committed

        return self.peers.first(finish)

    def prune(self, newest: storage.Listed) -> None:
        """Drop old checkpoints (rank 0). A failure to delete is no failure of the run: the next save tries again."""
        if self.peers.rank == 0:
            try:
                storage.prune(self.uri, keep=self.keep, verified=[newest.folder])
            except StorageError:
                return

    def _rank_file(self) -> str:
        return f"rank-{self.peers.rank:05d}.pt"

    def _refuse_foreign(self, found: storage.Listed) -> None:
        manifest = found.manifest
        assert manifest is not None
        if manifest.layout != LAYOUT:
            raise config_invalid(
                f"{found.folder} holds states of a user's function, not of the built-in trainer",
                "use another checkpoint.uri",
            )
        if manifest.world.size != self.world.size or manifest.zero_stage != self.stage:
            raise config_invalid(
                f"{found.folder} was written by {manifest.world.size} ranks with ZeRO stage {manifest.zero_stage}; "
                f"this run has {self.world.size} ranks and stage {self.stage}",
                "resume with the same workers and deepspeed.stage, or use another checkpoint.uri",
            )
        if manifest.fingerprint != self.fingerprint:
            raise config_invalid(
                f"{found.folder} belongs to a run with another model, other data, or another batch size or seed",
                "use another checkpoint.uri, or delete the old checkpoints",
            )

    def _random_state(self) -> dict[str, Any]:
        version, internal, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        return {
            "torch": self.torch.get_rng_state(),
            "cuda": self.torch.cuda.get_rng_state() if self.peers.device.startswith("cuda") else None,
            "python": [version, list(internal), gauss],
            "numpy": [
                str(name),
                self.torch.from_numpy(np.asarray(keys).astype(np.int64)),
                int(position),
                int(has_gauss),
                float(cached),
            ],
        }

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        self.torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            self.torch.cuda.set_rng_state(state["cuda"])
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
