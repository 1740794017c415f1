"""The controller as a plain process with the fake engine, without Ray: for tests and for trying the API.

    python -m orchestrator.controller.serve --home DIR [--port N] [--cpus N]

It says on stdout, as one JSON line, where it listens. Its drivers die with it, so a killed one loses the running
attempts, which the next one starts again from their last checkpoints.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from orchestrator.controller.api import create_app, serve_http
from orchestrator.controller.core import Controller
from orchestrator.controller.home import Home
from orchestrator.controller.hosts import LocalHost, Room
from orchestrator.controller.journal import open_journal
from orchestrator.controller.settings import Settings, resolve
from orchestrator.domain.clock import SystemClock
from orchestrator.domain.errors import OrchestrateError
from orchestrator.platforms.engines.fake import PRETEND, FakeEngine
from orchestrator.platforms.prices import load_prices


def serve(settings: Settings, stop: threading.Event) -> None:
    """Run until `stop` is set. Raises an `OrchestrateError` when it cannot begin."""
    home = Home(settings.home_path)
    home.prepare()
    clock = SystemClock()
    room = Room(cpus=settings.cpus or (os.cpu_count() or 1), gpus=0)
    fatal: list[OrchestrateError] = []

    def end(error: OrchestrateError) -> None:
        fatal.append(error)
        stop.set()

    controller = Controller(
        open_journal(settings, home),
        LocalHost(FakeEngine, clock, room),
        clock,
        load_prices(Path(settings.prices) if settings.prices else None),
        home,
        engine="fake",
        worker_loop=PRETEND,
        on_fatal=end,
    )
    controller.start()
    token = home.token()
    assert token is not None
    server = serve_http(create_app(controller, token, stop=stop.set), settings.host, settings.port)
    try:
        print(json.dumps({"url": f"http://{settings.host}:{server.port}", "pid": os.getpid()}), flush=True)  # noqa: T201 - its interface
        stop.wait()
    finally:
        server.close()
        controller.close()
    if fatal:
        raise fatal[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.controller.serve", description=__doc__)
    parser.add_argument("--home", help="folder of journal, logs and token")
    parser.add_argument("--port", type=int, help="port to listen on; 0: any free one")
    parser.add_argument("--cpus", type=int, help="CPUs that jobs may use")
    parser.add_argument("--engine", choices=["fake"], default="fake")
    flags = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    try:
        serve(resolve(os.environ, Path.cwd(), flags), stop)  # noqa: TID251 - the process's edge
    except OrchestrateError as error:
        print(f"orchestrate: error: {error}", file=sys.stderr)  # noqa: T201 - its interface
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
