"""A worker loop as training is, without torch: ranks in lockstep, state published after each step, regroup agreed.

Ranks meet at a `MeetingPlace` of the test, where each says whether it was asked to regroup: as in an all-reduce, nobody
finishes a step before all have come to it, all see the same, and who is cut off holds up the others.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.clock import SystemClock

PATIENCE_SECONDS = 120.0
STEP_SECONDS = 0.03
WEIGHTS = 12
"""Floats of the state, divided over the ranks: 1, 2, 3, 4 and 6 ranks have whole parts."""


@dataclass(frozen=True)
class Part:
    name: str
    kind: str
    dtype: str
    start: int
    end: int
    offset: int


def lockstep(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Each step adds one to every weight, so the state of step s is s everywhere; what is taken up is checked by that.

    With `fits` in the assignment, the last rank runs out of memory after some steps at any larger micro-batch.
    Rank `slow_rank` of the assignment takes five times as long in the first world."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    generation = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    share = WEIGHTS // size
    start, end = rank * share, (rank + 1) * share
    step = 0
    weights = bytearray(4 * share)
    if (source := link.memory.source) is not None:
        step = source.step
        source.read_into("w", "fp32", start, end, memoryview(weights))
        source.close()
        found = struct.unpack(f"={share}f", weights)
        assert found == (float(step),) * share, f"the state of step {step} is {found}"
    link.memory.open([Part("w", "fp32", "float32", start, end, 0)], len(weights))
    where = {"rank": rank, "generation": generation, "size": size}
    micro_batch = assignment.get("micro_batch")
    too_large = "fits" in assignment and (micro_batch is None or micro_batch > assignment["fits"])
    link.send({"kind": "begun", "from": step, "pid": os.getpid(), "micro_batch": micro_batch, **where})
    pause, clock = threading.Event(), SystemClock()
    meeting = socket.create_connection(tuple(assignment["meet"])).makefile("rw")
    for _ in range(round(PATIENCE_SECONDS / STEP_SECONDS)):
        step += 1
        began = time.monotonic()
        pause.wait(STEP_SECONDS)
        if too_large and rank == size - 1 and step > 4:
            raise MemoryError(f"a micro-batch of {micro_batch}")
        while generation == 1 and rank == assignment.get("slow_rank") and time.monotonic() < began + 5 * STEP_SECONDS:
            pass  # works, and so holds up the others
        link.own_work(time.monotonic() - began)
        wishes = link.wishes()
        flag = "r" if wishes.regroup else "s" if wishes.stop else "-"
        meeting.write(json.dumps([generation, step, rank, size, flag]) + "\n")
        meeting.flush()
        flags = meeting.readline()
        if not flags:
            raise ConnectionResetError("the meeting place is gone")
        weights[:] = struct.pack(f"={share}f", *[float(step)] * share)
        link.memory.buffer(step)[:] = weights
        link.memory.publish(step, {"step": step})
        took = time.monotonic() - began
        link.send({"kind": "step", "step": step, "seconds": took, "at_ns": clock.now_ns(), **where})
        if "r" in flags:
            return {"outcome": "regrouped", "reason": "Regrouped", "step": step}
        if "s" in flags:
            return {"outcome": "stopped", "reason": "Stopped", "step": step}
    raise TimeoutError("nobody asked to stop")


class MeetingPlace:
    """Where ranks wait for each other. A context manager; lives in the process of the test."""

    def __init__(self, host: str) -> None:
        self._changed = threading.Condition()
        self._said: dict[tuple[int, int], dict[int, str]] = {}
        place = self

        class Rank(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    flags = place._meet(*json.loads(line))
                    self.wfile.write(flags.encode() + b"\n")

        self._server = socketserver.ThreadingTCPServer((host, 0), Rank)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def __enter__(self) -> MeetingPlace:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _meet(self, generation: int, step: int, rank: int, size: int, flag: str) -> str:
        with self._changed:
            said = self._said.setdefault((generation, step), {})
            said[rank] = flag
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(said) == size, timeout=PATIENCE_SECONDS)
            return "".join(said.values())
