"""What SQLite or the disk refuses is told as a `StorageError` that says what to do, and nothing is half-written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.controller.home import Home
from orchestrator.controller.journal import open_journal
from orchestrator.controller.journal.sqlite import SqliteJournal
from orchestrator.controller.settings import Settings
from orchestrator.domain.errors import StorageError, UsageError
from tests.journal.samples import everything


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(file: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(file, busy_seconds=0.05)
    journal.open_epoch()
    yield journal
    journal.close()


def test_a_full_disk(journal: SqliteJournal) -> None:
    """When the file cannot grow the commit fails whole, says that the disk is full, and later ones work again."""
    journal.commit(everything("u1", 1))
    (pages,) = journal._writer.execute("PRAGMA page_count").fetchone()
    journal._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="disk is full") as told:
        journal.commit(everything("u2", 2_000))
    assert told.value.hint is not None
    assert "make room" in told.value.hint
    journal._writer.execute("PRAGMA max_page_count = 1000000")
    journal.commit(everything("u3", 1))
    assert [job.uid for job in journal.jobs()] == ["u1", "u3"]


def test_a_read_only_file(journal: SqliteJournal) -> None:
    """A file that became read-only is told as such."""
    journal._writer.execute("PRAGMA query_only = 1")
    with pytest.raises(StorageError, match="is read-only") as told:
        journal.commit(everything("u1", 1))
    assert told.value.hint is not None
    assert "writable" in told.value.hint


def test_locked_by_another_process(journal: SqliteJournal, file: Path) -> None:
    """A file that somebody else holds is told after a bounded wait, and usable when it is free again."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked by another process"):
        journal.commit(everything("u1", 1))
    other.execute("ROLLBACK")
    other.close()
    journal.commit(everything("u1", 1))


def test_a_damaged_file(journal: SqliteJournal, file: Path) -> None:
    """A file whose pages were overwritten is told as damaged."""
    journal.commit(everything("u1", 200))
    journal.close()
    with open(file, "r+b") as raw:
        raw.seek(4096)
        raw.write(b"\xff" * 4096 * 4)
    with pytest.raises(StorageError, match=r"is damaged|malformed") as told:  # noqa: PT012 - opening or reading may find it
        damaged = SqliteJournal(file)
        try:
            damaged.jobs()
            damaged.story("u1")
        finally:
            damaged.close()
    assert told.value.hint is not None
    assert "backup" in told.value.hint


def test_not_a_database(file: Path) -> None:
    """A file that is something else is refused and left as it is."""
    file.write_text("these are my notes, not a database\n" * 200)
    with pytest.raises(StorageError, match="not a SQLite file"):
        SqliteJournal(file)
    assert file.read_text().startswith("these are my notes")


def test_somebody_elses_database(file: Path) -> None:
    """A SQLite file of another program is refused by name."""
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE songs (title TEXT)")
    other.close()
    with pytest.raises(StorageError, match="not a journal of orchestrate"):
        SqliteJournal(file)


def test_a_newer_schema(journal: SqliteJournal, file: Path) -> None:
    """A journal of a later schema is refused with the version that wrote it."""
    journal._writer.execute("UPDATE writer SET schema = 7, written_by = 'orchestrate 9.8.7'")
    journal.close()
    with pytest.raises(StorageError, match=r"schema 7, written by orchestrate 9\.8\.7.*knows schemas 1 to 2") as told:
        SqliteJournal(file)
    assert told.value.hint is not None
    assert "upgrade to orchestrate 9.8.7 or newer" in told.value.hint


def test_a_schema_that_grew_meanwhile(journal: SqliteJournal, file: Path) -> None:
    """1. An older controller opens the file. 2. A newer one makes it its own. 3. The older one may not take it back."""
    older = SqliteJournal(file)
    journal._writer.execute("UPDATE writer SET schema = 7, written_by = 'orchestrate 9.8.7'")
    with pytest.raises(StorageError, match="has schema 7"):
        older.open_epoch()
    older.close()
    assert journal._writer.execute("SELECT epoch, schema FROM writer").fetchone() == (1, 7)


def test_no_folder(tmp_path: Path) -> None:
    """A home that is not there is told with the way out."""
    with pytest.raises(StorageError, match="No such file"):
        SqliteJournal(tmp_path / "nowhere" / "journal.sqlite")


def test_only_its_owner_may_read_it(file: Path, journal: SqliteJournal) -> None:
    """The file and its log are not readable for others."""
    journal.commit(everything("u1", 1))
    for path in (file, file.with_name("journal.sqlite-wal")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_settings_choose_the_journal(tmp_path: Path) -> None:
    """Without a URL the journal is in the home folder; a URL of another scheme is refused without showing it."""
    journal = open_journal(Settings(), Home(tmp_path))
    journal.close()
    assert (tmp_path / "journal.sqlite").exists()
    with pytest.raises(UsageError, match="scheme is 'mysql'") as told:
        open_journal(Settings(journal="mysql://me:hush@db/x"), Home(tmp_path))
    assert "hush" not in str(told.value)
