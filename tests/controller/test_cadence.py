"""`checkpoint.every: Auto`: planned from what was measured, told once, and kept over restarts of controller and driver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller import cadence
from orchestrator.controller.core import Controller
from orchestrator.controller.driver import Driver
from orchestrator.controller.hosts import LocalHost, Room
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.turn import Book
from orchestrator.domain.clock import SystemClock
from orchestrator.domain.offerings import CapacityType
from orchestrator.lifecycle import JobState, Phase
from orchestrator.platforms.engines.base import Cadence
from orchestrator.platforms.engines.fake import FakeEngine
from orchestrator.platforms.prices import load_prices
from orchestrator.policy import Observed
from orchestrator.policy.cadence import FIRST_SECONDS, LONGEST_SECONDS
from tests.controller.world import GATES, World, document, gated

HOUR = 3_600 * 10**9
AUTO: dict[str, Any] = {
    "checkpoint": {"every": "Auto"},
    "runtime": {"env": [{"name": "PRETEND_STALL_SECONDS", "value": "0.5"}]},
}


def wishing(assignment: Mapping[str, Any], link: Any) -> Mapping[str, Any]:
    """As `gated`, and each attempt writes down the cadence that it was wished at its first step and at its last."""
    kept = Path(assignment["run_dir"]) / f"wished-{assignment['attempt']}"
    kept.parent.mkdir(parents=True, exist_ok=True)

    class Noting:
        rank = link.rank
        wishes = link.wishes

        def send(self, event: Mapping[str, Any]) -> None:
            if event["kind"] == "step":
                with kept.open("a") as file:
                    file.write(f"{link.wishes().checkpoint_every_seconds}\n")
            link.send(event)

    return gated(assignment, Noting())


def wished(world: World, name: str, attempt: int) -> list[float]:
    file = world.home.run_dir(world.job(name).uid) / f"wished-{attempt}"
    return [float(line) for line in file.read_text().split()]


def told(world: World, name: str) -> list[str]:
    """The sentences of the job's cadence events, as `orchestrate events` names them."""
    story = world.journal.story(world.job(name).uid)
    return [entry.message for _, entry in story if entry.event == entry.reason == "CheckpointCadence"]


def save_now(world: World, name: str) -> JobRecord:
    """Ask for a checkpoint, let a step through, and wait until it is heard."""
    count = world.job(name).progress.get("checkpoints", 0)
    world.controller.request("default", name, "checkpoint")
    GATES[name].open(1)
    return world.until(name, lambda record: record.progress.get("checkpoints", 0) > count)


@pytest.fixture
def automatic(make_world: Callable[..., World]) -> World:
    """A world with one running job whose cadence is planned."""
    world = make_world(worker_loop=f"{__name__}:wishing")
    world.submit("job", steps=1_000, allowed=1, **AUTO)
    world.until_phase("job", Phase.RUNNING)
    return world


def test_the_first_plan_is_to_measure_and_the_next_follows_the_measurement(automatic: World) -> None:
    """A first checkpoint is planned soon; once one was measured the plan moves; then it stays, and nothing more is told."""
    world = automatic
    assert [message[:42] for message in told(world, "job")] == ["the first checkpoint comes after 1 min, to"]
    assert cadence.planned(world.job("job")) == Cadence(1, FIRST_SECONDS)
    record = save_now(world, "job")
    assert cadence.planned(record) == Cadence(2, LONGEST_SECONDS)
    save_now(world, "job")
    save_now(world, "job")
    _, second = told(world, "job")
    assert second.startswith(
        "a checkpoint after every 30 min of training; one stalls training for 0.5 s, and is durable after"
    )
    assert "1 on-demand machine (2 workers share it)" in second
    shown = world.controller.view(world.job("job"))["status"]["checkpoint"]["cadence"]
    assert shown == {"everySeconds": LONGEST_SECONDS, "because": second}
    GATES["job"].open(1)
    world.until("job", lambda record: record.state.step >= 5)
    assert wished(world, "job", 1)[0] == FIRST_SECONDS
    assert wished(world, "job", 1)[-1] == LONGEST_SECONDS


def test_the_plan_outlives_driver_and_controller(automatic: World) -> None:
    """The attempt after a lost worker, and the one after a restart of the controller, begin with the plan that held, and each
    plan is told once."""
    world = automatic
    save_now(world, "job")
    for attempt in (2, 3):
        if attempt == 2:
            world.engines[-1].lose_worker(1)
        else:
            world.restart()
        record = world.until("job", lambda record: record.state.attempt == attempt)  # noqa: B023 - called at once
        held = cadence.planned(record)
        assert held is not None
        GATES["job"].open(1)
        record = world.until_phase("job", Phase.RUNNING)
        assert wished(world, "job", attempt)[0] == held.every_seconds
        assert (record.state.interruptions, len(record.progress["restart_seconds"])) == (attempt - 1, attempt - 1)
        newest = cadence.planned(record)
        assert newest is not None
        assert len(told(world, "job")) == newest.number


def test_what_other_jobs_saw_counts(automatic: World) -> None:
    """A loss that one job suffered makes the next one on such machines expect more of them."""
    world = automatic
    save_now(world, "job")
    world.engines[-1].lose_worker(0)
    world.until("job", lambda record: record.state.attempt == 2)
    world.submit("next", steps=1_000, allowed=1, **AUTO)
    world.until_phase("next", Phase.RUNNING)
    assert "seen here: 1 in" in told(world, "next")[0]
    # One interruption in next to no time: saving is worth it far more often than with none.
    plan = cadence.planned(save_now(world, "next"))
    assert plan is not None
    assert plan.every_seconds < LONGEST_SECONDS


def test_other_cadences_are_left_alone(world: World) -> None:
    """A job with a number of steps has no plan, no event, no wish, and nothing measured is kept for it."""
    world.submit("job", steps=10, allowed=10)
    record = world.until_phase("job", Phase.SUCCEEDED)
    assert told(world, "job") == []
    assert not {"cadence", "saves", "recent_steps"} & set(record.progress)
    assert "cadence" not in world.controller.view(record)["status"]["checkpoint"]


class _Outliving(LocalHost):
    """Drivers that live on without their controller, as under Ray; what they were wished is noted."""

    def __init__(
        self, drivers: dict[str, Driver], wake: threading.Event, wishes: list[tuple[str, int, Cadence]]
    ) -> None:
        super().__init__(FakeEngine, SystemClock(), Room(8, 0))
        self._drivers, self._wake, self._noted = drivers, wake, wishes

    def adopt(self, uid: str, after: int) -> str | None:
        with self._lock:
            self._delivered[uid] = self._acknowledged[uid] = after
        self._wake.set()
        return self._drivers[uid].driver_id

    def wish_cadence(self, uid: str, attempt: int, cadence: Cadence) -> None:
        self._noted.append((uid, attempt, cadence))
        super().wish_cadence(uid, attempt, cadence)

    def leave(self) -> None:
        """End the host and not its drivers."""
        drivers, self._drivers = self._drivers, {}
        super().close()
        self._drivers = drivers


def test_a_driver_that_lives_on_is_told_again(tmp_path: Path) -> None:
    """A controller that takes up a driver sends it the plan that is in the journal, since the last word may not have
    arrived; twice is harmless."""
    world = World(tmp_path / "home")
    world.controller.close()
    drivers: dict[str, Driver] = {}
    noted: list[tuple[str, int, Cadence]] = []
    wake = threading.Event()

    def begin() -> tuple[Controller, _Outliving]:
        host = _Outliving(drivers, wake, noted)
        journal = type(world.journal)(world.home.journal_file)
        controller = Controller(
            journal,
            host,
            SystemClock(),
            load_prices(None),
            world.home,
            engine="fake",
            worker_loop=f"{__name__}:wishing",
        )
        controller.start()
        world.journal, world.controller = journal, controller
        return controller, host

    controller, host = begin()
    record = world.submit("job", steps=1_000, allowed=1, **AUTO)
    world.until_phase("job", Phase.RUNNING)
    save_now(world, "job")
    plan = cadence.planned(world.job("job"))
    assert plan is not None
    assert noted[-1] == (record.uid, 1, plan)
    before = len(noted)
    host.close = host.leave  # type: ignore[method-assign]
    controller.close()
    begin()
    assert noted[before:] == [(record.uid, 1, plan)]
    save_now(world, "job")
    assert wished(world, "job", 1)[-1] == plan.every_seconds
    assert len(told(world, "job")) == plan.number
    world.controller.request("default", "job", "cancel")
    world.until_phase("job", Phase.CANCELLED)
    world.close()


def record_of(uid: str, **state: Any) -> JobRecord:
    """A job's record with as much as the plan looks at."""
    known = JobState(Phase.RUNNING, 1, 1, 2, attempt=1, started_ns=1)
    shown = document("job", **AUTO)
    return JobRecord(uid, "default", uid, "digest", shown, "", replace(known, **state), 1)


def test_what_was_seen_is_summed_by_capacity_type_and_taken_back() -> None:
    """The book's sums follow each record's newest state: hours in Running, machines that were shared, and their type."""
    book = Book()
    hosts = {"ready": {"0": {"host": "a", "pid": 1}, "1": {"host": "b", "pid": 2}}, "heard_ns": 1 + HOUR}
    first = replace(record_of("first"), progress=hosts)
    book.put(first)
    assert book.observed == {CapacityType.ON_DEMAND: Observed(0, 2.0)}, "two machines for an hour"
    shared = {**hosts, "ready": {"0": {"host": "a"}, "1": {"host": "a"}}, "capacity_type": "spot"}
    second = replace(record_of("second", ran_ns=2 * HOUR, interruptions=3), progress=shared)
    book.put(second)
    assert book.observed[CapacityType.SPOT] == Observed(3, 3.0), "one machine, two hours before and one now"
    book.put(replace(second, state=replace(second.state, interruptions=4)))
    assert book.observed[CapacityType.SPOT] == Observed(4, 3.0)
    book.put(replace(first, progress={**hosts, "capacity_type": "spot"}))
    assert book.observed[CapacityType.ON_DEMAND] == Observed(0, 0.0)
    assert book.observed[CapacityType.SPOT].interruptions == 4


def test_restarts_and_saves_are_remembered_briefly() -> None:
    """The newest five count; the first start stands in for a restart until there was one."""
    record = replace(record_of("job"), state=JobState(Phase.PROVISIONING, 0, 10 * 10**9, 1, attempt=1))
    record = replace(record, progress=cadence.with_start(record, 25 * 10**9))
    assert record.progress == {"start_seconds": 15.0}
    plan, _ = cadence.replan(replace(record, progress=cadence.with_save(record, 0, 1.0, 0.5)), Observed(), 5) or (
        None,
        None,
    )
    assert plan is not None
    assert "restarts of 15 s each" in plan.progress["cadence"]["because"]
    record = replace(record, state=replace(record.state, phase=Phase.RECOVERING))
    for number in range(7):
        record = replace(record, progress=cadence.with_start(record, (11 + number) * 10**9))
        record = replace(record, progress=cadence.with_save(record, 0, 1.0 + number, 0.5))
    assert record.progress["restart_seconds"] == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert [write for _, write, _ in record.progress["saves"]] == [3.0, 4.0, 5.0, 6.0, 7.0]
    moved = cadence.replan(record, Observed(), 5)
    assert moved is not None
    assert "restarts of 5 s each" in moved[1].message
    assert cadence.replan(moved[0], Observed(), 6) is None, "the same plan is told once"
