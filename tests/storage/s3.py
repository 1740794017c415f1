"""An object store to test against: moto's S3 server in a process of its own, behind a proxy that injects faults and counts them."""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from orchestrator.domain.clock import SystemClock
from orchestrator.storage import ObjectStore, Retries, open_store

BUCKET = "bucket"
KEY = "right"
START_SECONDS = 60.0
READ_SECONDS = 2.0
_ANSWERS = {
    403: ("InvalidAccessKeyId", "The key you gave is not known"),
    500: ("InternalError", "We met an error of our own"),
    503: ("SlowDown", "Please reduce your request rate"),
    507: ("InsufficientStorage", "There is no room left"),
}
_OWN_HEADERS = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Fault:
    """What to do to requests: `kind` is a status, `cut` (in the middle of the request), `lost` (done, but the answer is cut
    off), `torn` (cut in the middle of the answer), `hang` (no answer until the client gives up) or `slow`."""

    kind: str
    method: str
    words: str = ""
    """What the path and query contain."""
    times: int = 1
    skip: int = 0
    """How many such requests are let through first."""


@dataclass
class Proxy:
    """Passes requests to the server. Thread-safe."""

    upstream: tuple[str, int]
    faults: list[Fault] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    allowed: int | None = None
    """How many more changing requests are let through; after them every connection is cut, as if the machine were dead."""
    url: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.released = threading.Event()

    def reset(self) -> None:
        with self._lock:
            self.faults, self.allowed = [], None
            self.injected.clear()
            self.requests.clear()

    def inject(self, *faults: Fault) -> None:
        with self._lock:
            self.faults.extend(faults)

    def judge(self, method: str, path: str, authorization: str) -> str:
        """The kind of fault for a request; "" for none."""
        with self._lock:
            self.requests[method] += 1
            if f"Credential={KEY}/" not in authorization:
                self.injected["403"] += 1
                return "403"
            if self.allowed is not None and method not in ("GET", "HEAD"):
                if self.allowed == 0:
                    self.injected["dead"] += 1
                    return "cut"
                self.allowed -= 1
            for fault in self.faults:
                if fault.times and fault.method == method and fault.words in path:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    self.injected[fault.kind] += 1
                    return fault.kind
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def serve(self) -> None:
        kind = self.proxy.judge(self.command, self.path, self.headers.get("Authorization", ""))
        length = int(self.headers.get("Content-Length", 0))
        if kind == "cut":
            self.rfile.read(length // 2)
            self._hang_up()
            return
        body = self.rfile.read(length)
        if kind == "hang":
            self.proxy.released.wait(5 * READ_SECONDS)
            self._hang_up()
            return
        if kind == "slow":
            self.proxy.released.wait(READ_SECONDS / 4)
        if kind.isdigit():
            code, words = _ANSWERS[int(kind)]
            text = f"<Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()
            self._answer(int(kind), [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text)
            return
        connection = http.client.HTTPConnection(*self.proxy.upstream, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if kind == "lost":
            self._hang_up()
        elif kind == "torn":
            self._answer(answer.status, answer.getheaders(), content, keep=len(content) // 2)
            self._hang_up()
        else:
            size = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, answer.getheaders(), content, size=size)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        keep: int | None = None,
        size: str | None = None,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", size or str(len(content)))
        self.end_headers()
        self.wfile.write(content[:keep])

    def _hang_up(self) -> None:
        self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the client was faster


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that give up are what this is for


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """moto's server with one empty bucket; gives host and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", "import sys; from moto.server import main; main(sys.argv[1:])"]
    process = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.request("PUT", f"/{BUCKET}")
                assert connection.getresponse().status == 200
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "moto's server ended"
                assert time.monotonic() < deadline, "moto's server did not come up"
                threading.Event().wait(0.1)
            finally:
                connection.close()
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def proxied(upstream: tuple[str, int]) -> Iterator[Proxy]:
    """The proxy, listening."""
    proxy = Proxy(upstream)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def store_at(url: str, path: str, *, key: str = KEY, tries: int = 6, bucket: str = BUCKET) -> ObjectStore:
    """A store on that server, impatient."""
    options = {
        "skip_instance_cache": False,  # a client costs a second of CPU, and these tests make many stores
        "key": key,
        "secret": "secret",
        "endpoint_url": url,
        "client_kwargs": {"region_name": "us-east-1"},
        "config_kwargs": {"connect_timeout": 5, "read_timeout": READ_SECONDS, "retries": {"max_attempts": 0}},
    }
    retries = Retries(
        SystemClock(), random.Random(1), threading.Event().wait, tries=tries, first_seconds=0.01, longest_seconds=0.05
    )
    store = open_store(f"s3://{bucket}/{path}", options=options, retries=retries)
    assert isinstance(store, ObjectStore)
    return store
