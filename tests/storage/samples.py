"""Small checkpoints to try things on: one parameter of 250 elements in `ranges`, a small file, and, if wanted, a shared one."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator import storage

ELEMENTS = 250
FROZEN = b"frozen weights" * 20


def weights(step: int) -> bytes:
    """1,000 bytes that differ from step to step."""
    return bytes((step * 31 + index * 7) % 256 for index in range(4 * ELEMENTS))


def trainer(step: int) -> bytes:
    return b'{"step": %d}' % step


def facts(step: int, attempt: int = 1, **fields: object) -> storage.Manifest:
    """A manifest of one rank's checkpoint, before its files are known."""
    whole: dict[str, object] = {
        "global_step": step,
        "samples_seen": step * 32,
        "world": storage.World(1, 8, 2),
        "zero_stage": 2,
        "layout": "ranges",
        "created_ns": step,
        "covers_ns": step,
        "attempt": attempt,
        "fingerprint": "f",
        "parameters": (storage.Parameter("w", (5, 50), "float32", "trained", ("tied",)),),
        "fragments": (
            storage.Fragment("w", "master", "float32", 0, 100, "states/rank-00000.bin", 0),
            storage.Fragment("w", "master", "float32", 100, ELEMENTS, "states/rank-00000.bin", 400),
        ),
        **fields,
    }
    return storage.Manifest(**whole)  # type: ignore[arg-type]


def write_files(draft: storage.Draft, step: int, *, frozen: bytes | None = None) -> list[storage.FileEntry]:
    """The files of a checkpoint, the larger one in uneven pieces."""
    pieces = memoryview(weights(step))
    entries = [
        draft.write("states/rank-00000.bin", [pieces[:1], pieces[1:700], b"", pieces[700:]], large=True),
        draft.write("trainer.json", [trainer(step)]),
    ]
    return entries if frozen is None else [*entries, draft.write_shared([frozen])]


def save(
    store: storage.Store, step: int, attempt: int = 1, *, frozen: bytes | None = None, **fields: object
) -> storage.Listed:
    draft = store.draft(step, attempt)
    draft.begin()
    return draft.commit(facts(step, attempt, **fields), write_files(draft, step, frozen=frozen), read_back=True)


def contents(store: storage.Store, listed: storage.Listed) -> Mapping[str, bytes]:
    """Everything that the store gives back of a checkpoint."""
    assert listed.manifest is not None
    out = bytearray(4 * ELEMENTS)
    with store.ranges(listed) as ranges:
        ranges.read_into("w", "master", 0, ELEMENTS, memoryview(out))
    read = {"weights": bytes(out), "trainer": store.read(listed, "trainer.json")}
    for entry in listed.manifest.files:
        if entry.shared:
            read["shared"] = store.read(listed, entry.path)
    return read
