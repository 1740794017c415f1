"""What every engine promises (orchestrator/platforms/engines/base.py), asked of each."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import Cadence, Engine, Outcome, RunRequest, WishBoard
from orchestrator.platforms.engines.fake import FakeEngine

DEADLINE_SECONDS = 60.0
Event = Mapping[str, Any]


@pytest.fixture(scope="module")
def ray_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One Ray and one engine actor for all tests of this module."""
    from tests.engines.ray_cluster import local_ray
    from tests.engines.ray_engine import RayEngineFromOutside

    with local_ray(tmp_path_factory.mktemp("ray-home"), cpus=2):
        engine = RayEngineFromOutside()
        yield engine
        engine.close()


@pytest.fixture(scope="module")
def native_engine() -> Engine:
    """The elastic engine on agents that are processes of this machine: one node with two slots."""
    from orchestrator.platforms.engines.native import NativeEngine
    from orchestrator.platforms.engines.native.processes import LocalAgents

    environ = dict(os.environ)
    return NativeEngine(lambda request: LocalAgents(environ, [2]), SystemClock(), environ=environ)


PROCESSES = [
    pytest.param(name, marks=[pytest.mark.integration, pytest.mark.timeout(180)]) for name in ("ray", "native")
]


@pytest.fixture(params=["fake", *PROCESSES])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        return FakeEngine()
    engine: Engine = request.getfixturevalue(f"{request.param}_engine")
    return engine


@pytest.fixture(params=PROCESSES)
def process_engine(request: pytest.FixtureRequest) -> Engine:
    """An engine whose ranks are processes."""
    engine: Engine = request.getfixturevalue(f"{request.param}_engine")
    return engine


class Attempt:
    """An attempt that runs in a thread of its own; `until` waits for what the ranks send."""

    def __init__(self, engine: Engine, request: RunRequest) -> None:
        self.wishes = WishBoard(request.cadence)
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._outcome: Outcome | None = None
        self._engine = engine
        self._thread = threading.Thread(target=self._run, args=(request,))
        self._thread.start()

    def _run(self, request: RunRequest) -> None:
        outcome = self._engine.run(request, self._heard, self.wishes)
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def _heard(self, events: Any) -> None:
        with self._changed:
            self.events.extend(events)
            self._changed.notify_all()

    def of_kind(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["kind"] == kind]

    def until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            met = self._changed.wait_for(lambda: condition() or self._outcome is not None, DEADLINE_SECONDS)
            assert met, f"nothing came of it in {DEADLINE_SECONDS} s: {self.events}"
            assert condition(), f"the attempt ended before: {self._outcome}, {self.events}"

    def until_all_wait(self, ranks: int = 2) -> dict[int, int]:
        """Wait until every rank has said that it waits; their process ids by rank."""
        self.until(lambda: len(self.of_kind("waiting")) == ranks)
        return {event["rank"]: event["pid"] for event in self.of_kind("waiting")}

    def outcome(self) -> Outcome:
        self._thread.join(DEADLINE_SECONDS)
        assert self._outcome is not None, f"still running after {DEADLINE_SECONDS} s: {self.events}"
        return self._outcome

    def close(self) -> None:
        if self._thread.is_alive():
            self._engine.kill()
            self._thread.join(DEADLINE_SECONDS)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    """Begin an attempt of a loop of `tests.engines.loops`; one that still runs at the end of the test is killed."""
    begun: list[Attempt] = []

    def attempt(
        engine: Engine,
        loop: str,
        number: int = 1,
        env: Mapping[str, str] | None = None,
        cadence: Cadence | None = None,
    ) -> Attempt:
        request = RunRequest(
            uid=f"uid-{tmp_path.name}",
            namespace="default",
            name="contract",
            attempt=number,
            workers=2,
            cpus_per_worker=1,
            gpus_per_worker=0,
            memory_bytes_per_worker=None,
            worker_loop=f"tests.engines.loops:{loop}",
            assignment={"attempt": number, "run_dir": str(tmp_path), "working_dir": str(tmp_path), "threads": 1},
            env=env or {},
            cadence=cadence,
        )
        begun.append(Attempt(engine, request))
        return begun[-1]

    yield attempt
    for attempt_begun in begun:
        attempt_begun.close()


def gone(pid: int) -> bool:
    """No such process, or one that is dead and only not yet collected by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def test_succeeds_and_returns_what_rank_0_returns(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """A gang whose ranks all return ends with rank 0's value and its reason."""
    outcome = begin(engine, "count", number=3).outcome()
    assert outcome.reason == "Completed"
    assert outcome.result == {"outcome": "succeeded", "reason": "Completed", "rank": 0, "attempt": 3}


def test_events_of_every_rank_arrive_in_order(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """By the time `run` returns, every event of every rank was heard once, in the order it was sent."""
    attempt = begin(engine, "count")
    attempt.outcome()
    numbers = {rank: [e["number"] for e in attempt.of_kind("count") if e["rank"] == rank] for rank in (0, 1)}
    assert numbers == {0: list(range(10)), 1: list(range(10))}


def test_an_error_of_the_users_code_is_told(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """A rank that raises ends the gang; the reason is the application's, the message names rank and error, and the log
    has the traceback."""
    attempt = begin(engine, "raise_own")
    outcome = attempt.outcome()
    assert outcome.reason == "ApplicationError"
    assert "rank 1" in outcome.message
    assert "ValueError: the sky fell" in outcome.message
    lines = [line for event in attempt.of_kind("log") if event["rank"] == 1 for line in event["lines"]]
    assert any("raise ValueError" in line for line in lines), lines


def test_a_reason_that_a_rank_gives_is_kept(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """An exception that carries a reason and a message becomes the outcome's, even one that cannot be pickled."""
    outcome = begin(engine, "raise_classified").outcome()
    assert outcome.reason == "DataInvalid"


def test_the_wish_to_stop_ends_the_gang(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """Ranks see the wish to stop, and what they return is the outcome."""
    attempt = begin(engine, "wait_for_stop")
    attempt.until_all_wait()
    attempt.wishes.wish_stop()
    assert attempt.outcome().reason == "Stopped"


def test_every_rank_sees_the_wish_for_a_checkpoint(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """Each wish to save is seen by all ranks, and counted."""
    attempt = begin(engine, "tell_wishes")
    attempt.until_all_wait()
    for wish in (1, 2):
        attempt.wishes.wish_checkpoint()
        attempt.until(lambda: len(attempt.of_kind("saw")) == 2 * wish)  # noqa: B023 - called at once
        assert {e["rank"] for e in attempt.of_kind("saw") if e["wish"] == wish} == {0, 1}
    attempt.wishes.wish_stop()
    assert attempt.outcome().result == {"outcome": "stopped", "reason": "Stopped", "wish": 2}


def test_every_rank_sees_the_cadence_and_later_ones(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """The time between checkpoints is there from the beginning, a newer plan replaces it, and an older one does not."""
    attempt = begin(engine, "tell_wishes", cadence=Cadence(2, 60.0))
    attempt.until(lambda: len(attempt.of_kind("cadence")) == 2)
    attempt.wishes.wish_cadence(Cadence(1, 5.0))
    attempt.wishes.wish_cadence(Cadence(3, 90.0))
    attempt.until(lambda: len(attempt.of_kind("cadence")) == 4)
    told = [(event["rank"], event["seconds"]) for event in attempt.of_kind("cadence")]
    assert sorted(told) == [(0, 60.0), (0, 90.0), (1, 60.0), (1, 90.0)]
    attempt.wishes.wish_stop()
    assert attempt.outcome().reason == "Stopped"


def test_kill_ends_a_gang_that_hears_nothing(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """`kill` ends a gang that is stuck, and `run` returns when it is gone."""
    attempt = begin(engine, "hang")
    pids = attempt.until_all_wait()
    before = time.monotonic()
    engine.kill()
    outcome = attempt.outcome()
    assert outcome.reason == "WorkerLost"
    assert "killed" in outcome.message
    assert time.monotonic() - before < 20
    assert all(gone(pid) for pid in pids.values() if pid != os.getpid())


def test_kill_without_a_gang_does_nothing(engine: Engine, begin: Callable[..., Attempt]) -> None:
    """`kill` when nothing runs is harmless, and does not touch the next attempt."""
    engine.kill()
    assert begin(engine, "count").outcome().reason == "Completed"


def test_a_killed_worker_is_a_lost_worker(process_engine: Engine, begin: Callable[..., Attempt]) -> None:
    """SIGKILL of one worker ends the attempt as WorkerLost, naming the rank, and no process of the gang is left."""
    attempt = begin(process_engine, "hang")
    pids = attempt.until_all_wait()
    os.kill(pids[1], 9)
    outcome = attempt.outcome()
    assert outcome.reason == "WorkerLost"
    assert f"rank 1 (process {pids[1]} on" in outcome.message
    assert all(gone(pid) for pid in pids.values())


def test_what_a_killed_worker_had_started_ends_with_it(process_engine: Engine, begin: Callable[..., Attempt]) -> None:
    """Processes that the worker loop started itself do not outlive the gang, also when their parent was killed."""
    attempt = begin(process_engine, "hang_with_child")
    pids = attempt.until_all_wait()
    children = [event["pid"] for event in attempt.of_kind("child")]
    os.kill(pids[1], 9)
    assert attempt.outcome().reason == "WorkerLost"
    end = time.monotonic() + 20
    while not all(gone(pid) for pid in children) and time.monotonic() < end:
        threading.Event().wait(0.1)
    assert all(gone(pid) for pid in children)


def test_the_dead_worker_is_the_cause_not_the_rank_that_missed_it(
    process_engine: Engine, begin: Callable[..., Attempt]
) -> None:
    """When a rank raises because its peer's connection broke, the outcome is the peer's death."""
    attempt = begin(process_engine, "lose_peer")
    pids = attempt.until_all_wait()
    os.kill(pids[1], 9)
    outcome = attempt.outcome()
    assert outcome.reason == "WorkerLost"
    assert "rank 1 (process" in outcome.message


def test_ranks_find_their_environment(process_engine: Engine, begin: Callable[..., Attempt], tmp_path: Path) -> None:
    """The request's variables, the rendezvous and the working folder reach every rank."""
    attempt = begin(process_engine, "show_environment", env={"COLOUR": "blue"})
    assert attempt.outcome().reason == "Completed"
    by_rank = {event["rank"]: event for event in attempt.of_kind("environment")}
    assert set(by_rank) == {0, 1}
    for rank, event in by_rank.items():
        variables = event["variables"]
        assert variables["RANK"] == variables["LOCAL_RANK"] == str(rank)
        assert variables["WORLD_SIZE"] == variables["LOCAL_WORLD_SIZE"] == "2"
        assert variables["OMP_NUM_THREADS"] == "1"
        assert variables["COLOUR"] == "blue"
        assert variables["MASTER_ADDR"] == "127.0.0.1"
        assert event["cwd"] == event["path"] == str(tmp_path)
    assert len({event["variables"]["MASTER_PORT"] for event in by_rank.values()}) == 1


def test_what_ranks_print_is_heard(process_engine: Engine, begin: Callable[..., Attempt]) -> None:
    """Printed lines, warnings, the last state of a progress bar and an unfinished line reach the log by rank."""
    attempt = begin(process_engine, "talk")
    assert attempt.outcome().reason == "Completed"
    for rank in (0, 1):
        lines = [line for event in attempt.of_kind("log") if event["rank"] == rank for line in event["lines"]]
        assert lines == [f"rank {rank} says hello", "30%", f"careful on rank {rank}", f"no newline on rank {rank}"]


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_a_gang_that_finds_no_room_is_told(ray_engine: Engine) -> None:
    """What can be had and what was wanted is in the message when Ray does not place the gang."""
    request = RunRequest("too-big", "default", "big", 1, 2, 64, 0, None, "tests.engines.loops:count", {"threads": 1})
    outcome = ray_engine.run(request, lambda events: None, WishBoard())
    assert outcome.reason == "EngineLost"
    assert "2 x {CPU: 64}" in outcome.message
