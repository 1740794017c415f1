"""What coordinator and agents say to each other, and how it is cut into frames.

One TCP connection an agent; a frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON, an object with a
`kind`. The first frame of an agent is `hello`. Everything that comes in is read into a typed value here, so that what the
state machine sees has the right shape; a frame that has not raises `ProtocolError`, and its connection is closed.

The standard library only: the agent imports it too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""The largest frame that is taken; events of a rank that talks much, or a long stack dump, stay far below."""

_LENGTH = struct.Struct(">I")

WARMING, READY, FORMING, RUNNING, LEFT = "WARMING", "READY", "FORMING", "RUNNING", "LEFT"
"""States of a worker, as its agent tells them."""
STATES = frozenset((WARMING, READY, FORMING, RUNNING, LEFT))


class ProtocolError(Exception):
    """A frame that no agent of this version sends."""


# --- frames ----------------------------------------------------------------------------------------------------------


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as a frame. A value that JSON does not know is sent as its text."""
    body = json.dumps(message, separators=(",", ":"), default=str).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a {message.get('kind')} message of {len(body)} bytes; at most {MAX_FRAME_BYTES} fit")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Bytes as they come in, messages out."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._held = bytearray()
        self.max_bytes = max_bytes

    def feed(self, data: bytes) -> Iterator[Mapping[str, Any]]:
        """The messages that `data` completes, in order. Raises `ProtocolError`."""
        self._held += data
        while len(self._held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._held)
            if length > self.max_bytes:
                raise ProtocolError(f"a frame of {length} bytes; at most {self.max_bytes} are taken")
            end = _LENGTH.size + length
            if len(self._held) < end:
                return
            body = bytes(self._held[_LENGTH.size : end])
            del self._held[:end]
            try:
                message = json.loads(body)
            except ValueError as error:
                raise ProtocolError(f"a frame that is not JSON: {error}") from error
            if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
                raise ProtocolError("a frame that is not an object with a `kind`")
            yield message


# --- from an agent ---------------------------------------------------------------------------------------------------

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class WorkerBeat:
    """How one worker process is. `step` is the last step that it finished, None before its first; `step_ns` is how long
    ago that was, measured by the agent."""

    worker: str
    state: str
    generation: int = 0
    step: int | None = None
    step_ns: int = 0
    quiet_ns: int = 0
    """How long ago it last gave any sign of life."""
    starved_ns: int = 0
    """How long its threads, together, have waited for a processor since its last step or, before that, since its plan."""
    stopped_ns: int = 0
    """For how long, as far as its agent has seen, its process has been stopped: by SIGSTOP, or by a debugger."""
    own_ns: int | None = None
    """How long its newest steps took it by itself, without waiting for others: a median. None: not known."""
    pid: int | None = None
    rank: int | None = None
    """Rank and world size are told in a `hello` only, of workers that have a place."""
    world_size: int | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """An agent is there. `members` is what runs under it already, after a coordinator was lost."""

    token: str
    agent: str
    node: str
    host: str
    address: Address
    slots: int
    members: tuple[WorkerBeat, ...] = ()
    generation: int = 0
    """The newest generation that this agent ever had a part in."""
    checkpoint: int = 0
    """How many wishes for a checkpoint it has been told of."""
    out_of_memory: tuple[tuple[int, int], ...] = ()
    """As it was told with its newest plan."""


@dataclass(frozen=True, slots=True)
class Beat:
    workers: tuple[WorkerBeat, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """A worker process is gone, or has left its world. `exit` is its exit status, negative for a signal."""

    worker: str
    generation: int
    reason: str
    message: str = ""
    collateral: bool = False
    result: Mapping[str, Any] | None = None
    exit: int | None = None
    pid: int | None = None
    again: str | None = None
    """The process comes back as a standby of this name, once it has been looked after; None: it does not."""


@dataclass(frozen=True, slots=True)
class WorkerEvents:
    """Events of a worker; `first` is the number of the first of them, from 0 a worker."""

    worker: str
    first: int
    events: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of the state at one step, in an agent's memory."""

    generation: int
    world_size: int
    rank: int
    step: int
    bytes: int = 0
    own: bool = True


@dataclass(frozen=True, slots=True)
class Inventory:
    ticket: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class NoticeSeen:
    notice: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stacks:
    worker: str
    text: str


FromAgent = Hello | Beat | Left | WorkerEvents | Inventory | NoticeSeen | Stacks


def read(message: Mapping[str, Any]) -> FromAgent:
    """A message of an agent as a typed value. Raises `ProtocolError`, with the kind and the field."""
    kind = message["kind"]
    try:
        match kind:
            case "hello":
                return Hello(
                    token=_text(message, "token"),
                    agent=_text(message, "agent"),
                    node=_text(message, "node"),
                    host=_text(message, "host"),
                    address=_address(message["address"]),
                    slots=_number(message, "slots"),
                    members=tuple(_worker_beat(item) for item in message.get("members", ())),
                    generation=int(message.get("generation") or 0),
                    checkpoint=int(message.get("checkpoint") or 0),
                    out_of_memory=tuple(
                        (int(ranks), int(batch)) for ranks, batch in message.get("out_of_memory") or ()
                    ),
                )
            case "beat":
                return Beat(tuple(_worker_beat(item) for item in message["workers"]))
            case "left":
                result = message.get("result")
                if result is not None and not isinstance(result, Mapping):
                    raise ProtocolError(f"left: a result that is not an object: {result!r}")
                return Left(
                    worker=_text(message, "worker"),
                    generation=int(message.get("generation") or 0),
                    reason=_text(message, "reason"),
                    message=str(message.get("message") or ""),
                    collateral=bool(message.get("collateral")),
                    result=result,
                    exit=message.get("exit"),
                    pid=message.get("pid"),
                    again=None if message.get("again") is None else _text(message, "again"),
                )
            case "events":
                return WorkerEvents(_text(message, "worker"), _number(message, "first"), tuple(message["events"]))
            case "inventory":
                return Inventory(_number(message, "ticket"), tuple(_shard(item) for item in message["shards"]))
            case "notice":
                return NoticeSeen(dict(message["notice"]))
            case "stacks":
                return Stacks(_text(message, "worker"), str(message["text"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"{kind}: {type(error).__name__}: {error}") from error
    raise ProtocolError(f"a message of the unknown kind {kind!r}")


def _worker_beat(item: Mapping[str, Any]) -> WorkerBeat:
    state = item["state"]
    if state not in STATES:
        raise ProtocolError(f"a worker in the unknown state {state!r}")
    return WorkerBeat(
        worker=_text(item, "worker"),
        state=state,
        generation=int(item.get("generation") or 0),
        step=item.get("step"),
        step_ns=int(item.get("step_ns") or 0),
        quiet_ns=int(item.get("quiet_ns") or 0),
        starved_ns=int(item.get("starved_ns") or 0),
        stopped_ns=int(item.get("stopped_ns") or 0),
        own_ns=item.get("own_ns"),
        pid=item.get("pid"),
        rank=item.get("rank"),
        world_size=item.get("world_size"),
    )


def _shard(item: Mapping[str, Any]) -> Shard:
    generation, world_size, rank, step = (_number(item, name) for name in ("generation", "world_size", "rank", "step"))
    return Shard(generation, world_size, rank, step, int(item.get("bytes") or 0), bool(item.get("own")))


def _address(value: Any) -> Address:
    host, port = value
    return str(host), int(port)


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, not a text")
    return value


def _number(message: Mapping[str, Any], name: str) -> int:
    value = message[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, not a whole number")
    return value


# --- to an agent -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Where the state of a step lies: for each rank of the world that made it the memory servers that have its shard, a
    shard's own before its replicas."""

    generation: int
    step: int
    world_size: int
    shards: Mapping[int, tuple[Address, ...]]

    def document(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "step": self.step,
            "world_size": self.world_size,
            "shards": {str(rank): [list(address) for address in held] for rank, held in self.shards.items()},
        }


@dataclass(frozen=True, slots=True)
class Spawn:
    """Make a standby. The shell adds what all workers of an attempt share: loop, assignment, env, threads."""

    worker: str
    lives: int = 1
    """In how many worlds its process may have a place."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A worker's place in a world. Never changed once told. The shell adds the store's address and the attempt."""

    worker: str
    generation: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    source: Source | None
    replica: Address | None
    micro_batch: int | None = None
    """None: the one that the worker finds itself."""
    out_of_memory: tuple[tuple[int, int], ...] = ()
    """(ranks, micro-batch) of all that did not fit."""


@dataclass(frozen=True, slots=True)
class Regroup:
    generation: int


@dataclass(frozen=True, slots=True)
class Abort:
    """End every member of `generation` and of older ones: kill it, or, when `live`, cut it off from the others so that it
    leaves its world and comes back; who has not left in a moment is killed."""

    generation: int
    why: str
    live: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    worker: str
    why: str


@dataclass(frozen=True, slots=True)
class Dump:
    worker: str


@dataclass(frozen=True, slots=True)
class AskInventory:
    ticket: int


@dataclass(frozen=True, slots=True)
class Forget:
    """State older than this step of this generation is not needed."""

    generation: int
    step: int


@dataclass(frozen=True, slots=True)
class HandedOver:
    """All that was worth saving has left this node, which was given notice: its end may come."""

    node: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The copies of this member's shard go to another memory from its next shard on; None: to none."""

    worker: str
    generation: int
    rank: int
    replica: Address | None


ToAgent = Spawn | Plan | Pair | Regroup | Abort | Kill | Dump | AskInventory | Forget | HandedOver

_KINDS: dict[type, str] = {
    Spawn: "spawn",
    Plan: "plan",
    Pair: "pair",
    Regroup: "regroup",
    Abort: "abort",
    Kill: "kill",
    Dump: "dump",
    AskInventory: "ask_inventory",
    Forget: "forget",
    HandedOver: "handed_over",
}


def write(message: ToAgent, **more: Any) -> dict[str, Any]:
    """A message to an agent as it travels; `more` is what the shell adds."""
    document: dict[str, Any] = {"kind": _KINDS[type(message)]}
    for field in fields(message):
        value = getattr(message, field.name)
        document[field.name] = value.document() if isinstance(value, Source) else value
    document.update(more)
    return document
