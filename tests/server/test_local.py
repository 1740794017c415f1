"""The controller of this machine: found, started once, brought back, stopped."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.controller import local, ray_processes
from orchestrator.controller.home import Home
from orchestrator.controller.settings import Settings
from orchestrator.domain.clock import SystemClock
from orchestrator.domain.errors import AuthError, OrchestrateError, StorageError, WrongServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
DEADLINE_SECONDS = 90.0
ENVIRON = dict(os.environ)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=str(tmp_path / "home"), engine="fake", port=free_port(), cpus=2)
    yield settings
    local.stop_server(settings, lambda text: None)


@pytest.fixture
def ray_settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=str(tmp_path / "home"), engine="ray-train", port=free_port(), cpus=1)
    yield settings
    local.stop_server(settings, lambda text: None)
    assert ray_processes.find(Home(settings.home_path))[1] == []


def ensure(settings: Settings, say: Callable[[str], None] = lambda text: None) -> local.Endpoint:
    return local.ensure_server(settings, say, ENVIRON, SystemClock())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"nothing came of it in {DEADLINE_SECONDS} s"
        pause.wait(0.1)


def ensure_twice_at_once(settings: Settings) -> list[local.Endpoint]:
    found: list[local.Endpoint] = []
    threads = [threading.Thread(target=lambda: found.append(ensure(settings))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_first_calls_start_one_plain_controller(settings: Settings) -> None:
    """Of two concurrent calls one starts the controller, both get its address; stopping it ends it, twice is harmless."""
    assert local.find_server(settings, ENVIRON) is None
    assert local.server_status(settings)["running"] is False
    found = ensure_twice_at_once(settings)
    assert sorted(endpoint.started for endpoint in found) == [False, True]
    assert {endpoint.url for endpoint in found} == {f"http://127.0.0.1:{settings.port}"}
    status = local.server_status(settings)
    assert (status["running"], status["engine"]) == (True, "fake")
    assert local.stop_server(settings, lambda text: None)
    assert local.find_server(settings, ENVIRON) is None
    assert not local.stop_server(settings, lambda text: None)


def test_a_stale_server_file_does_not_mislead(settings: Settings) -> None:
    """After a SIGKILL of the controller, its server.json stands; the next call starts another one on the same port."""
    ensure(settings)
    os.kill(int(local.server_status(settings)["pid"]), signal.SIGKILL)
    until(lambda: local.find_server(settings, ENVIRON) is None)
    again = ensure(settings)
    assert again.started
    assert again.url == f"http://127.0.0.1:{settings.port}"


def test_a_port_in_use_is_told_with_the_remedy(settings: Settings) -> None:
    """A port that another program holds gives one error that names the port and what to do; nothing is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.port))
        other.listen()
        said: list[str] = []
        with pytest.raises(WrongServer, match=rf"port {settings.port} .* in use .*ORCHESTRATE_PORT"):
            ensure(settings, said.append)
        assert said == [], "a start was promised"
    assert local.read_server_file(Home(settings.home_path)) is None


def test_a_foreign_server_is_not_taken_for_ours(settings: Settings) -> None:
    """Where server.json points at a port that now answers as something else, that is said."""
    home = Home(settings.home_path)
    home.prepare()
    server = http.server.HTTPServer(("127.0.0.1", settings.port), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        facts = {"url": f"http://127.0.0.1:{settings.port}", "pid": os.getpid(), "engine": "fake"}
        home.server_file.write_text(json.dumps(facts))
        with pytest.raises(WrongServer, match="no orchestrate controller"):
            local.find_server(settings, ENVIRON)
        assert "no orchestrate controller" in local.server_status(settings)["error"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_token_that_was_altered_is_an_error_of_authentication(settings: Settings) -> None:
    """Another token than the running controller's gives AuthError; a file that holds none, a StorageError that names it;
    and `server stop`, which needs none, still ends the controller."""
    ensure(settings)
    home = Home(settings.home_path)
    home.token_file.write_text("of-somebody-else\n")
    with pytest.raises(AuthError, match=r"does not take the token .*server stop"):
        local.find_server(settings, ENVIRON)
    for rubbish in (b"", b"\xff\xfe\x00", b"two\nlines"):
        home.token_file.write_bytes(rubbish)
        with pytest.raises(StorageError, match=r"token holds no token"):
            ensure(settings)
    assert local.stop_server(settings, lambda text: None)
    home.token_file.unlink()
    assert ensure(settings).started


@pytest.mark.parametrize("rubbish", ["", "{", "[]", '{"url": 5, "pid": "x", "engine": "fake"}'])
def test_a_lost_server_file_is_written_again(settings: Settings, rubbish: str) -> None:
    """The controller that answers on the port of this home, with its token, is taken up without server.json."""
    ensure(settings)
    home = Home(settings.home_path)
    facts = local.read_server_file(home)
    assert facts is not None
    home.server_file.write_text(rubbish)
    again = ensure(settings)
    assert (again.started, again.url) == (False, facts["url"])
    assert local.read_server_file(home) is not None


def test_a_home_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A home that cannot be written gives a storage error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/home"):
        ensure(Settings(home=str(tmp_path / "file" / "home"), engine="fake", port=0))
    with pytest.raises(StorageError, match="is not a folder"):
        ensure(Settings(home=str(tmp_path / "file"), engine="fake", port=0))


def test_what_kept_the_controller_from_starting_is_told(settings: Settings) -> None:
    """A controller that cannot begin says why, and leaves no server.json."""
    broken = Settings(home=settings.home, engine="fake", port=settings.port, journal="mysql://x")
    with pytest.raises(OrchestrateError, match="postgresql"):
        ensure(broken)
    assert local.read_server_file(Home(settings.home_path)) is None


def test_one_ray_is_started_brought_back_and_stopped(ray_settings: Settings) -> None:
    """1. Two concurrent calls start one Ray. 2. A killed controller is started again by Ray, on its port. 3. After a SIGKILL
    of all of Ray the next call starts another. 4. Stopping leaves no process and no folder."""
    home = Home(ray_settings.home_path)
    found = ensure_twice_at_once(ray_settings)
    assert sorted(endpoint.started for endpoint in found) == [False, True]
    assert found[0].url == found[1].url

    first = int(local.server_status(ray_settings)["pid"])
    os.kill(first, signal.SIGKILL)
    until(lambda: local.server_status(ray_settings)["pid"] != first and local.server_status(ray_settings)["running"])
    assert local.server_status(ray_settings)["url"] == found[0].url

    for process in ray_processes.find(home)[1]:
        process.kill()
    until(lambda: local.find_server(ray_settings, ENVIRON) is None)
    again = ensure(ray_settings)
    assert again.started
    assert again.url == found[0].url
    assert local.server_status(ray_settings)["epoch"] == 3

    assert local.stop_server(ray_settings, lambda text: None)
    assert ray_processes.find(home) == (None, [])
    prefix = Path(ray_processes.folder_prefix(home))
    assert list(prefix.parent.glob(f"{prefix.name}*")) == []


def test_an_interrupt_while_ray_starts_leaves_nothing_half_started(ray_settings: Settings) -> None:
    """Ctrl-C at the command that starts Ray ends the command alone: the start goes on to its end, and the next call finds
    the controller."""
    script = (
        "import os; from orchestrator.controller import local; from orchestrator.controller.settings import Settings;"
        "from orchestrator.domain.clock import SystemClock;"
        f"local.ensure_server(Settings(home={ray_settings.home!r}, port={ray_settings.port}, cpus=1),"
        "lambda text: print(text, flush=True), dict(os.environ), SystemClock())"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert command.stdout is not None
    assert "Starting Ray" in command.stdout.readline()
    until(lambda: ray_processes.find(Home(ray_settings.home_path))[1] != [])
    os.killpg(command.pid, signal.SIGINT)
    with command.stdout:
        command.wait(DEADLINE_SECONDS)
    assert command.returncode != 0
    assert not ensure(ray_settings).started
