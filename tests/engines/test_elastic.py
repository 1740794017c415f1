"""The elastic engine with real agents, workers and state memory on this machine; the worker loop has no torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import RunRequest
from orchestrator.platforms.engines.native import NativeEngine
from orchestrator.platforms.engines.native.processes import LocalAgents
from orchestrator.platforms.engines.native.terms import MILLISECOND, SECOND, AfterHysteresis, Judgements, Terms
from tests.cluster.attempt import Attempt
from tests.cluster.loops import MeetingPlace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

STORE = (sys.executable, "-c", "import sys; print(4711, flush=True); sys.stdin.read()")


class Job:
    """An attempt on nodes of one slot each."""

    def __init__(
        self,
        nodes: int,
        meeting: MeetingPlace,
        *,
        fits: int | None = None,
        slow_rank: int | None = None,
        ranks_per_worker: int = 1,
    ) -> None:
        self.agents = LocalAgents(dict(os.environ), [1] * nodes, term_grace_seconds=4.0)
        judgements = Judgements(
            hang_limit_ns=lambda: 3 * SECOND,
            grow_to=AfterHysteresis(200 * MILLISECOND),
            leave_at_ns=lambda notice: (notice.deadline_ns or notice.received_ns) - 2 * SECOND,
        )
        if slow_rank is not None:
            judgements = Judgements.learned(Terms((1, 2, 3, 4)))
        engine = NativeEngine(
            lambda request: self.agents,
            SystemClock(),
            environ=dict(os.environ),
            judge=lambda terms: judgements,
            store_command=STORE,
        )
        request = RunRequest(
            uid="elastic",
            namespace="default",
            name="elastic",
            attempt=1,
            workers=nodes,
            cpus_per_worker=1,
            gpus_per_worker=0 if ranks_per_worker == 1 else ranks_per_worker,
            memory_bytes_per_worker=None,
            worker_loop="tests.cluster.loops:lockstep",
            assignment={
                "meet": list(meeting.address),
                "slow_rank": slow_rank,
                **({} if fits is None else {"fits": fits}),
            },
            global_batch=None if fits is None else 12,
            min_workers=1,
            allowed=(1, 2, 3, 4),
            elastic=True,
        )
        self.attempt = Attempt(engine, request)

    def kill_node_of_rank(self, rank: int) -> None:
        """At once, with all that runs there."""
        workers = self.attempt.of_kind("world")[-1]["workers"]
        node = next(worker["node"] for worker in workers if worker["rank"] == rank)
        self.agents.nodes[node].kill()

    def pid_of_rank(self, rank: int) -> int:
        generation = self.attempt.of_kind("world")[-1]["generation"]
        begun = [e for e in self.attempt.of_kind("begun") if (e["generation"], e["rank"]) == (generation, rank)]
        pid: int = begun[0]["pid"]
        return pid

    def lost(self) -> list[str]:
        return [event["reason"] for event in self.attempt.of_kind("world_lost")]

    def steps_were_made_once(self) -> None:
        """What rank 0 told, over all worlds: every step once, in order."""
        steps = [event["step"] for event in self.attempt.of_kind("step") if event["rank"] == 0]
        assert steps == list(range(1, len(steps) + 1))


@pytest.fixture
def meeting() -> Iterator[MeetingPlace]:
    with MeetingPlace("127.0.0.1") as place:
        yield place


@pytest.fixture
def job(meeting: MeetingPlace) -> Iterator[Job]:
    job = Job(4, meeting)
    try:
        yield job
    finally:
        job.attempt.close()
        assert job.agents.nodes == {}


def test_a_second_node_dies_while_the_next_world_forms(job: Job) -> None:
    """1. Four nodes train. 2. One is killed. 3. As soon as the world of three is planned, one of its nodes is killed too.
    4. Two go on from a step that all had made; at most one is made again. 5. The stop is heard."""
    job.attempt.until_steps(4)
    job.kill_node_of_rank(0)
    job.attempt.until(lambda: len(job.attempt.of_kind("world")) == 2)
    job.kill_node_of_rank(1)
    job.attempt.until_steps(2)
    assert job.attempt.steps_of_newest()[0]["step"] >= job.attempt.last_step_before_newest()
    assert job.lost()[0] == "WorkerLost"
    assert job.attempt.finish().reason == "Stopped"


def test_a_node_comes_and_no_step_is_made_twice(meeting: MeetingPlace) -> None:
    """Two nodes train as the size that was asked for has no room; a third is taken in between two steps."""
    job = Job(3, meeting)
    try:
        job.attempt.until_steps(3)
        job.kill_node_of_rank(2)
        job.attempt.until_steps(2)
        job.agents.add(1)
        job.attempt.until_steps(3)
        assert job.attempt.steps_of_newest()[0]["step"] == job.attempt.last_step_before_newest() + 1
        assert job.lost() == ["WorkerLost", "Joined"]
        assert job.attempt.finish().reason == "Stopped"
    finally:
        job.attempt.close()


def test_workers_of_two_ranks_go_and_come_whole(meeting: MeetingPlace) -> None:
    """1. Two workers of two ranks each train, the ranks of one worker side by side. 2. One's node is killed with both of its
    ranks: the copies were on the other node, so at most one step is made again. 3. Another node comes: four ranks, no step
    twice."""
    job = Job(2, meeting, ranks_per_worker=2)
    try:
        job.attempt.until_steps(4)
        (world,) = job.attempt.of_kind("world")
        nodes = [worker["node"] for worker in sorted(world["workers"], key=lambda each: each["rank"])]
        assert world["world_size"] == 4
        assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
        job.kill_node_of_rank(0)
        job.attempt.until_steps(2)
        assert job.attempt.steps_of_newest()[0]["step"] >= job.attempt.last_step_before_newest()
        job.agents.add(1)
        job.attempt.until_steps(4)
        assert job.attempt.steps_of_newest()[0]["step"] == job.attempt.last_step_before_newest() + 1
        assert job.lost() == ["WorkerLost", "Joined"]
        assert job.attempt.finish().reason == "Stopped"
    finally:
        job.attempt.close()


def test_out_of_memory_costs_no_step_and_the_micro_batch_shrinks_until_it_fits(meeting: MeetingPlace) -> None:
    """The last rank of two raises MemoryError at micro-batch 6, and at 3; with 2 they go on from the step that all had."""
    job = Job(2, meeting, fits=2)
    try:
        job.attempt.until(lambda: len(job.attempt.of_kind("world")) == 3)
        job.attempt.until_steps(2)
        told = [event["micro_batch"] for event in job.attempt.of_kind("begun") if event["rank"] == 0]
        assert told == [None, 3, 2]
        assert job.lost() == ["OutOfMemory", "OutOfMemory"]
        assert (
            "out of memory at micro-batch 3 on 2 ranks; going on with 2"
            in job.attempt.of_kind("world_lost")[1]["message"]
        )
        job.steps_were_made_once()
        assert job.attempt.finish().reason == "Stopped"
    finally:
        job.attempt.close()


def test_an_announced_end_of_rank_0s_node_costs_no_step(job: Job) -> None:
    """SIGTERM to the agent of rank 0's node is a notice: another node is asked for, and the world leaves this one before
    its time is over, between two steps."""
    job.attempt.until_steps(4)
    node = job.attempt.of_kind("world")[-1]["workers"][0]["node"]
    os.kill(job.agents.nodes[node].pid, signal.SIGTERM)
    job.attempt.until(lambda: len(job.attempt.of_kind("world")) == 2)
    job.attempt.until(lambda: len(job.attempt.steps_of_newest()) >= 5)
    assert node not in {worker["node"] for worker in job.attempt.of_kind("world")[-1]["workers"]}
    assert job.lost()[0] == "Notice"
    assert len(job.agents.nodes) == 5
    assert [event["source"] for event in job.attempt.of_kind("notice")] == ["sigterm"]
    assert job.attempt.finish().reason == "Stopped"
    job.steps_were_made_once()


def test_a_stopped_worker_is_found_and_the_others_go_on(job: Job) -> None:
    """SIGSTOP of one rank's process: no step is made, it is told with its stack, and the next world goes on from memory."""
    job.attempt.until_steps(4)
    os.kill(job.pid_of_rank(2), signal.SIGSTOP)
    job.attempt.until(lambda: len(job.attempt.of_kind("world")) == 2)
    job.attempt.until(lambda: len(job.attempt.steps_of_newest()) >= 5)
    assert job.lost() == ["Hung"]
    assert 2 in [event["rank"] for event in job.attempt.of_kind("hung")]
    assert job.attempt.finish().reason == "Stopped"


def test_a_rank_that_works_longer_is_told_and_its_node_left_out(meeting: MeetingPlace) -> None:
    """1. Three nodes train; rank 1 spins for 0.12 s of each step. 2. It is told, with its node, figures and the stack in which it
    spins. 3. The world is made anew of the other two, no step twice; the slow node is not taken back."""
    job = Job(3, meeting, slow_rank=1)
    try:
        job.attempt.until(lambda: bool(job.attempt.of_kind("straggler")))
        told, world = job.attempt.of_kind("straggler")[0], job.attempt.of_kind("world")[0]
        assert (told["rank"], told["node"], told["slow"]) == (1, world["workers"][1]["node"], True)
        assert told["own_seconds"] > 0.14
        assert told["ratio"] > told["factor"]
        assert "lockstep" in told["stack"]
        job.attempt.until_steps(2, steps=20)
        assert told["node"] not in {worker["node"] for worker in job.attempt.of_kind("world")[-1]["workers"]}
        assert job.lost() == ["Resized"]
        assert job.attempt.finish().reason == "Stopped"
        job.steps_were_made_once()
    finally:
        job.attempt.close()
