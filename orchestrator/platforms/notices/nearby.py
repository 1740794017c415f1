"""HTTP to a server that is a step away: a metadata server on its link-local address, the cluster's API server.

Made for being watched and stopped: every exchange has one deadline for all of it (a server that sends a byte a second does
not get around it), a connection of its own, no proxy, no redirect, and at most a mebibyte of answer. `interrupt`, from
another thread, ends what is waited for, connecting included. Standard library only: it runs in the agent.

Answers carry the server's `Date`, so that an instant that it tells can be put on this machine's clock when the two differ.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock, seconds_between
from orchestrator.platforms.notices.base import Unreadable, instant_ns, seconds

log = logging.getLogger(__name__)

LINK_LOCAL = "169.254.169.254"
"""Where AWS, GCP and Azure answer, each machine's own."""
BODY_LIMIT_BYTES = 1 << 20
ANSWER_SECONDS = 2.0
"""A server that is near and has not answered by then is in trouble."""
SKEW_NS = seconds(2)
"""Clocks that differ by less are taken as one: `Date` has whole seconds only."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    received_ns: int

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace").strip()

    @property
    def beginning(self) -> str:
        """The first words, for a message."""
        return repr(self.text[:60])

    def document(self) -> Any:
        """The body as JSON. Raises `Unreadable`."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            raise Unreadable(f"not JSON: {self.beginning}") from None

    @property
    def skew_ns(self) -> int:
        """How far the server's clock is ahead of ours, at least; 0 when it tells no time, or nearly ours."""
        theirs = instant_ns(self.headers.get("date"))
        skew = 0 if theirs is None else theirs - self.received_ns
        return skew if abs(skew) > SKEW_NS else 0

    def here_ns(self, theirs_ns: int) -> int:
        """An instant on the server's clock, on ours; rather a second early than late."""
        skew = self.skew_ns
        return theirs_ns - skew - (NANOSECONDS_PER_SECOND if skew else 0)


class _Timed:
    """A socket whose every wait ends at one deadline; what `http.client` needs of a socket."""

    def __init__(self, sock: socket.socket, clock: Clock, timeout_seconds: float) -> None:
        self._sock, self._clock = sock, clock
        self.extend(timeout_seconds)

    def extend(self, timeout_seconds: float) -> None:
        self._deadline_ns = self._clock.monotonic_ns() + seconds(timeout_seconds)

    def _arm(self) -> None:
        left = seconds_between(self._clock.monotonic_ns(), self._deadline_ns)
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)

    def sendall(self, content: bytes) -> None:
        self._arm()
        self._sock.sendall(content)

    def receive(self, buffer: memoryview) -> int:
        self._arm()
        return self._sock.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb", mode
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """`http.client` closes its socket before the answer is read; whoever opened ours closes it."""


class _Reader(io.RawIOBase):
    def __init__(self, timed: _Timed) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive(memoryview(buffer))


class Nearby:
    """One server. One exchange at a time; `interrupt` from any thread."""

    def __init__(
        self,
        address: tuple[str, int],
        clock: Clock,
        *,
        connect_seconds: float = 1.0,
        answer_seconds: float = ANSWER_SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._address, self._clock, self._tls = address, clock, tls
        self._connect_seconds = connect_seconds
        self.answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._interrupted = False
        self._told_skew = False

    def get(
        self, path: str, headers: Mapping[str, str] | None = None, *, answer_seconds: float | None = None
    ) -> Answer:
        """See `ask`."""
        return self.ask("GET", path, headers, answer_seconds=answer_seconds)

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        answer_seconds: float | None = None,
    ) -> Answer:
        """One exchange, whatever its status. Raises `Unreadable` when there is no whole answer in time."""
        with self._exchange(method, path, headers or {}, body, answer_seconds or self.answer_seconds) as (_, response):
            content = response.read(BODY_LIMIT_BYTES + 1)
            if len(content) > BODY_LIMIT_BYTES:
                raise Unreadable("the answer is larger than a mebibyte")
            names = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, names, content, self._clock.now_ns())
        if answer.skew_ns and not self._told_skew:
            self._told_skew = True
            ahead = answer.skew_ns / NANOSECONDS_PER_SECOND
            log.warning("the clock of %s:%d is %+.0f s from ours; deadlines are corrected", *self._address, ahead)
        return answer

    def lines(self, path: str, headers: Mapping[str, str], *, idle_seconds: float) -> Iterator[bytes]:
        """A GET whose answer never ends but line by line. Ends when the server ends it. Raises `Unreadable` on a status
        other than 200 or when nothing comes for `idle_seconds`. Close the iterator to hang up."""
        with self._exchange("GET", path, headers, None, self.answer_seconds) as (timed, response):
            if response.status != 200:
                raise Unreadable(f"HTTP status {response.status}")
            while True:
                timed.extend(idle_seconds)
                line = response.readline(BODY_LIMIT_BYTES)
                if not line:
                    return
                yield line

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    # Of the base class: SSLSocket's own would take the TLS state from under the thread that reads.
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, answer_seconds: float
    ) -> Iterator[tuple[_Timed, http.client.HTTPResponse]]:
        try:
            sock = self._connect()
            try:
                timed = _Timed(sock, self._clock, answer_seconds)
                connection = http.client.HTTPConnection(*self._address)
                connection.sock = timed
                connection.request(method, path, body, {**headers, "Connection": "close"})
                response = connection.getresponse()
                try:
                    yield timed, response
                finally:
                    response.close()
            finally:
                with self._lock:
                    self._sock = None
                sock.close()
        except TimeoutError:
            raise Unreadable("no answer in time") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: http.client on lengths and chunk sizes that are no numbers
            raise Unreadable(f"no answer ({str(error) or type(error).__name__})") from None

    def _connect(self) -> socket.socket:
        host, port = self._address
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            with self._lock:
                if self._interrupted:
                    raise Unreadable("stopped")
                self._sock = sock
            sock.settimeout(self._connect_seconds)
            sock.connect(address)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=host)
                with self._lock:
                    if self._interrupted:
                        raise Unreadable("stopped")
                    self._sock = sock
        except BaseException:
            with self._lock:
                self._sock = None
            sock.close()
            raise
        return sock
