"""The home folder: where each file of this machine's controller lies, and the token that lets callers in.

token           bearer token of the REST API (0600)
server.json     where the running controller and Ray are
lock            held while a controller is being started or stopped
journal.sqlite  the journal
controller.log  what the controller says
ray/            Ray's own token
secrets/<uid>   secret variables of a job (0600)
jobs/<uid>/     logs/, checkpoints/ and model/ of a job
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from orchestrator.domain.errors import StorageError

TOKEN = re.compile(rb"[\x21-\x7e]+")
"""Whatever fits in an HTTP header: the token may be one that somebody chose."""


class Home:
    """Paths under `$ORCHESTRATE_HOME`; `prepare` makes the folder (0700) and the token."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token_file = path / "token"
        self.server_file = path / "server.json"
        self.lock_file = path / "lock"
        self.journal_file = path / "journal.sqlite"
        self.log_file = path / "controller.log"
        self.ray = path / "ray"
        self.jobs = path / "jobs"

    def run_dir(self, uid: str) -> Path:
        return self.jobs / uid

    def secrets_file(self, uid: str) -> Path:
        return self.path / "secrets" / uid

    def checkpoint_uri(self, uid: str, name: str, uri: str | None) -> str:
        """Where the checkpoints of a job lie; `uri` is its `spec.checkpoint.uri`, which several jobs may share."""
        return str(self.run_dir(uid) / "checkpoints") if uri is None else f"{uri.rstrip('/')}/{name}-{uid}"

    def prepare(self) -> None:
        """Make what is missing. Raises `StorageError` when the folder cannot be written."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.jobs.mkdir(exist_ok=True)
            self.ray.mkdir(mode=0o700, exist_ok=True)
            if not self.token_file.exists():
                self._write_token()
        except FileExistsError as error:
            raise StorageError(
                f"{error.filename} is there, and is not a folder",
                hint="set ORCHESTRATE_HOME to a folder, or move the file away",
            ) from error
        except OSError as error:
            raise StorageError(
                f"the home folder {self.path} cannot be written ({error.strerror or error})",
                hint="make room or set ORCHESTRATE_HOME to a folder that you can write to",
            ) from error

    def token(self) -> str | None:
        """The token, or None when no controller was ever started here. Raises `StorageError` when the file holds none."""
        try:
            token = self.token_file.read_bytes().strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(
                f"the token {self.token_file} cannot be read ({error.strerror or error})",
                hint="it belongs to another user?",
            ) from error
        if not TOKEN.fullmatch(token):
            raise StorageError(
                f"the file {self.token_file} holds no token: it is empty or was altered",
                hint="delete it and run `orchestrate server stop`; the next submit makes a new one, and jobs continue",
            )
        return token.decode("ascii")

    def _write_token(self) -> None:
        """Whoever links it first wins, so that two starters agree on one token, which is never seen half-written."""
        aside = self.path / f"token.{secrets.token_hex(8)}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(aside, self.token_file)
        except FileExistsError:
            pass
        finally:
            aside.unlink()
