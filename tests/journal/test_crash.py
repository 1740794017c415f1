"""A process that writes is killed: what it was told is durable is there, and nothing is there by half."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.controller.journal.base import Journal
from orchestrator.controller.journal.postgres import PostgresJournal
from orchestrator.controller.journal.sqlite import SqliteJournal
from tests.journal.conftest import PostgresServer

KILLS = 20

WRITER = """
import sys
from orchestrator.controller.journal.open import open_journal
from orchestrator.controller.home import Home
from orchestrator.controller.settings import Settings
from pathlib import Path
from tests.journal.samples import everything

journal = open_journal(Settings(journal=sys.argv[2]), Home(Path(sys.argv[1])))
journal.open_epoch()
number = 0
while True:
    number += 1
    journal.commit(everything(f"{sys.argv[3]}-{number}", 5))
    print(number, flush=True)
"""


def acknowledged_before_a_kill(folder: Path, url: str, round_: int, repository: Path) -> int:
    """Start a writer, kill it in the midst of its commits, and say how many of them it had acknowledged."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), url, str(round_)], cwd=repository, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    # Killed at another place of its work each time: after some lines, and some bytes into the next commits.
    for _ in range(3 + round_ % 7):
        assert writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    assert writer.wait(timeout=30) == -signal.SIGKILL
    writer.stdout.close()
    return int(rest[-1]) if rest else 3 + round_ % 7


def check(journal: Journal, round_: int, acknowledged: int) -> None:
    uids = [record.uid for record in journal.jobs() if record.uid.startswith(f"{round_}-")]
    assert uids[:acknowledged] == [f"{round_}-{number}" for number in range(1, acknowledged + 1)]
    assert len(uids) <= acknowledged + 1, "one more may have been durable before it was acknowledged"
    for uid in uids:
        counts = {len(journal.story(uid)), len(journal.ledger(uid)), len(journal.steps(uid))}
        assert counts == {5}, uid


@pytest.mark.integration
def test_killed_twenty_times_nothing_is_lost_or_halved(tmp_path: Path, repository: Path) -> None:
    """SIGKILL in the midst of commits to SQLite, twenty times: every acknowledged commit is there, none by half."""
    for round_ in range(KILLS):
        acknowledged = acknowledged_before_a_kill(tmp_path, "", round_, repository)
        journal = SqliteJournal(tmp_path / "journal.sqlite")
        check(journal, round_, acknowledged)
        assert journal.open_epoch() == 2 * (round_ + 1)
        journal.close()


@pytest.mark.integration
def test_killed_writers_of_postgres(postgres_server: PostgresServer, tmp_path: Path, repository: Path) -> None:
    """The same on Postgres, five times."""
    url = postgres_server.new_database()
    for round_ in range(5):
        acknowledged = acknowledged_before_a_kill(tmp_path, url, round_, repository)
        journal = PostgresJournal(url)
        check(journal, round_, acknowledged)
        journal.close()
