"""The wire between a worker and whoever started it: events out, wishes in.

An engine provides an object of the shape `Link`. `JournalLink` is the one for a run without an engine (torchrun): events
go to a JSON-lines file in the run's folder, rank 0 prints a line for people, and signals become wishes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the controller wants from a worker by now."""

    checkpoint: int = 0
    """How many times somebody asked to save now, since the job's attempt began."""
    stop: bool = False
    """Save, and return `stopped`."""
    checkpoint_every_seconds: float | None = None
    """The time from one checkpoint to the next when `spec.checkpoint.every` is Auto; None while nobody has said."""
    regroup: bool = False
    """Leave after the present step, without a checkpoint: a world of other workers goes on from memory."""


UNPLANNED_EVERY_SECONDS = 600.0
"""Time between two checkpoints under Auto where nobody plans it: a run without a controller, which does not know what an
interruption costs there. Ten minutes lost, at worst, and a save that takes seconds costs under one per cent."""


class Place(Protocol):
    """Where elements [start, end) of one kind of one parameter lie in a shard, from byte `offset` on."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def offset(self) -> int: ...


class Source(Protocol):
    """The state of one step, as the ranks of an earlier generation published it, wherever its shards lie now.

    Methods raise OSError, ValueError or LookupError when something of it cannot be had.
    """

    @property
    def step(self) -> int: ...

    @property
    def document(self) -> Mapping[str, Any]:
        """What one of the ranks published with its shard."""
        ...

    def read_into(self, name: str, kind: str, start: int, end: int, out: memoryview) -> None:
        """Elements [start, end), in their stored type, into `out`."""
        ...

    def close(self) -> None: ...


class Memory(Protocol):
    """This rank's part of the state in memory that outlives the rank."""

    @property
    def source(self) -> Source | None:
        """What this generation is to begin from; None for the newest checkpoint."""
        ...

    @property
    def every(self) -> int:
        """Publish after every so many steps. Rank 0's number counts."""
        ...

    def open(self, layout: Sequence[Place], nbytes: int, *, every: int | None = None) -> None:
        """Say how large a shard is and where its parts lie. Once, before `buffer`. `every`: fixes that number."""
        ...

    def settle(self) -> bool:
        """Wait, in bounded time, until what was published last is in a second place; whether it is.

        Called before the all-reduce of a step: once that is over, it holds for every rank.
        """
        ...

    def buffer(self, step: int) -> memoryview:
        """Where the shard of `step` is to be written, `nbytes` long; what lies there is undefined. Waits as `settle` does."""
        ...

    def publish(self, step: int, document: Mapping[str, Any]) -> None:
        """The shard of `step` is whole."""
        ...


class Link(Protocol):
    """A link whose engine keeps state in memory has an attribute `memory` beside these (see `Memory`)."""

    def send(self, event: dict[str, Any]) -> None:
        """Hand over an event. Never blocks, never raises."""
        ...

    def wishes(self) -> Wishes:
        """What is wished by now. Cheap: called once a step."""
        ...

    def close(self) -> None:
        """Flush what was sent, in bounded time."""
        ...


class JournalLink:
    """Events of one rank as JSON lines in a file; with `screen`, a line for people as well.

    `wish_checkpoint` and `wish_stop` may be called from a signal handler. `every_seconds` is what it wishes of a job whose
    `checkpoint.every` is Auto.
    """

    def __init__(
        self, path: Path, screen: TextIO | None = None, *, every_seconds: float = UNPLANNED_EVERY_SECONDS
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._screen = screen
        self._lock = threading.Lock()
        self._checkpoint_wishes = 0
        self._stop = False
        self._every_seconds = every_seconds

    def wish_checkpoint(self) -> None:
        self._checkpoint_wishes += 1

    def wish_stop(self) -> None:
        self._stop = True

    def send(self, event: dict[str, Any]) -> None:
        try:
            with self._lock:  # checkpoints are told by the thread that wrote them
                self._file.write(json.dumps(event) + "\n")
                self._file.flush()
                if self._screen is not None and (line := for_people(event)) is not None:
                    self._screen.write(line + "\n")
                    self._screen.flush()
        except (OSError, ValueError):  # a full disk or a closed pipe must not stop training; the link's contract
            return

    def wishes(self) -> Wishes:
        return Wishes(self._checkpoint_wishes, self._stop, self._every_seconds)

    def close(self) -> None:
        self._file.close()


def for_people(event: Mapping[str, Any]) -> str | None:
    """One event as a line for a screen; None for those that people do not need one by one."""
    match event["kind"]:
        case "started":
            return f"rank {event['rank']} on {event['device']}, {event['precision']}: {event['precision_reason']}"
        case "stage":
            return f"{event['stage']}: {event['seconds']:.1f} s"
        case "restored":
            refused = "".join(f"; refused {item['uri']}: {item['why']}" for item in event["refused"])
            return (
                f"resumed at step {event['step']} from {event['uri']}" if event["uri"] else "from the beginning"
            ) + refused
        case "plan":
            return (
                f"{event['total_steps']} steps, {event['train_samples']} samples, {event['parameters']:,} parameters, "
                f"{event['world_size']} ranks x {event['micro_batch']} x {event['accumulation']}"
            )
        case "step":
            return f"step {event['step']} epoch {event['epoch']:.2f} loss {event['loss']:.4f} lr {event['lr']:.2e}"
        case "evaluation":
            figures = " ".join(f"{name} {value:.4f}" for name, value in event["metrics"].items())
            return f"step {event['step']} {event['split']}: {figures}"
        case "checkpoint":
            return f"step {event['step']} saved in {event['seconds']:.1f} s: {event['uri']}{' (best)' if event['best'] else ''}"
        case "data":
            return f"data: {event['train']} train, {event['validation']} validation, {event['test']} test"
        case "log":
            return "\n".join(event["lines"])
    return None
