"""Whole jobs through the controller with a fake engine: requests, losses, restarts, a full disk, a second controller."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.accounting import Category
from orchestrator.controller.driver import Driver, Update
from orchestrator.controller.hearing import hear
from orchestrator.domain.clock import SystemClock
from orchestrator.domain.errors import Conflict, InvalidSpec, NotFound, StaleEpoch, StorageError
from orchestrator.lifecycle import CheckpointRestored, Phase
from orchestrator.platforms.engines.base import Listener, Outcome, RunRequest, WishBoard
from tests.controller.world import GATES, Gate, World, document


def test_a_job_runs_to_its_end_and_its_money_adds_up(world: World) -> None:
    """A submitted job makes all its steps, ends Succeeded, and each of its steps is in the journal once."""
    world.submit("plain", steps=12, allowed=12)
    record = world.until_phase("plain", Phase.SUCCEEDED)
    assert [row.step for row in world.journal.steps(record.uid)] == list(range(1, 13))
    assert record.samples_kept == 12 * 32
    assert record.cost is not None
    assert record.cost["atRiskUSD"] == "0.00"
    assert world.events("plain")[:2] == ["Submitted", "Admitted"]


def test_submitting_twice_is_harmless_and_another_spec_conflicts(world: World) -> None:
    """The same name and spec is unchanged while active; another spec is a Conflict and changes nothing."""
    first = world.submit("twice")
    again = world.controller.submit(dict(first.document))
    assert (again.result, again.record.uid) == ("unchanged", first.uid)
    with pytest.raises(Conflict, match="another spec"):
        world.submit("twice", steps=11)
    assert world.job("twice").uid == first.uid
    world.controller.request("default", "twice", "cancel")
    world.until_phase("twice", Phase.CANCELLED)


def test_an_ended_job_runs_again_only_when_asked(world: World) -> None:
    """After the end the name is taken until --rerun, which makes a new uid and leaves the old record be."""
    first = world.submit("again", steps=1, allowed=1)
    world.until_phase("again", Phase.SUCCEEDED)
    with pytest.raises(Conflict, match="has ended"):
        world.controller.submit(dict(first.document))
    GATES["again"].open(1)
    second = world.controller.submit(dict(first.document), rerun=True)
    assert second.result == "created"
    assert second.record.uid != first.uid
    world.until_phase("again", Phase.SUCCEEDED)
    assert [record.uid for record in world.controller.jobs()] == [second.record.uid]


def test_a_hundred_submits_with_one_key_make_one_job(world: World) -> None:
    """Concurrent submits with one idempotency key create exactly one job; all callers get the same uid."""
    GATES["keyed"] = Gate()
    results: list[tuple[str, str]] = []

    def submit() -> None:
        answer = world.controller.submit(document("keyed"), idempotency_key="one")
        results.append((answer.result, answer.record.uid))

    threads = [threading.Thread(target=submit) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({uid for _, uid in results}) == 1
    assert sorted(result for result, _ in results).count("created") == 1
    with pytest.raises(Conflict, match="idempotency key"):
        world.controller.submit(document("other"), idempotency_key="one")
    world.controller.request("default", "keyed", "cancel")
    world.until_phase("keyed", Phase.CANCELLED)


def test_a_wrong_document_is_refused_whole(world: World) -> None:
    """A document with several faults is refused with all of them, and no job appears."""
    wrong = document("wrong", workers={"min": 3, "max": 2}, training={"maxSteps": -1})
    with pytest.raises(InvalidSpec) as refused:
        world.controller.submit(wrong)
    assert len(refused.value.problems) == 2
    assert world.controller.jobs() == []


def test_a_lost_worker_costs_only_the_steps_since_the_checkpoint(world: World) -> None:
    """1. steps 1-7 with a checkpoint at 5. 2. a worker is taken. 3. the next attempt redoes 6 and 7 and ends the job."""
    world.submit("lossy", steps=10, allowed=7)
    world.until("lossy", lambda record: record.state.step == 7)
    assert world.engines[-1].lose_worker(1)
    world.until("lossy", lambda record: record.state.attempt == 2)
    GATES["lossy"].open(5)
    record = world.until_phase("lossy", Phase.SUCCEEDED)
    attempts = {(row.attempt, row.step) for row in world.journal.steps(record.uid)}
    assert attempts == {(1, step) for step in range(1, 8)} | {(2, step) for step in range(6, 11)}
    assert record.state.preemption_restarts == 1
    assert record.samples_kept == 10 * 32
    spent = world.controller.statement(record.uid).by_category()
    assert Category.LOST_WORK in spent
    assert Category.RESTART in spent
    assert Category.USEFUL in spent


def test_a_checkpoint_nobody_heard_of_keeps_its_work_useful(make_world: Callable[..., World]) -> None:
    """1. steps 1-7; the checkpoint at 5 is durable, but unheard when a worker is taken: all is at risk. 2. the next attempt
    says that it continues from 5: the time until the end of step 5 is useful, and 6 and 7 are lost work."""
    world = make_world(worker_loop="tests.controller.world:unheard")
    world.submit("unheard", steps=10, allowed=7)
    record = world.until("unheard", lambda record: record.state.step == 7)
    assert record.state.checkpoint_step is None
    assert world.engines[-1].lose_worker(1)
    record = world.until("unheard", lambda record: record.state.attempt == 2 and record.state.restored_step is not None)
    assert (record.state.restored_step, record.state.settled_step, record.state.phase) == (5, 5, Phase.RECOVERING)
    spent = world.controller.statement(record.uid).by_category()
    assert Category.AT_RISK not in spent
    ends = {row.step: row.values["at_ns"] for row in world.journal.steps(record.uid)}
    (training_ns,) = (
        segment.start_ns
        for segment in world.controller.statement(record.uid).segments
        if segment.category is Category.USEFUL and segment.machine.endswith("/0")
    )
    (lost,) = (
        segment
        for segment in world.controller.statement(record.uid).segments
        if segment.category is Category.LOST_WORK and segment.machine.endswith("/0")
    )
    assert training_ns < lost.start_ns == ends[5] < ends[7] <= lost.end_ns
    GATES["unheard"].open(5)
    world.until_phase("unheard", Phase.SUCCEEDED)


def test_a_failing_program_ends_failed_with_its_own_words(make_world: Callable[..., World]) -> None:
    """An exception of the job's code is not retried by default; the reason holds its message."""
    world = make_world(worker_loop="tests.controller.world:broken")
    world.submit("broken")
    record = world.until_phase("broken", Phase.FAILED)
    assert record.state.reason == "ApplicationError"
    assert "divides by zero" in record.state.message
    assert record.state.attempt == 1


def test_restarts_after_errors_are_counted_and_end(make_world: Callable[..., World]) -> None:
    """maxRestarts 2 gives three attempts and no more."""
    world = make_world(worker_loop="tests.controller.world:broken")
    world.submit("stubborn", failure={"maxRestarts": 2})
    record = world.until_phase("stubborn", Phase.FAILED)
    assert record.state.attempt == 3
    assert record.state.application_restarts == 2


def test_cancel_works_in_every_phase(make_world: Callable[..., World]) -> None:
    """A queued, a provisioning, a running and a suspended job can be cancelled; an ended one refuses."""
    world = make_world(cpus=2)
    world.submit("running", allowed=1)
    world.until_phase("running", Phase.RUNNING)
    world.submit("queued")
    world.until_phase("queued", Phase.QUEUED)
    world.submit("suspended", suspend=True)
    assert world.job("suspended").state.phase is Phase.SUSPENDED
    for name in ("queued", "suspended", "running"):
        world.controller.request("default", name, "cancel")
        assert world.until_phase(name, Phase.CANCELLED).state.ended_ns is not None
    with pytest.raises(Conflict, match="has ended"):
        world.controller.request("default", "running", "cancel")
    with pytest.raises(NotFound):
        world.controller.request("default", "nobody", "cancel")


def test_suspend_saves_and_resume_continues(world: World) -> None:
    """Suspend takes a checkpoint at the present step; resume makes only the steps that are left."""
    world.submit("paused", steps=10, allowed=3)
    world.until("paused", lambda record: record.state.step == 3)
    world.controller.request("default", "paused", "suspend")
    record = world.until_phase("paused", Phase.SUSPENDED)
    saved = record.state.checkpoint_step
    assert saved is not None
    assert saved >= 3
    assert world.controller.statement(record.uid).per_hour_nanodollars == 0
    world.controller.request("default", "paused", "resume")
    GATES["paused"].open(10)
    record = world.until_phase("paused", Phase.SUCCEEDED)
    assert [row.step for row in world.journal.steps(record.uid, attempt=2)] == list(range(saved + 1, 11))


def test_a_checkpoint_can_be_asked_for(world: World) -> None:
    """`checkpoint` makes the gang save at its next step; a job that does not train refuses."""
    world.submit("asked", steps=10, allowed=2)
    world.until("asked", lambda record: record.state.step == 2)
    world.controller.request("default", "asked", "checkpoint")
    GATES["asked"].open(1)
    world.until("asked", lambda record: record.state.checkpoint_step == 3)
    GATES["asked"].open(10)
    world.until_phase("asked", Phase.SUCCEEDED)
    with pytest.raises(Conflict):
        world.controller.request("default", "asked", "checkpoint")


def test_jobs_wait_for_room_and_start_by_priority(make_world: Callable[..., World]) -> None:
    """With room for one gang, the second of two waiting jobs starts first when its priority is higher."""
    world = make_world(cpus=2)
    world.submit("first", steps=1)
    world.until_phase("first", Phase.PROVISIONING, Phase.RUNNING)
    world.submit("low", steps=1, allowed=1)
    world.submit("high", steps=1, allowed=1, priority=5)
    world.until_phase("high", Phase.QUEUED)
    GATES["first"].open(1)
    low, high = world.until_phase("low", Phase.SUCCEEDED), world.until_phase("high", Phase.SUCCEEDED)
    assert high.state.started_ns is not None
    assert low.state.started_ns is not None
    assert high.state.started_ns < low.state.started_ns


def test_a_gang_that_never_fits_fails_at_once(make_world: Callable[..., World]) -> None:
    """More CPUs than the cluster has: NoCapacity, with the numbers."""
    world = make_world(cpus=1)
    world.submit("large")
    record = world.until_phase("large", Phase.FAILED)
    assert record.state.reason == "NoCapacity"
    assert "2 CPUs and there are 1" in record.state.message


def test_nothing_is_lost_when_the_controller_restarts(world: World) -> None:
    """1. a job has a checkpoint at 5 and stands at 7. 2. the controller and its drivers die. 3. it redoes 6, 7 and ends."""
    world.submit("survivor", steps=10, allowed=7)
    world.until("survivor", lambda record: record.state.step == 7)
    world.restart()
    GATES["survivor"].open(10)
    record = world.until_phase("survivor", Phase.SUCCEEDED)
    assert record.state.attempt == 2
    assert record.state.reason == "Completed"
    assert [row.step for row in world.journal.steps(record.uid, attempt=2)] == list(range(6, 11))


def test_a_full_disk_refuses_requests_and_loses_nothing(world: World) -> None:
    """While the journal cannot be written, submits get the error; what drivers reported is journaled afterwards."""
    world.submit("steady", steps=6, allowed=1)
    world.until("steady", lambda record: record.state.step == 1)
    world.journal.full = True
    with pytest.raises(StorageError, match="full"):
        world.submit("refused")
    GATES["steady"].open(5)
    status = world.controller.view(world.job("steady"))["status"]
    assert "the journal refuses it: the disk is full; make room" in status["message"]
    while_full = world.controller.ready
    assert while_full is False
    world.journal.full = False
    record = world.until_phase("steady", Phase.SUCCEEDED)
    assert [row.step for row in world.journal.steps(record.uid)] == list(range(1, 7))
    assert world.controller.ready
    assert world.controller.view(record)["status"]["message"] == "All steps are done."
    with pytest.raises(NotFound):
        world.job("refused")


def test_an_old_controller_cannot_write(tmp_path_factory: pytest.TempPathFactory) -> None:
    """When a second controller opens the journal, the first one's next commit fails and it ends itself."""
    home = tmp_path_factory.mktemp("shared")
    old, new = World(home), World(home)
    with pytest.raises(StaleEpoch):
        old.submit("late")
    assert isinstance(old.fatal[0], StaleEpoch)
    assert new.controller.jobs() == []
    old.controller.close()
    new.close()


def test_a_late_start_deadline_ends_the_wait(make_world: Callable[..., World]) -> None:
    """A job that found no room within spec.startDeadline fails with that reason."""
    world = make_world(cpus=2)
    world.submit("holder", steps=1)
    world.until_phase("holder", Phase.PROVISIONING, Phase.RUNNING)
    world.submit("hurried", startDeadline="300ms")
    record = world.until_phase("hurried", Phase.FAILED)
    assert record.state.reason == "StartDeadlineExceeded"
    GATES["holder"].open(1)
    world.until_phase("holder", Phase.SUCCEEDED)


def test_a_secret_reaches_only_the_workers(make_world: Callable[..., World]) -> None:
    """A secret variable reaches the worker loop, and neither journal, story, logs nor the resource hold its value."""
    world = make_world(worker_loop="tests.controller.world:telling")
    world.submit("secretive", workers={"max": 1}, runtime={"env": [{"name": "HUB_TOKEN", "value": "hush-hush-42"}]})
    record = world.until_phase("secretive", Phase.FAILED)
    assert "*** was refused" in record.state.message
    log = world.home.run_dir(record.uid) / "logs" / "rank-0.log"
    assert "logging in with ***" in log.read_text()
    kept = world.home.secrets_file(record.uid)
    assert kept.stat().st_mode & 0o077 == 0
    for file in world.home.path.rglob("*"):
        if file.is_file() and file != kept:
            assert b"hush" not in file.read_bytes(), file


def test_a_start_that_was_due_while_the_disk_was_full_comes_later(world: World) -> None:
    """1. two attempts are lost before their first step, so that the third is due in 2 s. 2. until after that moment the
    journal refuses. 3. it takes commits again: the third attempt starts and makes all steps."""
    world.submit("late", steps=3)
    world.submit("bystander", steps=1)
    for attempt in (1, 2):
        world.until("late", lambda record, n=attempt: record.state.attempt == n and record.state.attempt_seen)  # type: ignore[misc]
        assert world.engines[0].lose_worker(0)
    world.until("late", lambda record: record.state.attempt == 3)
    world.journal.full = True
    clock = SystemClock()
    later_ns = clock.monotonic_ns() + 2_200_000_000
    while clock.monotonic_ns() < later_ns:  # each waits for the pause of the refused commit before it
        with pytest.raises(StorageError, match="full"):
            world.controller.request("default", "bystander", "cancel")
    world.journal.full = False
    GATES["late"].open(3)
    assert world.until_phase("late", Phase.SUCCEEDED).state.attempt == 3


def test_a_log_that_cannot_be_written_costs_its_lines_and_not_the_attempt(tmp_path: Path) -> None:
    """1. the logs' folder is a file. 2. the attempt ends as its engine says. 3. it is a folder again: the next line to
    come says how many are missing."""
    blocked = tmp_path / "logs"
    blocked.touch()
    driver = Driver(_Talkative(), SystemClock(), tmp_path)
    driver.start(_request(attempt=1))
    (ended,) = driver.updates(0, wait_seconds=20.0)
    assert ended.event["reason"] == "EngineLost"
    blocked.unlink()
    driver.start(_request(attempt=2))
    driver.updates(ended.seq, wait_seconds=20.0)
    assert (blocked / "rank-0.log").read_text() == (
        "[2] (2 lines are missing here: the log could not be written)\n[2] one\n[2] two\n"
    )
    assert "RuntimeError: the engine broke" in (blocked / "driver.log").read_text()


def test_no_half_line_stays_in_a_log_that_was_full(tmp_path: Path) -> None:
    """1. a file may have 10 bytes: the second of two lines does not fit whole. 2. there is room again: the log tells how
    many are missing, and begins with that line."""
    driver = Driver(_Talkative(), SystemClock(), tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        driver.start(_request(attempt=1))
        (ended,) = driver.updates(0, wait_seconds=20.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    driver.start(_request(attempt=2))
    driver.updates(ended.seq, wait_seconds=20.0)
    assert (tmp_path / "logs" / "rank-0.log").read_text().splitlines() == [
        "[2] (2 lines are missing here: the log could not be written)",
        "[2] one",
        "[2] two",
    ]


class _Talkative:
    """An engine whose gang says two lines before the engine itself breaks."""

    name = "talkative"

    def run(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> Outcome:
        listener([{"kind": "log", "rank": 0, "lines": ["one", "two"], "at_ns": 0}])
        raise RuntimeError("the engine broke")

    def kill(self) -> None:
        """It has always ended already."""


def _request(attempt: int) -> RunRequest:
    return RunRequest("uid", "default", "talk", attempt, 1, 1, 0, None, "module:loop", {})


def test_what_a_restored_state_covers_ends_by_now(world: World) -> None:
    """A worker whose clock was ahead when it saved cannot make the time that its checkpoint covers reach beyond now."""
    world.submit("ahead", steps=2, allowed=1)
    record = world.until_phase("ahead", Phase.RUNNING)
    now_ns = record.progress["heard_ns"]
    for covers_ns, bounded in ((now_ns + 10**12, now_ns), (now_ns - 5, now_ns - 5), (None, None)):
        told = {"kind": "restored", "step": 1, "uri": "x", "covers_ns": covers_ns, "at_ns": now_ns}
        (event,) = hear(record, Update(99, 1, told), now_ns).events
        assert isinstance(event, CheckpointRestored)
        assert event.covers_ns == bounded
    GATES["ahead"].open(9)
    world.until_phase("ahead", Phase.SUCCEEDED)


def test_steps_that_were_never_heard_of_are_told_again(world: World) -> None:
    """1. steps 1-4 are heard. 2. the driver dies with the report of 5, whose checkpoint is durable. 3. the next attempt
    continues from 5 and tells of it: every step is in the journal once, and its samples count."""
    world.submit("unheard", steps=6, allowed=4)
    record = world.until("unheard", lambda record: record.state.step == 4)
    told = {"loss": 0.2, "samples": 32, "attempt": 1, "at_ns": record.progress["heard_ns"]}
    again = {"kind": "steps_again", "steps": [{**told, "step": step} for step in (4, 5)], "at_ns": told["at_ns"]}
    found = hear(record, Update(99, 1, again), told["at_ns"])
    assert [(row.attempt, row.step) for row in found.steps] == [(1, 5)]
    assert found.record.samples_kept == record.samples_kept + 32
    assert hear(found.record, Update(100, 1, again), told["at_ns"]).steps == []
    GATES["unheard"].open(9)
    world.until_phase("unheard", Phase.SUCCEEDED)
