"""The journal in a SQLite file: one writer, readers beside it, and every commit on the disk before it is acknowledged.

WAL with `synchronous=FULL`: a commit is one fsync of the log; a process that is killed, or a machine that loses its
power, leaves whole commits only. The epoch is checked inside the transaction of every commit.

Limits: one machine. The file must lie on a local disk, since WAL needs shared memory, which network file systems lack.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.accounting import Entry
from orchestrator.controller.journal.base import SCHEMA_VERSION, Commit, JobRecord, StepRow
from orchestrator.controller.journal.readers import Readers
from orchestrator.controller.journal.rows import (
    JOB_COLUMNS,
    WRITTEN_BY,
    check_schema,
    entry_from_row,
    job_from_row,
    job_row,
    ledger_rows,
    ledger_uids,
    step_from_row,
    step_rows,
    story_from_row,
    story_rows,
    story_uids,
)
from orchestrator.domain.errors import InternalError, StaleEpoch, StorageError
from orchestrator.lifecycle import StoryEntry

BUSY_SECONDS = 5.0
"""How long to wait for another process that holds the file."""

_TABLES = (
    "CREATE TABLE writer (epoch INTEGER NOT NULL, schema INTEGER NOT NULL, written_by TEXT NOT NULL)",
    """CREATE TABLE jobs (
        ordinal INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, namespace TEXT NOT NULL, name TEXT NOT NULL,
        digest TEXT NOT NULL, document TEXT NOT NULL, working_dir TEXT NOT NULL, state TEXT NOT NULL,
        created_ns INTEGER NOT NULL, idempotency_key TEXT, current INTEGER NOT NULL, driver_id TEXT,
        driver_seq INTEGER NOT NULL, progress TEXT NOT NULL, result TEXT, samples_kept INTEGER NOT NULL, cost TEXT)""",
    """CREATE TABLE story (
        uid TEXT NOT NULL, number INTEGER NOT NULL, at_ns INTEGER NOT NULL, event TEXT NOT NULL,
        phase_before TEXT NOT NULL, phase_after TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
        PRIMARY KEY (uid, number)) WITHOUT ROWID""",
    """CREATE TABLE ledger (
        uid TEXT NOT NULL, number INTEGER NOT NULL, entry TEXT NOT NULL, PRIMARY KEY (uid, number)) WITHOUT ROWID""",
    """CREATE TABLE steps (
        uid TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL, report TEXT NOT NULL,
        PRIMARY KEY (uid, step, attempt)) WITHOUT ROWID""",
)
_COLUMNS = ", ".join(JOB_COLUMNS)
_PUT_JOB = (
    f"INSERT INTO jobs ({_COLUMNS}) VALUES ({', '.join('?' * len(JOB_COLUMNS))}) "  # noqa: S608 - columns of ours
    f"ON CONFLICT (uid) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in JOB_COLUMNS[1:])}"
)
_ADD_STORY = "INSERT INTO story VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_ENTRY = "INSERT INTO ledger VALUES (?, ?, ?)"
_PUT_STEP = "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?)"
_GET_JOBS = f"SELECT {_COLUMNS} FROM jobs ORDER BY ordinal"  # noqa: S608 - columns of ours
_GET_STORY = (
    "SELECT number, at_ns, event, phase_before, phase_after, reason, message FROM story "
    "WHERE uid = ? AND number > ? ORDER BY number LIMIT ?"
)
_GET_STEPS = "SELECT step, attempt, report FROM steps WHERE uid = ? AND step > ? ORDER BY step, attempt LIMIT ?"
_GET_STEPS_OF = (
    "SELECT step, attempt, report FROM steps WHERE uid = ? AND step > ? AND attempt = ? ORDER BY step LIMIT ?"
)


class SqliteJournal:
    """See `base.Journal`. Raises `StorageError` when the file cannot be opened or is not a journal of this version."""

    def __init__(self, file: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        self._file = file
        self._busy_seconds = busy_seconds
        self._lock = threading.Lock()
        self._epoch: int | None = None
        with self._told():
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            self._writer = self._connect()
            try:
                self._prepare()
            except BaseException:
                self._writer.close()
                raise
        self._readers = Readers(self._connect, str(file))

    def open_epoch(self) -> int:
        with self._transaction():
            self._check_schema()
            self._writer.execute(
                "UPDATE writer SET epoch = epoch + 1, schema = ?, written_by = ?", (SCHEMA_VERSION, WRITTEN_BY)
            )
            epoch = int(self._writer.execute("SELECT epoch FROM writer").fetchone()[0])
        self._epoch = epoch
        return epoch

    def commit(self, commit: Commit) -> None:
        if self._epoch is None:
            raise InternalError("the journal is written to before an epoch was opened")
        with self._transaction():
            newest = int(self._writer.execute("SELECT epoch FROM writer").fetchone()[0])
            if newest != self._epoch:
                raise StaleEpoch(
                    f"the journal {self._file} is at epoch {newest}; this controller opened {self._epoch}",
                    hint="another controller has taken over; this one must stop",
                )
            self._write(commit)

    def jobs(self) -> list[JobRecord]:
        return self._read(_GET_JOBS, (), job_from_row)

    def story(self, uid: str, after: int = 0, limit: int = 1_000) -> list[tuple[int, StoryEntry]]:
        return self._read(_GET_STORY, (uid, after, limit), story_from_row)

    def ledger(self, uid: str, after: int = 0) -> list[Entry]:
        query = "SELECT entry FROM ledger WHERE uid = ? AND number > ? ORDER BY number"
        return self._read(query, (uid, after), entry_from_row)

    def steps(
        self, uid: str, after_step: int = -1, limit: int = 100_000, attempt: int | None = None
    ) -> Sequence[StepRow]:
        def make(row: Sequence[Any]) -> StepRow:
            return step_from_row(uid, row)

        if attempt is None:
            return self._read(_GET_STEPS, (uid, after_step, limit), make)
        return self._read(_GET_STEPS_OF, (uid, after_step, attempt, limit), make)

    def size_bytes(self) -> int:
        """The file with its log."""
        files = (self._file, self._file.with_name(f"{self._file.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self._readers.close()
        with self._lock:
            self._writer.close()

    def _write(self, commit: Commit) -> None:
        write = self._writer.executemany
        if commit.jobs:
            write(_PUT_JOB, [job_row(record) for record in commit.jobs.values()])
        if commit.story:
            write(_ADD_STORY, story_rows(commit.story, self._last("story", story_uids(commit))))
        if commit.ledger:
            write(_ADD_ENTRY, ledger_rows(commit.ledger, self._last("ledger", ledger_uids(commit))))
        if commit.steps:
            write(_PUT_STEP, step_rows(commit.steps))

    def _last(self, table: str, uids: Sequence[str]) -> dict[str, int]:
        query = f"SELECT coalesce(max(number), 0) FROM {table} WHERE uid = ?"  # noqa: S608 - one of our two tables
        return {uid: int(self._writer.execute(query, (uid,)).fetchone()[0]) for uid in uids}

    def _read(self, query: str, values: tuple[Any, ...], make: Callable[[Sequence[Any]], Any]) -> list[Any]:
        with self._told(), self._readers.one() as connection:
            return [make(row) for row in connection.execute(query, values)]

    def _connect(self) -> sqlite3.Connection:
        """A connection that any one thread at a time may use, in which we begin and end transactions ourselves."""
        connection = sqlite3.connect(
            self._file, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        """Make the tables of a new file; check those of an old one."""
        mode = self._writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                f"the journal {self._file} cannot be kept in WAL mode (it is {mode!r})",
                hint="put ORCHESTRATE_HOME on a local disk, or name a Postgres database in ORCHESTRATE_JOURNAL",
            )
        with self._transaction():
            tables = {row[0] for row in self._writer.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                for table in _TABLES:
                    self._writer.execute(table)
                self._writer.execute("INSERT INTO writer VALUES (0, ?, ?)", (SCHEMA_VERSION, WRITTEN_BY))
                return
            if "writer" not in tables:
                raise StorageError(
                    f"{self._file} is a SQLite file but not a journal of orchestrate",
                    hint="move it away or choose another home",
                )
            self._check_schema()

    def _check_schema(self) -> None:
        version, written_by = self._writer.execute("SELECT schema, written_by FROM writer").fetchone()
        check_schema(str(self._file), version, written_by)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._told():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what SQLite and the system say into a `StorageError` that says what to do."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from error
        except OSError as error:
            what = f"the journal {self._file} cannot be opened ({error.strerror or error})"
            raise StorageError(
                what, hint="make room, or set ORCHESTRATE_HOME to a folder that you can write to"
            ) from error

    def _explained(self, error: sqlite3.Error) -> StorageError:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if isinstance(code, int) else None
        why, hint = _EXPLAINED.get(primary or sqlite3.SQLITE_ERROR, ("failed", "see the controller's log"))
        return StorageError(f"the journal {self._file} {why} ({error})", hint=hint)


_EXPLAINED = {
    sqlite3.SQLITE_FULL: ("cannot grow: the disk is full", "make room; nothing of this commit was written"),
    sqlite3.SQLITE_IOERR: ("cannot be read or written: the disk failed", "look at the disk and at its free room"),
    sqlite3.SQLITE_READONLY: ("is read-only", "make the file and its folder writable, or choose another home"),
    sqlite3.SQLITE_PERM: ("may not be opened", "it belongs to another user? choose another home"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "make its folder writable, or choose another home"),
    sqlite3.SQLITE_BUSY: ("is locked by another process", "end whatever has the file open, then try again"),
    sqlite3.SQLITE_LOCKED: ("is locked by another process", "end whatever has the file open, then try again"),
    sqlite3.SQLITE_CORRUPT: ("is damaged", "restore it from a backup, or move it away and start afresh"),
    sqlite3.SQLITE_NOTADB: ("is not a SQLite file", "move it away, or restore it from a backup"),
}
