"""Finds the controller of this machine, starts it where there is none, and stops it.

`server.json` in the home folder says where the controller should be; only an answer from there proves it. Starting is
done under a lock by a process of its own (`boot` for Ray, `serve` for the fake engine), so that two first submits start
one controller, and a Ctrl-C at the command line leaves nothing half-started: the process that starts finishes, or cleans
up after itself.

Imports only the standard library, and no part of Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from orchestrator.controller.home import Home
from orchestrator.controller.settings import Settings, documented, resolve
from orchestrator.domain import errors
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock, SystemClock, seconds_between
from orchestrator.domain.errors import (
    AuthError,
    ControllerUnreachable,
    OrchestrateError,
    PlatformError,
    StorageError,
    WrongServer,
)

PROBE_SECONDS = 5.0
LOCK_SECONDS = 180.0
"""How long to wait for another command that is starting or stopping the controller."""
STOP_SECONDS = 10.0
LOOK_SECONDS = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the controller is. `started`: this call started it."""

    url: str
    token: str
    started: bool = False


def find_server(settings: Settings, environ: Mapping[str, str]) -> Endpoint | None:
    """The controller that is running, or None. Raises `WrongServer` when something else, or the controller of another
    home, answers where it should be, `AuthError` when it does not take our token, and `ControllerUnreachable` when it
    is there but does not answer in time."""
    if settings.url:
        return Endpoint(settings.url, settings.token or Home(settings.home_path).token() or "")
    home = Home(settings.home_path)
    facts, token = read_server_file(home), home.token()
    if facts is None or token is None:
        return None
    url = str(facts["url"])
    info = _probe(url, token)
    if info is None:
        return None
    if info.get("home") != str(home.path):
        raise WrongServer(
            f"{url} is the controller of another home ({info.get('home')}, here it is {home.path})",
            hint="choose another port with --port or ORCHESTRATE_PORT",
        )
    return Endpoint(url, token)


def ensure_server(settings: Settings, say: Say, environ: Mapping[str, str], clock: Clock) -> Endpoint:
    """The controller, started if need be. `say` is told what takes long. Raises as `find_server`, and with what kept the
    start from succeeding."""
    found = find_server(settings, environ)
    if found is not None:
        return found
    home = Home(settings.home_path)
    home.prepare()
    with _locked(home, say, clock) as lock:
        found = find_server(settings, environ)
        if found is not None:
            return found
        if read_server_file(home) is None:
            found = _lost_address(settings, home)
            if found is not None:
                return found
            _port_is_free(settings)  # else a predecessor may still hold it, or be coming back
        began_ns = clock.monotonic_ns()
        say(
            "Starting Ray and the controller on this machine (about 10 s) ..."
            if settings.engine != "fake"
            else "Starting the controller on this machine ..."
        )
        url = (_start_plain if settings.engine == "fake" else _start_ray)(settings, say, environ, lock)
        say(f"The controller is up at {url} ({seconds_between(began_ns, clock.monotonic_ns()):.1f} s).")
    token = home.token()
    assert token is not None
    return Endpoint(url, token, started=True)


def stop_server(settings: Settings, say: Say, clock: Clock | None = None) -> bool:
    """End the controller of this home and its Ray, and nothing else; False when there was none. Jobs that were active
    continue from their last checkpoints when a controller is started again."""
    home = Home(settings.home_path)
    if not home.path.is_dir():
        return False
    with _locked(home, say, clock or SystemClock()):
        facts = read_server_file(home)
        ended = (
            _end_plain(int(facts["pid"]), home, clock or SystemClock()) if facts and facts["engine"] == "fake" else 0
        )
        if facts is None or facts["engine"] != "fake":
            ended = _end_ray(home, needed=facts is not None)
        home.server_file.unlink(missing_ok=True)
    if ended:
        say(f"The controller is stopped ({ended} processes ended).")
    return ended > 0


def server_status(settings: Settings) -> dict[str, Any]:
    """What is known of the controller of this home: `running`, its address, and what it says of itself."""
    home = Home(settings.home_path)
    facts = read_server_file(home) or {}
    status: dict[str, Any] = {"running": False, "home": str(home.path), **facts}
    if settings.url:
        status["url"] = settings.url
    token = settings.token or home.token()
    if "url" not in status or token is None:
        return status
    try:
        info = _probe(str(status["url"]), token)
    except OrchestrateError as error:
        return {**status, "error": str(error)}
    return status if info is None else {**status, **info, "running": True}


def read_server_file(home: Home) -> dict[str, Any] | None:
    """What the last controller of this home wrote; None when there is nothing of use."""
    try:
        facts = json.loads(home.server_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict):
        return None
    wanted = {"url": str, "pid": int, "engine": str}
    if any(not isinstance(facts.get(name), kind) for name, kind in wanted.items()):
        return None
    return facts if facts["url"].startswith("http://") else None


def write_server_file(home: Home, facts: Mapping[str, Any]) -> None:
    """Replace server.json as a whole (0600)."""
    aside = home.path / f"server.{os.getpid()}"
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        json.dump(facts, out, indent=1)
    aside.replace(home.server_file)


# --- is it there?


def _probe(url: str, token: str) -> dict[str, Any] | None:
    """What the server at `url` says of itself; None when nobody listens there."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PROBE_SECONDS)
    foreign = WrongServer(
        f"what answers at {url} is no orchestrate controller of this home",
        hint="end it, or choose another port with --port or ORCHESTRATE_PORT",
    )
    try:
        connection.request("GET", "/v1/info", headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        body = response.read(65_536)
    except (ConnectionRefusedError, ConnectionResetError, http.client.RemoteDisconnected):
        return None
    except TimeoutError as error:
        raise ControllerUnreachable(
            f"the controller at {url} does not answer within {PROBE_SECONDS:.0f} s",
            hint="`orchestrate server stop` ends it; jobs continue when it is started again",
        ) from error
    except (http.client.HTTPException, ValueError) as error:
        raise foreign from error
    except OSError as error:
        raise ControllerUnreachable(f"{url} cannot be reached ({error.strerror or error})") from error
    finally:
        connection.close()
    try:
        info = json.loads(body)
    except ValueError as error:
        raise foreign from error
    if response.status == 401 and isinstance(info, dict) and info.get("code") == AuthError.__name__:
        raise AuthError(
            f"the controller at {url} does not take the token of this home",
            hint="the token file was altered while it ran, or it is another home's controller; if it is ours, "
            "`orchestrate server stop` ends it, and jobs continue when it is started again",
        )
    if response.status != 200 or not isinstance(info, dict) or info.get("product") != "orchestrate":
        raise foreign
    return info


def _lost_address(settings: Settings, home: Home) -> Endpoint | None:
    """The controller of this home where it would be started, although its server.json is lost; that is written again."""
    token = home.token()
    if settings.port == 0 or token is None:
        return None
    url = f"http://{settings.host}:{settings.port}"
    try:
        info = _probe(url, token)
    except OrchestrateError:
        return None
    if info is None or info.get("home") != str(home.path):
        return None
    facts = {"url": url, "port": settings.port, "home": str(home.path)}
    write_server_file(home, {**facts, **{name: info[name] for name in ("pid", "engine", "version")}})
    return Endpoint(url, token)


def _port_is_free(settings: Settings) -> None:
    if settings.port == 0:
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise WrongServer(
                f"port {settings.port} of {settings.host} is in use by another program ({error.strerror or error})",
                hint="end it, or choose another port with --port or ORCHESTRATE_PORT",
            ) from error


# --- the lock


@contextlib.contextmanager
def _locked(home: Home, say: Say, clock: Clock) -> Iterator[int]:
    """Hold the home's lock; the number of its open file, which a child may inherit to hold it on."""
    try:
        lock = os.open(home.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(
            f"the lock {home.lock_file} cannot be opened ({error.strerror or error})",
            hint="set ORCHESTRATE_HOME to a folder that you can write to",
        ) from error
    try:
        _take(lock, home, say, clock)
        yield lock
    finally:
        os.close(lock)


def _take(lock: int, home: Home, say: Say, clock: Clock) -> None:
    deadline_ns = clock.monotonic_ns() + round(LOCK_SECONDS * NANOSECONDS_PER_SECOND)
    said = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        if not said:
            say("Waiting for another command that starts or stops the controller ...")
            said = True
        if clock.monotonic_ns() > deadline_ns:
            raise PlatformError(
                f"another command has held the lock {home.lock_file} for {LOCK_SECONDS:.0f} s",
                hint="look whether an `orchestrate` command or `orchestrator.controller.boot` hangs",
            )
        select.select([], [], [], LOOK_SECONDS)


# --- starting


def _child_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's variables, with every setting in force written out: the child resolves the same ones."""
    values = {variable: str(getattr(settings, name)) for name, variable, _, _ in documented()}
    child = {**environ, **values, "ORCHESTRATE_HOME": str(settings.home_path), "PYTHONUNBUFFERED": "1"}
    child["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(Path(__file__).resolve().parents[2]), environ.get("PYTHONPATH", "")) if part
    )
    return child


def _start_ray(settings: Settings, say: Say, environ: Mapping[str, str], lock: int) -> str:
    """Run `boot`, which holds the lock too, and pass on what it says."""
    child = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.controller.boot"],
        env=_child_environment(settings, environ),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[lock],
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    url: str | None = None
    error: OrchestrateError | None = None
    with child.stdout, child.stderr:
        for message in _messages(child.stdout):
            if "say" in message:
                say(str(message["say"]))
            elif "url" in message:
                url = str(message["url"])
            elif "error" in message:
                error = _rebuilt(message["error"])
        complaint = child.stderr.read()
    child.wait()
    if error is not None:
        raise error
    if url is None:
        last = next(
            (line for line in reversed(complaint.splitlines()) if line.strip()), f"exit status {child.returncode}"
        )
        raise PlatformError(f"the controller did not start: {last}", hint="`orchestrate doctor` checks what it needs")
    return url


def _messages(lines: IO[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict):
                yield message


def _rebuilt(told: Mapping[str, Any]) -> OrchestrateError:
    kind = getattr(errors, str(told.get("code")), PlatformError)
    if not (isinstance(kind, type) and issubclass(kind, OrchestrateError)) or kind is errors.InvalidSpec:
        kind = PlatformError
    return kind(str(told.get("what")), hint=told.get("hint"))


def _start_plain(settings: Settings, say: Say, environ: Mapping[str, str], lock: int) -> str:
    """Start `serve` and wait until it says where it listens."""
    home = Home(settings.home_path)
    with open(home.log_file, "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.controller.serve"],
            env=_child_environment(settings, environ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert child.stdout is not None
    try:
        with child.stdout:
            message: dict[str, Any] = next(_messages(child.stdout), {})
        if "url" not in message:
            child.wait()
            told = home.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
            last = next((line for line in reversed(told) if line.strip()), f"exit status {child.returncode}")
            raise PlatformError(f"the controller did not start: {last.removeprefix('orchestrate: error: ')}")
        facts = {"url": message["url"], "pid": child.pid, "engine": settings.engine, "home": str(home.path)}
        write_server_file(home, facts)
    except BaseException:
        child.kill()
        child.wait()
        raise
    child.returncode = 0  # it goes on without us; nobody waits for it
    return str(message["url"])


# --- stopping


def _end_plain(pid: int, home: Home, clock: Clock) -> int:
    """End the plain controller if `pid` still is it."""
    if not _is_serve(pid):
        return 0
    deadline_ns = clock.monotonic_ns() + round(STOP_SECONDS * NANOSECONDS_PER_SECOND)
    os.kill(pid, signal.SIGTERM)
    while _is_serve(pid):
        if clock.monotonic_ns() > deadline_ns:
            os.kill(pid, signal.SIGKILL)
            deadline_ns += round(STOP_SECONDS * NANOSECONDS_PER_SECOND)
        select.select([], [], [], LOOK_SECONDS)
    return 1


def _is_serve(pid: int) -> bool:
    """Whether this process still is the plain controller and alive; a child of ours that has ended is collected."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"orchestrator.controller.serve" in command


def _end_ray(home: Home, *, needed: bool) -> int:
    try:
        import psutil  # noqa: F401 - without the extra `server` no Ray was ever started from here
    except ModuleNotFoundError:
        if needed:
            raise PlatformError(
                "Ray's processes cannot be looked for", hint="pip install 'orchestrate[server]'"
            ) from None
        return 0
    from orchestrator.controller import ray_processes

    return ray_processes.end_all(home)


def main(arguments: list[str] | None = None) -> int:
    """`stop --home DIR`: what the controller runs to end itself and its Ray from outside."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.controller.local", description=main.__doc__)
    parser.add_argument("verb", choices=["stop"])
    parser.add_argument("--home", required=True)
    flags = parser.parse_args(arguments)
    environ = dict(os.environ)  # noqa: TID251 - the edge of this process
    try:
        stop_server(resolve(environ, Path("/"), {"home": flags.home}), lambda text: None)
    except OrchestrateError as error:
        print(f"orchestrate: error: {error}", file=sys.stderr)  # noqa: T201 - its interface
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
