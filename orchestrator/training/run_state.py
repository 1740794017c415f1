"""The whole state of a run with a DeepSpeed engine: into a checkpoint and out of one, at any world size and ZeRO stage.

Files of a checkpoint (layout `ranges`): `rank-00000.bin` and so on hold what each rank had of masters, optimizer state and
buffers; frozen weights and the model's own files are shared between checkpoints, written once; `trainer.json` holds where
the run is and the engine's scalars. Nothing in them depends on how many ranks wrote them: the manifest says which element of
which parameter lies where, and each rank reads the slices that it needs.

The same ranges go into memory that outlives the ranks (`publish`, `adopt`), where an engine offers it. Frozen weights do not,
as long as they are what the model was made with: every worker has made the same model from the same source. Once a
checkpoint or an import has put others in their place, they are published with the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from orchestrator import storage
from orchestrator.domain.errors import CorruptCheckpoint, StorageError
from orchestrator.training.agreement import Peers
from orchestrator.training.errors import Reason, WorkerFailed, config_invalid
from orchestrator.training.fragments import EngineState, Local
from orchestrator.training.link import Memory, Source
from orchestrator.training.saving import Part, all_refused, as_worker_failure, stored
from orchestrator.training.snapshot import Packed, Snapshot, chunks_of, lay_out, read_into

T = TypeVar("T")
RANGES = "ranges"
MEMORY = "memory"
"""The name of the file that a shard in memory would be."""
DEEPSPEED = "deepspeed"
"""The layout of the first builds."""
TRAINER_FILE = "trainer.json"
FROZEN = "frozen"
_BEGIN_ANEW = "use another checkpoint.uri, or delete the old checkpoints"


class CheckpointRefused(WorkerFailed):
    """What a checkpoint holds is not what its manifest says: an older one may do."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.STORAGE_FAILED, message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (CheckpointRefused, (self.message,))


class RunState:
    """Every method is called by all ranks at the same step, unless it says otherwise."""

    def __init__(
        self,
        torch: Any,
        peers: Peers,
        store: storage.Store,
        engine: EngineState,
        facts: storage.Manifest,
        model_files: Mapping[str, bytes],
        *,
        frozen_once: bool,
    ) -> None:
        """`facts`: what is the same in every manifest of this attempt. `model_files`: rank 0's, by name.

        `frozen_once`: weights that no optimizer steps never change, so they are written once. Somebody else's loop may move
        them itself (a teacher that follows by averages); there they are copied like the rest.
        """
        self._torch = torch
        self._peers = peers
        self._store = store
        self._engine = engine
        self._facts = facts
        self._model_files = model_files
        self._once = {FROZEN} if frozen_once else set()
        changing, frozen = self._plan()
        self._snapshot = Snapshot(torch, changing, self._snapshot_file(), pinned=peers.device.startswith("cuda"))
        mine = (*self._snapshot.fragments, *lay_out(frozen, self._frozen_file()).fragments)
        self._fragments = tuple(fragment for part in peers.gather(mine) for fragment in part)
        self._memory: Memory | None = None
        self._shard: Packed | None = None
        self._with_frozen = False

    # ---- out of memory

    def parts(self, where: Mapping[str, Any], more: Sequence[Part] = ()) -> list[Part]:
        """Copy this rank's state; the files that it writes. Not to be called while those of the call before are written.

        `where` the run is comes back from `restore`; `more` are further files of this rank.
        """
        changing, frozen = self._plan()
        self._snapshot.take(changing)
        parts = [Part(self._snapshot_file(), self._snapshot.chunks, large=True)]
        if frozen:
            parts.append(Part(self._frozen_file(), lambda: chunks_of(self._torch, frozen), shared=True, large=True))
        if self._peers.rank == 0:
            document = {"where": where, "engine": self._engine.scalars()}
            text = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
            parts.append(Part(TRAINER_FILE, lambda: [text]))
            parts += [
                Part(f"model/{name}", lambda content=content: [content], shared=True)  # type: ignore[misc]
                for name, content in self._model_files.items()
            ]
        return [*parts, *more]

    def facts(self) -> storage.Manifest:
        """What the manifest says in every checkpoint of this attempt; step, samples and the like are to be filled in."""
        return replace(self._facts, parameters=self._engine.parameters, fragments=self._fragments)

    # ---- into memory

    def restore(self, attempt: int) -> tuple[storage.Listed | None, list[storage.Listed], Any]:
        """Take up the newest whole checkpoint: (it, those that were refused on the way, where the run was or None).

        Each byte is verified when it is read; a checkpoint that turns out not to be whole makes way for the one before.
        When there are some and none is whole, the run does not begin anew by itself: WorkerFailed.
        """

        def look() -> list[storage.Listed]:
            stored(lambda: self._store.clean_leftovers(attempt + 1))
            found = stored(self._store.list)
            for listed in found:
                if listed.whole:
                    self._refuse_foreign(listed)
            return found

        refused: list[storage.Listed] = []
        for listed in self._peers.first(look):
            if listed.whole:
                try:
                    return listed, refused, self.load(listed)
                except CheckpointRefused as error:
                    listed = replace(listed, why=error.message)
            refused.append(listed)
        if refused:
            raise all_refused(self._store.uri, refused)
        return None, [], None

    def load_step(self, step: int) -> None:
        """Take up the checkpoint of `step`, of this run. Raises WorkerFailed when it is gone or not whole."""

        def find() -> storage.Listed:
            found = next((item for item in stored(self._store.list) if item.step == step), None)
            if found is None or not found.whole:
                why = "is gone" if found is None else f"is refused: {found.why}"
                raise WorkerFailed(Reason.STORAGE_FAILED, f"the checkpoint of step {step} {why}")
            return found

        self.load(self._peers.first(find))

    def load(self, listed: storage.Listed) -> Any:
        """Take up this checkpoint; where the run was. Raises CheckpointRefused on every rank when it is not whole."""

        def read() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(self._store.read(listed, TRAINER_FILE))
            return found

        manifest = listed.manifest
        assert manifest is not None
        document = self._peers.first(lambda: _checked(read))
        reader = self._peers.settle(lambda: _checked(lambda: self._store.ranges(listed)))
        try:
            self._engine.load(
                manifest.parameters,
                lambda local: _checked(lambda: read_into(self._torch, reader, local)),
                document["engine"],
            )
        finally:
            reader.close()
        return document["where"]

    # ---- memory that outlives the rank

    def keep_in(self, memory: Memory, every: int | None = None) -> None:
        """Make ready to publish into `memory`, every so many steps if that is said. After what the run begins from is
        there."""
        self._with_frozen = any(self._peers.gather(self._engine.frozen_moved))
        self._shard = Packed(self._torch, self._engine.to_save(), MEMORY, () if self._with_frozen else (FROZEN,))
        self._memory = memory
        memory.open(self._shard.layout.fragments, self._shard.layout.total_bytes, every=every)

    def publish(self, step: int, where: Mapping[str, Any]) -> None:
        """Copy this rank's shard of `step`. No collective; may wait, as `Memory.buffer` says."""
        assert self._memory is not None
        assert self._shard is not None
        room = self._memory.buffer(step)
        if self._shard.layout.total_bytes:
            self._shard.copy(self._engine.to_save(), self._torch.frombuffer(room, dtype=self._torch.uint8))
        self._memory.publish(
            step,
            {
                "identity": self._facts.fingerprint,
                "frozen": self._with_frozen,
                "where": where,
                "engine": self._engine.scalars(),
            },
        )

    def adopt(self, source: Source) -> Any:
        """Take up what an earlier generation published; where the run was.

        Raises WorkerFailed on every rank when any of them cannot. The engine is to be thrown away then: some of its state may
        have been overwritten.
        """

        def look() -> dict[str, Any]:
            document = dict(source.document)
            if document["identity"] != self._facts.fingerprint:
                raise WorkerFailed(Reason.STORAGE_FAILED, "the state in memory is of another run")
            return document

        document = self._peers.share(look)[0]

        def read(local: Local) -> None:
            if local.kind != FROZEN or document["frozen"]:
                read_into(self._torch, source, local)

        self._engine.load(self._engine.parameters, read, document["engine"])
        return document["where"]

    def _refuse_foreign(self, found: storage.Listed) -> None:
        manifest = found.manifest
        assert manifest is not None
        if manifest.layout == DEEPSPEED:
            raise config_invalid(
                f"{found.uri} was written by an earlier version, as a folder of DeepSpeed's",
                f"use another checkpoint.uri and begin from it: checkpoint.importFrom.uri={found.uri}/deepspeed",
            )
        if manifest.layout != RANGES:
            raise config_invalid(
                f"{found.uri} has the layout {manifest.layout!r}, which the built-in trainer does not write",
                _BEGIN_ANEW,
            )
        if manifest.fingerprint != self._facts.fingerprint:
            raise config_invalid(
                f"{found.uri} belongs to a run with another model, other data, or another batch size or seed",
                _BEGIN_ANEW,
            )

    def _plan(self) -> tuple[Sequence[Local], Sequence[Local]]:
        """This rank's share of what changes, and of what never does."""
        plan = self._engine.to_save()
        changing = [local for local in plan if local.kind not in self._once]
        return changing, [local for local in plan if local.kind in self._once]

    def _snapshot_file(self) -> str:
        return f"rank-{self._peers.rank:05d}.bin"

    def _frozen_file(self) -> str:
        return f"frozen-{self._peers.rank:05d}.bin"


def _checked(work: Callable[[], T]) -> T:
    """Read something of a checkpoint; content that is not what was written leaves as CheckpointRefused."""
    try:
        return work()
    except CorruptCheckpoint as error:
        raise CheckpointRefused(str(error)) from error
    except StorageError as error:
        raise as_worker_failure(error, error.__cause__) from error
