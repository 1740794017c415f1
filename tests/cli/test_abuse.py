"""Whatever a person or the world does: one clear error, the right exit code, no traceback, nothing half-written.

These run as processes of their own, as people run them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, JOB, REPOSITORY, process
from tests.cli.fake_controller import TOKEN, FakeController, resource, serving

pytestmark = pytest.mark.integration


def one_error(run: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert "Traceback" not in run.stderr
    assert (run.returncode, run.stdout) == (code, ""), run.stderr
    for word in words:
        assert word in run.stderr


@pytest.fixture
def controller() -> Iterator[FakeController]:
    with serving(FakeController()) as fake:
        fake.add(resource())
        yield fake


def files(folder: Path) -> dict[str, str]:
    """Files that are no job files, and what is said of each."""
    (folder / "train.csv").write_text("text,label\na,b\n", encoding="utf-8")
    (folder / "folder").mkdir()
    (folder / "binary.yaml").write_bytes(bytes(range(256)) * 8)
    (folder / "empty.yaml").touch()
    (folder / "list.yaml").write_text("- a\n- b\n", encoding="utf-8")
    (folder / "text.yaml").write_text("just words", encoding="utf-8")
    (folder / "tabs.yaml").write_text("metadata:\n\tname: x\n", encoding="utf-8")
    (folder / "bomb.yaml").write_text(
        "a: &a [x,x]\n" + "".join(f"b{i}: &b{i} [*a,*a]\n" for i in range(9)), encoding="utf-8"
    )
    (folder / "utf16.yaml").write_text(JOB, encoding="utf-16")
    (folder / "large.yaml").write_text("x" * (2 << 20), encoding="utf-8")
    (folder / "types.yaml").write_text(
        JOB.replace("maxSteps: 10", "maxSteps: [ten]").replace("min: 2", "min: 2.5"), encoding="utf-8"
    )
    (folder / "deep.yaml").write_text("a: " + "[" * 500, encoding="utf-8")
    (folder / "null.yaml").write_text("a\0b: c\n", encoding="utf-8")
    (folder / "closed.yaml").write_text(JOB, encoding="utf-8")
    return {
        "none.yaml": "there is no such file",
        "folder": "this is a folder",
        "binary.yaml": "binary.yaml",
        "empty.yaml": "the file is empty",
        "list.yaml": "list.yaml",
        "text.yaml": "text.yaml",
        "tabs.yaml": "a tab is used to indent",
        "bomb.yaml": "bomb.yaml",
        "utf16.yaml": "UTF-16",
        "large.yaml": "more than",
        "types.yaml": "spec.training.maxSteps",
        "deep.yaml": "levels of nesting",
        "null.yaml": "null.yaml",
        "\udcff.yaml": "there is no such file",
        "/dev/null": "the file is empty",
        "/proc/self/mem": "cannot be read",
    }


def test_files_that_are_no_job_files(tmp_path: Path) -> None:
    """Each is one clear error with exit code 2, and never a traceback; all in one run as well."""
    expected = files(tmp_path)
    for name, words in expected.items():
        one_error(process("submit", "--dry-run", name, cwd=tmp_path, environ={}), 2, words)
    everything = process("validate", *expected, cwd=tmp_path, environ={})
    assert everything.returncode == 2
    assert "Traceback" not in everything.stderr


def test_nothing_listens_at_the_address(tmp_path: Path) -> None:
    """A dead controller elsewhere is exit code 6."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environ = {"ORCHESTRATE_URL": f"http://127.0.0.1:{probe.getsockname()[1]}", "ORCHESTRATE_TOKEN": "x"}
        for argv in (["list"], ["status", "x"], ["logs", "x"], ["logs", "x", "-f"], ["cancel", "x"], ["prices"]):
            one_error(
                process(*argv, cwd=tmp_path, environ=environ), 6, "cannot be reached", "orchestrate server status"
            )


def test_a_foreign_server_at_the_address(tmp_path: Path, controller: FakeController) -> None:
    """Another program, or a controller of another API version, is exit code 6 and is named."""
    environ = {"ORCHESTRATE_URL": controller.url, "ORCHESTRATE_TOKEN": TOKEN}
    controller.headers = {}
    one_error(process("list", cwd=tmp_path, environ=environ), 6, "not a controller of orchestrate")
    controller.headers = {"Orchestrate-Api": "v7", "Orchestrate-Version": "8.8.8"}
    one_error(process("list", cwd=tmp_path, environ=environ), 6, "v7", "8.8.8")


def test_a_wrong_or_missing_token(tmp_path: Path, controller: FakeController) -> None:
    """Exit code 5, with what to do."""
    environ = {"ORCHESTRATE_URL": controller.url, "ORCHESTRATE_TOKEN": "wrong"}
    one_error(process("list", cwd=tmp_path, environ=environ), 5, "token")
    environ["ORCHESTRATE_TOKEN"] = ""
    one_error(process("list", cwd=tmp_path, environ=environ), 5, "ORCHESTRATE_TOKEN")


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://[::1", "http://x:port"])
def test_an_address_that_is_none(url: str, tmp_path: Path) -> None:
    """A URL that cannot be one is exit code 2."""
    environ = {"ORCHESTRATE_URL": url, "ORCHESTRATE_TOKEN": "x"}
    one_error(process("list", cwd=tmp_path, environ=environ), 2, "no address")


@pytest.mark.parametrize("port", ["many", "99999", "-1"])
def test_a_port_that_is_none(port: str, tmp_path: Path) -> None:
    """A port that cannot be one is exit code 2 and names where it came from."""
    one_error(process("list", cwd=tmp_path, environ={"ORCHESTRATE_PORT": port}), 2, "ORCHESTRATE_PORT")


def test_a_server_that_takes_the_connection_and_says_nothing_sensible(tmp_path: Path) -> None:
    """A server that answers garbage, or hangs up, is exit code 6."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        answers = [b"\x00\xff garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"]

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        environ = {"ORCHESTRATE_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "ORCHESTRATE_TOKEN": "x"}
        for _ in answers:
            one_error(process("list", cwd=tmp_path, environ=environ), 6)
        thread.join()


def test_a_reader_that_goes_away(tmp_path: Path, controller: FakeController) -> None:
    """`| head -1` ends the output in silence, with exit code 0."""
    for number in range(3_000):
        controller.add(resource(f"job-{number}"))
    env = {**os.environ, "PYTHONPATH": REPOSITORY, "ORCHESTRATE_URL": controller.url, "ORCHESTRATE_TOKEN": TOKEN}
    with subprocess.Popen(
        [*COMMAND, "list", "-o", "json"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"{\n"
        run.stdout.close()
        assert run.stderr.read() == b""
        assert run.wait(60) == 0


def test_a_full_disk_behind_stdout(tmp_path: Path) -> None:
    """Output that cannot be written is an error, not a success."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        run = subprocess.run(
            [*COMMAND, "schema"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 1
    assert run.stderr == "orchestrate: error: No space left on device\n"


def test_a_terminal_that_knows_only_ascii(tmp_path: Path, controller: FakeController) -> None:
    """In a locale without UTF-8 nothing breaks and nothing but ASCII is drawn."""
    environ = {
        "ORCHESTRATE_URL": controller.url,
        "ORCHESTRATE_TOKEN": TOKEN,
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
    }
    controller.end(controller.jobs["default", "sentiment"], "Succeeded", "Completed")
    run = process("wait", "sentiment", "-o", "receipt", cwd=tmp_path, environ=environ)
    assert run.returncode == 0
    assert run.stdout.isascii()
    assert "####" in run.stdout


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    """A command in a folder that was removed still works or says what is wrong."""
    folder = tmp_path / "gone"
    folder.mkdir()
    script = f'cd {folder} && rmdir {folder} && "$0" -c "$1" version'
    env = {**os.environ, "PYTHONPATH": REPOSITORY}
    run = subprocess.run(
        ["sh", "-c", script, sys.executable, COMMAND[2]],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
