"""One event of a node's life, and what it did to a run: shared by `node_loss` and its rival.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.cluster.ray_nodes import RayNode, ray_nodes

EVENTS = ("kill", "notice", "join", "freeze")
SIZE = 3
NOTICE_SECONDS = 30.0
STEPS_BEFORE = 30
"""Steps of the full world before the event; past the first checkpoint of the rival."""
STEPS_AFTER = 5
LOOK_SECONDS = 0.02
NANOSECONDS = 1e9

Row = dict[str, Any]
Rows = Callable[[], list[Row]]


@dataclass(frozen=True, slots=True)
class Scene:
    """`victim` 0: the node of rank 0, else another."""

    event: str
    victim: int
    patience_seconds: float
    monitor_seconds: float = 60.0

    @property
    def before(self) -> int:
        """Nodes at the beginning."""
        return SIZE - 1 if self.event == "join" else SIZE

    @property
    def after(self) -> int:
        return SIZE if self.event == "join" else SIZE - 1


def _nothing() -> None:
    """The processes of the nodes are all there is to end."""


@contextmanager
def closing_with(finish: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        finish()


def _settled() -> bool:
    return True


def play(
    scene: Scene,
    begin: Callable[[], None],
    rows: Rows,
    finish: Callable[[], None] = _nothing,
    settled: Callable[[], bool] = _settled,
) -> dict[str, Any]:
    """Bring up the nodes, begin the run, wait until it has settled, let the event happen, wait until the run has gone on for
    some steps, and finish it."""
    with ray_nodes(os.environ) as cluster, closing_with(finish):
        nodes = [cluster.add_node() for _ in range(scene.before)]
        begin()
        _until(lambda: len(_of(rows(), scene.before)) >= STEPS_BEFORE and settled(), scene.patience_seconds, rows)
        home = rows()[-1]["node"]
        on_rank_0 = [node for node in nodes if node.node_id == home]
        others = [node for node in nodes if node.node_id != home]
        victim = on_rank_0[0] if scene.victim == 0 and on_rank_0 else others[scene.victim % len(others)]
        event_ns = time.monotonic_ns()
        _happen(scene, victim, cluster)
        _until(lambda: _gone_on(rows(), event_ns, scene.after), scene.patience_seconds, rows)
        taken = rows()
        if scene.event == "freeze":
            victim.kill()
    facts = {"event": scene.event, "victim": scene.victim, "event_ns": event_ns}
    return {**facts, **measure(taken, event_ns, scene.after)}


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


def _happen(scene: Scene, victim: RayNode, cluster: Any) -> None:
    match scene.event:
        case "kill":
            victim.kill()
        case "freeze":
            victim.freeze()
        case "notice":
            victim.drain(NOTICE_SECONDS)
        case _:
            cluster.add_node()


def _gone_on(rows: Sequence[Row], event_ns: int, size: int) -> bool:
    old, new = _around(rows, event_ns, size)
    done = max(row["step"] for row in old)
    return len([row for row in new if row["step"] > done]) >= STEPS_AFTER


def _around(rows: Sequence[Row], event_ns: int, size: int) -> tuple[list[Row], list[Row]]:
    """Steps of the worlds that were there at the event, and of later ones of the awaited size."""
    known = {row["world"] for row in rows if row["end_ns"] <= event_ns}
    old = [row for row in rows if row["world"] in known]
    return old, [row for row in rows if row["world"] not in known and row["size"] == size]


def _of(rows: Sequence[Row], size: int) -> list[Row]:
    return [row for row in rows if row["size"] == size]


def _until(condition: Callable[[], bool], seconds: float, rows: Rows) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came of it in {seconds:.0f} s; the last steps: {rows()[-3:]}")
        time.sleep(LOOK_SECONDS)
