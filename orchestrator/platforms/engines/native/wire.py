"""How shards go from one agent to another and to ranks: frames over TCP, and what can be asked for with them.

A frame is a length (4 bytes, big-endian) and that many bytes of JSON; raw bytes follow where the frame says so, straight
from one memory into the other. The first frame of a connection holds the job's token. Then, any number of times:

    {"kind": "describe", "generation", "rank", "step"}    -> {"bytes", "world_size", "layout", "fixed", "document", "hashes"},
                                                             then layout, fixed and document: JSON of so many bytes each
    {"kind": "read", ..., "offset", "length"}             -> {"length"}, then the bytes
    {"kind": "put", ..., "world_size", "bytes", "layout", "fixed", "document"}    -> {"go": true}; the caller then sends
                        layout, fixed, document and the shard, and a frame {"hashes"}; -> {"kept": true}
    each may be answered with {"error": "why"}

`hashes` are xxh3-128 of every block of 4 MiB, as in a checkpoint's manifest; a put that the caller takes back ends with
`null` instead. In later puts of the same rank, `layout` and `fixed` may be null: as before.

Limits: neither encrypted nor signed. The token keeps out strangers who cannot listen on the network between the nodes.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from orchestrator.storage.hashing import BLOCK_BYTES

Address = tuple[str, int]

MOST_BYTES_OF_A_FRAME = 16 * 1024 * 1024
"""Holds the hashes of a shard of 1.5 TB."""
MOST_BYTES_OF_A_TOKEN_FRAME = 4096

_LENGTH = struct.Struct("!I")
_IDLE_SECONDS, _PROBES = 30, 3


class Garbled(ConnectionError):
    """What came is not what this version sends."""


class Refused(Exception):
    """The other side understood, and said no; the text says why."""


@dataclass(frozen=True, slots=True)
class Name:
    """Which shard: that of `rank` in the world of `generation`, after `step`."""

    generation: int
    rank: int
    step: int

    def fields(self) -> dict[str, int]:
        return {"generation": self.generation, "rank": self.rank, "step": self.step}

    def __str__(self) -> str:
        return f"the shard of rank {self.rank} of generation {self.generation} at step {self.step}"


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a shard without its bytes."""

    nbytes: int
    world_size: int
    layout: bytes
    fixed: bytes
    document: bytes
    """JSON, all three; see `Memory.open` and `Memory.publish`."""
    hashes: tuple[str, ...]


# --- frames ------------------------------------------------------------------------------------------------------------
def send(line: socket.socket, head: Mapping[str, Any], *small: bytes) -> None:
    """One frame and the raw bytes after it, when they are few."""
    body = json.dumps(head, separators=(",", ":")).encode()
    line.sendall(b"".join((_LENGTH.pack(len(body)), body, *small)))


def receive(line: socket.socket, most_bytes: int = MOST_BYTES_OF_A_FRAME) -> dict[str, Any] | None:
    """The next frame; None when the other side has closed between two. Raises OSError, Garbled among them."""
    length = bytearray(_LENGTH.size)
    first = line.recv_into(length)
    if not first:
        return None
    receive_into(line, memoryview(length)[first:])
    (size,) = _LENGTH.unpack(length)
    if size > most_bytes:
        raise Garbled(f"a frame of {size} bytes")
    body = bytearray(size)
    receive_into(line, memoryview(body))
    try:
        head = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Garbled("a frame that is not JSON") from error
    if not isinstance(head, dict):
        raise Garbled("a frame that is not an object")
    return head


def receive_into(line: socket.socket, out: memoryview) -> None:
    """Fill `out`. Raises ConnectionError when the other side ends before."""
    done = 0
    while done < len(out):
        got = line.recv_into(out[done:])
        if not got:
            raise ConnectionResetError("the connection ended in the middle")
        done += got


def receive_bytes(line: socket.socket, size: int) -> bytes:
    """The next `size` raw bytes."""
    room = bytearray(size)
    receive_into(line, memoryview(room))
    return bytes(room)


def tune(line: socket.socket) -> None:
    """For a connection with short questions and long rests: no delay for small frames, a lost host is noticed in time."""
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _IDLE_SECONDS // _PROBES)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def block_hash(block: memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(block)


def blocks_of(data: memoryview) -> Iterable[memoryview]:
    """The blocks that are hashed each by itself."""
    return (data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES))


def hashes_of(data: memoryview) -> tuple[str, ...]:
    return tuple(block_hash(block) for block in blocks_of(data))


def number(head: Mapping[str, Any], key: str) -> int:
    """A count in a frame. Raises Garbled when it is none."""
    value = head.get(key)
    if type(value) is not int or not 0 <= value < 2**63:
        raise Garbled(f"{key} is {value!r}")
    return value


def texts(head: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings in a frame. Raises Garbled when it is none."""
    value = head.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Garbled(f"{key} is not a list of strings")
    return tuple(value)


# --- asking ------------------------------------------------------------------------------------------------------------
class Line:
    """A connection to the memory of another agent. For one thread at a time; after an OSError it is good for nothing."""

    def __init__(self, address: Address, token: str, patience_seconds: float) -> None:
        """`patience_seconds`: how long the other side may do nothing at all. Raises OSError when nobody is there."""
        self._socket = socket.create_connection(address, timeout=patience_seconds)
        self._told: set[tuple[int, int]] = set()
        try:
            tune(self._socket)
            send(self._socket, {"token": token})
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def cut(self) -> None:
        """Have whatever another thread waits for on this line fail."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def describe(self, name: Name) -> Description:
        """Raises Refused when it is not there, OSError when the line broke."""
        head = self._ask({"kind": "describe", **name.fields()})
        layout, fixed, document = (
            receive_bytes(self._socket, number(head, key)) for key in ("layout", "fixed", "document")
        )
        return Description(
            number(head, "bytes"), number(head, "world_size"), layout, fixed, document, texts(head, "hashes")
        )

    def read_into(self, name: Name, offset: int, out: memoryview) -> None:
        """Fill `out` from a shard. Raises Refused when it is not there or not so long, OSError when the line broke."""
        head = self._ask({"kind": "read", **name.fields(), "offset": offset, "length": len(out)})
        if number(head, "length") != len(out):
            raise Garbled(f"{head['length']} bytes were sent, {len(out)} asked for")
        receive_into(self._socket, out)

    def put(
        self, name: Name, about: Description, data: memoryview, still: Callable[[], bool], moved: Callable[[], None]
    ) -> tuple[str, ...] | None:
        """Have a shard kept there; its hashes, which are taken on the way (those in `about` are not looked at).

        `still` says, when all is sent, whether the bytes have stayed what they were; None is returned when they have not,
        and the other side lets them go. `moved` is called as bytes go out.
        """
        known = (name.generation, name.rank) in self._told
        static = b"" if known else about.layout + about.fixed
        self._ask(
            {
                "kind": "put",
                **name.fields(),
                "world_size": about.world_size,
                "bytes": about.nbytes,
                "layout": None if known else len(about.layout),
                "fixed": None if known else len(about.fixed),
                "document": len(about.document),
            }
        )
        self._socket.sendall(static + about.document)
        hashes = []
        for block in blocks_of(data):
            hashes.append(block_hash(block))
            self._socket.sendall(block)
            moved()
        whole = still()
        self._ask({"hashes": hashes if whole else None})
        self._told.add((name.generation, name.rank))
        return tuple(hashes) if whole else None

    def _ask(self, head: Mapping[str, Any]) -> dict[str, Any]:
        send(self._socket, head)
        answer = receive(self._socket)
        if answer is None:
            raise ConnectionResetError("the other side closed the connection")
        if "error" in answer:
            raise Refused(str(answer["error"]))
        return answer
