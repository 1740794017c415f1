"""Elastic jobs through the controller: worlds that are lost and left inside an attempt, slots that come and go, their money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.accounting import Category, Role
from orchestrator.controller import slots, terms
from orchestrator.controller.driver import Update
from orchestrator.controller.hearing import hear
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.metrics import Sampler
from orchestrator.controller.views import world_size
from orchestrator.domain.errors import Conflict, NotFound
from orchestrator.domain.offerings import CapacityType
from orchestrator.lifecycle import CaughtUp, CheckpointRestored, FirstStepDone, JobState, MemoryTakenUp, Phase
from orchestrator.policy import Observed
from tests.controller.world import GATES, World, document

ELASTIC = {"min": 1, "max": 4}


def submit(world: World, steps: int = 10, allowed: int = 0, **spec: Any) -> None:
    """An elastic job that saves every 5 steps; it waits at its gate after `allowed` steps."""
    world.submit("job", steps, allowed, **({"workers": ELASTIC} | spec))


def at_step(world: World, step: int, generation: int = 1) -> JobRecord:
    """Wait until the job's world has done so many steps."""
    return world.until(
        "job",
        lambda record: (
            record.state.phase is Phase.RUNNING
            and record.state.attempt_step >= step
            and record.state.generation >= generation
        ),
    )


def formed(world: World, generation: int) -> JobRecord:
    return world.until("job", lambda record: record.state.generation >= generation > record.state.lost_generation)


def finish(world: World) -> JobRecord:
    GATES["job"].open(1_000)
    return world.until_phase("job", Phase.SUCCEEDED, Phase.FAILED)


def by_machine(world: World) -> dict[str, list[str]]:
    """Categories of each machine, in order, by the last part of its name."""
    found: dict[str, list[str]] = {}
    for segment in world.controller.statement(world.job("job").uid).segments:
        found.setdefault(segment.machine.rpartition("/")[2], []).append(segment.category.value)
    return found


def status(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.controller.view(world.job("job"))["status"]
    return found


def test_a_lost_worker_costs_a_step_and_no_attempt(world: World) -> None:
    """The attempt goes on with the workers that are left; one step is redone, the dead time is restart, the lost machine
    is paid for no longer, and what was trained before the loss stays useful."""
    submit(world, allowed=4)
    record = at_step(world, 4)
    assert (record.state.world_workers, len(slots.present(record))) == (4, 4)
    assert world.engines[-1].lose_worker(2)
    formed(world, 2)
    assert world.job("job").state.phase is Phase.RECOVERING
    ended = finish(world)
    assert (ended.state.phase, ended.state.attempt, ended.state.generation) == (Phase.SUCCEEDED, 1, 2)
    assert ended.progress["steps_redone"] == 1
    assert ended.samples_kept == 10 * 32
    shown = status(world)
    assert shown["restarts"] == {"application": 0, "preemption": 1, "resize": 0}
    (disruption,) = shown["disruptions"]
    assert (disruption["reason"], disruption["generation"], disruption["step"]) == ("WorkerLost", 1, 4)
    # The batch of 32 would do for 3 workers of the user's own function as well.
    assert (disruption["workersBefore"], disruption["workersAfter"], disruption["stepsRedone"]) == (4, 3, 1)
    assert disruption["secondsDead"] >= 0
    machines = by_machine(world)
    assert set(machines) == {"0", "1", "2", "3"}
    assert "restart" not in machines["2"]
    assert all("restart" in machines[name] for name in "013")
    assert all("useful" in categories for categories in machines.values())


def test_a_machine_that_joins_warms_up_on_its_own_account(world: World) -> None:
    """While the others train, the machine of a slot that joins is provisioning, then idle until a world names it; the
    change of size is a resize that redoes nothing."""
    submit(world, allowed=2)
    at_step(world, 2)
    assert world.engines[-1].lose_worker(3)
    formed(world, 2)
    GATES["job"].open(1)
    at_step(world, 2, generation=2)
    world.engines[-1].join()
    formed(world, 3)
    assert world.job("job").state.phase is Phase.RESIZING
    assert world.job("job").state.world_workers == 4
    ended = finish(world)
    assert status(world)["restarts"] == {"application": 0, "preemption": 1, "resize": 1}
    assert [each.reason for each in ended.state.disruptions] == ["WorkerLost", "Joined"]
    assert ended.state.disruptions[1].steps_redone == 0
    joined = by_machine(world)["4"]
    assert joined[0] == "provisioning"
    assert joined[1:3] in (["idle", "resize"], ["resize", "useful"])
    assert joined[-1] in ("useful", "shutdown")
    assert "resize" in by_machine(world)["0"]


def test_a_notice_moves_the_gang_off_the_node(world: World) -> None:
    """A node that was announced to go is shown as draining until its slot is gone; no step is redone, no budget charged."""
    submit(world, allowed=2, failure={"maxPreemptions": 0})
    at_step(world, 2)
    world.engines[-1].notice(0)
    formed(world, 2)
    GATES["job"].open(1)
    at_step(world, 3, generation=2)
    assert "node node-slot-0 goes, as fake says (interruption)" in world.told("job")
    assert status(world)["workers"]["draining"] == 0
    ended = finish(world)
    assert ended.progress["steps_redone"] == 0
    assert (ended.state.preemption_restarts, ended.state.resizes) == (0, 1)
    assert [each.reason for each in ended.state.disruptions] == ["Notice"]
    assert ended.state.disruptions[0].workers_after == 3


def test_what_an_engine_tells_beside_worlds_is_shown(make_world: Callable[..., World]) -> None:
    """Notices that stand, are advice or are withdrawn, replication and a hung rank are told; the hung rank's stack is in its
    log and not in the story."""
    world = make_world(worker_loop="tests.controller.world:telling_all")
    submit(world, allowed=1)
    at_step(world, 1)
    told = world.told("job")
    assert "node node-slot-0 may go, as aws says (rebalance)" in told
    assert "node node-slot-0 goes in 120 s, as aws says (interruption)" in told
    assert "node node-slot-0 stays, as aws says" in told
    assert "rank 1 (w1) stands still; its stack is in its log" in told
    assert "line 3" not in told
    log = world.home.run_dir(world.job("job").uid) / "logs" / "rank-1.log"
    assert "[1]   line 3" in log.read_text()
    assert status(world)["replication"] == {"every": 1, "bytes": 4096, "seconds": 0.01, "because": "so"}
    finish(world)


def test_scale_changes_the_size_of_a_gang_that_runs(world: World) -> None:
    """A wish for fewer and for more workers reaches the engine, and each change is a resize without a step redone."""
    submit(world, allowed=2)
    at_step(world, 2)
    assert world.controller.scale("default", "job", 2).state.workers == 2
    assert formed(world, 2).state.world_workers == 2
    GATES["job"].open(1)
    at_step(world, 3, generation=2)
    assert (status(world)["workers"]["desired"], status(world)["worldSize"]) == (2, 2)
    world.controller.scale("default", "job", 4)
    assert formed(world, 3).state.world_workers == 4
    ended = finish(world)
    assert (ended.state.resizes, ended.progress["steps_redone"]) == (2, 0)
    assert {each.reason for each in ended.state.disruptions} == {"Resized"}
    assert "ScaleRequested" in world.events("job")


def test_a_wish_before_the_start_is_the_size_to_start_with(make_world: Callable[..., World]) -> None:
    """Scaled while it waits, a job starts with so many workers, and can still grow to its largest size."""
    world = make_world(cpus=2)
    world.submit("first", 3, 0, workers={"min": 2, "max": 2})
    world.until_phase("first", Phase.RUNNING, Phase.PROVISIONING)
    submit(world, workers={"min": 2, "max": 4})
    world.until_phase("job", Phase.QUEUED)
    world.controller.scale("default", "job", 3)
    GATES["first"].open(3)
    assert formed(world, 1).state.world_workers == 3
    world.controller.scale("default", "job", 4)
    GATES["job"].open(1)
    assert formed(world, 2).state.world_workers == 4
    finish(world)


def test_scale_refuses_what_cannot_be(world: World) -> None:
    """A fixed gang, a size that is not allowed, and a job that is not there: each with its own words."""
    world.submit("fixed", 3)
    with pytest.raises(Conflict, match=r"cannot scale default/fixed: it has a fixed number of workers \(2\)"):
        world.controller.scale("default", "fixed", 1)
    submit(world, workers={"min": 1, "max": 4, "allowedSizes": "PowerOfTwo"})
    with pytest.raises(Conflict, match="3 workers is not a size that it may have; its sizes are 1, 2, 4"):
        world.controller.scale("default", "job", 3)
    with pytest.raises(NotFound):
        world.controller.scale("default", "nobody", 1)
    GATES["fixed"].open(3)
    finish(world)
    world.until_phase("fixed", Phase.SUCCEEDED)


def test_an_elastic_job_is_admitted_when_its_smallest_size_fits(make_world: Callable[..., World]) -> None:
    """The queue asks for room for the smallest allowed size, and counts what an elastic job holds, or that at least."""
    world = make_world(cpus=2)
    submit(world, workers={"min": 2, "max": 8})
    formed(world, 1)
    assert "room for 2 CPUs" in world.told("job")
    world.submit("other", 3, 3, workers={"min": 1, "max": 1})
    world.until_phase("other", Phase.QUEUED)
    world.submit("large", 3, 3, workers={"min": 3, "max": 8})
    assert world.until_phase("large", Phase.FAILED).state.reason == "NoCapacity"
    finish(world)
    world.until_phase("other", Phase.SUCCEEDED)


def test_a_double_loss_goes_back_to_the_checkpoint(world: World) -> None:
    """When memory is gone with the workers the next world takes up the newest checkpoint, inside the same attempt; what was
    trained since is lost work."""
    submit(world, allowed=8)
    at_step(world, 8)
    world.engines[-1].lose_worker(1, memory=False)
    ended = finish(world)
    assert (ended.state.attempt, ended.state.interruptions) == (1, 1)
    assert ended.state.disruptions[0].steps_redone == 3
    assert ended.progress["steps_redone"] == 3
    assert "attempt 1 continues from step 5" in world.told("job")
    spent = world.controller.statement(ended.uid).by_category()
    assert spent[Category.LOST_WORK]


def test_preemptions_inside_an_attempt_use_up_their_budget(world: World) -> None:
    """maxPreemptions holds inside an attempt: the world too many stops the gang and ends the job."""
    submit(world, allowed=2, failure={"maxPreemptions": 1})
    at_step(world, 2)
    world.engines[-1].lose_worker(0)
    formed(world, 2)
    GATES["job"].open(2)
    at_step(world, 3, generation=2)
    world.engines[-1].lose_worker(0)
    record = world.until_phase("job", Phase.FAILED)
    assert (record.state.reason, record.state.attempt) == ("PreemptionsExhausted", 1)
    assert "It allows 1; last: WorkerLost. rank 0 is gone" in world.told("job")


def test_a_gang_waits_for_workers_inside_its_attempt(world: World) -> None:
    """With fewer workers than its smallest size left, the gang holds nothing new, waits, and goes on when one joins; with no
    machine at all the waiting costs nothing."""
    submit(world, allowed=2, workers={"min": 1, "max": 2, "allowedSizes": [1, 2]})
    at_step(world, 2)
    for lost, generation in ((1, 2), (0, 3)):
        world.engines[-1].lose_worker(lost)
        if generation == 2:
            formed(world, 2)
            GATES["job"].open(1)
            at_step(world, 2, generation=2)
    record = world.until("job", lambda record: record.state.lost_generation == 2)
    assert "the next one waits for workers" in record.state.message
    statement = world.controller.statement(record.uid)
    assert statement.per_hour_nanodollars == 0
    world.engines[-1].join()
    formed(world, 3)
    ended = finish(world)
    assert (ended.state.phase, ended.state.attempt) == (Phase.SUCCEEDED, 1)
    assert by_machine(world)["2"][0] == "provisioning"


def test_suspend_and_resume_give_slots_back_and_take_new_ones(world: World) -> None:
    """A suspended elastic job holds no machine; resumed, its next attempt counts its worlds from 1."""
    submit(world, allowed=3)
    at_step(world, 3)
    world.controller.request("default", "job", "suspend")
    GATES["job"].open(1)
    record = world.until_phase("job", Phase.SUSPENDED)
    assert slots.present(record) == {}
    assert world.controller.statement(record.uid).per_hour_nanodollars == 0
    world.controller.request("default", "job", "resume")
    ended = finish(world)
    assert (ended.state.attempt, ended.state.generation) == (2, 1)
    assert len(by_machine(world)) == 4  # by number in the attempt; the second one's bear the same


def test_a_lost_driver_loses_the_attempt_and_its_slots(world: World) -> None:
    """When the driver dies with the controller, the machines of its slots are given back, and the next attempt holds its
    own."""
    submit(world, allowed=6)
    at_step(world, 6)
    world.restart()
    GATES["job"].open(1_000)
    ended = world.until_phase("job", Phase.SUCCEEDED)
    assert ended.state.attempt == 2
    statement = world.controller.statement(ended.uid)
    attempts = Counter(name.split("/")[1] for name in {segment.machine for segment in statement.segments})
    assert attempts == {"1": 4, "2": 4}


def test_workers_that_outlive_controller_and_driver_are_taken_over(world: World) -> None:
    """Another driver is started for the attempt that they are in; there is no second attempt."""
    submit(world, allowed=6)
    at_step(world, 6)
    world.workers_outlive = True
    world.restart()
    GATES["job"].open(1_000)
    ended = world.until_phase("job", Phase.SUCCEEDED)
    assert ended.state.attempt == 1


def test_metrics_count_lost_worlds_by_reason(world: World) -> None:
    """A world that was lost is a preemption by its reason; one that was left on purpose is none."""
    sampler = Sampler(world.controller)
    submit(world, allowed=2)
    at_step(world, 2)
    sampler.snapshot()
    world.engines[-1].lose_worker(3)
    formed(world, 2)
    GATES["job"].open(1)
    at_step(world, 2, generation=2)
    world.engines[-1].notice(0)
    formed(world, 3)
    GATES["job"].open(1)
    at_step(world, 3, generation=3)
    (job,) = sampler.snapshot().jobs
    assert job.preemptions == {"WorkerLost": 1}
    assert job.restarts == {"WorkerLost": 1}
    assert job.workers["desired"] == 4
    finish(world)


# --- what is heard, without a controller


def recovering(**state: Any) -> JobRecord:
    """An elastic job whose first world is lost after step 4, with four slots."""
    made = JobState(
        Phase.RECOVERING,
        1,
        2,
        4,
        elastic=True,
        attempt=1,
        step=4,
        attempt_step=4,
        generation=1,
        lost_generation=1,
        world_workers=4,
        started_ns=2,
    )
    job = document("job", workers=ELASTIC)
    job["spec"]["workers"] |= {"cpus": 1, "gpus": 2}
    record = JobRecord("uid", "default", "job", "d", job, "", replace(made, **state), 1)
    for number in range(2):
        record, _ = slots.hear(record, {"slot": f"s{number}", "node": f"n{number}", "state": "held"}, 5)
    return record


def heard(record: JobRecord, kind: str, **fields: Any) -> Any:
    return hear(record, Update(1, 1, {"kind": kind, "at_ns": 100, **fields}), 100)


def test_a_step_of_a_lost_world_is_kept_and_moves_nothing() -> None:
    """A step that is heard late counts as done, and as redone when the next world does it again; it neither makes the job
    Running nor says where the gang stands."""
    step = {"loss": 1.0, "samples": 32, "seconds": 0.0, "generation": 1}
    found = heard(recovering(), "step", step=5, **step)
    assert not found.events
    assert [row.step for row in found.steps] == [5]
    assert found.record.state.attempt_step == 4
    assert found.record.samples_kept == 32
    again = heard(replace(found.record, state=recovering().state), "step", step=5, **{**step, "generation": 2})
    assert again.record.progress["steps_redone"] == 1
    assert [type(event) for event in again.events] == [FirstStepDone]
    late = heard(recovering(settled_step=4, step=5, attempt_step=3, restored_step=3), "step", step=4, **step)
    assert CaughtUp not in [type(event) for event in late.events]
    formed = recovering(generation=2)
    assert not heard(formed, "step", step=5, **step).events
    assert "generation" not in found.steps[0].values


def test_where_state_came_from_decides_what_is_told() -> None:
    """`restored` from memory and from the checkpoint are different events; one of a lost world is dropped."""
    told = {"step": 3, "covers_ns": 90, "refused": []}
    (memory,) = heard(recovering(), "restored", source="memory", generation=2, **told).events
    assert memory == MemoryTakenUp(100, 1, 3, 90, generation=2)
    (kept,) = heard(recovering(), "restored", source="checkpoint", uri="u", generation=2, **told).events
    assert kept == CheckpointRestored(100, 1, 3, "u", 90, generation=2)
    assert not heard(recovering(), "restored", source="memory", generation=1, **told).events


def test_an_engine_that_names_no_generation_is_of_the_newest_world() -> None:
    """Without a generation an event is taken for one of the newest world that was heard of."""
    record = recovering(generation=2)
    (event,) = heard(record, "restored", source="memory", step=3, covers_ns=90).events
    assert event.generation == 2


def test_slots_tell_what_each_machine_is_to_the_gang() -> None:
    """Before the first world a slot is a member, later it warms up; a world seats those it names, sends off those on nodes
    that go, lets the others wait, and a released slot's notice is forgotten with it."""
    first = recovering(world_workers=None)
    assert {slot["role"] for slot in slots.present(first).values()} == {"member"}
    record = recovering()
    assert {slot["role"] for slot in slots.present(record).values()} == {"warming"}
    assert slots.hear(record, {"slot": "s0", "node": "n0", "state": "held"}, 6) == (record, [])
    assert slots.hear(record, {"slot": "s9", "node": "n0", "state": "released"}, 6) == (record, [])
    record, changes = slots.hear(record, {"slot": "s0", "node": "n0", "state": "ready"}, 6)
    assert changes == [slots.Change(6, "uid/1/0", Role.IDLE)]
    assert slots.hear(record, {"slot": "s0", "node": "n0", "state": "ready"}, 7) == (record, [])
    record, changes = slots.seat(record, ["s0"], 8)
    assert changes == [slots.Change(8, "uid/1/0", Role.MEMBER)]
    record = replace(record, progress={**record.progress, "notices": {"n0": {}, "gone": {}}})
    assert slots.draining(record) == 1
    record, changes = slots.seat(record, ["s1"], 9)
    assert changes == [slots.Change(9, "uid/1/0", Role.LEAVING), slots.Change(9, "uid/1/1", Role.MEMBER)]
    record, changes = slots.hear(record, {"slot": "s0", "node": "n0", "state": "released"}, 10)
    assert changes == [slots.Change(10, "uid/1/0", None)]
    assert (slots.draining(record), record.progress["notices"]) == (0, {})
    record, changes = slots.seat(record, ["nobody"], 11)
    assert changes == [slots.Change(11, "uid/1/1", Role.IDLE)]
    record, changes = slots.hear(record, {"slot": "s0", "node": "n0", "state": "held"}, 12)
    assert changes == [slots.Change(12, "uid/1/2", Role.WARMING, new=True)]


def test_slots_that_another_driver_does_not_find_are_released() -> None:
    """When a driver takes over, the slots it tells of again go on as they were; the others are released at its world."""
    record = slots.doubt(recovering())
    record, changes = slots.hear(record, {"slot": "s1", "node": "n1", "state": "held"}, 6)
    assert changes == []
    record, changes = slots.seat(record, ["s1"], 7)
    assert changes == [slots.Change(7, "uid/1/0", None), slots.Change(7, "uid/1/1", Role.MEMBER)]
    assert list(slots.present(record)) == ["s1"]
    nobody = replace(recovering(), progress={})
    assert slots.doubt(nobody) is nobody


def test_a_fixed_gang_pays_for_all_its_machines_whatever_its_slots_do() -> None:
    """Slots of a fixed gang are known by their places and change nothing in its ledger."""
    record = recovering(elastic=False)
    record, changes = slots.hear(record, {"slot": "s5", "node": "n5", "state": "held"}, 6)
    assert changes == []
    assert "s5" in slots.present(record)


def test_a_world_counts_its_workers_by_ranks() -> None:
    """A worker with two GPUs has two ranks in the world, and is one worker."""
    workers = [{"worker": f"w{rank}", "rank": rank, "slot": f"s{rank // 2}"} for rank in range(4)]
    found = heard(recovering(), "world", generation=2, world_size=4, workers=workers)
    (event,) = found.events
    assert event.workers == 2
    assert [change.role for change in found.slots] == [Role.MEMBER, Role.MEMBER]
    assert world_size(recovering()) == 8


def test_a_decision_of_the_engine_is_an_event() -> None:
    """`events` shows its word and why."""
    found = heard(
        recovering(), "decision", decision="Stay", message="stay at 2 though 3 could train: joining costs 2 s"
    )
    (entry,) = found.story
    assert (entry.event, entry.reason) == ("Decision", "Stay")
    assert entry.message == "stay at 2 though 3 could train: joining costs 2 s"


def test_a_later_attempt_knows_what_did_not_fit_into_memory(world: World) -> None:
    """What a lost world tells of it is kept and handed over with the next request, beside the job's batch."""
    record = heard(recovering(), "world", generation=2, world_size=4, workers=[]).record
    lost = {"generation": 2, "reason": "OutOfMemory", "message": "", "began_ns": 90, "target": 2}
    record = heard(record, "world_lost", **lost, out_of_memory=[[4, 8]]).record
    del record.document["spec"]["entrypoint"]
    record.document["spec"]["training"] |= {"globalBatchSize": 32, "microBatchSize": 8}
    seen = {CapacityType.SPOT: Observed(2, 50.0)}
    request = terms.run_request(record, record.document, world.home, "a:b", "ray-train", CapacityType.SPOT, seen)
    assert (request.capacity, request.observed) == (CapacityType.SPOT, seen)
    assert (request.global_batch, request.micro_batch, request.out_of_memory) == (32, 8, ((4, 8),))


def test_an_engine_is_asked_for_sizes_and_the_one_to_begin_with(world: World) -> None:
    """The request names the allowed sizes, the fewest, the most and the wished number of workers; that of a fixed gang names
    none and leaves the choice of the engine to the server's setting."""
    job = document("job", workers={"min": 2, "max": 9, "cpus": 1, "allowedSizes": "PowerOfTwo"})
    record = replace(recovering(workers=4), document=job)
    request = terms.run_request(record, job, world.home, "a:b", "ray-train")
    assert (request.workers, request.min_workers, request.allowed, request.size) == (8, 2, (2, 4, 8), 4)
    assert (request.elastic, request.engine, request.sizes) == (True, "native", (2, 4, 8))
    assert request.assignment["world_size"] == 8
    fixed = document("job", workers={"min": 2, "max": 2, "cpus": 1})
    record = replace(record, document=fixed, state=replace(record.state, elastic=False, workers=2))
    request = terms.run_request(record, fixed, world.home, "a:b", "ray-train")
    assert (request.workers, request.min_workers, request.allowed, request.size) == (2, None, (), 0)
    assert (request.elastic, request.engine) == (False, "ray-train")
