"""A checkpoint is whole or not there, wherever the write is cut."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from orchestrator import storage
from orchestrator.domain.errors import StorageError
from tests.storage.faulty import Crash, CrashingFiles, FullFiles
from tests.storage.samples import facts, save, write_files


def save_through(files: storage.LocalFiles, uri: Path, step: int) -> None:
    partial = storage.begin(str(uri), step, 1, files)
    write_files(partial, step)
    storage.commit(partial, facts(step), files=files)


def steps_of_a_save(tmp_path: Path) -> int:
    """How many operations a save of a second checkpoint makes, counted by one that is never cut."""
    uri = tmp_path / "counted"
    save(uri, 1)
    files = CrashingFiles(10_000)
    save_through(files, uri, 2)
    return 10_000 - files.allowed


@pytest.mark.parametrize("torn", [False, True])
def test_a_cut_at_any_step_leaves_the_old_list_or_the_new_one(tmp_path: Path, torn: bool) -> None:
    """Cutting the save at each of its operations leaves the first checkpoint newest, or the second one whole."""
    count = steps_of_a_save(tmp_path)
    assert count >= 8
    seen = set()
    for allowed in range(count):
        uri = tmp_path / f"cut-{allowed}"
        save(uri, 1)
        files = CrashingFiles(allowed, torn=torn)
        with pytest.raises(Crash):
            save_through(files, uri, 2)
        assert files.crashes == 1
        found, refused = storage.newest_whole(str(uri))
        assert found is not None
        assert refused == []
        seen.add(found.step)
        assert storage.verify(found.folder).whole
        storage.clean_leftovers(str(uri), 2)
        assert sorted(path.name for path in uri.iterdir()) == [f"step-{n:08d}" for n in range(1, found.step + 1)]
        assert save(uri, 2, attempt=2).whole
    assert seen == {1, 2}


def test_the_manifest_names_every_file_and_its_own_digest(uri: Path) -> None:
    """What was saved is read back as it was: facts, files, sizes, hashes."""
    saved = save(uri, 7, metrics={"loss": 0.5}, best=True)
    listed = storage.list_checkpoints(str(uri))
    assert [item.folder for item in listed] == [saved.folder]
    manifest = listed[0].manifest
    assert manifest == saved.manifest
    assert manifest is not None
    assert [(entry.path, entry.bytes) for entry in manifest.files] == [
        ("deepspeed/model.pt", 1000),
        ("rank-00000.pt", 14),
    ]
    body = json.loads((saved.folder / storage.MANIFEST).read_text())
    assert body["format"] == "orchestrate-checkpoint/1"
    assert body["fragments"] == []
    assert len(body["digest"]) == 64
    assert manifest.total_bytes == 1014


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.EROFS, "writable"),
        (errno.EIO, "check the disk"),
    ],
)
def test_a_disk_that_refuses_says_what_to_do_and_lists_nothing(uri: Path, number: int, words: str) -> None:
    """A full, read-only or broken disk is a StorageError with a way out, and the older checkpoint stays the newest."""
    save(uri, 1)
    files = FullFiles(number)
    partial = storage.begin(str(uri), 2, 1)
    write_files(partial, 2)
    with pytest.raises(StorageError, match=words):
        storage.commit(partial, facts(2), files=files)
    assert files.refused == 1
    assert [item.step for item in storage.list_checkpoints(str(uri))] == [1]


def test_a_file_that_reads_back_otherwise_is_not_committed(uri: Path) -> None:
    """Hashes of the writer that differ from the disk stop the commit; without read-back they are believed."""
    partial = storage.begin(str(uri), 1, 1)
    write_files(partial, 1)
    wrong = {"rank-00000.pt": storage.FileEntry("rank-00000.pt", 14, "0" * 64)}
    with pytest.raises(StorageError, match="reads back other"):
        storage.commit(partial, facts(1), expected=wrong)
    assert storage.list_checkpoints(str(uri)) == []
    assert storage.commit(partial, facts(1), expected=wrong, read_back=False).whole
    assert not storage.verify(uri / "step-00000001").whole


def test_a_file_that_vanished_before_the_commit_stops_it(uri: Path) -> None:
    """Every file that a writer promised must be there when the manifest is written."""
    partial = storage.begin(str(uri), 1, 1)
    write_files(partial, 1)
    promised = {"rank-00001.pt": storage.FileEntry("rank-00001.pt", 3, "0" * 64)}
    with pytest.raises(StorageError, match=r"rank-00001\.pt is missing"):
        storage.commit(partial, facts(1), expected=promised)


def test_the_same_step_twice_keeps_the_whole_one(uri: Path) -> None:
    """A repeated step leaves the checkpoint that is there, and no half-written folder."""
    first = save(uri, 3, attempt=1)
    again = save(uri, 3, attempt=2)
    assert again.manifest == first.manifest
    assert [path.name for path in uri.iterdir()] == ["step-00000003"]


def test_a_spoilt_folder_makes_way_for_a_whole_one(uri: Path) -> None:
    """When the folder of that step is not whole, it is set aside under another name and the new one takes its place."""
    spoilt = save(uri, 3)
    (spoilt.folder / "rank-00000.pt").write_bytes(b"RANDOM numbers")
    assert save(uri, 3, attempt=2).whole
    assert storage.verify(uri / "step-00000003").whole
    assert sorted(path.name for path in uri.iterdir()) == ["step-00000003", "step-00000003.refused-2"]


def test_a_remote_uri_is_refused_by_name() -> None:
    """A scheme that cannot be written yet is an error that names it."""
    with pytest.raises(StorageError, match="s3://"):
        storage.begin("s3://bucket/checkpoints", 1, 1)


def test_a_read_only_folder_is_a_storage_error(tmp_path: Path) -> None:
    """A folder that cannot be made is told with its path and a hint."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="prepare a checkpoint"):
        storage.begin(str(tmp_path / "file" / "checkpoints"), 1, 1)
