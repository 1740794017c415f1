"""Lost connections to a real Postgres: no commit is lost, none is applied twice, and a doubt is never guessed away."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from orchestrator.controller.journal.base import SCHEMA_VERSION, Commit
from orchestrator.controller.journal.postgres import PostgresJournal
from orchestrator.domain.errors import StaleEpoch, StorageError
from tests.journal.conftest import PostgresServer
from tests.journal.samples import everything, held

pytestmark = pytest.mark.integration


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.new_database()


@pytest.fixture
def journal(url: str) -> Iterator[PostgresJournal]:
    journal = PostgresJournal(url)
    journal.open_epoch()
    yield journal
    journal.close()


def end_connections(url: str) -> None:
    """What an operator, a failover or a firewall does to idle connections."""
    with psycopg.connect(url, autocommit=True) as operator:
        operator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orchestrate' "
            "AND datname = current_database()"
        )


def lose_the_answer(journal: PostgresJournal, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next commit is applied, and its connection is lost before the answer comes."""
    apply = journal._apply

    def applied_but_lost(commit: Commit, commit_id: str) -> None:
        monkeypatch.setattr(journal, "_apply", apply)
        apply(commit, commit_id)
        end_connections(url)
        journal._writer.execute("SELECT 1")

    monkeypatch.setattr(journal, "_apply", applied_but_lost)


def test_connections_that_were_ended_are_made_again(journal: PostgresJournal, url: str) -> None:
    """A commit and a read that find their connections dead succeed on new ones, once."""
    journal.commit(everything("u1", 1))
    assert len(journal.jobs()) == 1
    end_connections(url)
    journal.commit(everything("u2", 2))
    end_connections(url)
    assert len(journal.ledger("u2")) == 2
    assert [number for number, _ in journal.story("u2")] == [1, 2]


def test_a_commit_whose_answer_was_lost_is_not_applied_twice(
    journal: PostgresJournal, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that was applied although the connection broke is found by its id and not repeated."""
    lose_the_answer(journal, url, monkeypatch)
    journal.commit(Commit(ledger=[("u1", held())]))
    assert journal.ledger("u1") == [held()]
    journal.commit(Commit(ledger=[("u1", held("m2"))]))
    assert journal.ledger("u1") == [held(), held("m2")]


def test_a_doubt_that_cannot_be_settled_stops_the_writer(
    journal: PostgresJournal, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A commit is applied, its answer lost. 2. No new connection: it is told as failed. 3. The next commit finds
    out, and refuses to write on a state that the caller does not know."""
    connect = journal._connect

    def no_way() -> psycopg.Connection[tuple[object, ...]]:
        raise psycopg.OperationalError("connection refused")

    lose_the_answer(journal, url, monkeypatch)
    monkeypatch.setattr(journal, "_connect", no_way)
    with pytest.raises(StorageError, match="cannot be reached"):
        journal.commit(Commit(ledger=[("u1", held())]))
    monkeypatch.setattr(journal, "_connect", connect)
    with pytest.raises(StaleEpoch, match="was reported as failed"):
        journal.commit(Commit(ledger=[("u1", held("m2"))]))
    assert journal.ledger("u1") == [held()]


def test_a_server_that_is_away_and_comes_back(
    postgres_server: PostgresServer, journal: PostgresJournal, url: str
) -> None:
    """While the server is down commits and reads say so; when it is back they work, and what was durable is there."""
    journal.commit(everything("u1", 1))
    postgres_server.stop()
    try:
        with pytest.raises(StorageError, match="cannot be reached") as told:
            journal.commit(everything("u2", 1))
        assert "start the server" in str(told.value)
        with pytest.raises(StorageError, match="cannot be reached"):
            journal.jobs()
    finally:
        postgres_server.start()
    journal.commit(everything("u3", 1))
    assert [job.uid for job in journal.jobs()] == ["u1", "u3"]


def test_a_newer_schema_and_no_password_in_messages(journal: PostgresJournal, url: str) -> None:
    """A later schema is refused with the version that wrote it; the password of the URL is in no message."""
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("UPDATE orchestrate.writer SET schema = 7, written_by = 'orchestrate 9.8.7'")
    with pytest.raises(StorageError, match=r"schema 7, written by orchestrate 9\.8\.7") as told:
        PostgresJournal(url.replace("@", ":hush@"))
    assert "hush" not in str(told.value)


def test_an_older_schema_becomes_ours(journal: PostgresJournal, url: str) -> None:
    """A journal of schema 1 is read as it is, and is one of this schema once an epoch was opened on it."""
    journal.commit(everything("u1", 1))
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("UPDATE orchestrate.writer SET schema = 1")
        older = PostgresJournal(url)
        assert [job.uid for job in older.jobs()] == ["u1"]
        assert other.execute("SELECT schema FROM orchestrate.writer").fetchone() == (1,)
        older.open_epoch()
        assert other.execute("SELECT schema FROM orchestrate.writer").fetchone() == (SCHEMA_VERSION,)
        older.close()


def test_a_writer_that_waits_for_a_lock(journal: PostgresJournal, url: str) -> None:
    """A session that holds the writer's row makes a commit fail after a bounded wait, not hang."""
    journal._writer.execute("SET lock_timeout = '100ms'")
    with psycopg.connect(url) as other:
        other.execute("SELECT * FROM orchestrate.writer FOR UPDATE")
        with pytest.raises(StorageError, match="locked by another session"):
            journal.commit(everything("u1", 1))
        other.rollback()
    journal.commit(everything("u1", 1))


def test_an_address_that_is_none() -> None:
    """A URL that libpq cannot read, or a server that is not there, is one clear error."""
    with pytest.raises(StorageError, match="in Postgres"):
        PostgresJournal("postgresql://localhost/db?nonsense=1")
