"""What a worker's process does between two worlds: take the old one down, test that nothing of it is left, make ready.

The test compares the process with what it was when it had warmed up. A process that differs is not fit for another world: it
ends, and a fresh one takes its place. So what DeepSpeed or torch leave behind in a version that nobody has seen costs time and
never a wrong step.

Limits: the insides of DeepSpeed that `deepspeed_globals` knows. Not for a user's own function, which may leave anything.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.training import deepspeed_globals

MIB = 1024 * 1024
GROWTH_BYTES, GROWTH_SHARE = 256 * MIB, 0.5
"""How much more memory a process may hold than when it first was ready: the larger of these. An engine that was taken down
leaves 40 MiB, six of them 90 MiB (measured), and what the allocator keeps grows with the model."""
NATIVE_THREADS = 24
"""So many threads more than when it first was ready are pools of torch, which are made once and stay; a world that is not
taken down leaves some each time."""
GPU_BYTES = 64 * MIB


class NotFit(Exception):
    """Something of the old world is left."""


@dataclass(frozen=True)
class Fitness:
    """What is compared."""

    globals: tuple[Any, ...]
    threads: frozenset[str]
    """Names of Python's own."""
    native_threads: int
    bytes: int

    @classmethod
    def of_this_process(cls) -> Fitness:
        return cls(
            deepspeed_globals.fingerprint(),
            frozenset(thread.name for thread in threading.enumerate()),
            len(list(Path("/proc/self/task").iterdir())),
            _resident_bytes(),
        )

    def compare(self, torch: Any, deepspeed: Any) -> None:
        """Raise NotFit when this process, between two worlds, differs from what it was."""
        now = Fitness.of_this_process()
        if torch.distributed.is_initialized() or deepspeed.comm.comm.cdb is not None:
            raise NotFit("a process group is left")
        if now.globals != self.globals:
            raise NotFit(f"DeepSpeed counts on from {now.globals}, not from {self.globals}")
        if more := now.threads - self.threads:
            raise NotFit(f"threads of the old world are left: {', '.join(sorted(more))}")
        if now.native_threads > self.native_threads + NATIVE_THREADS:
            raise NotFit(f"{now.native_threads} threads run, and {self.native_threads} did at first")
        if now.bytes > self.bytes + max(GROWTH_BYTES, GROWTH_SHARE * self.bytes):
            raise NotFit(f"memory has grown from {self.bytes // MIB} to {now.bytes // MIB} MiB")
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            if torch.cuda.memory_allocated() > GPU_BYTES:
                raise NotFit(f"{torch.cuda.memory_allocated() // MIB} MiB of the GPU are still held")


def take_down(torch: Any, deepspeed: Any, trainer: Any) -> None:
    """End what a trainer has of its world, which may be broken. It is not used again."""
    if trainer is not None:
        trainer.take_down()
    deepspeed_globals.leave_world(torch, deepspeed)


def self_test(torch: Any, deepspeed: Any, before: Fitness) -> None:
    """Compare, and meet in a world of one. Raises NotFit, or whatever the operation does."""
    gc.collect()
    before.compare(torch, deepspeed)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        number = torch.ones(1)
        torch.distributed.all_reduce(number)
        if float(number) != 1.0:
            raise NotFit("a sum over one rank is wrong")
    finally:
        deepspeed_globals.leave_world(torch, deepspeed)


def _resident_bytes() -> int:
    """Of this process alone: pages that it does not share with files or with those that it was copied with count once."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
