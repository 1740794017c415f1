"""HTTP around the API: the guard at its door, and the thread that serves it.

The guard stands before everything else: it looks at the Host header (a web page that a browser was tricked into loading
under another name may not talk to a controller on this machine), at the bearer token, and at the announced size of the
body; and it stamps every response with the API version, by which clients know whom they talk to.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator import __version__
from orchestrator.controller.problems import MEDIA_TYPE, to_problem
from orchestrator.domain.errors import AuthError, InternalError, OrchestrateError, PlatformError, UsageError

log = logging.getLogger(__name__)

API = "v1"
API_HEADER = "orchestrate-api"
VERSION_HEADER = "orchestrate-version"
MAX_BODY_BYTES = 1024 * 1024
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
GRACE_SECONDS = 3
"""How long requests that are under way may take when the server closes."""


def problem_response(error: OrchestrateError, status: int | None = None) -> Response:
    document = to_problem(error, status)
    headers = {"WWW-Authenticate": "Bearer"} if document["status"] == 401 else None
    return Response(json.dumps(document), document["status"], headers, MEDIA_TYPE)


def too_large() -> Response:
    error = UsageError(f"the body has more than {MAX_BODY_BYTES:,} bytes", hint="a job file is far smaller; is it one?")
    return problem_response(error, 413)


class Hosts:
    """Names by which this server may be addressed: the loopback ones and what it is bound to."""

    def __init__(self) -> None:
        self._names = {"localhost"}
        self._any_address = False

    def add(self, host: str) -> None:
        """The server listens on `host`; one that listens on every address is called by any address or by its name."""
        self._names.add(host.lower())
        address = _address(host)
        if address is not None and address.is_unspecified:
            self._any_address = True
            self._names.add(socket.gethostname().lower())

    def accept(self, header: str) -> bool:
        name = _host_of(header).lower()
        address = _address(name)
        if address is not None and (address.is_loopback or self._any_address):
            return True
        return name in self._names


def _host_of(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address is not None else host.lower() == "localhost"


class Guard:
    """ASGI application around `app`."""

    def __init__(self, app: ASGIApp, token: str, hosts: Hosts) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def stamped(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = (API_HEADER.encode(), API.encode()), (VERSION_HEADER.encode(), __version__.encode())
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, stamped)
            return
        try:
            await self._app(scope, receive, stamped)
        except Exception:
            log.exception("a defect in %s %s", scope["method"], scope["path"])
            if not began:
                await problem_response(a_defect())(scope, receive, stamped)

    def _refusal(self, scope: Scope) -> Response | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._hosts.accept(host):
            what = f"this controller is not to be called as {host!r}"
            return problem_response(AuthError(what, hint="use http://127.0.0.1 or the address it listens on"), 403)
        if scope["path"] not in OPEN_PATHS and not self._knows(headers.get(b"authorization")):
            what = "the token is wrong" if b"authorization" in headers else "a token is needed"
            hint = (
                "it is in the file `token` of the controller's home: set ORCHESTRATE_TOKEN to it, or send it as "
                "`Authorization: Bearer <token>`"
            )
            return problem_response(AuthError(what, hint=hint))
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return too_large()
        return None

    def _knows(self, given: bytes | None) -> bool:
        return given is not None and hmac.compare_digest(given, self._expected)


def a_defect() -> InternalError:
    return InternalError("the controller failed on this request", hint="its log tells more; please report it")


class HttpServer:
    """A running server. `close` ends it: streams and long polls are told, other requests get a moment to finish."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self._let_go: Callable[[], None] = app.state.close
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._let_go()
        self._server.should_exit = True
        self._thread.join()


def serve_http(app: Any, host: str, port: int, insecure: bool = False) -> HttpServer:
    """Serve `app` (of `create_app`) in a thread; `port` 0 takes any free one.

    Raises `UsageError` for an address beyond this machine without `insecure`, since tokens would travel in the clear,
    and `PlatformError` when the address cannot be had.
    """
    if not is_loopback(host) and not insecure:
        raise UsageError(
            f"listening on {host} would send the token over the network in the clear",
            hint="listen on 127.0.0.1 behind a tunnel or a TLS proxy, or insist with --insecure",
        )
    app.state.hosts.add(host)
    return HttpServer(app, _listen(host, port))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = _resolved(host, port)
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PlatformError(
            f"{host} is no address to listen on ({error.strerror or error})", hint="use 127.0.0.1"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PlatformError(
            f"port {port} of {host} cannot be had ({error.strerror or error})",
            hint="something else listens there? end it, or choose another port with --port or ORCHESTRATE_PORT",
        ) from error
    return listener


def _resolved(host: str, port: int) -> tuple[Any, ...]:
    found: Iterable[tuple[Any, ...]] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return next(iter(found))
