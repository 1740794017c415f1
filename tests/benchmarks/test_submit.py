"""The judge of `make bench-submit`: it must see what it is there to see."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.submit import WRONGS, Acknowledged, verify

TABLES = """
CREATE TABLE writer (epoch);
INSERT INTO writer VALUES (1);
CREATE TABLE jobs (uid, name, idempotency_key, state);
CREATE TABLE story (uid, number, phase_before, phase_after);
CREATE TABLE ledger (uid, entry);
CREATE TABLE steps (uid, step);
"""


def add_job(database: sqlite3.Connection, uid: str, name: str, key: str) -> None:
    database.execute("INSERT INTO jobs VALUES (?, ?, ?, ?)", (uid, name, key, '{"phase": "Succeeded", "attempt": 1}'))
    for number, (before, after) in enumerate([("Pending", "Running"), ("Running", "Succeeded")]):
        database.execute("INSERT INTO story VALUES (?, ?, ?, ?)", (uid, number, before, after))
    for kind in ("MachineHeld", "MachineReleased"):
        database.execute("INSERT INTO ledger VALUES (?, ?)", (uid, f'{{"kind": "{kind}"}}'))
    database.execute("INSERT INTO steps VALUES (?, 1)", (uid,))


def judged(folder: Path, tamper: Callable[[sqlite3.Connection], object]) -> dict[str, Any]:
    """The verdict on two acknowledged jobs after `tamper` changed the journal."""
    file = folder / "journal.sqlite"
    database = sqlite3.connect(file)
    database.executescript(TABLES)
    add_job(database, "u1", "job-1", "key-1")
    add_job(database, "u2", "burst", "one-key")
    tamper(database)
    database.commit()
    database.close()
    first, second = (
        Acknowledged("job-1", "key-1", "u1", "created", 1),
        Acknowledged("burst", "one-key", "u2", "created", 1),
    )
    return verify(file, [first], [second, second])


def test_a_good_journal_has_nothing_wrong(tmp_path: Path) -> None:
    """With every job there once and ended once, all counts are zero and the burst made one job."""
    found = judged(tmp_path, lambda database: None)
    assert {found[wrong] for wrong in WRONGS} == {0}
    assert found["burst_jobs"] == 1
    assert found["journal_intact"]


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("DELETE FROM jobs WHERE uid = 'u1'", "lost"),
        ("UPDATE jobs SET name = 'job-9' WHERE uid = 'u1'", "lost"),
        ("INSERT INTO jobs VALUES ('u3', 'job-1', 'key-1', '{\"phase\": \"Succeeded\", \"attempt\": 1}')", "doubled"),
        ("INSERT INTO jobs VALUES ('u3', 'job-3', 'key-3', '{\"phase\": \"Succeeded\", \"attempt\": 1}')", "unasked"),
        ('UPDATE jobs SET state = \'{"phase": "Failed", "attempt": 1}\' WHERE uid = \'u1\'', "not_succeeded"),
        ("INSERT INTO story VALUES ('u1', 9, 'Running', 'Succeeded')", "not_ended_once"),
        ("DELETE FROM story WHERE uid = 'u2'", "not_ended_once"),
        ("DELETE FROM steps WHERE uid = 'u1'", "steps_missing"),
        ("DELETE FROM ledger WHERE uid = 'u1' AND entry LIKE '%Released%'", "machines_not_released"),
    ],
)
def test_each_wrong_is_seen(tmp_path: Path, statement: str, wrong: str) -> None:
    """A lost, doubled, unasked, unended or unpaid job is counted under its name."""
    assert judged(tmp_path, lambda database: database.execute(statement))[wrong] == 1
