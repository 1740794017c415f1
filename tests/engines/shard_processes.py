"""Processes for the tests of the state memory: a rank that publishes what it is told, and an agent with such a rank.

python -m tests.engines.shard_processes rank                   the grant comes as a line of JSON on stdin
python -m tests.engines.shard_processes agent NODE             says its address; is told [generation, world size, replica]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.native.memory import Memory
from orchestrator.platforms.engines.native.shards import ShardStore
from orchestrator.storage.manifest import Fragment
from tests.engines.shard_worlds import HOST, TOKEN

ELEMENTS = 300_000


def content(rank: int, step: int) -> bytes:
    """What a rank publishes at a step: every one of its 2.4 MB tells both."""
    return (1_000_000 * rank + step).to_bytes(8, "little") * ELEMENTS


def start(*arguments: str) -> subprocess.Popen[str]:
    """One of the processes above. It ends with its stdin."""
    command = [sys.executable, "-m", "tests.engines.shard_processes", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def rank(grant: Mapping[str, Any]) -> None:
    """For each line of stdin, publish all steps up to that number, and say each when it is published."""
    memory = Memory(grant, SystemClock())
    start, number = ELEMENTS * grant["rank"], grant["rank"]
    memory.open([Fragment("w", "master", "int64", start, start + ELEMENTS, "", 0)], 8 * ELEMENTS)
    step = 0
    for line in sys.stdin:
        while step < int(line):
            step += 1
            memory.buffer(step)[:] = content(number, step)
            memory.publish(step, {"step": step, "text": "x" * (step % 7 * 1000)})
            say(str(step))


def agent(node: int) -> None:
    """The memory of a node with one rank, which is a process of its own and is told what this one is told."""
    store = ShardStore(HOST, TOKEN, SystemClock())
    say(json.dumps(store.address))
    generation, world_size, (host, port) = json.loads(sys.stdin.readline())
    grant = store.admit(generation, node, world_size, replica=(host, port), source=None)
    command = [sys.executable, "-m", "tests.engines.shard_processes", "rank"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        child.stdin.write(json.dumps(grant) + "\n")
        for line in sys.stdin:
            child.stdin.write(line)
        child.stdin.close()


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        rank(json.loads(sys.stdin.readline()))
    else:
        agent(int(sys.argv[2]))
