"""Nothing that was damaged is taken for whole, and the newest whole one is found behind it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import storage
from orchestrator.domain.errors import NotFound, StorageError
from orchestrator.storage import BLOCK_BYTES
from tests.storage.samples import FROZEN, contents, facts, save, trainer, weights

LARGE = "states/rank-00000.bin"


def flip(path: Path, position: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(bytes(content))


def drop_digest(folder: Path) -> None:
    body = json.loads((folder / storage.MANIFEST).read_text())
    body["global_step"] = 99
    (folder / storage.MANIFEST).write_text(json.dumps(body))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda folder: flip(folder / LARGE, 500), "block 0 (bytes 0 to 999)"),
    "flipped bit of a small file": (lambda folder: flip(folder / "trainer.json", 5), "trainer.json does not match its sha256"),
    "truncated file": (lambda folder: (folder / LARGE).write_bytes(b"x" * 999), "999 bytes"),
    "missing file": (lambda folder: (folder / "trainer.json").unlink(), "is missing"),
    "extra file": (lambda folder: (folder / "stranger").write_bytes(b""), "not in its manifest"),
    "no manifest": (lambda folder: (folder / storage.MANIFEST).unlink(), "never finished"),
    "torn manifest": (
        lambda folder: (folder / storage.MANIFEST).write_bytes((folder / storage.MANIFEST).read_bytes()[:100]),
        "torn",
    ),
    "empty manifest": (lambda folder: (folder / storage.MANIFEST).write_bytes(b""), "torn"),
    "edited manifest": (drop_digest, "own digest"),
    "list as manifest": (lambda folder: (folder / storage.MANIFEST).write_text("[]"), "not a JSON object"),
    "later format": (
        lambda folder: (folder / storage.MANIFEST).write_text('{"format": "orchestrate-checkpoint/9"}'),
        "orchestrate-checkpoint/1",
    ),
    "other name": (lambda folder: folder.rename(folder.with_name("step-00000009")), "step 2"),
    "no shared file": (
        lambda folder: next((folder.parent / "shared").glob("*.from-1")).unlink(), ".from-1 is missing"
    ),
    "flipped bit of a shared file": (
        lambda folder: flip(next((folder.parent / "shared").glob("*.from-1")), 3), ".from-1 does not match"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name_and_the_older_one_taken(store: storage.Store, damage: str) -> None:
    """Each kind of damage to the newest checkpoint is told in words, and the one before it is chosen."""
    save(store, 1)
    newest = save(store, 2, frozen=FROZEN)
    spoil, words = DAMAGES[damage]
    spoil(Path(newest.uri))
    found, refused = store.newest_whole()
    assert found is not None
    assert found.step == 1
    assert len(refused) == 1
    assert words in str(refused[0].why)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_anywhere_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One bit turned over in any file, manifest and shared file included, makes the checkpoint refused, by the file's name."""
    root = tmp_path_factory.mktemp("bits")
    store = storage.open_store(str(root))
    listed = save(store, 2, frozen=FROZEN)
    names = [name for name in storage.LocalFiles().tree(root) if ".claim-" not in name]
    name = data.draw(st.sampled_from(names))
    path = root / name
    before = path.read_bytes()
    flip(path, data.draw(st.integers(0, len(before) - 1)), 1 << data.draw(st.integers(0, 7)))
    checked = store.verify(listed.uri)
    if path.name == storage.MANIFEST:
        # White space outside strings is the one thing that may change without a change of meaning.
        assert not checked.whole or json.loads(path.read_bytes()) == json.loads(before)
    else:
        assert name.removeprefix("step-00000002/") in str(checked.why)


def test_the_list_is_newest_first_and_ignores_foreign_names(store: storage.Store, root: Path) -> None:
    """Order is by step, not by name's age; other folders and half-written ones are no checkpoints."""
    for step in (3, 100_000_000, 20):
        save(store, step)
    (root / "notes").mkdir()
    store.draft(30, 4).begin()
    assert [item.step for item in store.list()] == [100_000_000, 20, 3]
    nowhere = storage.open_store(str(root / "nowhere"))
    assert nowhere.list() == []
    assert nowhere.newest_whole() == (None, [])


def test_verifying_what_is_not_there_is_not_found(store: storage.Store, root: Path) -> None:
    """A folder that does not exist, or lies elsewhere, is NotFound, not a refusal."""
    save(store, 2)
    for uri in (str(root / "step-00000001"), "/elsewhere/step-00000002"):
        with pytest.raises(NotFound):
            store.verify(uri)


def test_a_file_uri_names_the_same_store(store: storage.Store, root: Path) -> None:
    """`file://` and the plain path list and verify each other's checkpoints."""
    saved = save(storage.open_store(f"file://{root}"), 2)
    assert store.verify(f"file://{saved.uri}") == saved


def test_a_link_inside_counts_as_a_stranger(store: storage.Store, root: Path) -> None:
    """A symbolic link that the manifest does not know makes the checkpoint refused."""
    listed = save(store, 1)
    (Path(listed.uri) / "link").symlink_to(root)
    assert not store.verify(listed.uri).whole


def test_a_small_file_is_read_with_its_hash_checked(store: storage.Store) -> None:
    """What changed after the commit is not handed out, and a file that is not there is told by name."""
    listed = save(store, 1)
    assert store.read(listed, "trainer.json") == trainer(1)
    (Path(listed.uri) / "trainer.json").write_bytes(b"TRAINER NOW")
    with pytest.raises(StorageError, match=r"trainer\.json does not match"):
        store.read(listed, "trainer.json")
    with pytest.raises(StorageError, match="no file other"):
        store.read(listed, "other")


# ---- slices

ELEMENTS = (2 * BLOCK_BYTES + 1_000_000) // 4 + 3


class CountingFiles(storage.LocalFiles):
    """Adds up what is read."""

    def __init__(self) -> None:
        self.bytes = 0

    def read_into(self, path: Path, offset: int, out: memoryview) -> int:
        self.bytes += len(out)
        return super().read_into(path, offset, out)


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A checkpoint whose one parameter lies in two files, the larger of three blocks and an odd offset."""
    root = tmp_path_factory.mktemp("sliced")
    content = random.Random(5).randbytes(4 * ELEMENTS)
    draft = storage.open_store(str(root)).draft(1, 1)
    entries = [
        draft.write("large.bin", [b"odd", memoryview(content)[: 4 * (ELEMENTS - 10)]]),
        draft.write("small.bin", [content[4 * (ELEMENTS - 10) :]]),
    ]
    fragments = (
        storage.Fragment("w", "frozen", "float32", ELEMENTS - 10, ELEMENTS, "small.bin", 0),
        storage.Fragment("w", "frozen", "float32", 0, ELEMENTS - 10, "large.bin", 3),
    )
    parameters = (storage.Parameter("w", (ELEMENTS,), "float32", "frozen"),)
    draft.commit(facts(1, fragments=fragments, parameters=parameters), entries)
    return root, content


def reader(root: Path, files: storage.LocalFiles) -> storage.RangeReader:
    store = storage.LocalStore(str(root), root, files)
    return store.ranges(store.list()[0])


@settings(max_examples=30)
@given(ends=st.tuples(st.integers(0, ELEMENTS), st.integers(0, ELEMENTS)).map(sorted))
def test_any_slice_is_what_was_written(sliced: tuple[Path, bytes], ends: list[int]) -> None:
    """Elements [start, end) come back bit for bit, over blocks and files."""
    root, content = sliced
    start, end = ends
    out = bytearray(4 * (end - start))
    with reader(root, storage.LocalFiles()) as ranges:
        ranges.read_into("w", "frozen", start, end, memoryview(out))
    assert out == content[4 * start : 4 * end]


def test_a_small_slice_reads_only_its_blocks(sliced: tuple[Path, bytes]) -> None:
    """A slice inside one block reads that block, and its neighbours in the same block read nothing more."""
    root, _ = sliced
    files = CountingFiles()
    with reader(root, files) as ranges:
        files.bytes = 0
        for start in range(5_000, 6_000, 100):
            ranges.read_into("w", "frozen", start, start + 100, memoryview(bytearray(400)))
        assert files.bytes == BLOCK_BYTES
        assert ranges.kinds("w") == {"frozen"}
        assert ranges.kinds("v") == frozenset()
        assert ranges.dtype("w", "frozen") == "float32"


def test_a_slice_of_a_damaged_block_is_refused_and_others_are_read(sliced: tuple[Path, bytes], tmp_path: Path) -> None:
    """A flipped bit is named with file and block by whoever touches its block, and by nobody else."""
    root, content = sliced
    store = storage.open_store(str(tmp_path / "copy"))
    (tmp_path / "copy").mkdir()
    folder = tmp_path / "copy" / "step-00000001"
    folder.mkdir()
    for path in (root / "step-00000001").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    flip(folder / "large.bin", BLOCK_BYTES + 77)
    whole = memoryview(bytearray(4 * ELEMENTS))
    first = BLOCK_BYTES // 4 - 1
    with store.ranges(store.list()[0]) as ranges:
        ranges.read_into("w", "frozen", 0, first, whole[: 4 * first])
        assert whole[: 4 * first] == content[: 4 * first]
        for start, end in ((first, first + 5), (0, ELEMENTS)):
            with pytest.raises(StorageError, match=r"large\.bin does not match its hash in block 1 "):
                ranges.read_into("w", "frozen", start, end, whole[: 4 * (end - start)])
    assert "large.bin does not match its hash in block 1 (bytes 4194304 to 8388607)" in str(
        store.verify(str(folder)).why
    )
    (folder / "large.bin").write_bytes((folder / "large.bin").read_bytes()[:BLOCK_BYTES])
    facts = facts_of(store)
    with (
        storage.RangeReader(
            "there", facts.files, facts.fragments, {"large.bin": "step-00000001/large.bin"}, store._source()
        ) as ranges,
        pytest.raises(StorageError, match=r"large\.bin ends after"),
    ):
        ranges.read_into("w", "frozen", first + 10, first + 20, whole[:40])


def facts_of(store: storage.Store) -> storage.Manifest:
    manifest = store.list()[0].manifest
    assert manifest is not None
    return manifest


def test_what_the_checkpoint_does_not_have_is_told(store: storage.Store) -> None:
    """An unknown parameter or kind, elements beyond the end and a buffer of another size are refused in words."""
    with store.ranges(save(store, 1)) as ranges:
        with pytest.raises(StorageError, match="no exp_avg of w"):
            ranges.read_into("w", "exp_avg", 0, 1, memoryview(bytearray(4)))
        with pytest.raises(StorageError, match="lacks its elements 250 to 299"):
            ranges.read_into("w", "master", 200, 300, memoryview(bytearray(400)))
        with pytest.raises(ValueError, match="takes 40 bytes, not 4"):
            ranges.read_into("w", "master", 0, 10, memoryview(bytearray(4)))


def test_a_store_in_memory_keeps_the_same_promises() -> None:
    """The object layout saves, lists, reads slices, prunes and shares without a server."""
    store = storage.open_store("memory://bucket/checkpoints")
    for step in (1, 2, 3):
        save(store, step, frozen=FROZEN)
    assert [item.step for item in store.list()] == [3, 2, 1]
    found, refused = store.newest_whole()
    assert found is not None
    assert refused == []
    assert contents(store, found) == {"weights": weights(3), "trainer": trainer(3), "shared": FROZEN}
    store.prune(storage.Retention(1))
    assert [item.uri for item in store.list()] == ["memory://bucket/checkpoints/step-00000003.attempt-1"]
