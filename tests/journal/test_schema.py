"""Journals that earlier versions wrote. `tests/golden/journal-1.sql` was written by the code of schema 1: a job that lost a
worker and succeeded, one that was cancelled, and one whose controller died in its sixth step."""

from __future__ import annotations

import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.accounting import Category, Ledger, MachineTurned, entry_to_document
from orchestrator.controller.journal.base import SCHEMA_VERSION, Commit
from orchestrator.controller.journal.rows import from_json
from orchestrator.controller.journal.sqlite import SqliteJournal
from orchestrator.lifecycle import Phase, check_invariants

GOLDEN = Path(__file__).parent.parent / "golden" / "journal-1.sql"
LONG_AFTER_NS = 1_900_000_000_000_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "journal.sqlite"
    with sqlite3.connect(file) as database:
        database.executescript(GOLDEN.read_text())
    database.close()
    return file


def rows(file: Path, table: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(file)
    found = database.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - one of our tables
    database.close()
    return found


def test_a_journal_of_schema_1_is_read_without_loss(file: Path) -> None:
    """Each of its jobs, entries, stories and steps is there; money adds up to what schema 1 said."""
    journal = SqliteJournal(file)
    ended, stopped, going = sorted(journal.jobs(), key=lambda record: ["ended", "stopped", "going"].index(record.name))
    assert (ended.state.phase, stopped.state.phase, going.state.phase) == (
        Phase.SUCCEEDED,
        Phase.CANCELLED,
        Phase.RUNNING,
    )
    for record in (ended, stopped, going):
        check_invariants(record.state)
        assert (record.state.elastic, record.state.worlds_lost, record.state.disruptions) == (False, 0, ())
    assert (ended.state.attempt, going.state.step) == (2, 6)
    assert [len(journal.story(record.uid)) for record in (ended, stopped, going)] == [11, 7, 6]
    assert [len(journal.steps(record.uid)) for record in (ended, stopped, going)] == [11, 2, 6]
    for record in (ended, stopped):
        assert record.cost is not None
        amounts = Ledger(journal.ledger(record.uid)).statement(LONG_AFTER_NS).by_category()
        assert amounts.get(Category.USEFUL, 0) == Decimal(record.cost["usefulUSD"]) * 10**9
    kept = [(uid, number, from_json(entry)) for uid, number, entry in rows(file, "ledger")]
    for uid in {uid for uid, _, _ in kept}:
        written = [entry for owner, _, entry in sorted(kept, key=lambda one: one[1]) if owner == uid]
        read = [entry_to_document(entry) for entry in journal.ledger(str(uid))]
        assert [{**after, **before} for before, after in zip(written, read, strict=True)] == read
    journal.close()


def test_it_becomes_this_schema_when_a_controller_begins_to_write(file: Path) -> None:
    """Looking changes nothing; an epoch makes it this schema's, changes no row, and the new kinds of entries go in."""
    tables = ("jobs", "story", "ledger", "steps")
    before = {table: rows(file, table) for table in tables}
    journal = SqliteJournal(file)
    assert rows(file, "writer")[0][:2] == (1, 1)
    journal.open_epoch()
    assert rows(file, "writer")[0][:2] == (2, SCHEMA_VERSION)
    assert {table: rows(file, table) for table in tables} == before
    going = next(record for record in journal.jobs() if record.name == "going")
    turned = MachineTurned(LONG_AFTER_NS, "m0", "idle")
    journal.commit(Commit(ledger=[(going.uid, turned)]))
    assert journal.ledger(going.uid)[-1] == turned
    journal.close()
