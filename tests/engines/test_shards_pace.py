"""How often a shard is published follows from what it is measured to cost, and stays put near the border."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.clock import ManualClock
from orchestrator.platforms.engines.native.memory import Memory
from orchestrator.platforms.engines.native.pace import WINDOW, Pace
from tests.engines.shard_worlds import Model, open_shard, publish, stores

MS = 1_000_000


def run(
    pace: Pace, *, step_ms: float, copy_ms: float, ship_ms: float = 0.0, slows_ms: float = 0.0, windows: int = 1
) -> int:
    """Publish at the pace's own steps for so many windows, in a world with these costs; the number in the end. Shipping makes
    the step longer that it goes on beside."""
    step, now_ns, decided, since = 0, 0, 0, 0
    longer_ms = 0.0
    while decided < windows:
        step, since = step + 1, since + 1
        now_ns += round((step_ms + longer_ms) * MS)
        pace.stepped(now_ns, 0)
        longer_ms = 0.0
        if step % pace.every == 0:
            began_ns = now_ns
            now_ns += round(copy_ms * MS)
            decided += pace.note(step, began_ns, now_ns, 0, round(ship_ms * MS))
            longer_ms = slows_ms
    return pace.every


@pytest.mark.parametrize(
    ("step_ms", "copy_ms", "ship_ms", "every"),
    [
        (800, 12.7, 15, 1),  # 1.6 % of the step
        (100, 5, 1.9, 3),  # 5 %
        (80, 0.7, 1.5, 1),
        (10, 0.9, 0.9, 1),  # 9 %, but under a millisecond
    ],
)
def test_the_number_of_steps_follows_from_costs(step_ms: float, copy_ms: float, ship_ms: float, every: int) -> None:
    """One window is enough to find the smallest number that keeps within 2 % of the time."""
    assert run(Pace(), step_ms=step_ms, copy_ms=copy_ms, ship_ms=ship_ms) == every


@pytest.mark.parametrize(
    ("slows_ms", "ship_ms", "every"),
    [
        (0, 60, 1),  # it has processors of its own
        (11, 60, 2),  # with the copy 2.1 %
        (87, 120, 6),
        (0, 7_200, 9),  # it takes nine steps, whatever it slows down
    ],
)
def test_what_shipping_costs_the_steps_counts(slows_ms: float, ship_ms: float, every: int) -> None:
    """Shipping that may matter is tried out at every second step, and what it slows the steps down by counts."""
    pace = Pace()
    assert run(pace, step_ms=800, copy_ms=6, ship_ms=ship_ms, slows_ms=slows_ms) == 2
    assert "for a while" in pace.because
    assert run(pace, step_ms=800, copy_ms=6, ship_ms=ship_ms, slows_ms=slows_ms) == every
    assert pace.slower_seconds == pytest.approx((slows_ms + 6) / 1000)


def test_what_was_tried_is_not_tried_again() -> None:
    """Where shipping costs nothing every step is published from then on, until shipping takes twice as long."""
    pace = Pace()
    costs: dict[str, Any] = {"step_ms": 800, "copy_ms": 6}
    assert run(pace, ship_ms=60, windows=2, **costs) == 1
    assert run(pace, ship_ms=100, windows=5, **costs) == 1
    assert run(pace, ship_ms=130, **costs) == 2


def test_it_comes_down_only_when_the_cost_is_well_below_the_budget() -> None:
    """Up at more than 2 %, down at less than 1 %, and no swinging between."""
    pace = Pace()
    assert run(pace, step_ms=100, copy_ms=2.1) == 2
    assert run(pace, step_ms=100, copy_ms=1.9, windows=5) == 2
    assert "after every 2 steps" in pace.because
    assert run(pace, step_ms=100, copy_ms=0.95) == 1
    assert "after every step" in pace.because


def test_a_fixed_number_stays() -> None:
    """Costs are measured, and the number that was set is kept."""
    pace = Pace()
    pace.fix(7)
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
