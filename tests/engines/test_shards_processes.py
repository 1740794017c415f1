"""The state memory among real processes that are really killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from orchestrator.platforms.engines.native.memory import Source
from orchestrator.platforms.engines.native.wire import Line, Name
from tests.engines.shard_processes import ELEMENTS, content, start
from tests.engines.shard_worlds import TOKEN, plan_of, stores, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = start(*arguments)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def tell(process: subprocess.Popen[str], value: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(value) + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_rank_killed_at_any_moment_leaves_whole_shards_only() -> None:
    """Kill a rank that publishes as fast as it can, at six random moments: its agent and the neighbour hold whole shards,
    among them the newest that the rank had spoken of, and the one before it at the neighbour."""
    chance = random.Random(20)
    pause = threading.Event()
    with stores(2) as (here, there):
        for generation in range(1, 7):
            grant = here.admit(generation, 0, 1, replica=there.address, source=None)
            with running("rank") as process:
                tell(process, grant)
                tell(process, 10**9)
                spoken = int(hear(process))
                pause.wait(chance.uniform(0.0, 0.15))
                process.send_signal(signal.SIGKILL)
                process.wait()
                assert process.stdout is not None
                for line in process.stdout:
                    spoken = int(line) if line.endswith("\n") else spoken
            own = [held.step for held in here.inventory() if held.own and held.generation == generation]
            copies = [held.step for held in there.inventory() if held.generation == generation]
            assert len(own) >= 2 or own == [1]
            assert own[0] in (spoken, spoken + 1)
            if spoken > 1:
                assert copies[0] >= spoken - 1
            newest = own[0]
            wait_for(lambda newest=newest: here.numbers()[0].acknowledged_step == newest, "the last shard is shipped")  # type: ignore[misc]
            copies = [held.step for held in there.inventory() if held.generation == generation]
            for store, steps in ((here, own), (there, copies)):
                asking = Line(store.address, TOKEN, 20.0)
                for step in steps:
                    out = bytearray(8 * ELEMENTS)
                    asking.read_into(Name(generation, 0, step), 0, memoryview(out))
                    assert bytes(out) == content(0, step)
                    assert json.loads(asking.describe(Name(generation, 0, step)).document)["step"] == step
                asking.close()


def test_a_killed_agent_leaves_nothing_and_its_neighbour_has_the_state() -> None:
    """Kill one of two agents with its rank in the middle of a step: the step before is whole at the other, and no file of
    the killed one stays."""
    before = os.listdir("/dev/shm")
    with stores(1) as (third,), running("agent", "0") as agent:
        host, port = json.loads(hear(agent))
        grant = third.admit(1, 1, 2, replica=(host, port), source=None)
        tell(agent, [1, 2, third.address])
        with running("rank") as rank:
            tell(rank, grant)
            for step in range(1, 11):
                tell(agent, step)
                tell(rank, step)
                assert hear(agent) == hear(rank) == f"{step}\n"
            tell(rank, 11)  # the other rank dies before it gets there
            agent.kill()
            agent.wait()
            hear(rank)
            wait_for(lambda: third.numbers()[0].alone_because is not None, "the loss of the neighbour is told")
        newest = max(step for step in range(12) if plan_of([third], step) is not None)
        assert newest >= 9
        plan = plan_of([third], newest)
        assert plan is not None
        source = Source(plan, TOKEN, near=third.address, patience_seconds=20.0)
        out = bytearray(16 * ELEMENTS)
        source.read_into("w", "master", 0, 2 * ELEMENTS, memoryview(out))
        assert bytes(out) == content(0, newest) + content(1, newest)
        source.close()
    assert os.listdir("/dev/shm") == before
