"""Worlds inside an attempt: phases, money, budgets and the story of losses, resizes and wishes for another size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.lifecycle import (
    Activity,
    AttemptEnded,
    BookActivity,
    CancelRequested,
    CaughtUp,
    CheckpointCommitted,
    CheckpointRestored,
    FirstStepDone,
    HoldMachines,
    KillAttempt,
    Limits,
    MemoryTakenUp,
    Phase,
    Refusal,
    ReleaseMachines,
    ReleaseSlots,
    ResumeRequested,
    ScaleRequested,
    SettleWork,
    StartAttempt,
    StopAttempt,
    StopOverdue,
    SuspendRequested,
    WishSize,
)
from tests.lifecycle.conftest import MakeLife
from tests.lifecycle.life import SECOND, Life

SIZES = (1, 2, 4)


def running(submit: MakeLife, limits: Limits | None = None) -> Life:
    """An elastic job of up to 4 workers whose first world has done step 1."""
    life = submit(limits or Limits(sizes=SIZES), elastic=True, workers=4)
    life.admit()
    life.form(1, workers=4)
    life.begin()
    return life


def back(life: Life, generation: int, step: int, workers: int = 2) -> None:
    """The next world forms, takes up `step` from memory, where it was kept until a second ago, and does the next one."""
    life.form(generation, workers)
    life.tell(MemoryTakenUp, step=step, covers_ns=life.now_ns - SECOND, generation=generation)
    life.tell(FirstStepDone, step=step + 1, generation=generation)


def test_an_elastic_job_holds_no_machine_before_its_engine_tells_of_one(submit: MakeLife) -> None:
    """What an elastic job pays for is told by slots, so its admission holds nothing, and a fixed gang's all of it."""
    life = submit(elastic=True)
    life.admit()
    assert not any(isinstance(command, HoldMachines) for command in life.commands)
    fixed = submit()
    fixed.admit()
    assert HoldMachines(2) in fixed.commands


def test_a_lost_world_is_a_recovery_inside_the_attempt(submit: MakeLife) -> None:
    """After a loss the time since the world stopped is restart, training after the step that memory kept is lost, what was
    before stays at risk, and the attempt goes on."""
    life = running(submit)
    life.train_to(2, 3, 4)
    commands = life.lose_world(1, target=2)
    began_ns = life.now_ns - SECOND // 2
    assert commands == (BookActivity(Activity.RESTART, began_ns),)
    assert life.phase is Phase.RECOVERING
    life.form(2, workers=2)
    covers_ns = began_ns - SECOND
    assert life.tell(MemoryTakenUp, step=3, covers_ns=covers_ns, generation=2) == (
        SettleWork(None, useful=False, from_ns=covers_ns),
    )
    assert life.state.attempt_step == 3
    commands = life.tell(FirstStepDone, step=4, generation=2)
    assert commands == (BookActivity(Activity.TRAINING, life.now_ns),)
    assert life.phase is Phase.RUNNING
    assert (life.state.attempt, life.state.generation, life.state.world_workers) == (1, 2, 2)
    (disruption,) = life.state.disruptions
    assert (disruption.reason, disruption.workers_before, disruption.workers_after) == ("WorkerLost", 4, 2)
    assert (disruption.step, disruption.steps_redone) == (4, 1)
    assert disruption.back_ns is not None
    assert disruption.back_ns - disruption.began_ns == 3 * SECOND + SECOND // 2
    assert (life.state.preemption_restarts, life.state.resizes, life.state.interruptions) == (1, 0, 0)


def test_the_story_of_a_loss_can_be_read(submit: MakeLife) -> None:
    """A person reads what was lost, from what to what the gang changed, and where it goes on."""
    life = running(submit)
    life.train_to(41)
    life.lose_world(1, target=2)
    back(life, 2, step=41)
    life.lose_world(2, reason="Notice", message="node c goes in 30 s", target=1)
    back(life, 3, step=42, workers=1)
    told = [entry.message for entry in life.story]
    assert told[-8:] == [
        "A worker process was lost. node b is gone. Generation 1 ended after step 41; the next one may have 2 workers.",
        "generation 2 forms with 2 of 4 workers",
        "generation 2 continues from step 41, which memory kept",
        "generation 2 trains with 2 workers; its first step was 42",
        "node c goes in 30 s. Generation 2 was left after step 42; the next one may have 1 worker.",
        "generation 3 forms with 1 of 4 workers",
        "generation 3 continues from step 42, which memory kept",
        "generation 3 trains with 1 worker; its first step was 43",
    ]
    life.lose_world(3, target=1)
    assert life.story[-1].message.endswith("Generation 3 ended after step 43; the next one may have 1 worker again.")


@pytest.mark.parametrize("reason", ["Notice", "Joined", "Resized"])
def test_a_world_left_on_purpose_is_a_resize(submit: MakeLife, reason: str) -> None:
    """A voluntary transition is Resizing, its time is `resize`, and no budget pays for it."""
    life = running(submit, Limits(max_preemptions=0, sizes=SIZES))
    commands = life.lose_world(1, reason=reason, message="", target=4)
    assert commands == (BookActivity(Activity.RESIZE, life.now_ns - SECOND // 2),)
    assert life.phase is Phase.RESIZING
    back(life, 2, step=1, workers=4)
    assert life.phase is Phase.RUNNING
    assert (life.state.resizes, life.state.worlds_lost, life.state.preemption_restarts) == (1, 0, 0)
    (disruption,) = life.state.disruptions
    assert disruption.voluntary
    assert disruption.steps_redone == 0


def test_a_loss_while_resizing_is_a_recovery(submit: MakeLife) -> None:
    """A second fault while the next world forms only goes on to the one after it; each of the two is told."""
    life = running(submit)
    life.lose_world(1, reason="Notice", target=2)
    life.form(2, workers=2)
    assert life.lose_world(2, target=1) == (BookActivity(Activity.RESTART, life.now_ns - SECOND // 2),)
    assert life.phase is Phase.RECOVERING
    assert life.lose_world(3, target=0) == ()
    assert life.story[-1].message.endswith("the next one waits for workers.")
    back(life, 4, step=1, workers=1)
    assert [each.reason for each in life.state.disruptions] == ["Notice", "WorkerLost", "WorkerLost"]
    assert {each.workers_after for each in life.state.disruptions[1:]} == {1}
    assert {each.steps_redone for each in life.state.disruptions} == {0}


def test_what_an_old_world_tells_changes_nothing(submit: MakeLife) -> None:
    """Late messages of a world that is lost, repeated losses and older generations are stale."""
    life = running(submit)
    life.lose_world(1)
    before = life.state
    life.tell(FirstStepDone, step=2, generation=1)
    life.tell(CheckpointRestored, step=0, uri=None, covers_ns=None, generation=1)
    life.lose_world(1)
    life.form(1, workers=4)
    assert life.state == before
    back(life, 3, step=1)
    before = life.state
    life.lose_world(2)
    life.tell(CaughtUp, generation=2)
    assert life.state == before


def test_a_world_from_the_checkpoint_does_what_an_attempt_does(submit: MakeLife) -> None:
    """Where memory kept nothing, the new world takes up the checkpoint: the rest is lost work and the loss counts as an
    interruption that saving more often would have made cheaper."""
    life = running(submit)
    life.train_to(10)
    life.save(10)
    life.train_to(11, 12, 13)
    life.lose_world(1)
    life.form(2, workers=2)
    commands = life.tell(CheckpointRestored, step=10, uri="step-00000010", covers_ns=None, generation=2)
    assert commands == (SettleWork(None, useful=False),)
    life.tell(FirstStepDone, step=11, generation=2)
    assert life.state.interruptions == 1
    assert life.state.disruptions[0].steps_redone == 3
    assert (life.state.attempt, life.state.attempt_step, life.state.step) == (1, 11, 13)


def test_a_checkpoint_of_the_lost_world_still_counts(submit: MakeLife) -> None:
    """A save that becomes durable after its world is gone settles its work; a world that then starts before it redoes the
    steps up to it as lost work."""
    life = running(submit)
    life.train_to(10)
    life.lose_world(1)
    life.save(10)
    assert life.state.settled_step == 10
    life.form(2, workers=2)
    life.tell(MemoryTakenUp, step=9, covers_ns=life.now_ns - 9 * SECOND, generation=2)
    life.tell(FirstStepDone, step=10, generation=2)
    life.tell(CaughtUp, generation=2)
    assert life.commands == (SettleWork(life.now_ns, useful=False),)


def test_preemptions_inside_an_attempt_are_charged(submit: MakeLife) -> None:
    """maxPreemptions counts lost worlds too; when it is used up the gang is stopped, and the job ends with the last loss
    told when the gang is gone."""
    life = running(submit, Limits(max_preemptions=1, sizes=SIZES))
    life.lose_world(1)
    back(life, 2, step=1)
    commands = life.lose_world(2, reason="Preempted", message="spot took node c")
    assert commands[-1] == StopAttempt(1, save=False)
    assert life.state.stopping == "PreemptionsExhausted"
    with pytest.raises(Refusal, match="is being ended: It allows 1"):
        life.tell(SuspendRequested)
    life.form(3, workers=1)
    assert life.tell(AttemptEnded, reason="WorkerLost", message="killed", step=2)[-1] == ReleaseMachines()
    assert (life.phase, life.state.reason) == (Phase.FAILED, "PreemptionsExhausted")
    assert "It allows 1; last: Preempted. spot took node c" in life.story[-3].message


def test_preemptions_are_free_by_default(submit: MakeLife) -> None:
    """Without maxPreemptions a job outlives any number of losses, as long as it makes a new step between them."""
    life = running(submit)
    for generation in range(1, 101):
        life.lose_world(generation)
        back(life, generation + 1, step=generation)
    assert life.phase is Phase.RUNNING
    assert life.state.preemption_restarts == 100
    assert len(life.state.disruptions) == 20


def test_errors_inside_an_attempt_are_charged_to_the_application(submit: MakeLife) -> None:
    """A world that an engine re-forms after an error of the job's own code is paid by maxRestarts."""
    life = running(submit, Limits(max_restarts=1, sizes=SIZES))
    life.lose_world(1, reason="ApplicationError", message="rank 1: ValueError")
    assert life.state.application_restarts == 1
    back(life, 2, step=1)
    life.lose_world(2, reason="ApplicationError", message="rank 1: ValueError")
    assert life.state.stopping == "ApplicationError"
    life.tell(AttemptEnded, reason="WorkerLost", message="killed", step=2)
    assert (life.phase, life.state.reason) == (Phase.FAILED, "ApplicationError")


def test_a_world_that_ran_out_of_memory_is_no_end(submit: MakeLife) -> None:
    """The engine goes on with a smaller micro-batch: nothing is charged, though such an attempt would not be tried again."""
    life = running(submit, Limits(max_restarts=0, max_preemptions=0, sizes=SIZES))
    life.lose_world(1, reason="OutOfMemory", message="rank 1: memory ran out; going on with 4")
    assert life.state.stopping is None
    assert life.phase is Phase.RECOVERING
    assert "A worker ran out of memory. rank 1: memory ran out; going on with 4" in life.state.message
    back(life, 2, step=1)
    assert (life.phase, life.state.application_restarts, life.state.preemption_restarts) == (Phase.RUNNING, 0, 0)
    life.tell(AttemptEnded, reason="OutOfMemory", message="no micro-batch is smaller than 1", step=2)
    assert (life.phase, life.state.reason) == (Phase.FAILED, "OutOfMemory")


@pytest.mark.parametrize("reason", ["WorkerLost", "Joined"])
def test_worlds_without_a_new_step_do_not_go_on_for_ever(submit: MakeLife, reason: str) -> None:
    """World after world without a step beyond the newest known one is a crash loop, whatever ends them."""
    life = running(submit, Limits(max_fruitless_worlds=5, sizes=SIZES))
    generation = 1
    while life.state.stopping is None:
        life.lose_world(generation, reason=reason)
        if life.state.stopping is None:
            back(life, generation + 1, step=0)  # redoes step 1, which is no progress
        generation += 1
        assert generation < 10
    assert generation - 1 == 6  # the first world made a step
    assert life.state.stopping == "CrashLoop"
    life.tell(AttemptEnded, reason="WorkerLost", message="killed", step=1)
    assert (life.phase, life.state.reason) == (Phase.FAILED, "CrashLoop")
    assert f"5 worlds of attempt 1 in a row; last: {reason}" in life.state.message


def test_a_checkpoint_is_progress_of_a_world(submit: MakeLife) -> None:
    """A checkpoint beyond the newest settled step breaks the row of fruitless worlds."""
    life = running(submit, Limits(max_fruitless_worlds=2, sizes=SIZES))
    life.train_to(9)
    for generation in range(1, 6):
        life.lose_world(generation)
        life.form(generation + 1, workers=2)
        life.begin_world(generation + 1, step=generation + 1)
        life.save(generation + 1)
    assert life.state.stopping is None


def test_a_world_lost_while_the_gang_is_stopped_costs_nothing(submit: MakeLife) -> None:
    """A gang that is being suspended or cancelled may lose workers: nobody is charged, and the request stands."""
    life = running(submit, Limits(max_preemptions=0, sizes=SIZES))
    life.tell(SuspendRequested)
    life.lose_world(1)
    assert life.state.stopping == "Suspended"
    assert life.state.preemption_restarts == 0
    life.tell(CancelRequested)
    life.tell(StopOverdue)
    assert life.commands == (KillAttempt(1),)
    life.tell(AttemptEnded, reason="WorkerLost", message="", step=1)
    assert life.phase is Phase.CANCELLED


def test_a_loss_before_the_first_step_stays_provisioning(submit: MakeLife) -> None:
    """A world that never trained is replaced without another phase; the job has not begun to pay for a restart."""
    life = submit(Limits(sizes=SIZES), elastic=True, workers=4)
    life.admit()
    life.form(1, workers=4)
    assert life.lose_world(1) == ()
    assert life.phase is Phase.PROVISIONING
    life.form(2, workers=2)
    life.tell(MemoryTakenUp, step=0, covers_ns=None, generation=2)
    assert life.commands == (SettleWork(None, useful=False, from_ns=0),)


def test_steps_that_only_memory_knows_are_progress(submit: MakeLife) -> None:
    """A world whose steps went unheard has made progress when the next one takes them up from memory."""
    life = running(submit, Limits(max_fruitless_worlds=2, sizes=SIZES))
    for generation in range(1, 6):
        life.lose_world(generation)
        life.form(generation + 1, workers=2)
        covers_ns = life.now_ns - SECOND
        life.tell(MemoryTakenUp, step=generation + 1, covers_ns=covers_ns, generation=generation + 1)
    assert life.state.stopping is None
    assert life.state.step == 6


def test_memory_that_cannot_say_when_keeps_what_is_at_risk(submit: MakeLife) -> None:
    """A state from memory whose step's end is unknown settles nothing but the moment itself."""
    life = running(submit)
    life.lose_world(1)
    life.form(2, workers=2)
    assert life.tell(MemoryTakenUp, step=1, covers_ns=None, generation=2) == (
        SettleWork(None, useful=False, from_ns=life.now_ns),
    )


def test_a_lost_attempt_gives_its_slots_back_and_begins_worlds_anew(submit: MakeLife) -> None:
    """When the whole attempt is lost the next one counts its worlds from 1, and the machines of the old one are let go."""
    life = running(submit)
    life.lose_world(1)
    back(life, 2, step=1)
    commands = life.lose("DriverLost")
    assert commands == (ReleaseSlots(), BookActivity(Activity.RESTART, life.now_ns), StartAttempt(2))
    assert (life.state.generation, life.state.lost_generation, life.state.world_workers) == (0, 0, None)
    assert [(each.reason, each.attempt, each.generation) for each in life.state.disruptions] == [
        ("WorkerLost", 1, 1),
        ("DriverLost", 1, 2),
    ]
    life.form(1, workers=1)
    life.begin(step=0)
    assert life.state.disruptions[-1].workers_after == 1


def test_scale_sets_the_wished_size(submit: MakeLife) -> None:
    """A wish for an allowed size is kept and told to the gang that runs; asking again tells nothing."""
    life = running(submit)
    assert life.tell(ScaleRequested, workers=2) == (WishSize(1, 2),)
    assert life.state.workers == 2
    assert life.phase is Phase.RUNNING
    told = len(life.story)
    assert life.tell(ScaleRequested, workers=2) == ()
    assert len(life.story) == told
    life.tell(SuspendRequested)
    with pytest.raises(Refusal, match="is being stopped"):
        life.tell(ScaleRequested, workers=4)
    life.tell(AttemptEnded, reason="Stopped", message="", step=1)
    assert life.tell(ScaleRequested, workers=1) == ()
    life.tell(ResumeRequested)
    life.tell(ScaleRequested, workers=4)
    assert life.state.workers == 4


def test_scale_is_refused_with_what_would_do(submit: MakeLife) -> None:
    """A fixed gang cannot be scaled, nor any gang to a size that it may not have; the refusal names those that it may."""
    with pytest.raises(Refusal, match=r"fixed number of workers \(2\); a job whose spec.workers.min"):
        submit().tell(ScaleRequested, workers=1)
    life = running(submit)
    with pytest.raises(Refusal, match="3 workers is not a size that it may have; its sizes are 1, 2, 4"):
        life.tell(ScaleRequested, workers=3)
    many = running(submit, Limits(sizes=tuple(range(2, 101, 2))))
    with pytest.raises(Refusal, match="the nearest are 10 and 12"):
        many.tell(ScaleRequested, workers=11)
    with pytest.raises(Refusal, match="the nearest are 100"):
        many.tell(ScaleRequested, workers=101)


def test_a_commit_between_two_worlds_does_not_move_the_gang(submit: MakeLife) -> None:
    """Where the gang stands is told by what it takes up, not by a checkpoint that becomes durable meanwhile."""
    life = running(submit)
    life.train_to(2, 3)
    life.lose_world(1)
    life.tell(CheckpointCommitted, step=5, uri="u", covers_ns=life.now_ns)
    assert (life.state.attempt_step, life.state.step) == (3, 5)


def test_a_state_of_an_older_journal_is_read() -> None:
    """A state from before there were worlds has none, and disruptions survive being written and read."""
    life = Life(Limits(sizes=SIZES), workers=4, elastic=True)
    life.admit()
    life.form(1, workers=4)
    life.begin()
    life.lose_world(1)
    document = life.state.to_document()
    assert type(life.state).from_document(document) == life.state
    for name in ("generation", "lost_generation", "world_workers", "disruptions", "worlds_lost", "resizes", "elastic"):
        del document[name]
    old = type(life.state).from_document(document)
    assert (old.generation, old.disruptions, old.elastic) == (0, (), False)
    assert old == replace(
        life.state, generation=0, lost_generation=0, world_workers=None, disruptions=(), worlds_lost=0, elastic=False
    )
