"""Nodes with state memory, all in this process, and ranks that publish a made-up model into it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.native.memory import Memory
from orchestrator.platforms.engines.native.shards import ShardStore
from orchestrator.platforms.engines.native.wire import Address
from orchestrator.storage.manifest import ITEM_BYTES, Fragment

TOKEN = "the job's own"
HOST = "127.0.0.1"
PATIENCE_SECONDS = 20.0
"""A test waits this long for a condition before it fails."""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Until another thread has made it true. Raises TimeoutError."""
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        pause.wait(0.002)


@contextmanager
def stores(count: int, **options: Any) -> Iterator[list[ShardStore]]:
    """The memories of as many nodes; closed at the end, also those that were closed before."""
    made = [ShardStore(HOST, TOKEN, SystemClock(), **options) for _ in range(count)]
    try:
        yield made
    finally:
        for store in made:
            store.close()


def rank_memory(
    store: ShardStore,
    *,
    generation: int = 1,
    rank: int = 0,
    world_size: int = 1,
    replica: Address | None = None,
    source: Mapping[str, Any] | None = None,
    limit_seconds: float = 10.0,
) -> Memory:
    """What a rank of the store's node has after it was told its place."""
    grant = store.admit(generation, rank, world_size, replica=replica, source=source)
    return Memory(grant, SystemClock(), limit_seconds=limit_seconds)


@dataclass(frozen=True)
class Model:
    """Parameters with two kinds of state; each element's bytes tell its place, kind and step."""

    sizes: Mapping[str, int]
    kinds: Sequence[tuple[str, str]] = (("master", "float32"), ("half", "bfloat16"))
    """Kinds with their types."""

    def values(self, name: str, kind: str, step: int) -> bytes:
        """The whole state of a parameter after a step."""
        dtype = dict(self.kinds)[kind]
        return _bytes_of(f"{name} {kind} {step}", self.sizes[name] * ITEM_BYTES[dtype])

    def shard(self, rank: int, world_size: int, *, apart: bool) -> list[Fragment]:
        """The ranges of one rank: each parameter cut into equal parts (`apart`), or all of them laid end to end."""
        found, offset = [], 0
        for kind, dtype in self.kinds:
            for name, start, end in self._apart(rank, world_size) if apart else self._flat(rank, world_size):
                found.append(Fragment(name, kind, dtype, start, end, "memory", offset))
                offset += -(-(end - start) * ITEM_BYTES[dtype] // 64) * 64
        return found

    def _apart(self, rank: int, world_size: int) -> list[tuple[str, int, int]]:
        cut = [(name, size * rank // world_size, size * (rank + 1) // world_size) for name, size in self.sizes.items()]
        return [(name, start, end) for name, start, end in cut if start < end]

    def _flat(self, rank: int, world_size: int) -> list[tuple[str, int, int]]:
        total = sum(self.sizes.values())
        low, high = total * rank // world_size, total * (rank + 1) // world_size
        found, at = [], 0
        for name, size in self.sizes.items():
            start, end = max(low - at, 0), min(high - at, size)
            if start < end:
                found.append((name, start, end))
            at += size
        return found


@lru_cache(8)
def _bytes_of(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def open_shard(memory: Memory, shard: Sequence[Fragment]) -> None:
    memory.open(shard, max((item.offset + item.bytes for item in shard), default=0), {"model": "made up"})


def publish(memory: Memory, model: Model, shard: Sequence[Fragment], step: int) -> None:
    """One rank publishes its shard of a step."""
    room = memory.buffer(step)
    for item in shard:
        values, width = model.values(item.name, item.kind, step), ITEM_BYTES[item.dtype]
        room[item.offset : item.offset + item.bytes] = values[item.start * width : item.end * width]
    memory.publish(step, {"step": step, "where": {"epoch": 0.5}})


def plan_of(nodes: Sequence[ShardStore], step: int, generation: int = 1) -> dict[str, Any] | None:
    """The `source` of a plan as a coordinator makes it of the nodes' inventories; None when the step is not whole."""
    shards: dict[int, list[list[Any]]] = {}
    world_size = 0
    for node in nodes:
        for held in node.inventory():
            if (held.generation, held.step) == (generation, step):
                shards.setdefault(held.rank, []).append(list(node.address))
                world_size = held.world_size
    if not world_size or len(shards) < world_size:
        return None
    return {"generation": generation, "step": step, "world_size": world_size, "shards": shards}
