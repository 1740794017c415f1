"""Brings Ray and the controller up on this machine. `local.ensure_server` runs it in a session of its own, so that a
Ctrl-C at the command line leaves it alone, and hands it the lock of the home folder, which it holds to its end: whoever
comes meanwhile waits, and finds the server ready or nothing at all.

    python -m orchestrator.controller.boot      settings from the environment; says on stdout, in JSON lines,
                                                {"say": ...}, and at last {"url": ...} or {"error": {what, hint, code}}
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.controller import ray_processes
from orchestrator.controller.home import Home
from orchestrator.controller.local import read_server_file
from orchestrator.controller.ray_processes import RayInstance
from orchestrator.controller.settings import Settings, resolve
from orchestrator.domain.clock import SystemClock, seconds_between
from orchestrator.domain.errors import EngineError, OrchestrateError, PlatformError, WrongServer

CONTROLLER_SECONDS = 60.0


def boot(settings: Settings, environ: Mapping[str, str]) -> str:
    """Join the Ray of this home if it stands, else start one, and make sure that the controller is in it; its URL. When
    that fails, nothing is left behind."""
    home = Home(settings.home_path)
    clock = SystemClock()
    home.prepare()
    os.environ.update(ray_processes.connection(home))  # noqa: TID251 - the edge: ray reads these when it is imported
    instance, processes = ray_processes.find(home)
    if instance is not None:
        _same_version(home)
        _say(f"Ray is up at {instance.address}; looking for its controller ...")
        with contextlib.suppress(OrchestrateError):
            return _start_controller(settings, home, instance)
    if processes:
        _say(f"ending {len(processes)} processes of a Ray that has lost its head ...")
        ray_processes.end_all(home)
    began_ns = clock.monotonic_ns()
    with contextlib.ExitStack() as undo:
        undo.callback(ray_processes.end_all, home)  # whatever stops us, an interrupt too
        process, folder = ray_processes.begin_start(home, settings.cpus, environ)
        _import_meanwhile()
        instance = ray_processes.finish_start(process, folder)
        _say(f"Ray is up ({seconds_between(began_ns, clock.monotonic_ns()):.1f} s); starting the controller ...")
        url = _start_controller(settings, home, instance)
        undo.pop_all()
    return url


def _same_version(home: Home) -> None:
    """Refuse to join a Ray of another version: it would not understand us, and its jobs may be running."""
    there = (read_server_file(home) or {}).get("ray", {}).get("version")
    here = importlib.metadata.version("ray")
    if there not in (None, here):
        raise WrongServer(
            f"the Ray of {home.path} is version {there}, and this environment has {here}",
            hint="use the environment that started it, or end it with `orchestrate server stop` (jobs continue afterwards)",
        )


def _import_meanwhile() -> None:
    from orchestrator.controller import actor  # noqa: F401 - Ray needs seconds to come up; the imports take one of them


def _start_controller(settings: Settings, home: Home, instance: RayInstance) -> str:
    import ray

    from orchestrator.controller import actor
    from orchestrator.controller.ray_host import NAMESPACE

    try:
        ray.init(address=instance.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        facts = {
            "version": importlib.metadata.version("ray"),
            "address": instance.address,
            "folder": str(instance.folder),
            "python": sys.version.split()[0],
        }
        begun = ray.get(actor.create(settings, facts).begun.remote(), timeout=CONTROLLER_SECONDS)
    except (ray.exceptions.RayError, OSError, RuntimeError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        logs = instance.folder / "session_latest" / "logs"
        raise EngineError(
            f"the controller did not start in Ray: {first}", hint=f"see {home.log_file} and {logs}"
        ) from error
    if begun.error is not None:
        raise begun.error
    assert begun.url is not None
    return str(begun.url)


def _say(text: str) -> None:
    _tell({"say": text})


def _tell(message: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever started it has gone; it goes on
        print(json.dumps(message), flush=True)  # noqa: T201 - its interface


def main() -> int:
    environ = dict(os.environ)  # noqa: TID251 - the edge of this process
    try:
        url = boot(resolve(environ, Path("/"), {}), environ)
    except OrchestrateError as error:
        _tell({"error": {"code": error.code, "what": error.what, "hint": error.hint}})
        status = int(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the edge: the one who waits is told, whatever it is
        _tell({"error": {"code": PlatformError.__name__, "what": f"{type(error).__name__}: {error}", "hint": None}})
        status = 1
    else:
        _tell({"url": url})
        status = 0
    sys.stdout.flush()
    # Not through Ray's farewell, which takes a second and that nobody waits for: all that it started is detached.
    os._exit(status)


if __name__ == "__main__":
    main()
