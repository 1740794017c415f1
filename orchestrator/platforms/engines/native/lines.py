"""The coordinator's side of the connections to its agents: who may come in, and what comes over which of them.

Nothing here blocks. A connection that does not say a right `hello` in time, or says what no agent says, is closed.

Limits: frames are neither encrypted nor signed; the token keeps out strangers who cannot listen on the network between the
nodes. It is the job's own, and new for every run.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock
from orchestrator.platforms.engines.native.messages import (
    MAX_FRAME_BYTES,
    Address,
    Frames,
    FromAgent,
    Hello,
    ProtocolError,
    encode,
    read,
)

HELLO_SECONDS = 10.0
MAX_HELLO_BYTES = 1024 * 1024
MAX_STRANGERS = 256
"""Connections that have not said who they are; more are not taken."""
MAX_WAITING_BYTES = 256 * 1024 * 1024
"""What may wait to be sent to one agent; one that takes nothing for so long is as good as gone."""
RECEIVE_BYTES = 256 * 1024
UNANSWERED_SECONDS = 5.0


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """Listen so that others reach us at `host`: there alone when it is an address of this machine, otherwise (it is that of
    a machine or a proxy that passes connections on) on all interfaces."""
    try:
        return socket.create_server((host, port), backlog=backlog)
    except socket.gaierror:
        pass
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    return socket.create_server(("", port), backlog=backlog)


class AgentLine:
    """One connection."""

    def __init__(self, line: socket.socket, give_up_ns: int) -> None:
        self.socket = line
        self.frames = Frames(MAX_HELLO_BYTES)
        self.out = bytearray()
        self.give_up_ns = give_up_ns
        self.agent: str | None = None
        """Who it is, once it has said so."""


class AgentLines:
    """All connections. Every method is called by the thread that runs the selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        clock: Clock,
        host: str,
        port: int,
        token: str,
        *,
        on_message: Callable[[str, FromAgent], None],
        on_lost: Callable[[str, str], None],
    ) -> None:
        """Listens at `host` (see `listen`); `port` 0: any. `on_message` gets an
        agent's name and what it said, a `Hello` first; `on_lost` its name and why its connection is gone."""
        self._selector = selector
        self._clock = clock
        self._token = token.encode()
        self._on_message = on_message
        self._on_lost = on_lost
        self._lines: set[AgentLine] = set()
        self._by_agent: dict[str, AgentLine] = {}
        self._listener = listen(host, port, backlog=128)
        self._listener.setblocking(False)
        self.address: Address = (host, self._listener.getsockname()[1])
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def agents(self) -> tuple[str, ...]:
        """Those that are connected."""
        return tuple(self._by_agent)

    def send(self, agent: str, message: Mapping[str, Any]) -> None:
        """To an agent that is not connected: nothing."""
        line = self._by_agent.get(agent)
        if line is not None:
            line.out += encode(message)
            self._flush(line)

    def close(self, agent: str) -> None:
        """Close its connection; `on_lost` is not called."""
        line = self._by_agent.pop(agent, None)
        if line is not None:
            self._drop(line)

    def tick(self) -> None:
        """Called a few times a second."""
        now_ns = self._clock.monotonic_ns()
        for line in [line for line in self._lines if line.agent is None and now_ns >= line.give_up_ns]:
            self._drop(line)

    def close_all(self) -> None:
        for line in list(self._lines):
            self._drop(line)
        self._by_agent.clear()
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self, mask: int) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:  # it went away again, or we have no descriptors left: then it will try again
            return
        strangers = sum(1 for line in self._lines if line.agent is None)
        if strangers >= MAX_STRANGERS:
            accepted.close()
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNANSWERED_SECONDS * 1000))
        line = AgentLine(accepted, self._clock.monotonic_ns() + round(HELLO_SECONDS * NANOSECONDS_PER_SECOND))
        self._lines.add(line)
        self._selector.register(accepted, selectors.EVENT_READ, lambda ready: self._ready(line, ready))

    def _ready(self, line: AgentLine, mask: int) -> None:
        if mask & selectors.EVENT_READ and line in self._lines:
            self._read(line)
        if mask & selectors.EVENT_WRITE and line in self._lines:
            self._flush(line)

    def _read(self, line: AgentLine) -> None:
        try:
            data = line.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(line, f"its connection broke: {error.strerror or error}")
            return
        if not data:
            self._lost(line, "its connection was closed")
            return
        try:
            for document in line.frames.feed(data):
                self._heed(line, read(document))
                if line not in self._lines:
                    return
        except ProtocolError as error:
            self._lost(line, f"it sent what no agent sends: {error}")

    def _heed(self, line: AgentLine, message: FromAgent) -> None:
        if line.agent is not None:
            if not isinstance(message, Hello):
                self._on_message(line.agent, message)
            return
        known = isinstance(message, Hello) and secrets.compare_digest(message.token.encode(), self._token)
        if not isinstance(message, Hello) or not known:
            self._drop(line)
            return
        line.agent = message.agent
        line.frames.max_bytes = MAX_FRAME_BYTES
        before = self._by_agent.pop(message.agent, None)
        if before is not None:
            self._drop(before)
        self._by_agent[message.agent] = line
        self._on_message(message.agent, message)

    def _flush(self, line: AgentLine) -> None:
        try:
            while line.out:
                del line.out[: line.socket.send(line.out)]
        except BlockingIOError:
            if len(line.out) > MAX_WAITING_BYTES:
                line.out.clear()
                self._shut(line)
                return
        except OSError:
            line.out.clear()
            self._shut(line)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.out else 0)
        self._selector.modify(line.socket, wanted, lambda ready: self._ready(line, ready))

    def _shut(self, line: AgentLine) -> None:
        """Have the next read find the end: losses are told from the loop, never from inside a `send`."""
        with contextlib.suppress(OSError):
            line.socket.shutdown(socket.SHUT_RDWR)

    def _lost(self, line: AgentLine, why: str) -> None:
        self._drop(line)
        if line.agent is not None and self._by_agent.get(line.agent) is line:
            del self._by_agent[line.agent]
            self._on_lost(line.agent, why)

    def _drop(self, line: AgentLine) -> None:
        if line in self._lines:
            self._lines.discard(line)
            self._selector.unregister(line.socket)
            line.socket.close()
