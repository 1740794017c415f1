"""Events of nodes' lives, and what they did to a run: shared by `node_loss` and its rival.

A scene is played on a Ray of a head and small nodes (tests/cluster/ray_nodes.py). The run that is disturbed tells of each
finished step: `{"step", "end_ns", "world", "size", "node"}` with `world` another value for each world, `node` that of rank 0.

What is measured, all by the monotonic clock of this machine:

* `to_step`: from the event to the end of the first step of a later world of the awaited size;
* `to_useful`: to the end of the first step that no world had finished before;
* `redone`: steps that were made again;
* `dead`: the time without a finished step, from the old world's last to the next one's first; for a notice or a join that
  is what training stood still.

Limits: steps are rank 0's; the others are within one all-reduce of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from tests.cluster.ray_nodes import RayNode, RayNodes, ray_nodes

EVENTS = ("kill", "notice", "join", "freeze")
SIZE = 3
NOTICE_SECONDS = 30.0
STEPS_BEFORE = 30
"""Steps of the world before the event; past the first checkpoint of the rival."""
STEPS_AFTER = 5
LOOK_SECONDS = 0.02
NANOSECONDS = 1e9

Row = dict[str, Any]
Rows = Callable[[], list[Row]]


@dataclass(frozen=True, slots=True)
class Event:
    """What happens to a node. `victim` 0: the node of rank 0, else another; nothing at a join."""

    kind: str
    victim: int = 0

    @property
    def before(self) -> int:
        """Nodes until then."""
        return SIZE - 1 if self.kind == "join" else SIZE

    @property
    def after(self) -> int:
        return SIZE if self.kind == "join" else SIZE - 1

    @classmethod
    def read(cls, text: str) -> Event:
        """`kill:1` or `join`. Raises ValueError."""
        kind, _, victim = text.partition(":")
        if kind not in EVENTS:
            raise ValueError(f"{text!r} is none of {', '.join(EVENTS)}")
        return cls(kind, int(victim or 0))

    def __str__(self) -> str:
        return self.kind if self.kind == "join" else f"{self.kind}:{self.victim}"


def programme(text: str) -> tuple[Event, ...]:
    """`kill:0,join,notice:0`: events that can follow each other. Raises ValueError."""
    events = tuple(Event.read(part) for part in text.split(","))
    for earlier, later in pairwise(events):
        if earlier.after != later.before:
            raise ValueError(f"after {earlier} there are {earlier.after} nodes, and {later} begins with {later.before}")
    return events


def _nothing() -> None:
    """The processes of the nodes are all there is to end."""


@contextmanager
def closing_with(finish: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        finish()


def _settled(nodes: int) -> bool:
    return True


def play(
    events: Sequence[Event],
    begin: Callable[[], None],
    rows: Rows,
    patience_seconds: float,
    finish: Callable[[], None] = _nothing,
    settled: Callable[[int], bool] = _settled,
    extra: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Bring up the nodes, begin the run, and let one event after the other happen. Each waits until the world of all nodes
    has made some steps and the run has settled, and is over when the next world has gone on for some steps. Then the node
    that was to go is killed, if it is still there, so that a join brings another. Gives what was measured, event by event.
    `settled(n)`: whether a run on n nodes is as it would be had it not been disturbed just now. `extra`: variables of the
    cluster's processes."""
    with ray_nodes(os.environ, extra) as cluster, closing_with(finish):
        nodes = [cluster.add_node() for _ in range(events[0].before)]
        begin()
        for event in events:
            _until(partial(_may_come, event, rows, settled), patience_seconds, rows)
            home, world = rows()[-1]["node"], rows()[-1]["world"]
            victim = _victim(nodes, home, event)
            event_ns = time.monotonic_ns()
            came = _happen(event, victim, cluster)
            _until(partial(_gone_on, rows, world, event_ns, event.after), patience_seconds, rows)
            measured = measure(_since(rows(), world), event_ns, event.after)
            if came is None:
                victim.kill()
                nodes.remove(victim)
            else:
                nodes.append(came)
            yield {"event": event.kind, "victim": event.victim, "event_ns": event_ns, **measured}


def _may_come(event: Event, rows: Rows, settled: Callable[[int], bool]) -> bool:
    return _steady(rows(), event.before) and settled(event.before)


def _victim(nodes: Sequence[RayNode], home: str, event: Event) -> RayNode:
    on_rank_0 = [node for node in nodes if node.node_id == home]
    others = [node for node in nodes if node.node_id != home]
    return on_rank_0[0] if event.victim == 0 and on_rank_0 else others[event.victim % len(others)]


def _steady(rows: Sequence[Row], size: int) -> bool:
    """Whether the newest world has this size and has made some steps."""
    newest = [row for row in rows[-STEPS_BEFORE:] if row["world"] == rows[-1]["world"]]
    return len(newest) >= STEPS_BEFORE and newest[-1]["size"] == size


def _since(rows: Sequence[Row], world: Any) -> Sequence[Row]:
    """From the first step of that world on."""
    return rows[next(place for place, row in enumerate(rows) if row["world"] == world) :]


def measure(rows: Sequence[Row], event_ns: int, size: int) -> dict[str, Any]:
    """What the module's docstring says, in seconds and steps; `step_seconds` is the median step before the event, `worlds`
    how many worlds were begun after it."""
    old, new = _around(rows, event_ns, size)
    done = max(row["step"] for row in old)
    useful = next(row for row in new if row["step"] > done)
    ends = [row["end_ns"] for row in old if row["end_ns"] <= event_ns]
    gaps = sorted(later - earlier for earlier, later in pairwise(ends))
    return {
        "to_step": (new[0]["end_ns"] - event_ns) / NANOSECONDS,
        "to_useful": (useful["end_ns"] - event_ns) / NANOSECONDS,
        "dead": (new[0]["end_ns"] - old[-1]["end_ns"]) / NANOSECONDS,
        "redone": max(0, done - new[0]["step"] + 1),
        "step_seconds": gaps[len(gaps) // 2] / NANOSECONDS if gaps else None,
        "size": new[0]["size"],
        "worlds": len({row["world"] for row in new}),
    }


def _happen(event: Event, victim: RayNode, cluster: RayNodes) -> RayNode | None:
    """The node that came, at a join."""
    match event.kind:
        case "kill":
            victim.kill()
        case "freeze":
            victim.freeze()
        case "notice":
            victim.drain(NOTICE_SECONDS)
        case _:
            return cluster.add_node()
    return None


def _gone_on(rows: Rows, world: Any, event_ns: int, size: int) -> bool:
    old, new = _around(_since(rows(), world), event_ns, size)
    done = max(row["step"] for row in old)
    return len([row for row in new if row["step"] > done]) >= STEPS_AFTER


def _around(rows: Sequence[Row], event_ns: int, size: int) -> tuple[list[Row], list[Row]]:
    """Steps of the worlds that were there at the event, and of later ones of the awaited size."""
    known = {row["world"] for row in rows if row["end_ns"] <= event_ns}
    old = [row for row in rows if row["world"] in known]
    return old, [row for row in rows if row["world"] not in known and row["size"] == size]


def _until(condition: Callable[[], bool], seconds: float, rows: Rows) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came of it in {seconds:.0f} s; the last steps: {rows()[-3:]}")
        time.sleep(LOOK_SECONDS)
