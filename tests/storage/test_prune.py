"""Old checkpoints go; the newest whole one, what retention keeps and what is not ours stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import storage
from orchestrator.storage import Held, Retention, retained
from tests.storage.faulty import Crash, CrashingFiles, store_on
from tests.storage.samples import FROZEN, contents, save


def steps(store: storage.Store) -> list[int]:
    return [item.step for item in store.list()]


def shared(root: Path) -> list[str]:
    return sorted(path.name[64:] for path in (root / "shared").iterdir())


def spoil(listed: storage.Listed) -> None:
    (Path(listed.uri) / "trainer.json").write_bytes(b"TRAINER NOW")


# ---- the rule

held = st.builds(
    lambda rows: [Held(step, created, best) for step, (created, best) in enumerate(rows, start=1)],
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=25),
)
retentions = st.builds(Retention, st.integers(1, 4), best=st.booleans(), every_ns=st.none() | st.integers(1, 30))


@given(held, retentions)
def test_what_is_kept_is_the_newest_the_best_and_one_a_period(rows: list[Held], retention: Retention) -> None:
    """The kept are exactly the union of the three rules, each by its own definition."""
    kept = retained(rows, retention)
    wanted = {row.step for row in rows[-retention.last :]}
    if retention.best:
        wanted |= {max((row.step for row in rows if row.best), default=0)} - {0}
    if retention.every_ns is not None:
        period = retention.every_ns
        wanted |= {
            row.step
            for row in rows
            if not any(
                later.step > row.step and later.created_ns // period == row.created_ns // period for later in rows
            )
        }
    assert kept == wanted


@given(held, retentions)
def test_pruning_after_every_save_ends_where_pruning_once_does(rows: list[Held], retention: Retention) -> None:
    """Nothing that the end would keep is deleted on the way to it."""
    there: list[Held] = []
    for row in rows:
        there = [item for item in [*there, row] if item.step in retained([*there, row], retention)]
    assert {row.step for row in there} == retained(rows, retention)


@pytest.mark.parametrize("fields", [{"last": 0}, {"last": 1, "every_ns": 0}])
def test_keeping_none_is_refused(fields: dict[str, int]) -> None:
    """At least the newest is kept, and a period is longer than nothing."""
    with pytest.raises(ValueError, match=r"at least 1|longer than nothing"):
        Retention(**fields)  # type: ignore[arg-type]


# ---- the store


def test_the_newest_and_the_best_are_kept(store: storage.Store) -> None:
    """last=2 leaves the two newest and the newest one marked best."""
    for step in range(1, 7):
        save(store, step, best=step in (1, 3))
    removed = store.prune(Retention(2))
    assert steps(store) == [6, 5, 3]
    assert sorted(Path(uri).name for uri in removed) == ["step-00000001", "step-00000002", "step-00000004"]


def test_one_a_period_is_kept(store: storage.Store) -> None:
    """With a period of 3 ns and checkpoints a nanosecond apart, the last of each three stays."""
    for step in range(1, 9):
        save(store, step)
    store.prune(Retention(1, every_ns=3))
    assert steps(store) == [8, 5, 2]


def test_the_best_can_be_given_up(store: storage.Store) -> None:
    """Without `best`, age alone decides."""
    for step in range(1, 4):
        save(store, step, best=step == 1)
    store.prune(Retention(1, best=False))
    assert steps(store) == [3]


def test_the_newest_whole_one_survives_behind_spoilt_ones(store: storage.Store) -> None:
    """When the newer ones are damaged in ways that only hashing shows, the newest one that is whole is not deleted."""
    for step in range(1, 5):
        listed = save(store, step)
        if step in (3, 4):
            spoil(listed)
    store.prune(Retention(1))
    found, _ = store.newest_whole()
    assert found is not None
    assert found.step == 2


def test_nothing_is_deleted_when_nothing_is_whole(store: storage.Store) -> None:
    """If every checkpoint fails its hashes, all of them stay for somebody to look at."""
    for step in range(1, 4):
        spoil(save(store, step))
    assert store.prune(Retention(1)) == []
    assert steps(store) == [3, 2, 1]


def test_unknown_folders_are_left_alone(store: storage.Store, root: Path) -> None:
    """Folders with other names, and refused ones, are not pruned."""
    for step in range(1, 4):
        save(store, step)
    (root / "step-1").mkdir()
    (root / "mine").mkdir()
    (root / "step-00000002" / storage.MANIFEST).unlink()
    store.prune(Retention(1))
    assert sorted(path.name for path in root.iterdir()) == ["mine", "step-00000002", "step-00000003", "step-1"]


def test_a_deletion_that_is_cut_leaves_no_checkpoint_that_looks_whole(root: Path) -> None:
    """Cutting the deletion anywhere leaves whole checkpoints and leftovers that the next attempt clears."""
    cuts = 0
    for allowed in range(100):
        place = root / str(allowed)
        store = storage.open_store(str(place))
        save(store, 1, frozen=b"old")
        store.clean_leftovers(2)
        save(store, 2, attempt=2, frozen=FROZEN)
        files = CrashingFiles(allowed)
        try:
            store_on(place, files).prune(Retention(1))
        except Crash:
            cuts += 1
        assert all(store.verify(item.uri).whole for item in store.list())
        newest = store.list()[0]
        assert contents(store, newest)["shared"] == FROZEN
        store.clean_leftovers(3)
        assert all(path.name in ("shared", "step-00000001", "step-00000002") for path in place.iterdir())
        assert len(shared(place)) == len(store.list())
        if not files.crashes:
            break
    assert cuts == 9


def test_only_leftovers_of_earlier_attempts_are_cleared(store: storage.Store, root: Path) -> None:
    """An attempt clears what dead ones left and never what a later one is writing."""
    for attempt in (1, 2, 3):
        store.draft(5, attempt).begin()
    removed = store.clean_leftovers(3)
    assert sorted(Path(uri).name for uri in removed) == ["step-00000005.partial-1", "step-00000005.partial-2"]
    assert [path.name for path in root.iterdir()] == ["step-00000005.partial-3"]


# ---- shared files


def test_a_shared_file_is_written_once_and_goes_with_its_last_checkpoint(store: storage.Store, root: Path) -> None:
    """Three checkpoints of two attempts share one file; it goes when the last one that refers to it has gone."""
    save(store, 1, frozen=FROZEN)
    save(store, 2, frozen=FROZEN)
    later = storage.open_store(str(root))
    later.clean_leftovers(2)
    save(later, 3, attempt=2, frozen=FROZEN)
    assert shared(root) == [".claim-2", ".from-1"]
    later.prune(Retention(1))
    assert contents(later, later.list()[0])["shared"] == FROZEN
    last = storage.open_store(str(root))
    last.clean_leftovers(3)
    save(last, 4, attempt=3)
    assert shared(root) == [".from-1"]
    last.prune(Retention(1))
    assert shared(root) == []


def test_a_claimed_file_stays_though_nothing_refers_to_it_yet(store: storage.Store, root: Path) -> None:
    """A file that a draft in flight has written or found is not deleted by another process's prune or clean-up."""
    save(store, 1, frozen=FROZEN)
    other = storage.open_store(str(root))
    other.clean_leftovers(2)
    draft = other.draft(3, 2)
    entry = draft.write_shared([FROZEN])
    save(store, 2)
    storage.open_store(str(root)).prune(Retention(1))
    other.clean_leftovers(2)
    assert steps(store) == [2]
    assert (root / entry.path).read_bytes() == FROZEN


def test_a_doomed_file_is_not_trusted(store: storage.Store, root: Path) -> None:
    """A writer that finds the mark of a deleter writes the file again under its own attempt."""
    first = store.draft(1, 1).write_shared([FROZEN])
    (root / f"{first.path}.doomed").write_bytes(b"")
    later = storage.open_store(str(root)).draft(1, 2).write_shared([FROZEN])
    assert (first.path[-7:], later.path[-7:]) == (".from-1", ".from-2")


def test_a_damaged_shared_file_is_not_built_upon(store: storage.Store, root: Path) -> None:
    """The checkpoint that refers to it is refused by name; the next attempt writes the file anew."""
    first = save(store, 1, frozen=FROZEN)
    place = next(path for path in (root / "shared").iterdir() if ".from-" in path.name)
    place.write_bytes(FROZEN[:-1] + b"!")
    assert f"shared/{place.name}" in str(store.verify(first.uri).why)
    later = storage.open_store(str(root))
    later.clean_leftovers(2)
    assert later.verify(save(later, 2, attempt=2, frozen=FROZEN).uri).whole


def test_no_shared_file_goes_while_a_manifest_cannot_be_read(store: storage.Store, root: Path) -> None:
    """A torn manifest may refer to any of them, so all of them stay."""
    listed = save(store, 1, frozen=FROZEN)
    (Path(listed.uri) / storage.MANIFEST).write_bytes(b"{")
    store.clean_leftovers(2)
    assert shared(root) == [".from-1"]


def test_a_wrong_digest_is_a_defect(store: storage.Store) -> None:
    """A content that does not have the digest it was announced with is not written under it."""
    with pytest.raises(ValueError, match="digest"):
        store.draft(1, 1).write_shared([FROZEN], "0" * 64)
    digest = storage.content_digest(storage.entry_of("", [FROZEN]))
    assert store.draft(1, 1).write_shared([FROZEN], digest) == store.draft(2, 1).write_shared(iter(()), digest)
