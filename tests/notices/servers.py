"""Metadata servers of three clouds and an API server, on loopback, with the real paths, headers and payloads; and what goes
wrong with such servers. Every request is counted, so that a test can prove what was asked."""

from __future__ import annotations

import json
import ssl
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, SystemClock

FAULTS = ("500", "hang", "drip", "cut", "malformed", "html", "redirect", "huge")
PORTAL = b"<html><head><title>Sign in to WiFi</title></head><body>Please accept our terms</body></html>"


class Reply:
    """An answer in one piece."""

    def __init__(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, dict(headers or {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        seconds = SystemClock().now_ns() / NANOSECONDS_PER_SECOND + self.owner.ahead_seconds
        return formatdate(seconds, usegmt=True)

    def do_GET(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else b""
        split = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(split.query))
        self.close_connection = True
        try:
            if self.owner.inject(self, split.path):
                return
            self.owner.requests[f"{self.command} {split.path}"] += 1
            reply = self.owner.answer(self, split.path, query, body)
            if reply is not None:
                self.reply(reply)
        except OSError:
            return  # the other side hung up, which some tests want

    def reply(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), "Connection": "close", **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


class FakeServer:
    """Change what it holds inside `with server.changed:` and call `notify`; a context manager."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.changed = threading.Condition()
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.fault: str | None = None
        self.fault_path = ""
        """What the path of a request must contain for the fault to strike."""
        self.ahead_seconds = 0.0
        """How far this server's clock is ahead."""
        self.closing = False
        handler = type("BoundHandler", (Handler,), {"owner": self})
        self._http = _Threads(("127.0.0.1", 0), handler)
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.address: tuple[str, int] = ("127.0.0.1", self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, handler: Handler, path: str, query: Mapping[str, str], body: bytes) -> Reply | None:
        """What a whole server says; None when the handler has been answered already."""
        raise NotImplementedError

    def break_with(self, fault: str | None, path: str = "") -> None:
        with self.changed:
            self.fault, self.fault_path = fault, path
            self.changed.notify_all()

    def inject(self, handler: Handler, path: str) -> bool:
        """Misbehave instead of answering, if that is asked for."""
        fault = self.fault
        if fault is None or self.fault_path not in path:
            return False
        self.injected[fault] += 1
        match fault:
            case "500":
                handler.reply(Reply(500, b"internal error"))
            case "hang":
                self.wait(lambda: self.fault != "hang", 30.0)
            case "drip":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                for _ in range(600):
                    handler.wfile.write(b"z")
                    handler.wfile.flush()
                    if self.wait(lambda: self.fault != "drip", 0.05):
                        break
            case "cut":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            case "malformed":
                handler.reply(Reply(200, b'{"action": ', {"Metadata-Flavor": "Google", "ETag": "1"}))
            case "html":
                handler.reply(Reply(200, PORTAL, {"Content-Type": "text/html"}))
            case "redirect":
                handler.reply(Reply(302, PORTAL, {"Location": "http://127.0.0.1:9/login"}))
            case "huge":
                handler.reply(Reply(200, b"0" * (1 << 21)))
        return True

    def wait(self, until: Callable[[], bool], timeout_seconds: float) -> bool:
        """Whether the condition held in time, or the server is closing."""
        with self.changed:
            return self.changed.wait_for(lambda: self.closing or until(), timeout_seconds)

    def wait_for_requests(self, text: str, count: int = 1, timeout_seconds: float = 10.0) -> None:
        """Until `count` requests in all were made whose method and path contain `text`."""

        def seen() -> int:
            return sum(number for request, number in dict(self.requests).items() if text in request)

        deadline = time.monotonic() + timeout_seconds
        pause = threading.Event()
        while seen() < count:
            assert time.monotonic() < deadline, f"no {count} requests of {text!r} within {timeout_seconds} s"
            pause.wait(0.005)


class Ec2(FakeServer):
    """The instance metadata service, version 2 only. `documents`: what stands at a path below /latest/meta-data/."""

    def __init__(self, life_seconds: int | None = None) -> None:
        self.documents: dict[str, Any] = {"events/maintenance/scheduled": []}
        self.tokens: set[str] = set()
        self.life_seconds = life_seconds
        """Of a token, whatever is asked for; None: what is asked for."""
        self.refuses = False
        """401 whatever the token."""
        super().__init__()

    def put(self, path: str, document: Any) -> None:
        with self.changed:
            self.documents[path] = document

    def remove(self, path: str) -> None:
        with self.changed:
            del self.documents[path]

    def expire_tokens(self) -> None:
        with self.changed:
            self.tokens.clear()

    def answer(self, handler: Handler, path: str, query: Mapping[str, str], body: bytes) -> Reply | None:
        with self.changed:
            if handler.command == "PUT" and path == "/latest/api/token":
                asked = handler.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
                if asked is None or not 1 <= int(asked) <= 21_600:
                    return Reply(400)
                token = f"AQAEA{len(self.tokens):04}{self.requests.total():06}nlZ=="
                self.tokens.add(token)
                life = asked if self.life_seconds is None else str(self.life_seconds)
                return Reply(200, token.encode(), {"X-aws-ec2-metadata-token-ttl-seconds": life, "Server": "EC2ws"})
            if self.refuses or handler.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
                return Reply(401)
            document = self.documents.get(path.removeprefix("/latest/meta-data/"))
            return Reply(404) if document is None else Reply(200, json.dumps(document).encode())


class Gce(FakeServer):
    """The metadata server of Compute Engine, with `wait_for_change`."""

    def __init__(self) -> None:
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.versions = Counter(dict.fromkeys(self.values, 1))
        self.waits = True
        """False: a server that answers at once whatever is asked, as some stand-ins do."""
        super().__init__()

    def put(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value
            self.versions[key] += 1
            self.changed.notify_all()

    def answer(self, handler: Handler, path: str, query: Mapping[str, str], body: bytes) -> Reply | None:
        if handler.headers.get("Metadata-Flavor") != "Google":
            return Reply(403, b"Missing Metadata-Flavor:Google header.")
        key = path.removeprefix("/computeMetadata/v1/instance/")
        if key not in self.values:
            return Reply(404)
        if query.get("wait_for_change") == "true" and self.waits:
            last = query.get("last_etag", self._etag(key))
            self.wait(lambda: self._etag(key) != last or self.fault is not None, float(query.get("timeout_sec", 60)))
            if self.inject(handler, path):
                return None
        with self.changed:
            headers = {"Metadata-Flavor": "Google", "ETag": self._etag(key), "Content-Type": "application/text"}
            return Reply(200, self.values[key].encode(), headers)

    def _etag(self, key: str) -> str:
        return f"{self.versions[key]:016x}"


class Azure(FakeServer):
    """The instance metadata service of Azure with Scheduled Events."""

    def __init__(self, machine: str = "pool_0") -> None:
        self.machine = machine
        self.events: list[dict[str, Any]] = []
        self.incarnation = 1
        self.started: list[str] = []
        """Events that were approved."""
        self.first_answer_seconds = 0.0
        super().__init__()

    def put(self, *events: dict[str, Any]) -> None:
        with self.changed:
            self.events = list(events)
            self.incarnation += 1

    def answer(self, handler: Handler, path: str, query: Mapping[str, str], body: bytes) -> Reply | None:
        if handler.headers.get("Metadata") != "true":
            return Reply(400, b'{"error": "Bad request. Required metadata header not specified"}')
        if path == "/metadata/instance/compute" and "api-version" in query:
            identity = {
                "name": self.machine,
                "location": "westeurope",
                "azEnvironment": "AzurePublicCloud",
                "vmId": "1",
            }
            return Reply(200, json.dumps(identity).encode())
        if path != "/metadata/scheduledevents" or query.get("api-version") != "2020-07-01":
            return Reply(404)
        if self.first_answer_seconds:
            delay, self.first_answer_seconds = self.first_answer_seconds, 0.0
            self.wait(lambda: False, delay)
        with self.changed:
            if handler.command == "POST":
                ids = [request["EventId"] for request in json.loads(body)["StartRequests"]]
                self.started += ids
                return Reply(200)
            document = {"DocumentIncarnation": self.incarnation, "Events": self.events}
            return Reply(200, json.dumps(document).encode())


def azure_event(event_id: str, kind: str = "Preempt", in_seconds: float = 30.0, **changes: Any) -> dict[str, Any]:
    """A scheduled event as Azure writes it."""
    at = SystemClock().now_ns() / NANOSECONDS_PER_SECOND + in_seconds
    event: dict[str, Any] = {
        "EventId": event_id,
        "EventStatus": "Scheduled",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": ["pool_0"],
        "NotBefore": formatdate(at, usegmt=True),
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }
    return event | changes


class Kubernetes(FakeServer):
    """Nodes and pods by list and watch. Objects are kept by path of their collection, then by name."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.token = "cluster-token"
        self.objects: dict[str, dict[str, dict[str, Any]]] = {"/api/v1/nodes": {}, "/api/v1/namespaces/jobs/pods": {}}
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []
        """Version, collection, type and object of every change."""
        self.version = 100
        self.oldest = 0
        """A watch from before it is answered with 410."""
        self.cut_watches = 0
        super().__init__(tls)

    def put(self, path: str, name: str, **fields: Any) -> None:
        with self.changed:
            kind = "MODIFIED" if name in self.objects[path] else "ADDED"
            self.version += 1
            metadata = {"name": name, "resourceVersion": str(self.version)} | fields.pop("metadata", {})
            if "namespaces" in path:
                metadata.setdefault("namespace", path.split("/")[4])
            found = {"metadata": metadata, **fields}
            self.objects[path][name] = found
            self.history.append((self.version, path, kind, found))
            self.changed.notify_all()

    def delete(self, path: str, name: str) -> None:
        with self.changed:
            found = self.objects[path].pop(name)
            self.version += 1
            found = {**found, "metadata": {**found["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, path, "DELETED", found))
            self.changed.notify_all()

    def forget_history(self) -> None:
        """Compaction, and every open watch is cut."""
        with self.changed:
            self.history.clear()
            self.oldest = self.version + 1
            self.cut_watches += 1
            self.changed.notify_all()

    def answer(self, handler: Handler, path: str, query: Mapping[str, str], body: bytes) -> Reply | None:
        if handler.headers.get("Authorization") != f"Bearer {self.token}":
            return Reply(401, b'{"kind": "Status", "code": 401}')
        if path not in self.objects:
            return Reply(403, b'{"kind": "Status", "code": 403}')
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        if query.get("watch") == "true":
            self._watch(handler, path, name, query)
            return None
        with self.changed:
            items = [found for key, found in self.objects[path].items() if not name or key == name]
            listed = {"kind": "List", "metadata": {"resourceVersion": str(self.version)}, "items": items}
            return Reply(200, json.dumps(listed).encode())

    def _watch(self, handler: Handler, path: str, name: str, query: Mapping[str, str]) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        at, cuts = int(query["resourceVersion"]), self.cut_watches
        if at < self.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            self._chunk(handler, {"type": "ERROR", "object": gone})
        else:
            end = time.monotonic() + float(query.get("timeoutSeconds", 60))
            while (left := end - time.monotonic()) > 0:
                self.wait(lambda at=at: self.version > at or self.cut_watches != cuts or self.fault is not None, left)  # type: ignore[misc]
                if self.closing or self.fault is not None:
                    return
                if self.cut_watches != cuts:
                    break
                with self.changed:
                    news = [change for change in self.history if change[0] > at]
                    at = self.version
                for _, where, kind, found in news:
                    if where == path and name in ("", found["metadata"]["name"]):
                        self._chunk(handler, {"type": kind, "object": found})
        handler.wfile.write(b"0\r\n\r\n")

    @staticmethod
    def _chunk(handler: Handler, event: Mapping[str, Any]) -> None:
        line = json.dumps(event).encode() + b"\n"
        handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        handler.wfile.flush()
