"""Journals to test: a SQLite file, and a database on a Postgres server of our own in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from orchestrator.controller.journal.base import Journal
from orchestrator.controller.journal.postgres import PostgresJournal
from orchestrator.controller.journal.sqlite import SqliteJournal


def postgres_programs() -> Path | None:
    """The folder of the newest installed `initdb` and `pg_ctl`."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """A server that listens on a Unix socket in its own folder. Refuses to run as root, so it then runs as `postgres`."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._data = folder / "data"
        self._folder = folder
        self._log = folder / "log"
        self._databases = 0
        self._prefix: list[str] = []
        self.user = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            self.user = "postgres"
            account = pwd.getpwnam(self.user)
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._prefix = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]

    def _call(self, program: str, *arguments: str) -> None:
        command = [*self._prefix, str(self._programs / program), *arguments]
        done = subprocess.run(
            command, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def initialise(self) -> None:
        self._call(
            "initdb", "-D", str(self._data), "-U", self.user, "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"
        )

    def start(self) -> None:
        # Without -W the call would return before the server answers; with a pipe for its output it would never return.
        options = f"-k {self._folder} -c listen_addresses= -c max_connections=20 -c shared_buffers=16MB"
        self._call("pg_ctl", "start", "-w", "-D", str(self._data), "-l", str(self._log), "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        self._call("pg_ctl", "stop", "-w", "-m", mode, "-D", str(self._data))

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{self.user}@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"journal_{self._databases}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("NO POSTGRES HERE: initdb was not found; install Debian's `postgresql` to test this journal")
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("NO POSTGRES HERE: running as root, and there is no user `postgres` to run the server as")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a Unix socket has at most 107 bytes
    server = PostgresServer(programs, folder)
    server.initialise()
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Journal]:
    """A function that opens one and the same journal each time it is called; all are closed after the test."""
    if request.param == "sqlite":
        file = tmp_path / "journal.sqlite"

        def make() -> Journal:
            return SqliteJournal(file)
    else:
        url = request.getfixturevalue("postgres_server").new_database()

        def make() -> Journal:
            return PostgresJournal(url)

    def opened() -> Journal:
        journal = make()
        request.addfinalizer(journal.close)
        return journal

    return opened


@pytest.fixture
def journal(open_again: Callable[[], Journal]) -> Journal:
    """An empty journal with its first epoch open."""
    journal = open_again()
    journal.open_epoch()
    return journal


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
