"""The client against servers that are not what it hopes for, and errors over the wire."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.controller.client import Client
from orchestrator.controller.problems import from_problem, to_problem
from orchestrator.domain import errors
from orchestrator.domain.errors import (
    ControllerUnreachable,
    InvalidSpec,
    OrchestrateError,
    PlatformError,
    Problem,
    UsageError,
    WrongServer,
)

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, OrchestrateError) and kind is not InvalidSpec
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_wire(kind: type[OrchestrateError]) -> None:
    """Each class of error becomes problem+json and the same error again, with its text, hint and exit code."""
    for error in (kind("what", hint="do this"), kind("only what")):
        document = json.loads(json.dumps(to_problem(error)))
        again = from_problem(document)
        assert (type(again), again.what, again.hint, again.exit_code) == (kind, error.what, error.hint, error.exit_code)
        assert document["exitCode"] == error.exit_code
        assert document["status"] == kind.http_status


def test_all_problems_of_a_spec_survive_the_wire() -> None:
    """An InvalidSpec keeps every problem with its place; fields of a later version are left out."""
    error = InvalidSpec([Problem("spec.a", "is wrong", "mend it", "job.yaml", 3, 7), Problem("", "is empty")])
    document = json.loads(json.dumps(to_problem(error)))
    document["problems"][0]["severity"] = "new"
    again = from_problem(document)
    assert isinstance(again, InvalidSpec)
    assert again.problems == error.problems


def test_an_error_of_a_later_version_is_not_lost() -> None:
    """An error class that this version does not know is a PlatformError that names it."""
    again = from_problem({"code": "MoonPhaseWrong", "detail": "wait a week", "status": 503})
    assert type(again) is PlatformError
    assert "wait a week (MoonPhaseWrong)" in str(again)


@contextmanager
def answering(answer: bytes, keep_open: bool = False) -> Iterator[str]:
    """The address of a server that gives one answer to one request."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(65_536)
        connection.sendall(answer)
        if keep_open:
            done.wait(10)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        thread.join()
        listener.close()


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = "".join(f"{line}\r\n" for line in (f"Content-Length: {len(body)}", *headers))
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


OURS = "Orchestrate-Api: v1"

FOREIGN = {
    "a web server": http(b"<html>hello</html>", "Content-Type: text/html"),
    "a web server's 404": http(b"no", status="404 Not Found"),
    "another api": http(b"{}", "Orchestrate-Api: v9", "Orchestrate-Version: 3.2.1"),
    "not json": http(b"<html>", OURS),
    "a list": http(b"[]", OURS),
    "another product": http(b'{"product": "jenkins"}', OURS),
    "a proxy's error": http(b"oops", OURS, status="502 Bad Gateway"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_server_is_told_apart(name: str) -> None:
    """Whatever else answers at the address is a WrongServer with exit code 6, never a traceback."""
    with answering(FOREIGN[name]) as url, pytest.raises(WrongServer) as told:
        Client(url, "t").info()
    assert told.value.exit_code == 6
    if name == "another api":
        assert "version 3.2.1" in str(told.value)
        assert "API v9" in str(told.value)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n" + OURS.encode() + b"\r\n\r\n{"]
)
def test_a_broken_answer_is_unreachable(answer: bytes) -> None:
    """A connection that ends early, or that speaks no HTTP, is ControllerUnreachable."""
    with answering(answer) as url, pytest.raises(ControllerUnreachable):
        Client(url, "t").info()


def test_silence_and_refusal_are_unreachable() -> None:
    """A server that says nothing is given up after the time-out; a closed port at once."""
    with answering(b"", keep_open=True) as url, pytest.raises(ControllerUnreachable, match="not answer in time"):
        Client(url, "t", timeout_seconds=0.2).info()
    with pytest.raises(ControllerUnreachable, match="refused"):
        Client(url, "t").info()


def test_a_log_stream_that_breaks_off_is_told() -> None:
    """Lines before the break are handed out; then it is ControllerUnreachable, not an end of the log."""
    stream = f'HTTP/1.1 200 OK\r\n{OURS}\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\ndata: {{"rank": "0", "line": "x"}}\n\n'
    with answering(stream.encode()) as url:
        lines = Client(url, "t").logs("default", "a", follow=True)
        assert next(lines) == ("0", "x")
        with pytest.raises(ControllerUnreachable, match="broke off"):
            next(lines)


@pytest.mark.parametrize("url", ["", "localhost:8470", "ftp://x", "http://", "http://h:port", "http://[::1"])
def test_an_address_that_is_none_is_a_usage_error(url: str) -> None:
    """A wrong address is told before anything is sent."""
    with pytest.raises(UsageError, match="is no address"):
        Client(url, "t")
