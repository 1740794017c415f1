"""The port to whatever runs the workers.

An engine runs one attempt of one gang: it starts the workers, calls the worker loop (named as a string, so that no
engine imports the training code) on every rank, passes on what the ranks send, shows them what is wished for, and says
how the attempt ended. It never retries, resizes or chooses a checkpoint: those decisions belong to the lifecycle, and
where to continue is found by the worker loop in the checkpoint store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.hazard import Observed

WORKER_LOOP = "orchestrator.training.worker:run"

Events = Sequence[Mapping[str, Any]]
"""Worker events: JSON-able mappings with a `kind` (see docs/worker-events.md)."""
Listener = Callable[[Events], None]
"""Called from any thread; must return quickly."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """Seconds between two checkpoints. `number` counts a job's plans from 1: of two that arrive in the wrong order the
    higher one holds."""

    number: int
    every_seconds: float


class Wishes(NamedTuple):
    """What a rank is asked for."""

    checkpoint: int = 0
    """How many times somebody asked to save now, since the attempt began."""
    stop: bool = False
    """Save, and return."""
    checkpoint_every_seconds: float | None = None
    """When `spec.checkpoint.every` is Auto: the time from one checkpoint to the next."""
    regroup: bool = False
    """Keep the state of the coming step in memory, and return "Regrouped": the gang goes on in another shape. Wished by
    an elastic engine itself, never through a `WishBoard`."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One attempt of a gang. `assignment` is handed to every rank unchanged."""

    uid: str
    namespace: str
    name: str
    attempt: int
    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    memory_bytes_per_worker: int | None
    worker_loop: str
    assignment: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    cadence: Cadence | None = None
    """What the gang begins with; None unless `spec.checkpoint.every` is Auto."""
    min_workers: int | None = None
    """The fewest workers that an elastic attempt goes on with; None: `workers`, a gang of one size."""
    allowed: tuple[int, ...] = ()
    """Numbers of workers that the batch divides over, ascending, within min_workers..workers; empty: any of them."""
    elastic: bool = False
    """The attempt outlives the loss of its workers, by another world inside it. Without, the first loss ends it. Engines
    that cannot do it run a gang of `workers` and end at the first loss."""
    engine: str = ""
    """The engine of this name is to run it, on a host that has several; empty: one that does what is asked."""
    live: bool = False
    """Worker processes go on from one world of an elastic attempt to the next instead of making room for standbys. For
    engines that have worlds."""
    size: int = 0
    """The number of workers that is wished for when the attempt begins (see `WishBoard.size`); 0: `workers`."""
    global_batch: int | None = None
    """Samples of one step over all ranks; None where the worker loop divides its samples itself."""
    micro_batch: int | None = None
    """The micro-batch that the job names; None: what the batch arithmetic finds."""
    out_of_memory: tuple[tuple[int, int], ...] = ()
    """(ranks, micro-batch) of what did not fit into memory in earlier attempts."""
    capacity: CapacityType = CapacityType.ON_DEMAND
    """How the machines are rented."""
    observed: Mapping[CapacityType, Observed] = field(default_factory=dict)
    """What other gangs, and earlier attempts, have seen of interruptions."""

    @property
    def world_size(self) -> int:
        return self.workers * self.ranks_per_worker

    @property
    def ranks_per_worker(self) -> int:
        return max(1, self.gpus_per_worker)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of workers that a world of this attempt may have, ascending; `workers` is the last."""
        fewest = self.workers if self.min_workers is None else self.min_workers
        within = {n for n in self.allowed or range(fewest, self.workers + 1) if fewest <= n <= self.workers}
        return tuple(sorted(within | {self.workers}))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `reason` is a value of lifecycle's TerminationReason; `result` is rank 0's return value."""

    reason: str
    message: str
    result: Mapping[str, Any] | None = None


class WishBoard:
    """What the gang is asked for. Written by the driver, read by the engine's links; safe over threads."""

    def __init__(self, cadence: Cadence | None = None, size: int = 0) -> None:
        self._lock = threading.Lock()
        self._checkpoint = 0
        self._stop = False
        self._cadence = cadence
        self._size = size

    def wish_checkpoint(self) -> None:
        """One more `save now` request."""
        with self._lock:
            self._checkpoint += 1

    def wish_stop(self) -> None:
        """Save and return."""
        with self._lock:
            self._stop = True

    def wish_cadence(self, cadence: Cadence) -> None:
        """Save so often from now on, unless a later plan is known."""
        with self._lock:
            if self._cadence is None or cadence.number > self._cadence.number:
                self._cadence = cadence

    def wish_size(self, workers: int) -> None:
        """Train with so many workers from now on, when there is room; fewer will do. For an elastic engine alone."""
        with self._lock:
            self._size = workers

    @property
    def size(self) -> int:
        """The number of workers that is wished for; 0 when nobody wished."""
        with self._lock:
            return self._size

    def read(self) -> Wishes:
        with self._lock:
            every_seconds = None if self._cadence is None else self._cadence.every_seconds
            return Wishes(self._checkpoint, self._stop, every_seconds)


class Engine(Protocol):
    """Runs one attempt at a time."""

    name: str

    def run(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> Outcome:
        """Run the gang and block until none of its processes is left. Never raises for what happens to the workers."""
        ...

    def kill(self) -> None:
        """From another thread: end the gang that `run` is running, whatever it does. Harmless when there is none."""
        ...
