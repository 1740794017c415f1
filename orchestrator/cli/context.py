"""What a verb is given: streams, environment, settings, and the way to the controller.

`say` writes talk to stderr, `write` writes results to stdout. When whoever reads stdout has gone away, the rest is
dropped and `unread` tells, so that no verb has to know about broken pipes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from argparse import Namespace

    from orchestrator.controller.client import Client
    from orchestrator.controller.settings import Settings
    from orchestrator.domain.clock import Clock

_SETTING_FLAGS = ("home", "url", "namespace", "host", "port", "engine", "journal", "prices", "cpus")


class Context:
    """One run of the command line."""

    def __init__(
        self,
        environ: Mapping[str, str],
        cwd: str,
        out: TextIO,
        err: TextIO,
        clock: Clock | None = None,
    ) -> None:
        self.environ = environ
        self.cwd = Path(cwd)
        self.out = out
        self.err = err
        self.unread = False
        """Nobody reads stdout any more."""
        self.when_interrupted: str | None = None
        """What to say when Ctrl-C ends the command."""
        self._clock = clock
        self._flags: dict[str, object] = {}

    def take_flags(self, args: Namespace) -> None:
        """Remember the flags that are settings."""
        self._flags = {name: value for name in _SETTING_FLAGS if (value := getattr(args, name, None)) is not None}

    # --- words ---------------------------------------------------------------------------------------------------------
    def say(self, text: str) -> None:
        """One line of talk, on stderr."""
        try:
            self.err.write(f"{text}\n")
            self.err.flush()
        except (BrokenPipeError, ValueError):
            return

    def write(self, text: str) -> None:
        """Results, on stdout, as they are."""
        if self.unread:
            return
        try:
            self.out.write(text)
        except BrokenPipeError:
            self._nobody_reads()

    def print(self, line: str = "") -> None:
        """One line of results, on stdout."""
        self.write(f"{line}\n")

    def finish(self) -> None:
        """Everything written has arrived, or nobody wants it."""
        if self.unread:
            return
        try:
            self.out.flush()
        except BrokenPipeError:
            self._nobody_reads()

    def _nobody_reads(self) -> None:
        self.unread = True
        try:
            descriptor = self.out.fileno()
        except (OSError, ValueError):
            return
        # The interpreter flushes stdout once more when it ends; let it flush into nothing.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)

    def width(self, stream: TextIO) -> int:
        """Columns of the terminal behind a stream; 80 when there is none."""
        if (columns := self.environ.get("COLUMNS", "")).isdigit() and int(columns) > 0:
            return int(columns)
        try:
            return os.get_terminal_size(stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def colour(self, stream: TextIO) -> bool:
        """Whether to colour what goes to a stream (see no-color.org)."""
        return stream.isatty() and not self.environ.get("NO_COLOR") and self.environ.get("TERM") != "dumb"

    @staticmethod
    def draws(stream: TextIO) -> bool:
        """Whether a stream can show characters beyond ASCII."""
        return "utf" in (stream.encoding or "").lower()

    # --- time ------------------------------------------------------------------------------------------------------------
    @property
    def clock(self) -> Clock:
        if self._clock is None:
            from orchestrator.domain.clock import SystemClock

            self._clock = SystemClock()
        return self._clock

    def pause(self, seconds: float) -> None:
        """Do nothing for a while; Ctrl-C ends it."""
        if seconds > 0:
            from threading import Event

            Event().wait(seconds)

    # --- the controller ----------------------------------------------------------------------------------------------------
    @cached_property
    def settings(self) -> Settings:
        """Settings in force. Raises `UsageError` or `InvalidSpec`."""
        from orchestrator.controller.settings import resolve

        return resolve(self.environ, self.cwd, self._flags)

    @property
    def remote(self) -> bool:
        """Whether the controller is one that runs elsewhere, which we do not start."""
        return bool(self.settings.url)

    def client(self, *, start: bool = False) -> Client:
        """A client of the controller.

        A controller of this machine that was used before is started again when it is gone; one that was never used is
        started only on `start`. Raises `ControllerUnreachable`, `WrongServer`, `AuthError` or `StorageError`.
        """
        from orchestrator.controller.client import Client

        settings = self.settings
        if settings.url:
            if not settings.token:
                from orchestrator.domain.errors import AuthError

                raise AuthError(
                    f"{settings.url} wants a token", hint="set ORCHESTRATE_TOKEN to the one of its home folder"
                )
            return Client(settings.url, settings.token)
        from orchestrator.controller.local import ensure_server, find_server

        endpoint = find_server(settings, self.environ)
        if endpoint is None:
            if not start and not self.used_before():
                from orchestrator.domain.errors import ControllerUnreachable

                raise ControllerUnreachable(
                    f"no controller was ever started in {settings.home_path}",
                    hint="`orchestrate submit job.yaml` starts one; set ORCHESTRATE_HOME if you meant another home",
                )
            endpoint = ensure_server(settings, self.say, self.environ, self.clock)
        return Client(endpoint.url, endpoint.token)

    def client_if_running(self, timeout_seconds: float = 10.0) -> Client | None:
        """A client of a controller that is there already; None when there is none. Nothing is started."""
        from orchestrator.controller.client import Client

        settings = self.settings
        if settings.url:
            return Client(settings.url, settings.token, timeout_seconds=timeout_seconds)
        from orchestrator.controller.local import find_server

        endpoint = find_server(settings, self.environ)
        return None if endpoint is None else Client(endpoint.url, endpoint.token, timeout_seconds=timeout_seconds)

    def used_before(self) -> bool:
        """Whether there is a journal to start a controller from."""
        from orchestrator.controller.home import Home

        file = Home(self.settings.home_path).journal_file
        return bool(self.settings.journal) or (file.exists() and file.stat().st_size > 0)

    def job(self, text: str) -> tuple[str, str]:
        """(namespace, name) from `name` or `namespace/name`. Raises `UsageError`."""
        parts = text.split("/")
        if len(parts) > 2 or not all(parts):
            from orchestrator.domain.errors import UsageError

            raise UsageError(f"{text!r} is not the name of a job", hint="write name or namespace/name")
        return (parts[0], parts[1]) if len(parts) == 2 else (self.settings.namespace, parts[0])

    def short(self, resource: Mapping[str, object]) -> str:
        """What to write to mean this job again: its name, with the namespace when that is not the one in force."""
        metadata = resource["metadata"]
        assert isinstance(metadata, Mapping)
        namespace, name = str(metadata["namespace"]), str(metadata["name"])
        return name if namespace == self.settings.namespace else f"{namespace}/{name}"
