"""A checkpoint is whole or not there, wherever the write is cut."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest

from orchestrator import storage
from orchestrator.domain.errors import StorageError
from tests.storage.faulty import Crash, CrashingFiles, FullFiles, store_on
from tests.storage.samples import FROZEN, contents, facts, save, trainer, weights, write_files


def steps_of_a_save(folder: Path) -> int:
    """How many operations a save of a second checkpoint makes, counted by one that is never cut."""
    save(storage.open_store(str(folder)), 1, frozen=FROZEN)
    files = CrashingFiles(10_000)
    save(store_on(folder, files), 2, frozen=b"thawed")
    return 10_000 - files.allowed


@pytest.mark.parametrize("torn", [False, True])
def test_a_cut_at_any_step_leaves_the_old_list_or_the_new_one(tmp_path: Path, torn: bool) -> None:
    """Cutting the save at each of its operations leaves the first checkpoint newest, or the second one whole."""
    count = steps_of_a_save(tmp_path / "counted")
    assert count >= 18
    seen = set()
    for allowed in range(count):
        root = tmp_path / f"cut-{allowed}"
        store = storage.open_store(str(root))
        save(store, 1, frozen=FROZEN)
        files = CrashingFiles(allowed, torn=torn)
        with pytest.raises(Crash):
            save(store_on(root, files), 2, frozen=b"thawed")
        assert files.crashes == 1
        found, refused = store.newest_whole()
        assert found is not None
        assert refused == []
        seen.add(found.step)
        assert contents(store, found)["weights"] == weights(found.step)
        store.clean_leftovers(2)
        names = [f"step-{step:08d}" for step in range(1, found.step + 1)]
        assert sorted(path.name for path in root.iterdir()) == ["shared", *names]
        assert len(list((root / "shared").iterdir())) == found.step
        assert save(store, 2, attempt=2, frozen=b"thawed").whole
    assert seen == {1, 2}


def test_the_manifest_names_every_file_and_its_own_digest(store: storage.Store, root: Path) -> None:
    """What was saved is read back as it was: facts, files, sizes, hashes, parameters, fragments."""
    saved = save(store, 7, metrics={"loss": 0.5}, best=True)
    listed = store.list()
    assert [item.uri for item in listed] == [saved.uri] == [str(root / "step-00000007")]
    manifest = listed[0].manifest
    assert manifest == saved.manifest
    assert manifest is not None
    assert [(entry.path, entry.bytes, bool(entry.sha256), len(entry.xxh3)) for entry in manifest.files] == [
        ("states/rank-00000.bin", 1000, False, 1),
        ("trainer.json", 11, True, 0),
    ]
    body = json.loads((root / "step-00000007" / storage.MANIFEST).read_text())
    assert body["format"] == "orchestrate-checkpoint/1"
    assert body["fragments"][1] == {
        "name": "w", "kind": "master", "dtype": "float32", "start": 100, "end": 250, "file": "states/rank-00000.bin",
        "offset": 400,
    }  # fmt: skip
    assert body["parameters"][0]["aliases"] == ["tied"]
    assert len(body["digest"]) == 64
    assert manifest.total_bytes == 1011


@pytest.mark.parametrize("name", [storage.MANIFEST, "trainer.json"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.EROFS, "writable"),
        (errno.EIO, "check the disk"),
    ],
)
def test_a_disk_that_refuses_says_what_to_do_and_lists_nothing(
    store: storage.Store, root: Path, name: str, number: int, words: str
) -> None:
    """A full, read-only or broken disk is a StorageError with a way out, and the older checkpoint stays the newest."""
    save(store, 1)
    files = FullFiles(name, number)
    with pytest.raises(StorageError, match=words) as caught:
        save(store_on(root, files), 2)
    assert files.refused == 1
    assert isinstance(caught.value.__cause__, OSError)
    assert [item.step for item in store.list()] == [1]


def test_a_file_that_reads_back_otherwise_is_not_committed(store: storage.Store, root: Path) -> None:
    """Bytes that changed between the write and the commit stop it; without read-back the writer's hashes are believed."""
    draft = store.draft(1, 1)
    entries = write_files(draft, 1)
    (root / "step-00000001.partial-1" / "trainer.json").write_bytes(b"x" * 11)
    with pytest.raises(StorageError, match=r"reads back other.*trainer\.json"):
        draft.commit(facts(1), entries, read_back=True)
    assert store.list() == []
    listed = draft.commit(facts(1), entries, read_back=False)
    assert not store.verify(listed.uri).whole


def test_a_file_that_vanished_or_shrank_before_the_commit_stops_it(store: storage.Store, root: Path) -> None:
    """Every file that a writer promised must be there with its size when the manifest is written."""
    draft = store.draft(1, 1)
    entries = write_files(draft, 1)
    place = root / "step-00000001.partial-1" / "trainer.json"
    place.write_bytes(b"x")
    with pytest.raises(StorageError, match="1 bytes"):
        draft.commit(facts(1), entries, read_back=False)
    place.unlink()
    with pytest.raises(StorageError, match=r"trainer\.json is missing"):
        draft.commit(facts(1), entries, read_back=False)


def test_fragments_that_leave_a_gap_are_not_committed(store: storage.Store) -> None:
    """A manifest whose fragments do not make up every parameter once from its files is a StorageError, not a checkpoint."""

    def fragment(start: int, end: int, offset: int = 0, file: str = "states/rank-00000.bin") -> storage.Fragment:
        return storage.Fragment("w", "master", "float32", start, end, file, offset)

    cases = {
        "lacks its elements 100 to 119": (fragment(0, 100), fragment(120, 250)),
        "elements 90 to 99 twice": (fragment(0, 100), fragment(90, 250)),
        "200 of 250": (fragment(0, 200),),
        "outside states": (fragment(0, 250, 4),),
        "outside nowhere": (fragment(0, 250, 0, "nowhere"),),
    }
    for words, fragments in cases.items():
        draft = store.draft(1, 1)
        entries = write_files(draft, 1)
        with pytest.raises(StorageError, match=words):
            draft.commit(facts(1, fragments=fragments), entries, read_back=False)
    assert store.list() == []


def test_the_same_step_twice_keeps_the_whole_one(store: storage.Store, root: Path) -> None:
    """A repeated step leaves the checkpoint that is there, and no half-written folder."""
    first = save(store, 3, attempt=1)
    assert save(store, 3, attempt=1) == first
    assert save(store, 3, attempt=2) == first
    assert [path.name for path in root.iterdir()] == ["step-00000003"]


def test_a_spoilt_folder_makes_way_for_a_whole_one(store: storage.Store, root: Path) -> None:
    """When the folder of that step is not whole, it is set aside under another name and the new one takes its place."""
    spoilt = root / "step-00000003"
    for _ in range(2):
        save(store, 3, attempt=2)
        (spoilt / "trainer.json").write_bytes(b"TRAINER NOW")
    assert save(store, 3, attempt=2).whole
    assert store.verify(str(spoilt)).whole
    names = ["step-00000003", "step-00000003.refused-2", "step-00000003.refused-2.2"]
    assert sorted(path.name for path in root.iterdir()) == names


def test_what_an_earlier_try_left_does_not_get_into_the_checkpoint(store: storage.Store, root: Path) -> None:
    """A file of a try that failed is cleared at the commit of the next one, begun anew or not."""
    store.draft(1, 1).write("stranger", [b"old"])
    draft = store.draft(1, 1)
    assert draft.commit(facts(1), write_files(draft, 1)).whole
    assert store.verify(str(root / "step-00000001")).whole
    other = store.draft(2, 1)
    other.write("stranger", [b"old"])
    other.drop()
    assert sorted(path.name for path in root.iterdir()) == ["step-00000001"]


def test_a_world_that_was_cut_off_cannot_harm_the_one_after_it(store: storage.Store) -> None:
    """1. World 1 writes step 6 and is cut off from its coordinator. 2. World 2 clears what it left and saves step 4. 3. World 1
    cannot commit what was cleared, and step 4 stays the newest. 4. World 1 goes on and saves step 8: whole, and of the same
    history, so it counts. 5. World 2 comes to step 8 too: the one that is there stays, and nothing of both is mixed."""
    old = store.draft(6, 1, 1)
    old.begin()
    written = write_files(old, 6)
    store.clean_leftovers(1, 2)
    new = store.draft(4, 1, 2)
    new.begin()
    new.commit(facts(4), write_files(new, 4))
    with pytest.raises(StorageError):
        old.commit(facts(6), written)
    assert [listed.step for listed in store.list()] == [4]
    late = store.draft(8, 1, 1)
    same = store.draft(8, 1, 2)
    late.begin()
    same.begin()
    entries = write_files(late, 8)
    store.clean_leftovers(1, 1)  # by the older world: what the newer one has begun is let be
    theirs = write_files(same, 8)
    kept = late.commit(facts(8), entries)
    assert same.commit(facts(8), theirs).uri == kept.uri
    newest, refused = store.newest_whole()
    assert newest is not None
    assert (newest.step, refused) == (8, [])
    assert contents(store, newest)["weights"] == weights(8)


def test_an_unknown_scheme_is_refused_by_name() -> None:
    """A scheme that no store is known by is an error that names it and the ones that are."""
    with pytest.raises(StorageError, match=r"ftp://.*s3://"):
        storage.open_store("ftp://server/checkpoints")


def test_a_file_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    """A folder that cannot be made is told with its path and a hint."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="prepare a checkpoint"):
        storage.open_store(str(tmp_path / "file" / "checkpoints")).draft(1, 1).begin()


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../other", "a/../b", "a//b", storage.MANIFEST])
def test_a_path_that_leads_elsewhere_is_a_defect(store: storage.Store, path: str) -> None:
    """A draft writes only below itself, and never its manifest."""
    with pytest.raises(ValueError, match="not a path"):
        store.draft(1, 1).write(path, [b""])


def test_a_manifest_from_before_ranges_is_still_read(store: storage.Store, root: Path) -> None:
    """A manifest of format 1 without parameters, and with a sha256 a file, is a whole checkpoint."""
    save(store, 4, layout="deepspeed", fragments=(), parameters=())
    place = root / "step-00000004" / storage.MANIFEST
    body = json.loads(place.read_text())
    del body["parameters"], body["digest"]
    hashes = {name: storage.entry_of(name, [text]).sha256 for name, text in
              {"states/rank-00000.bin": weights(4), "trainer.json": trainer(4)}.items()}  # fmt: skip
    body["files"] = [{"path": e["path"], "bytes": e["bytes"], "sha256": hashes[e["path"]]} for e in body["files"]]
    body["digest"] = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    place.write_text(json.dumps(body, indent=1))
    listed = store.verify(str(root / "step-00000004"))
    assert listed.why is None
    assert store.read(listed, "trainer.json") == trainer(4)
