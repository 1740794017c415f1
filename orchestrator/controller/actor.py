"""The controller's process under Ray: a detached, named actor that Ray starts again when it dies.

It opens the journal, takes up the drivers that live on, serves HTTP, and writes `server.json`, where the command line
finds it. What keeps it from beginning (a port still held by a predecessor's sockets, a database that is away) is tried
again until it works; whoever started it is told of the first refusal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import ray
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator import __version__
from orchestrator.controller.api import create_app
from orchestrator.controller.core import Controller
from orchestrator.controller.home import Home
from orchestrator.controller.http_server import OPEN_PATHS, HttpServer, serve_http
from orchestrator.controller.journal import open_journal
from orchestrator.controller.local import write_server_file
from orchestrator.controller.ray_host import NAMESPACE, RayHost
from orchestrator.controller.ray_processes import MARK
from orchestrator.controller.settings import Settings
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock, SystemClock
from orchestrator.domain.errors import OrchestrateError, StaleEpoch
from orchestrator.platforms.prices import load_prices

log = logging.getLogger(__name__)

NAME = "controller"
TRY_AGAIN_SECONDS = 0.5
IDLE_LOOK_SECONDS = 10.0
LOG_BYTES = 5 * 2**20


@dataclass(frozen=True, slots=True)
class Begun:
    """Where the controller listens, or why it does not."""

    url: str | None
    error: OrchestrateError | None = None


class ControllerActor:
    """See the module. `settings` are those of whoever started it; `ray_facts` are written into server.json as they are."""

    def __init__(self, settings: Settings, ray_facts: Mapping[str, str]) -> None:
        self._settings = settings
        self._ray_facts = ray_facts
        self._clock = SystemClock()
        self._home = Home(settings.home_path)
        self._told = threading.Event()
        self._begun = Begun(None)
        self._over = threading.Event()
        _log_to(self._home.log_file)
        threading.Thread(target=self._begin_until_it_works, name="begin", daemon=True).start()

    def begun(self) -> Begun:
        """Waits for the first success or the first refusal."""
        self._told.wait()
        return self._begun

    def _begin_until_it_works(self) -> None:
        while not self._over.is_set():
            try:
                url = self._begin()
            except OrchestrateError as error:
                log.warning("cannot begin: %s", error)
                self._begun = Begun(None, error)
                self._told.set()
                self._over.wait(TRY_AGAIN_SECONDS)
            else:
                self._begun = Begun(url)
                self._told.set()
                return

    def _begin(self) -> str:
        settings, home = self._settings, self._home
        home.prepare()
        with contextlib.ExitStack() as undo:
            journal = open_journal(settings, home)
            undo.callback(journal.close)
            prices = load_prices(Path(settings.prices) if settings.prices else None)
            controller = Controller(
                journal,
                RayHost(self._clock),
                self._clock,
                prices,
                home,
                engine=settings.engine,
                standbys=settings.standbys,
                on_fatal=self._end_for_good,
            )
            token = home.token()
            assert token is not None
            app = create_app(controller, token, stop=lambda: _stop_all(home))
            idle = IdleWatch(controller, self._clock)
            app.add_middleware(NoticeRequests, idle=idle)
            server = serve_http(app, settings.host, settings.port)
            undo.callback(server.close)
            controller.start()
            undo.pop_all()
        url = f"http://{settings.host}:{server.port}"
        self._write_server_file(url, server)
        log.info("serving %s", url)
        if settings.idle_minutes:
            idle.watch(settings.idle_minutes, lambda: _stop_all(home))
        return url

    def _write_server_file(self, url: str, server: HttpServer) -> None:
        facts = {
            "url": url,
            "port": server.port,
            "pid": os.getpid(),
            "engine": self._settings.engine,
            "home": str(self._home.path),
            "version": __version__,
            "ray": dict(self._ray_facts),
        }
        write_server_file(self._home, facts)

    def _end_for_good(self, error: OrchestrateError) -> None:
        """This controller may not go on. One that a newer one has replaced must not be started again, either."""
        log.critical("the controller ends: %s", error)
        self._over.set()
        if isinstance(error, StaleEpoch):
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
        else:
            os._exit(1)


class IdleWatch:
    """Calls `stop` once nothing was asked and no job was active for so many minutes."""

    def __init__(self, controller: Controller, clock: Clock) -> None:
        self._controller = controller
        self._clock = clock
        self._busy_ns = clock.monotonic_ns()

    def noticed(self) -> None:
        self._busy_ns = self._clock.monotonic_ns()

    def idle_for(self, minutes: int) -> bool:
        if self._controller.info()["activeJobs"]:
            self.noticed()
        return self._clock.monotonic_ns() - self._busy_ns >= minutes * 60 * NANOSECONDS_PER_SECOND

    def watch(self, minutes: int, stop: Any) -> None:
        def look() -> None:
            pause = threading.Event()
            while not self.idle_for(minutes):
                pause.wait(IDLE_LOOK_SECONDS)
            log.info("nobody asked for anything in %d minutes and no job is active: stopping", minutes)
            stop()

        threading.Thread(target=look, name="idle-watch", daemon=True).start()


class NoticeRequests:
    """ASGI application around `app` that notices requests, except for what machines ask all the time."""

    def __init__(self, app: ASGIApp, idle: IdleWatch) -> None:
        self._app = app
        self._idle = idle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            self._idle.noticed()
        await self._app(scope, receive, send)


def create(settings: Settings, ray_facts: Mapping[str, str]) -> Any:
    """The controller's actor; an existing one is taken as it is. Ray must be connected."""
    return (
        ray.remote(ControllerActor)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=4,
        )
        .remote(settings, dict(ray_facts))
    )


def _stop_all(home: Home) -> None:
    """End this Ray from outside: a process that does not carry its mark, and so is not ended with it."""
    environ = {name: value for name, value in os.environ.items() if name != MARK}  # noqa: TID251 - passed on to a child
    subprocess.Popen(
        [sys.executable, "-m", "orchestrator.controller.local", "stop", "--home", str(home.path)],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _log_to(file: Path) -> None:
    handler = RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
