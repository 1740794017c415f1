"""The journal in a Postgres database: the same rows and the same promises as the SQLite one.

The one row of `orchestrate.writer` holds the epoch and the id of the newest commit. Every commit locks that row first,
which makes writers take turns, checks the epoch, and leaves its own id. When the connection is lost while a commit is
under way nobody knows whether it was applied: a new connection locks the row, which waits until the server has let go
of the lost one, and reads the id. If it is ours the commit stands; if not it is done again, once. When no new
connection can be had either, the caller is told that the commit failed; should it turn out at the next commit that it
was applied after all, the journal and the caller disagree, and that next commit is refused with `StaleEpoch`.

Limits: one controller a database. Reads that meet a lost connection are tried once more on a new one.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict

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

CONNECT_SECONDS = 10
LOCK_SECONDS = 10
"""How long to wait for another writer before giving up."""

_PREPARE_LOCK = 0x6F726368
"""Advisory lock held while the tables are made, so that two first starts do not trip over each other."""

_TABLES: tuple[LiteralString, ...] = (
    "CREATE SCHEMA IF NOT EXISTS orchestrate",
    """CREATE TABLE orchestrate.writer (
        epoch bigint NOT NULL, schema integer NOT NULL, written_by text NOT NULL, commit_id text NOT NULL)""",
    """CREATE TABLE orchestrate.jobs (
        ordinal bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, uid text NOT NULL UNIQUE, namespace text NOT NULL,
        name text NOT NULL, digest text NOT NULL, document json NOT NULL, working_dir text NOT NULL,
        state json NOT NULL, created_ns bigint NOT NULL, idempotency_key text, current boolean NOT NULL,
        driver_id text, driver_seq bigint NOT NULL, progress json NOT NULL, result json, samples_kept bigint NOT NULL,
        cost json)""",
    """CREATE TABLE orchestrate.story (
        uid text NOT NULL, number bigint NOT NULL, at_ns bigint NOT NULL, event text NOT NULL,
        phase_before text NOT NULL, phase_after text NOT NULL, reason text NOT NULL, message text NOT NULL,
        PRIMARY KEY (uid, number))""",
    """CREATE TABLE orchestrate.ledger (
        uid text NOT NULL, number bigint NOT NULL, entry json NOT NULL, PRIMARY KEY (uid, number))""",
    """CREATE TABLE orchestrate.steps (
        uid text NOT NULL, step bigint NOT NULL, attempt integer NOT NULL, report json NOT NULL,
        PRIMARY KEY (uid, step, attempt))""",
)
_PUT_JOB: LiteralString = """
    INSERT INTO orchestrate.jobs (uid, namespace, name, digest, document, working_dir, state, created_ns,
        idempotency_key, current, driver_id, driver_seq, progress, result, samples_kept, cost)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (uid) DO UPDATE SET namespace = excluded.namespace, name = excluded.name, digest = excluded.digest,
        document = excluded.document, working_dir = excluded.working_dir, state = excluded.state,
        created_ns = excluded.created_ns, idempotency_key = excluded.idempotency_key, current = excluded.current,
        driver_id = excluded.driver_id, driver_seq = excluded.driver_seq, progress = excluded.progress,
        result = excluded.result, samples_kept = excluded.samples_kept, cost = excluded.cost"""
_ADD_STORY: LiteralString = """
    INSERT INTO orchestrate.story SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[])"""
_ADD_ENTRY: LiteralString = "INSERT INTO orchestrate.ledger SELECT * FROM unnest(%s::text[], %s::bigint[], %s::json[])"
_PUT_STEP: LiteralString = """
    INSERT INTO orchestrate.steps SELECT * FROM unnest(%s::text[], %s::bigint[], %s::int[], %s::json[])
    ON CONFLICT (uid, step, attempt) DO UPDATE SET report = excluded.report"""
_LAST_STORY: LiteralString = "SELECT uid, max(number) FROM orchestrate.story WHERE uid = ANY(%s) GROUP BY uid"
_LAST_ENTRY: LiteralString = "SELECT uid, max(number) FROM orchestrate.ledger WHERE uid = ANY(%s) GROUP BY uid"
_GET_JOBS: LiteralString = """
    SELECT uid, namespace, name, digest, document::text, working_dir, state::text, created_ns, idempotency_key, current,
        driver_id, driver_seq, progress::text, result::text, samples_kept, cost::text
    FROM orchestrate.jobs ORDER BY ordinal"""
_GET_STORY: LiteralString = """
    SELECT number, at_ns, event, phase_before, phase_after, reason, message FROM orchestrate.story
    WHERE uid = %s AND number > %s ORDER BY number LIMIT %s"""
_GET_LEDGER: LiteralString = "SELECT entry::text FROM orchestrate.ledger WHERE uid = %s AND number > %s ORDER BY number"
_GET_STEPS: LiteralString = """
    SELECT step, attempt, report::text FROM orchestrate.steps
    WHERE uid = %s AND step > %s ORDER BY step, attempt LIMIT %s"""
_GET_STEPS_OF: LiteralString = """
    SELECT step, attempt, report::text FROM orchestrate.steps
    WHERE uid = %s AND step > %s AND attempt = %s ORDER BY step LIMIT %s"""
_GET_SIZE: LiteralString = """
    SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
    WHERE relnamespace = 'orchestrate'::regnamespace AND relkind = 'r'"""

Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresJournal:
    """See `base.Journal`. `url` may hold a password; it appears in no message."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._epoch: int | None = None
        self._in_doubt: set[str] = set()
        """Ids of commits that were, or may yet be, reported as failed while nobody can know."""
        self._place = "in Postgres"
        with self._told():
            self._place = _without_password(url)
            self._writer = self._connect()
            try:
                self._prepare()
            except BaseException:
                self._writer.close()
                raise
        self._readers = Readers(self._connect, self._place)

    def open_epoch(self) -> int:
        with self._lock, self._told():
            self._mend_writer()
            with self._writer.transaction(), self._writer.cursor() as cursor:
                self._check_schema(cursor)
                cursor.execute(
                    "UPDATE orchestrate.writer SET epoch = epoch + 1, schema = %s, written_by = %s RETURNING epoch",
                    (SCHEMA_VERSION, WRITTEN_BY),
                )
                epoch = int(_one(cursor)[0])
            self._epoch = epoch
            return epoch

    def commit(self, commit: Commit) -> None:
        if self._epoch is None:
            raise InternalError("the journal is written to before an epoch was opened")
        commit_id = uuid.uuid4().hex
        with self._lock, self._told():
            self._mend_writer()
            try:
                self._apply(commit, commit_id)
            except psycopg.OperationalError:
                if not self._writer.broken:
                    raise
                self._in_doubt.add(commit_id)
                self._mend_writer()
                self._apply(commit, commit_id)

    def jobs(self) -> list[JobRecord]:
        return self._read(_GET_JOBS, (), job_from_row)

    def story(self, uid: str, after: int = 0, limit: int = 1_000) -> list[tuple[int, StoryEntry]]:
        return self._read(_GET_STORY, (uid, after, limit), story_from_row)

    def ledger(self, uid: str, after: int = 0) -> list[Entry]:
        return self._read(_GET_LEDGER, (uid, after), entry_from_row)

    def steps(
        self, uid: str, after_step: int = -1, limit: int = 100_000, attempt: int | None = None
    ) -> Sequence[StepRow]:
        def make(row: Sequence[Any]) -> StepRow:
            return step_from_row(uid, row)

        if attempt is None:
            return self._read(_GET_STEPS, (uid, after_step, limit), make)
        return self._read(_GET_STEPS_OF, (uid, after_step, attempt, limit), make)

    def size_bytes(self) -> int:
        """The tables with their indexes; the server's own log is not counted."""
        return int(self._read(_GET_SIZE, (), lambda row: row[0])[0])

    def close(self) -> None:
        self._readers.close()
        with self._lock:
            self._writer.close()

    def _apply(self, commit: Commit, commit_id: str) -> None:
        """One transaction; nothing when the newest commit is this one already."""
        with self._writer.transaction(), self._writer.cursor() as cursor:
            cursor.execute("SELECT epoch, commit_id FROM orchestrate.writer FOR UPDATE")
            newest, newest_commit = _one(cursor)
            if newest_commit == commit_id:
                self._in_doubt.clear()
                return
            if newest != self._epoch:
                raise StaleEpoch(
                    f"the journal {self._place} is at epoch {newest}; this controller opened {self._epoch}",
                    hint="another controller has taken over; this one must stop",
                )
            if newest_commit in self._in_doubt:
                raise StaleEpoch(
                    f"the journal {self._place} holds a commit that was reported as failed when the connection was lost",
                    hint="this controller must start again from the journal",
                )
            cursor.execute("UPDATE orchestrate.writer SET commit_id = %s", (commit_id,))
            if commit.jobs:
                cursor.executemany(_PUT_JOB, [job_row(record) for record in commit.jobs.values()])
            if commit.story:
                last = _last(cursor, _LAST_STORY, story_uids(commit))
                cursor.execute(_ADD_STORY, _columns(story_rows(commit.story, last)))
            if commit.ledger:
                last = _last(cursor, _LAST_ENTRY, ledger_uids(commit))
                cursor.execute(_ADD_ENTRY, _columns(ledger_rows(commit.ledger, last)))
            if commit.steps:
                cursor.execute(_PUT_STEP, _columns(step_rows(commit.steps)))
        self._in_doubt.clear()

    def _read(self, query: LiteralString, values: tuple[Any, ...], make: Callable[[Sequence[Any]], Any]) -> list[Any]:
        with self._told():
            try:
                return self._read_once(query, values, make)
            except psycopg.OperationalError:
                self._readers.forget()
                return self._read_once(query, values, make)

    def _read_once(
        self, query: LiteralString, values: tuple[Any, ...], make: Callable[[Sequence[Any]], Any]
    ) -> list[Any]:
        with self._readers.one() as connection:
            return [make(row) for row in connection.execute(query, values).fetchall()]

    def _connect(self) -> Connection:
        known = conninfo_to_dict(self._url)
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=int(known.get("connect_timeout") or CONNECT_SECONDS),
            application_name="orchestrate",
        )
        connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'".encode())
        connection.execute("SET synchronous_commit = on")
        return connection

    def _mend_writer(self) -> None:
        """A new connection in place of one that is known to be lost."""
        if self._writer.closed:
            self._writer = self._connect()

    def _prepare(self) -> None:
        """Make the tables of a new database; check those of an old one."""
        with self._writer.transaction(), self._writer.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_PREPARE_LOCK,))
            cursor.execute("SELECT to_regclass('orchestrate.writer')")
            if _one(cursor)[0] is None:
                for table in _TABLES:
                    cursor.execute(table)
                cursor.execute("INSERT INTO orchestrate.writer VALUES (0, %s, %s, '')", (SCHEMA_VERSION, WRITTEN_BY))
                return
            self._check_schema(cursor)

    def _check_schema(self, cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
        """Locks the writer's row: what was found holds until the transaction ends."""
        cursor.execute("SELECT schema, written_by FROM orchestrate.writer FOR UPDATE")
        version, written_by = _one(cursor)
        check_schema(self._place, version, written_by)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what Postgres says into a `StorageError` that says what to do."""
        try:
            yield
        except psycopg.Error as error:
            why, hint = _explained(error)
            said = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(f"the journal {self._place} {why} ({said})", hint=hint) from error


def _explained(error: psycopg.Error) -> tuple[str, str]:
    match error:
        case psycopg.errors.DiskFull():
            return "cannot grow: the server's disk is full", "make room; nothing of this commit was written"
        case psycopg.errors.ReadOnlySqlTransaction():
            return "is read-only", "name the primary server, not a standby"
        case psycopg.errors.InsufficientPrivilege():
            return "may not be used", "let this user create a schema in the database, or give it the one there is"
        case psycopg.errors.LockNotAvailable() | psycopg.errors.QueryCanceled():
            return "is locked by another session", "end whatever holds the lock, then try again"
        case psycopg.errors.DataCorrupted() | psycopg.errors.IndexCorrupted():
            return "is damaged", "restore the database from a backup"
        case psycopg.OperationalError():
            return "cannot be reached", "start the server, and check ORCHESTRATE_JOURNAL"
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedColumn():
            return "is not a journal of this version", "name another database"
        case _:
            return "failed", "see the server's log"


def _without_password(url: str) -> str:
    known = conninfo_to_dict(url)
    user = f"{known['user']}@" if known.get("user") else ""
    port = f":{known['port']}" if known.get("port") else ""
    return f"postgresql://{user}{known.get('host') or 'localhost'}{port}/{known.get('dbname') or ''}"


def _one(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None
    return row


def _last(cursor: psycopg.Cursor[tuple[Any, ...]], query: LiteralString, uids: Sequence[str]) -> dict[str, int]:
    cursor.execute(query, (list(uids),))
    return dict.fromkeys(uids, 0) | dict(cursor.fetchall())


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


assert _PUT_JOB.count("%s") == len(JOB_COLUMNS)
