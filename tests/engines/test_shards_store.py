"""Shards get to the neighbour before the rank goes on; a neighbour that is gone or slow stops nobody; nothing is left behind."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.native import shards, wire
from orchestrator.platforms.engines.native.memory import Memory
from orchestrator.platforms.engines.native.wire import Line, Name, Refused
from tests.engines.shard_worlds import (
    HOST,
    TOKEN,
    Model,
    open_shard,
    plan_of,
    publish,
    rank_memory,
    stores,
    wait_for,
)

MODEL = Model({"w": 3000, "b": 7})
SHARD = MODEL.shard(0, 1, apart=False)


def steps(store: shards.ShardStore, *, own: bool) -> list[int]:
    return [held.step for held in store.inventory() if held.own == own]


@contextmanager
def silent_neighbour() -> Iterator[socket.socket]:
    """Takes connections, reads nothing, answers nothing."""
    with socket.create_server((HOST, 0)) as server:
        yield server


def test_a_shard_is_with_the_neighbour_before_the_next_buffer_is_given() -> None:
    """When `buffer` of the next step returns, the neighbour has the shard of the step before, byte for byte."""
    with stores(2) as (here, there):
        memory = rank_memory(here, replica=there.address)
        open_shard(memory, SHARD)
        for step in range(1, 6):
            publish(memory, MODEL, SHARD, step)
            memory.buffer(step + 1)
            copies = steps(there, own=False)
            assert copies[0] == step
            assert len(copies) <= 2
        assert memory.settle()
        assert not memory.alone
        numbers = here.numbers()[0]
        assert numbers.shipped == numbers.published == 5
        assert numbers.acknowledged_step == 5
        assert numbers.nbytes > 12_000
        assert numbers.ship_seconds > 0
        assert numbers.copy_seconds > 0
        memory.close()


def test_copies_are_what_was_published_when_the_node_is_gone() -> None:
    """After the node of a rank is gone, the neighbour's copy gives the same state and document."""
    with stores(2) as (here, there):
        memory = rank_memory(here, replica=there.address)
        open_shard(memory, SHARD)
        publish(memory, MODEL, SHARD, 1)
        publish(memory, MODEL, SHARD, 2)
        assert memory.settle()
        memory.close()
        here.close()
        plan = plan_of([there], 2)
        assert plan is not None
        heir = rank_memory(there, generation=2, source=plan)
        assert heir.source is not None
        out = bytearray(12_000)
        heir.source.read_into("w", "master", 0, 3000, memoryview(out))
        assert bytes(out) == MODEL.values("w", "master", 2)
        assert heir.source.document == {"model": "made up", "step": 2, "where": {"epoch": 0.5}}
        heir.close()


def test_a_lost_neighbour_stops_nobody_and_comes_back() -> None:
    """The neighbour dies: the rank goes on alone and it is told why. Another takes its address: copies go on by themselves."""
    with stores(2, patience_seconds=0.5) as (here, there):
        told: list[dict[str, Any]] = []
        memory = Memory(here.admit(1, 0, 1, replica=there.address, source=None), SystemClock(), tell=told.append)
        open_shard(memory, SHARD)
        publish(memory, MODEL, SHARD, 1)
        assert memory.settle()
        there.close()
        for step in range(2, 7):
            publish(memory, MODEL, SHARD, step)
            assert not memory.settle()
            assert memory.alone
        assert f"{there.address[1]} does not take copies" in str(here.numbers()[0].alone_because)
        assert steps(here, own=True) == [6, 5, 4]
        with socket.create_server(there.address) as second:
            line, _ = second.accept()
            with line:
                assert wire.receive(line) == {"token": TOKEN}
                head = wire.receive(line)
                assert head is not None
                assert head["step"] == 6
                wire.send(line, {"go": True})
                wire.receive_bytes(line, head["layout"] + head["fixed"] + head["document"] + head["bytes"])
                assert wire.receive(line)
                wire.send(line, {"kept": True})
                wait_for(lambda: not memory.alone, "the rank has a neighbour again")
                assert here.numbers()[0].alone_because is None
                assert memory.settle()
        assert [event["lines"][0].split(":")[0] for event in told] == [
            "the state of this rank is in one place only",
            "the state of this rank is in two places again",
        ]
        memory.close()


def test_a_neighbour_that_takes_nothing_is_given_up_in_bounded_time() -> None:
    """A neighbour that is stopped (its port still takes connections) costs the patience once, not an endless wait."""
    with silent_neighbour() as server, stores(1, patience_seconds=0.2) as (here,):
        memory = rank_memory(here, replica=server.getsockname())
        open_shard(memory, SHARD)
        publish(memory, MODEL, SHARD, 1)
        assert not memory.settle()
        assert memory.alone
        publish(memory, MODEL, SHARD, 2)
        assert steps(here, own=True) == [2, 1]
        memory.close()


def test_a_rank_waits_for_a_slow_neighbour() -> None:
    """Backpressure: while the copy of step 1 is not acknowledged, `buffer` of step 2 does not return; then it does."""
    with silent_neighbour() as server, stores(1, patience_seconds=60.0) as (here,):
        memory = rank_memory(here, replica=server.getsockname())
        open_shard(memory, SHARD)
        publish(memory, MODEL, SHARD, 1)
        line, _ = server.accept()
        with line:
            wire.receive(line)
            head = wire.receive(line)
            assert head is not None
            given = threading.Event()

            def next_step() -> None:
                memory.buffer(2)
                given.set()

            thread = threading.Thread(target=next_step)
            thread.start()
            assert not given.wait(0.1)
            wire.send(line, {"go": True})
            wire.receive_bytes(line, head["layout"] + head["fixed"] + head["document"] + head["bytes"])
            wire.receive(line)
            assert not given.is_set()
            wire.send(line, {"kept": True})
            thread.join(20)
            assert given.is_set()
            publish(memory, MODEL, SHARD, 2)
            wait_for(lambda: here.numbers()[0].wait_seconds >= 0.1, "the wait is told")
        memory.close()


def test_a_rank_whose_agent_hangs_goes_on_after_its_own_limit() -> None:
    """Nobody ships and nobody says so: the rank gives up after its limit, once for each shard, and says so."""
    with silent_neighbour() as server, stores(1, patience_seconds=60.0) as (here,):
        memory = rank_memory(here, replica=server.getsockname(), limit_seconds=0.05)
        open_shard(memory, SHARD)
        publish(memory, MODEL, SHARD, 1)
        assert not memory.settle()
        assert memory.alone
        publish(memory, MODEL, SHARD, 2)
        assert not memory.alone
        assert not memory.settle()
        memory.close()


def test_a_shard_overwritten_while_it_is_sent_is_never_kept() -> None:
    """A copy whose bytes changed on the way is taken back at its end, and the neighbour keeps what it had."""
    with stores(2) as (here, there):
        memory = rank_memory(here, replica=there.address)
        open_shard(memory, SHARD)
        publish(memory, MODEL, SHARD, 1)
        assert memory.settle()
        line = Line(there.address, TOKEN, 5.0)
        about = line.describe(Name(1, 0, 1))
        taken_back = line.put(Name(1, 0, 2), about, memoryview(bytes(about.nbytes)), lambda: False, lambda: None)
        assert taken_back is None
        assert steps(there, own=False) == [1]
        assert line.put(Name(1, 0, 3), about, memoryview(bytes(about.nbytes)), lambda: True, lambda: None)
        assert line.put(Name(1, 0, 4), about, memoryview(bytes(about.nbytes)), lambda: True, lambda: None)
        assert steps(there, own=False) == [4, 3]
        line.close()
        memory.close()


def test_a_copy_damaged_on_the_way_is_refused() -> None:
    """Bytes that do not have the hashes which the sender took are not kept, and the connection stays usable."""
    with stores(1) as (there,), socket.create_connection(there.address) as line:
        wire.send(line, {"token": TOKEN})
        head = {"kind": "put", "generation": 1, "rank": 0, "step": 1, "world_size": 1, "bytes": 3}
        for hashes, answer in [([wire.block_hash(memoryview(b"abc"))], {"kept": True}), (["0" * 32], None)]:
            wire.send(line, {**head, "layout": 2, "fixed": 2, "document": 2})
            assert wire.receive(line) == {"go": True}
            line.sendall(b"[]{}{}" + b"abc")
            wire.send(line, {"hashes": hashes})
            told = wire.receive(line)
            assert told is not None
            assert told == answer or "damaged on the way" in told["error"]
        assert [held.step for held in there.inventory()] == [1]


def test_strangers_are_cut_off() -> None:
    """Without the job's token nothing is answered, whatever is asked; a wrong one and none at all are treated alike."""
    with stores(1) as (store,):
        for first in ({"token": "another"}, {"token": None}, {"token": "\ud800"}, {}, {"kind": "describe"}):
            with socket.create_connection(store.address, timeout=20) as line:
                wire.send(line, first)
                assert line.recv(1) == b""


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a length of 4 GiB": b"\xff\xff\xff\xff",
    "not JSON": struct.pack("!I", 3) + b"abc",
    "not UTF-8": struct.pack("!I", 3) + b"\xff\xfe\xfd",
    "a list": struct.pack("!I", 2) + b"[]",
    "deep nesting": struct.pack("!I", 4000) + b"[" * 4000,
    "half a frame": struct.pack("!I", 100) + b"{",
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("known", [False, True])
def test_garbage_on_the_port_ends_its_own_connection_only(garbage: str, known: bool) -> None:
    """Whatever comes in, before or after the token, the connection ends and the server answers the next caller."""
    with stores(1) as (store,):
        with socket.create_connection(store.address, timeout=20) as line:
            if known:
                wire.send(line, {"token": TOKEN})
            with suppress(OSError):  # when it was cut off before it had sent everything
                line.sendall(GARBAGE[garbage])
                line.shutdown(socket.SHUT_WR)
                assert line.recv(1) == b""
        asking = Line(store.address, TOKEN, 20.0)
        with pytest.raises(Refused, match="is not here"):
            asking.describe(Name(1, 0, 1))
        asking.close()


def test_no_request_reaches_outside_a_shard() -> None:
    """Offsets and lengths beyond the end, negative ones, other types and unknown names are refused or cut off."""
    with stores(1) as (store,):
        memory = rank_memory(store)
        open_shard(memory, SHARD)
        publish(memory, MODEL, SHARD, 1)
        size = store.inventory()[0].bytes
        line = Line(store.address, TOKEN, 20.0)
        line.read_into(Name(1, 0, 1), size - 1, memoryview(bytearray(1)))
        for offset, length in [(size, 1), (0, size + 1), (2**62, 1)]:
            with pytest.raises(Refused, match=f"has {size} bytes"):
                line.read_into(Name(1, 0, 1), offset, memoryview(bytearray(length)))
        for name in (Name(1, 0, 2), Name(1, 1, 1), Name(2, 0, 1)):
            with pytest.raises(Refused, match="is not here"):
                line.read_into(name, 0, memoryview(bytearray(1)))
        line.close()
        for odd in (-1, 1.5, True, "1", None, 2**70):
            line = Line(store.address, TOKEN, 20.0)
            with pytest.raises(OSError, match=r"closed|reset"):
                line.read_into(Name(1, 0, 1), odd, memoryview(bytearray(1)))  # type: ignore[arg-type]
            line.close()
        memory.close()


def test_what_is_forgotten_is_gone_and_not_taken_again() -> None:
    """`forget` drops own shards and copies of older generations; a late courier of one of them is refused."""
    with stores(2) as (here, there):
        first = rank_memory(here, replica=there.address)
        open_shard(first, SHARD)
        publish(first, MODEL, SHARD, 1)
        assert first.settle()
        second = rank_memory(here, generation=2, replica=there.address)
        open_shard(second, SHARD)
        publish(second, MODEL, SHARD, 1)
        assert second.settle()
        for store in (here, there):
            store.forget(2, 1)
            assert {held.generation for held in store.inventory()} == {2}
        line = Line(there.address, TOKEN, 5.0)
        about = line.describe(Name(2, 0, 1))
        with pytest.raises(Refused, match="generation 1 is over"):
            line.put(Name(1, 0, 9), about, memoryview(bytes(about.nbytes)), lambda: True, lambda: None)
        line.close()
        publish(second, MODEL, SHARD, 2)
        assert second.settle()
        first.close()
        second.close()


def test_admission_is_once_for_a_rank_of_a_generation() -> None:
    """A rank that has memory is not given another; the number of steps between shards can be fixed."""
    with stores(1) as (store,):
        grant = store.admit(1, 0, 1, replica=None, source=None)
        with pytest.raises(ValueError, match="already"):
            store.admit(1, 0, 1, replica=None, source=None)
        memory = Memory(grant, SystemClock())
        memory.open((), 0, every=4)
        assert memory.every == 4
        assert store.numbers()[0].alone_because == "the job has no other node"
        memory.close()


def test_copies_go_to_another_neighbour_from_the_next_shard_on() -> None:
    """A rank without a neighbour is given one, and later another: each holds the shards published since."""
    with stores(3) as (here, second, third):
        memory = rank_memory(here, generation=1, replica=None)
        open_shard(memory, SHARD)
        publish(memory, MODEL, SHARD, 1)
        assert not memory.settle()

        def goes_to(store: shards.ShardStore, step: int) -> None:
            here.pair(1, 0, store.address)
            publish(memory, MODEL, SHARD, step)
            wait_for(lambda: bool(store.inventory()), "the copy is there")
            assert [held.step for held in store.inventory()] == [step]

        goes_to(second, 2)
        goes_to(third, 3)
        here.pair(1, 0, None)
        publish(memory, MODEL, SHARD, 4)
        assert not memory.settle()
        memory.close()


def test_nothing_is_left_when_it_is_closed() -> None:
    """Stores, ranks, copies and readers come and go: no descriptor, no thread, no file in /dev/shm stays."""

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    def live() -> None:
        with stores(2) as (here, there):
            for generation in (1, 2):
                memory = rank_memory(here, generation=generation, replica=there.address)
                open_shard(memory, SHARD)
                publish(memory, MODEL, SHARD, 1)
                assert memory.settle()
                here.forget(generation, 1)
                there.forget(generation, 1)
                memory.close()
            heir = rank_memory(there, generation=3, source=plan_of([here, there], 1, 2))
            assert heir.source is not None
            assert heir.source.document["step"] == 1
            heir.close()

    before, threads, shm = descriptors(), threading.active_count(), os.listdir("/dev/shm")
    for _ in range(3):
        live()
    assert os.listdir("/dev/shm") == shm
    wait_for(lambda: threading.active_count() == threads, "the last thread has ended")
    wait_for(lambda: descriptors() == before, f"{before} descriptors are left")
