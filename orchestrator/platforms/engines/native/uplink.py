"""An agent's connection to the coordinator, which may be lost and come back at another address.

Nothing here blocks, except that a host *name* is looked up: addresses should be numbers. What is sent while there is no
connection is dropped: whoever sends knows from `connected` what to say again.
"""

from __future__ import annotations

import errno
import random
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock
from orchestrator.platforms.engines.native.messages import Address, Frames, ProtocolError, encode

FIRST_PAUSE_SECONDS = 0.05
"""Before the second try to connect. Each pause is longer than the last by half, and a part of it is chance, so that the
agents of a large gang do not come all at once."""
LONGEST_PAUSE_SECONDS = 2.0
CONNECT_SECONDS = 3.0
UNANSWERED_SECONDS = 5.0
"""What was sent and is not acknowledged by the other machine for so long ends the connection: its cable may be pulled."""
RECEIVE_BYTES = 256 * 1024


class Uplink:
    """See the module. All methods are called by the thread that runs the selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        address: Callable[[], Address | None],
        on_connected: Callable[[], None],
        on_message: Callable[[Mapping[str, Any]], None],
        clock: Clock,
        chance: random.Random,
    ) -> None:
        """`address` is asked before each try; None: nobody is known. `on_connected` says who we are."""
        self._selector = selector
        self._address = address
        self._on_connected = on_connected
        self._on_message = on_message
        self._clock = clock
        self._chance = chance
        self._socket: socket.socket | None = None
        self._frames = Frames()
        self._out = bytearray()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._next_try_ns = clock.monotonic_ns()
        self._give_up_ns = 0
        self._contact_ns = clock.monotonic_ns()
        self._accepted = False
        self.connected = False

    @property
    def waiting_bytes(self) -> int:
        """What was sent and has not left this process yet."""
        return len(self._out)

    def alone_ns(self) -> int:
        """For how long no coordinator has said anything to us; 0 while one that did is connected."""
        return 0 if self.connected and self._accepted else self._clock.monotonic_ns() - self._contact_ns

    def send(self, message: Mapping[str, Any]) -> None:
        if self.connected:
            self._out += encode(message)
            self._flush()

    def tick(self) -> None:
        """Called a few times a second."""
        now_ns = self._clock.monotonic_ns()
        if self._socket is None:
            if now_ns >= self._next_try_ns:
                self._try(now_ns)
        elif not self.connected and now_ns >= self._give_up_ns:
            self._lost()

    def finish(self, seconds: float) -> None:
        """Send what is waiting, in bounded time, and close."""
        if self._socket is not None and self.connected and self._out:
            self._socket.settimeout(seconds)
            try:
                self._socket.sendall(self._out)
            except OSError:
                self._out.clear()
        self._close()

    def _try(self, now_ns: int) -> None:
        address = self._address()
        if address is None:
            self._later()
            return
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
            line = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        except OSError:
            self._later()
            return
        code = line.connect_ex(place)
        if code not in (0, errno.EINPROGRESS):
            line.close()
            self._later()
            return
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNANSWERED_SECONDS * 1000))
        self._socket, self._frames, self._accepted = line, Frames(), False
        self._give_up_ns = now_ns + round(CONNECT_SECONDS * NANOSECONDS_PER_SECOND)
        self._selector.register(line, selectors.EVENT_WRITE, self._ready)

    def _ready(self, mask: int) -> None:
        if self._socket is None:
            return  # closed by what was ready in the same turn
        if not self.connected:
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
                self._lost()
                return
            self.connected = True
            self._on_connected()
        elif mask & selectors.EVENT_READ:
            self._read()
        self._flush()

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        self._accepted = True
        self._pause_seconds = FIRST_PAUSE_SECONDS
        try:
            for message in self._frames.feed(data):
                self._on_message(message)
        except ProtocolError:
            self._lost()

    def _flush(self) -> None:
        if not self.connected or self._socket is None:
            return
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._lost()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        self._selector.modify(self._socket, wanted, self._ready)

    def _lost(self) -> None:
        if self._accepted:
            self._contact_ns = self._clock.monotonic_ns()
        self._close()
        self._later()

    def _close(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
        self._socket, self.connected = None, False
        self._out.clear()

    def _later(self) -> None:
        pause = self._pause_seconds * self._chance.uniform(0.7, 1.3)
        self._pause_seconds = min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 1.5)
        self._next_try_ns = self._clock.monotonic_ns() + round(pause * NANOSECONDS_PER_SECOND)
