"""How often a shard is published follows from what it is measured to cost, and stays put near the border."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.clock import ManualClock
from orchestrator.platforms.engines.native.memory import Memory
from orchestrator.platforms.engines.native.pace import WINDOW, Pace
from tests.engines.shard_worlds import Model, open_shard, publish, stores

MS = 1_000_000


def run(pace: Pace, *, step_ms: float, copy_ms: float, ship_ms: float = 0.0, windows: int = 1) -> int:
    """Publish at the pace's own steps for so many windows, in a world with these costs; the number in the end."""
    step, now_ns, decided = 0, 0, 0
    while decided < windows:
        step += pace.every
        began_ns = now_ns + round(pace.every * step_ms * MS)
        now_ns = began_ns + round(copy_ms * MS)
        decided += pace.note(step, began_ns, now_ns, 0, round(ship_ms * MS))
    return pace.every


@pytest.mark.parametrize(
    ("step_ms", "copy_ms", "ship_ms", "every"),
    [
        (800, 12.7, 60, 1),  # 1.6 % of the step
        (100, 5, 30, 3),  # 5 %
        (80, 0.7, 5, 1),
        (10, 0.9, 5, 1),  # 9 %, but under a millisecond
        (100, 1.0, 900, 9),  # shipping takes nine steps
    ],
)
def test_the_number_of_steps_follows_from_costs(step_ms: float, copy_ms: float, ship_ms: float, every: int) -> None:
    """One window is enough to find the smallest number that keeps within 2 % of the time."""
    assert run(Pace(None), step_ms=step_ms, copy_ms=copy_ms, ship_ms=ship_ms) == every


def test_it_comes_down_only_when_the_cost_is_well_below_the_budget() -> None:
    """Up at more than 2 %, down at less than 1 %, and no swinging between."""
    pace = Pace(None)
    assert run(pace, step_ms=100, copy_ms=2.1) == 2
    assert run(pace, step_ms=100, copy_ms=1.9, windows=5) == 2
    assert "after every 2 steps" in pace.because
    assert run(pace, step_ms=100, copy_ms=0.95) == 1
    assert "after every step" in pace.because


def test_a_fixed_number_stays() -> None:
    """Costs are measured, and the number that was set is kept."""
    pace = Pace(7)
    assert run(pace, step_ms=10, copy_ms=9) == 7
    assert pace.copy_seconds == pytest.approx(0.009)
    assert pace.step_seconds == pytest.approx(0.010)


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_tells_what_replication_costs(rank: int) -> None:
    """After each window rank 0 sends one event with number, bytes and seconds; other ranks none."""
    model, told, clock = Model({"w": 100}), list[dict[str, Any]](), ManualClock()
    shard = model.shard(0, 1, apart=True)
    with stores(1) as (store,):
        memory = Memory(store.admit(1, rank, 2, replica=None, source=None), clock, tell=told.append)
        open_shard(memory, shard)
        for step in range(1, 2 * WINDOW + 2):
            clock.advance(0.1)
            publish(memory, model, shard, step)
        memory.close()
    assert len(told) == (2 if rank == 0 else 0)
    for event in told:
        assert event["kind"] == "replication"
        assert (event["every"], event["bytes"], event["seconds"]) == (1, 648, 0.0)
        assert event["step_seconds"] == pytest.approx(0.1)
