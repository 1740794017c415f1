"""Processes that go on from one world to the next: real agents and workers, a loop without torch and DeepSpeed itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import RunRequest
from orchestrator.platforms.engines.native import NativeEngine
from orchestrator.platforms.engines.native.processes import LocalAgents
from orchestrator.platforms.engines.native.terms import MILLISECOND, SECOND, AfterHysteresis, Judgements
from tests.cluster.attempt import Attempt
from tests.cluster.loops import MeetingPlace
from tests.engines.test_elastic import STORE
from tests.training.gang import NO_DROPOUT, Run, job, write_reviews

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


class Lives:
    """An attempt on three nodes of one slot each, where no process stands by."""

    def __init__(self, loop: str, assignment: dict[str, Any], hang_ns: int, **engine: Any) -> None:
        self.agents = LocalAgents(dict(os.environ), [1, 1, 1])
        judgements = Judgements(hang_limit_ns=lambda: hang_ns, grow_to=AfterHysteresis(200 * MILLISECOND))
        driver = NativeEngine(
            lambda request: self.agents,
            SystemClock(),
            environ=dict(os.environ),
            judge=lambda terms: judgements,
            **engine,
        )
        request = RunRequest(
            uid="reform",
            namespace="default",
            name="reform",
            attempt=1,
            workers=3,
            cpus_per_worker=1,
            gpus_per_worker=0,
            memory_bytes_per_worker=None,
            worker_loop=f"tests.engines.reform_loops:{loop}",
            assignment=assignment,
            min_workers=1,
            allowed=(1, 2, 3),
            elastic=True,
            live=True,
        )
        self.attempt = Attempt(driver, request)

    def pids(self) -> dict[int, int]:
        """Processes of the newest world by rank, once all have begun."""
        world = self.attempt.of_kind("world")[-1]

        def begun() -> dict[int, int]:
            told = self.attempt.of_kind("begun")
            return {event["rank"]: event["pid"] for event in told if event["generation"] == world["generation"]}

        self.attempt.until(lambda: len(begun()) == world["world_size"])
        return begun()

    def worlds(self, count: int, steps: int = 3, seconds: float = 60.0) -> None:
        """Wait for so many worlds, and for steps of the last."""

        def steps_since() -> int:
            kinds = [event["kind"] for event in list(self.attempt.events)]
            return kinds[len(kinds) - kinds[::-1].index("world") :].count("step")

        self.attempt.until(lambda: len(self.attempt.of_kind("world")) >= count and steps_since() >= steps, seconds)

    def close(self) -> None:
        self.attempt.close()
        assert self.agents.nodes == {}


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Lives]:
    with MeetingPlace("127.0.0.1") as meeting:
        assignment = {"meet": list(meeting.address), "unfit": str(tmp_path / "unfit")}
        lives = Lives("lockstep", assignment, 3 * SECOND, store_command=STORE)
        try:
            yield lives
        finally:
            lives.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_survivors_wait_in_vain_and_come_back(tiny: Lives, number: signal.Signals) -> None:
    """1. One of three dies, or stops. 2. The others wait for it where nothing breaks; they are cut off, and come back. 3. The
    same processes make the next steps, and another joins them for the one that is gone."""
    tiny.attempt.until_steps(3)
    before = tiny.pids()
    os.kill(before[1], number)
    tiny.worlds(2)
    now = set(tiny.pids().values())
    assert {before[0], before[2]} <= now
    assert before[1] not in now
    if number == signal.SIGKILL:  # the place of one that did not answer is not used for a while
        if len(now) == 2:  # the fresh one was not ready when the two came back
            tiny.worlds(3)
            now = set(tiny.pids().values())
        assert {before[0], before[2]} < now
    assert tiny.attempt.finish().reason == "Stopped"


def test_a_process_that_is_not_fit_makes_room_for_a_fresh_one(tiny: Lives, tmp_path: Path) -> None:
    """1. A rank dies. 2. One of the two others fails its self-test. 3. One goes on; fresh ones join it."""
    tiny.attempt.until_steps(3)
    before = tiny.pids()
    (tmp_path / "unfit").touch()
    os.kill(before[0], signal.SIGKILL)
    tiny.worlds(2)
    assert (tmp_path / "unfit.injected").exists()
    tiny.attempt.until_steps(3)
    assert len(set(tiny.pids().values()) & set(before.values())) == 1
    assert tiny.attempt.finish().reason == "Stopped"


def losses(lives: Lives) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in lives.attempt.of_kind("step")}


def trained(folder: Path, data: Path, **more: Any) -> Lives:
    spec = {"training__maxSteps": 120, "checkpoint__every": 200, "workers": {"min": 1, "max": 3}}
    run = Run(folder, job(**spec, **NO_DROPOUT, **more), data, world_size=3)
    return Lives("train", {**run.plan()["assignment"], "unfit": str(folder / "unfit")}, 30 * SECOND)


@pytest.mark.faults
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_formed_again_in_the_same_processes(tmp_path: Path, stage: int) -> None:
    """1. One of three ranks is killed: the two others go on, from memory. 2. A fresh process joins them, beside two that have
    been in worlds before. 3. A rank is killed, and one of the others is left with a thread too many: it ends, and fresh
    ones come. The losses are those of a run that nothing happened to, within 1e-6, and 1e-5 of
    each loss."""
    write_reviews(tmp_path / "reviews.csv", 140)
    calm = trained(tmp_path / "calm", tmp_path, deepspeed__stage=stage)
    try:
        assert calm.attempt.outcome().reason == "Completed"
    finally:
        calm.close()
    lives = trained(tmp_path / "lives", tmp_path, deepspeed__stage=stage)
    try:
        lives.worlds(1)
        first = lives.pids()
        os.kill(first[1], signal.SIGKILL)
        lives.worlds(2)
        assert set(lives.pids().values()) == {first[0], first[2]}
        lives.worlds(3, 2)
        third = lives.pids()
        assert {first[0], first[2]} < set(third.values())
        (tmp_path / "lives" / "unfit").touch()
        os.kill(third[2], signal.SIGKILL)
        lives.worlds(4, 1)
        assert len(set(lives.pids().values()) & set(third.values())) <= 1
        assert (tmp_path / "lives" / "unfit.injected").exists()
        assert lives.attempt.outcome().reason == "Completed"
        assert all(event["source"] == "memory" for event in lives.attempt.of_kind("restored")[1:])
        mine, theirs = losses(lives), losses(calm)
        assert mine.keys() == theirs.keys()
        assert max(abs(mine[step] - theirs[step]) for step in theirs) <= 1e-6
        assert max(abs(mine[step] - theirs[step]) / theirs[step] for step in theirs) <= 1e-5
    finally:
        lives.close()
