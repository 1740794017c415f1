"""Old checkpoints go; the newest whole one, the best one and what is not ours stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import storage
from tests.storage.faulty import Crash, CrashingFiles
from tests.storage.samples import save


def steps(uri: Path) -> list[int]:
    return [item.step for item in storage.list_checkpoints(str(uri))]


def test_the_newest_and_the_best_are_kept(uri: Path) -> None:
    """keep=2 leaves the two newest and the newest one marked best."""
    for step in range(1, 7):
        save(uri, step, best=step in (1, 3))
    removed = storage.prune(str(uri), keep=2)
    assert steps(uri) == [6, 5, 3]
    assert sorted(path.name for path in removed) == ["step-00000001", "step-00000002", "step-00000004"]


def test_the_best_can_be_given_up(uri: Path) -> None:
    """With keep_best off, age alone decides."""
    for step in range(1, 4):
        save(uri, step, best=step == 1)
    storage.prune(str(uri), keep=1, keep_best=False)
    assert steps(uri) == [3]


def test_the_newest_whole_one_survives_behind_spoilt_ones(uri: Path) -> None:
    """When the newer ones are damaged in ways that only hashing shows, the newest one that is whole is not deleted."""
    for step in range(1, 5):
        save(uri, step)
    for step in (3, 4):
        (uri / f"step-{step:08d}" / "rank-00000.pt").write_bytes(b"RANDOM numbers")
    storage.prune(str(uri), keep=1)
    found, _ = storage.newest_whole(str(uri))
    assert found is not None
    assert found.step == 2


def test_nothing_is_deleted_when_nothing_is_whole(uri: Path) -> None:
    """If every checkpoint fails its hashes, all of them stay for somebody to look at."""
    for step in range(1, 4):
        folder = save(uri, step).folder
        (folder / "rank-00000.pt").write_bytes(b"RANDOM numbers")
    assert storage.prune(str(uri), keep=1) == []
    assert steps(uri) == [3, 2, 1]


def test_unknown_folders_are_left_alone(uri: Path) -> None:
    """Folders with other names, and refused ones, are not pruned."""
    for step in range(1, 4):
        save(uri, step)
    (uri / "step-1").mkdir()
    (uri / "mine").mkdir()
    (uri / "step-00000002" / storage.MANIFEST).unlink()
    storage.prune(str(uri), keep=1)
    assert sorted(path.name for path in uri.iterdir()) == ["mine", "step-00000002", "step-00000003", "step-1"]


def test_a_deletion_that_is_cut_leaves_no_checkpoint_that_looks_whole(uri: Path) -> None:
    """Cutting the deletion anywhere leaves a whole checkpoint or a leftover that the next attempt clears."""
    for allowed in range(2):
        folder = uri / str(allowed)
        save(folder, 1)
        save(folder, 2)
        with pytest.raises(Crash):
            storage.prune(str(folder), keep=1, files=CrashingFiles(allowed))
        assert all(storage.verify(item.folder).whole for item in storage.list_checkpoints(str(folder)))
        storage.clean_leftovers(str(folder), 1)
        assert all(path.name in ("step-00000001", "step-00000002") for path in folder.iterdir())


def test_only_leftovers_of_earlier_attempts_are_cleared(uri: Path) -> None:
    """An attempt clears what dead ones left and never what a later one is writing."""
    for attempt in (1, 2, 3):
        storage.begin(str(uri), 5, attempt)
    removed = storage.clean_leftovers(str(uri), 3)
    assert sorted(path.name for path in removed) == ["step-00000005.partial-1", "step-00000005.partial-2"]
    assert [path.name for path in uri.iterdir()] == ["step-00000005.partial-3"]


def test_keeping_none_is_refused(uri: Path) -> None:
    """keep must be at least one."""
    with pytest.raises(ValueError, match="at least 1"):
        storage.prune(str(uri), keep=0)
