"""The TCP server over the memory of one node: neighbours put copies of their shards here, ranks read slices.

One thread a connection: there are few (a neighbour's ranks; for a moment, the ranks of a new world), each moves much at a
time, and the interpreter's lock is let go while bytes move. Whoever does not begin with the job's token is cut off
without an answer. What is asked for is looked up by name and cut to the shard's own length; no other memory can be reached.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import threading
from typing import Any, Protocol

from orchestrator.platforms.engines.native import wire
from orchestrator.platforms.engines.native.priority import stand_back
from orchestrator.platforms.engines.native.wire import Address, Description, Garbled, Name, Refused, number

MOST_CONNECTIONS = 512
MOST_BYTES_OF_JSON = 1024 * 1024 * 1024
"""Of a layout or a document that is put."""
TOKEN_SECONDS = 5.0
"""A stranger may hold a connection for so long."""
STALL_SECONDS = 30.0
"""A known caller may stop in the middle of a message for so long."""


class Arrival(Protocol):
    """A copy of a shard that is coming in."""

    data: memoryview

    def keep(self, static: tuple[bytes, bytes] | None, document: bytes, hashes: tuple[str, ...]) -> None:
        """It is whole. `static` are layout and fixed document; None: as in the copy before."""
        ...

    def drop(self) -> None:
        """It never will be; harmless after `keep`."""
        ...


class Holder(Protocol):
    """What the server serves. Safe to use from several threads. Every method raises Refused for what it does not have."""

    def describe(self, name: Name) -> Description: ...

    def look(self, name: Name) -> memoryview:
        """The bytes of a shard."""
        ...

    def expect(self, name: Name, world_size: int, nbytes: int, *, again: bool) -> Arrival:
        """Room for a copy. `again`: layout and fixed document are those of the copy before, and will not be sent."""
        ...


class Server:
    """Answers until it is closed."""

    def __init__(self, host: str, token: str, holder: Holder) -> None:
        """Binds to `host`, an address of this machine, and a free port. Raises OSError when it is not one."""
        self._token = token.encode()
        self._holder = holder
        self._listener = socket.create_server((host, 0), backlog=MOST_CONNECTIONS)
        self.address: Address = (host, self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="memory-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cut all connections and wait for the threads."""
        with self._lock:
            self._closing = True
            threads = list(self._open.values())
            for line in self._open:
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._thread.join()
        self._listener.close()
        for thread in threads:
            thread.join()

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._open)

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except ConnectionError:
                continue  # the caller was gone again before it was taken
            except OSError:
                with self._lock:
                    if self._closing:
                        return
                # No descriptors left, most likely: connections that end give some back. Let some time pass.
                threading.Event().wait(0.1)
                continue
            with self._lock:
                if self._closing or len(self._open) >= MOST_CONNECTIONS:
                    line.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(line,), name="memory-line", daemon=True)
                self._open[line] = thread
                thread.start()

    def _serve(self, line: socket.socket) -> None:
        try:
            wire.tune(line)
            line.settimeout(TOKEN_SECONDS)
            hello = wire.receive(line, wire.MOST_BYTES_OF_A_TOKEN_FRAME)
            if hello is None or not hmac.compare_digest(str(hello.get("token")).encode(), self._token):
                return
            while True:
                line.settimeout(None)
                head = wire.receive(line)
                if head is None:
                    return
                line.settimeout(STALL_SECONDS)
                try:
                    self._answer(line, head)
                except Refused as error:
                    wire.send(line, {"error": str(error)})
        except (OSError, UnicodeEncodeError):
            return  # the caller is gone, or talks another language; either way it is cut off
        finally:
            line.close()
            with self._lock:
                del self._open[line]

    def _answer(self, line: socket.socket, head: dict[str, Any]) -> None:
        name = Name(*(number(head, key) for key in ("generation", "rank", "step")))
        match head.get("kind"):
            case "describe":
                about = self._holder.describe(name)
                told = {
                    "bytes": about.nbytes,
                    "world_size": about.world_size,
                    "layout": len(about.layout),
                    "fixed": len(about.fixed),
                    "document": len(about.document),
                    "hashes": about.hashes,
                }
                wire.send(line, told, about.layout, about.fixed, about.document)
            case "read":
                data, offset, length = self._holder.look(name), number(head, "offset"), number(head, "length")
                if offset + length > len(data):
                    raise Refused(f"{name} has {len(data)} bytes, not {offset + length}")
                wire.send(line, {"length": length})
                line.sendall(data[offset : offset + length])
            case "put":
                stand_back()
                self._take(line, head, name)
            case other:
                raise Refused(f"this version does not know {other!r}")

    def _take(self, line: socket.socket, head: dict[str, Any], name: Name) -> None:
        again = head.get("layout") is None and head.get("fixed") is None
        sizes = [0 if again else number(head, key) for key in ("layout", "fixed")] + [number(head, "document")]
        if max(sizes) > MOST_BYTES_OF_JSON:
            raise Refused("a layout or document too large to be one")
        arrival = self._holder.expect(name, number(head, "world_size"), number(head, "bytes"), again=again)
        try:
            wire.send(line, {"go": True})
            layout, fixed, document = (wire.receive_bytes(line, size) for size in sizes)
            found = []
            for block in wire.blocks_of(arrival.data):
                wire.receive_into(line, block)
                found.append(wire.block_hash(block))
            end = wire.receive(line)
            if end is None:
                raise Garbled("a copy without an end")
            whole = end.get("hashes") is not None
            if whole and tuple(found) != wire.texts(end, "hashes"):
                raise Refused(f"{name} was damaged on the way")
            if whole:
                arrival.keep(None if again else (layout, fixed), document, tuple(found))
            wire.send(line, {"kept": whole})
        finally:
            arrival.drop()
