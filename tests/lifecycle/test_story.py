"""What happens to a job, told as stories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.errors import InternalError
from orchestrator.lifecycle import (
    Activity,
    Admitted,
    AttemptEnded,
    BookActivity,
    CancelRequested,
    CaughtUp,
    CheckpointCommitted,
    CheckpointRequested,
    CheckpointRestored,
    Event,
    FirstStepDone,
    HoldMachines,
    KillAttempt,
    Limits,
    Phase,
    Queued,
    Refusal,
    ReleaseMachines,
    ResumeRequested,
    SaveCheckpoint,
    SettleWork,
    StartAttempt,
    StartDeadlinePassed,
    StopAttempt,
    StopOverdue,
    SuspendRequested,
    TooLargeForCluster,
    transition,
)
from tests.lifecycle.life import SECOND, Life

MakeLife = Callable[..., Life]
REST_IS_LOST = SettleWork(None, useful=False)


def running(life: Life) -> Life:
    life.admit()
    life.begin()
    return life


def test_a_loss_and_then_success(submit: MakeLife) -> None:
    """A job that is queued, admitted, loses its gang after a checkpoint and then succeeds tells just that."""
    life = submit()
    # 1. there is no room, then there is
    life.tell(Queued, message="waits for 2 cpus")
    assert life.tell(Admitted, message="room") == (
        HoldMachines(2),
        BookActivity(Activity.PROVISIONING, life.now_ns),
        StartAttempt(1),
    )
    # 2. it trains and saves
    life.tell(CheckpointRestored, step=0, uri=None, covers_ns=None)
    assert life.tell(FirstStepDone, step=1) == (BookActivity(Activity.TRAINING, life.now_ns),)
    life.train_to(2, 3, 4)
    assert life.save(4) == (SettleWork(life.now_ns - SECOND // 2, useful=True),)
    # 3. a worker dies two steps later: those stay at risk
    life.train_to(5, 6)
    assert life.lose(message="rank 1 was killed") == (
        BookActivity(Activity.RESTART, life.now_ns),
        StartAttempt(2),
    )
    assert life.state.message == "A worker process was lost. rank 1 was killed. Attempt 2 follows."
    assert (life.state.step, life.state.attempt_step, life.state.preemption_restarts) == (6, 0, 1)
    # 4. the second attempt continues from the checkpoint and finishes
    assert life.tell(CheckpointRestored, step=4, uri="step-00000004", covers_ns=life.now_ns) == (REST_IS_LOST,)
    life.tell(FirstStepDone, step=5)
    life.train_to(6, 7, 8)
    assert life.tell(AttemptEnded, reason="Completed", message="", step=8) == (
        BookActivity(Activity.SHUTDOWN, life.now_ns),
        SettleWork(None, useful=True),
        ReleaseMachines(),
    )
    assert life.phases() == [
        Phase.PENDING,
        Phase.QUEUED,
        Phase.PROVISIONING,
        Phase.RUNNING,
        Phase.RECOVERING,
        Phase.RUNNING,
        Phase.SUCCEEDED,
    ]
    assert life.events_told() == [
        "Submitted",
        "Queued",
        "Admitted",
        "CheckpointRestored",
        "FirstStepDone",
        "CheckpointCommitted",
        "AttemptEnded",
        "CheckpointRestored",
        "FirstStepDone",
        "AttemptEnded",
    ]
    assert [entry.reason for entry in life.story][-4:] == ["WorkerLost", "Restored", "Training", "Completed"]
    assert life.story[7].message == "attempt 2 continues from step 4 (step-00000004)"
    assert (life.state.ended_ns, life.state.reason, life.state.message) == (
        life.now_ns,
        "Completed",
        "All steps are done.",
    )


def test_too_large_and_too_late_end_without_an_attempt(submit: MakeLife) -> None:
    """A job that can never be held, or waited past its deadline, fails with its reason and never held a machine."""
    large, late = submit(), submit()
    large.tell(TooLargeForCluster, message="it needs 64 cpus, there are 2.")
    late.tell(Queued, message="waits")
    late.tell(StartDeadlinePassed, message="It waited for more than 1h.")
    assert (large.phase, large.state.reason, large.state.attempt) == (Phase.FAILED, "NoCapacity", 0)
    assert (late.phase, late.state.reason, late.state.attempt) == (Phase.FAILED, "StartDeadlineExceeded", 0)
    assert large.state.message.endswith("it needs 64 cpus, there are 2.")


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.QUEUED, Phase.SUSPENDED])
def test_cancel_while_waiting_ends_at_once(submit: MakeLife, phase: Phase) -> None:
    """A job without machines is cancelled on the spot."""
    life = submit(suspended=phase is Phase.SUSPENDED)
    if phase is Phase.QUEUED:
        life.tell(Queued, message="waits")
    assert life.state.phase is phase
    assert life.tell(CancelRequested) == ()
    assert (life.phase, life.state.reason) == (Phase.CANCELLED, "Cancelled")


@pytest.mark.parametrize("phase", [Phase.PROVISIONING, Phase.RUNNING, Phase.RECOVERING])
@pytest.mark.parametrize("verb", [CancelRequested, SuspendRequested])
def test_stop_while_holding_waits_for_the_gang(
    submit: MakeLife, phase: Phase, verb: type[CancelRequested] | type[SuspendRequested]
) -> None:
    """Cancel and suspend of a job with machines ask the gang to stop, and only its end releases the machines."""
    life = submit()
    life.admit()
    if phase is not Phase.PROVISIONING:
        life.begin()
    if phase is Phase.RECOVERING:
        life.lose()
    assert life.state.phase is phase
    suspend = verb is SuspendRequested
    assert life.tell(verb) == (StopAttempt(life.state.attempt, save=suspend),)
    assert life.state.phase is phase
    assert life.state.stopping == ("Suspended" if suspend else "Cancelled")
    with pytest.raises(Refusal, match="still stopping"):
        life.tell(ResumeRequested)
    life.lose("Stopped")
    assert ReleaseMachines() in life.commands
    assert life.state.phase is (Phase.SUSPENDED if suspend else Phase.CANCELLED)
    assert life.state.stopping is None


def test_suspend_saves_and_resume_continues(submit: MakeLife) -> None:
    """1. suspend, 2. the gang saves, 3. it stops: nothing is lost; 4. resume waits for room; 5. attempt 2 continues."""
    life = running(submit())
    life.train_to(2, 3)
    life.tell(SuspendRequested)
    life.save(3)
    assert life.lose("Stopped")[1] == SettleWork(None, useful=True)
    assert life.state.message == "Suspended on request. Resume continues from step 3."
    life.tell(ResumeRequested)
    assert (life.phase, life.state.reason) == (Phase.PENDING, None)
    assert life.tell(Admitted, message="room") == (
        HoldMachines(2),
        BookActivity(Activity.RESTART, life.now_ns),
        StartAttempt(2),
    )
    assert life.state.phase is Phase.RECOVERING
    life.begin(3, "step-00000003")
    assert life.phases()[-1] is Phase.RUNNING


def test_asking_again_is_told_once(submit: MakeLife) -> None:
    """A second suspend or cancel, whether the first is under way or done, changes nothing and is no event."""
    life = running(submit())
    for _ in range(2):
        life.tell(SuspendRequested)
    life.lose("Stopped")
    life.tell(SuspendRequested)
    assert life.events_told().count("SuspendRequested") == 1
    life.tell(ResumeRequested)
    life.admit()
    for _ in range(3):
        life.tell(CancelRequested)
    assert life.events_told().count("CancelRequested") == 1


def test_interruptions_and_hours_are_counted_for_the_cadence(submit: MakeLife) -> None:
    """A lost machine counts when the attempt had trained something new; time counts while the job is Running."""
    life = running(submit(Limits(max_restarts=1)))
    life.now_ns += 99 * SECOND
    life.lose("Preempted")
    assert (life.state.interruptions, life.state.ran_ns) == (1, 100 * SECOND)
    life.lose("WorkerLost")  # it had not begun to train
    life.begin()
    life.lose("WorkerLost")  # it redid the same step: the step may be what kills it
    assert (life.state.interruptions, life.state.ran_ns) == (1, 101 * SECOND)
    life.begin(1)
    life.lose("ApplicationError")  # no machine went
    life.begin(2)
    life.tell(SuspendRequested)
    life.lose("WorkerLost")  # it was told to go
    assert (life.state.interruptions, life.state.ran_ns) == (1, 104 * SECOND)


def test_suspend_without_a_save_loses_what_was_at_risk(submit: MakeLife) -> None:
    """A gang that dies while it is asked to save leaves the job Suspended, its work lost, and the message says so."""
    life = running(submit())
    life.train_to(2)
    life.tell(SuspendRequested)
    life.lose("WorkerLost", "rank 0 was killed.")
    assert life.commands[1] == REST_IS_LOST
    assert life.state.phase is Phase.SUSPENDED
    assert life.state.message == (
        "Suspended on request. The attempt ended on its own: WorkerLost. rank 0 was killed. "
        "No checkpoint exists, so resume starts from the beginning."
    )
    assert life.state.preemption_restarts == 0


def test_a_save_before_newer_steps_does_not_cover_them(submit: MakeLife) -> None:
    """A checkpoint of step 2 does not make step 3 useful when the gang then stops."""
    life = running(submit())
    life.train_to(2)
    life.tell(SuspendRequested)
    life.save(2)
    life.train_to(3)
    assert life.lose("Stopped")[1] == REST_IS_LOST


def test_cancel_overrides_suspend_and_not_the_other_way_round(submit: MakeLife) -> None:
    """A job that is suspending can be cancelled; one that is cancelling cannot be suspended."""
    life = running(submit())
    life.tell(SuspendRequested)
    assert life.tell(CancelRequested) == (StopAttempt(1, save=False),)
    with pytest.raises(Refusal, match="being cancelled"):
        life.tell(SuspendRequested)
    life.lose("Stopped")
    assert life.state.phase is Phase.CANCELLED


@pytest.mark.parametrize("reason", ["Completed", "EarlyStopped"])
def test_success_wins_over_a_late_stop(submit: MakeLife, reason: str) -> None:
    """A gang that finishes while it is asked to stop has succeeded."""
    life = running(submit())
    life.tell(CancelRequested)
    life.lose(reason)
    assert (life.phase, life.state.reason) == (Phase.SUCCEEDED, reason)


def test_a_stop_that_is_overdue_kills(submit: MakeLife) -> None:
    """A gang that does not stop in time is killed once; the job ends when the gang is gone."""
    life = running(submit())
    assert life.tell(StopOverdue) == ()  # nobody asked for a stop: a stray timer must not kill a healthy gang
    life.tell(CancelRequested)
    assert life.tell(StopOverdue) == (KillAttempt(1),)
    assert life.state.phase is Phase.RUNNING
    life.lose("EngineLost")
    assert life.phases()[-1] is Phase.CANCELLED


def test_overdue_is_not_a_sign_of_life(submit: MakeLife) -> None:
    """An attempt that nothing was heard from stays unseen when its stop is overdue."""
    life = submit()
    life.admit()
    life.tell(CancelRequested)
    life.tell(StopOverdue)
    assert not life.state.attempt_seen
    life.tell(CheckpointRestored, step=0, uri=None, covers_ns=None)
    assert life.state.attempt_seen


def test_an_attempt_whose_start_is_delayed_can_end(submit: MakeLife) -> None:
    """1. two fruitless losses delay attempt 3; 2. cancel; 3. its end is reported though it never began."""
    life = submit()
    life.admit()
    life.lose()
    life.lose()
    assert life.commands[-1] == StartAttempt(3, 2.0)
    life.tell(CancelRequested)
    life.tell(AttemptEnded, reason="Stopped", message="The attempt had not begun.", step=0)
    assert life.state.phase is Phase.CANCELLED


def test_events_of_an_old_attempt_change_nothing(submit: MakeLife) -> None:
    """Whatever an earlier attempt still says is ignored, and so is everything after the end."""
    life = running(submit())
    life.lose()
    stale: list[tuple[type[Event], dict[str, Any]]] = [
        (CheckpointRestored, {"step": 9, "uri": "x", "covers_ns": 0}),
        (FirstStepDone, {"step": 10}),
        (CheckpointCommitted, {"step": 10, "uri": "x", "covers_ns": 0}),
        (CaughtUp, {}),
        (AttemptEnded, {"reason": "Completed", "message": "", "step": 10}),
        (StopOverdue, {}),
    ]
    before = life.state
    for kind, fields in stale:
        life.tell(kind, attempt=1, **fields)
    assert life.state is before
    life.begin()
    life.lose("Completed")
    before = life.state
    for kind, fields in stale:
        life.tell(kind, attempt=2, **fields)
    assert life.state is before


def test_checkpoint_now_is_passed_on_only_while_training(submit: MakeLife) -> None:
    """`checkpoint now` reaches a gang that trains, and is refused with the phase everywhere else."""
    life = submit()
    with pytest.raises(Refusal, match="Pending"):
        life.tell(CheckpointRequested)
    life.admit()
    with pytest.raises(Refusal, match="Provisioning"):
        life.tell(CheckpointRequested)
    life.begin()
    assert life.tell(CheckpointRequested) == (SaveCheckpoint(1),)
    life.tell(CancelRequested)
    with pytest.raises(Refusal, match="being stopped"):
        life.tell(CheckpointRequested)
    life.lose("Stopped")
    with pytest.raises(Refusal, match="has ended; it is Cancelled"):
        life.tell(CheckpointRequested)


def test_a_refused_request_changes_nothing(submit: MakeLife) -> None:
    """Resume of a job that is not suspended is a refusal that names the phase."""
    life = submit()
    before = life.state
    with pytest.raises(Refusal, match="not suspended; it is Pending"):
        life.tell(ResumeRequested)
    assert life.state is before


def test_work_redone_after_a_refused_checkpoint_is_lost_until_it_catches_up(submit: MakeLife) -> None:
    """1. step 6 is settled; 2. its checkpoint is refused and attempt 2 starts from 3; 3. what it redoes is lost work
    until step 6 is reached again; 4. from there on it is useful."""
    life = running(submit())
    life.train_to(2, 3)
    life.save(3)
    life.train_to(4, 5, 6)
    life.save(6)
    life.lose()
    life.begin(3, "step-00000003")
    assert (life.state.checkpoint_step, life.state.checkpoint_uri) == (3, "step-00000003")
    life.train_to(5)
    assert life.save(5) == (SettleWork(life.now_ns - SECOND // 2, useful=False),)
    life.train_to(6)
    assert life.tell(CaughtUp) == (SettleWork(life.now_ns, useful=False),)
    life.train_to(7, 8)
    assert life.save(8) == (SettleWork(life.now_ns - SECOND // 2, useful=True),)
    assert life.state.settled_step == 8


def test_every_checkpoint_refused_means_from_the_beginning(submit: MakeLife) -> None:
    """When no checkpoint can be taken up, the state names none any more, and settled work stays settled."""
    life = running(submit())
    life.save(1)
    life.lose()
    life.tell(CheckpointRestored, step=0, uri=None, covers_ns=None)
    assert (life.state.checkpoint_step, life.state.checkpoint_uri, life.state.checkpoint_ns) == (None, None, None)
    assert life.state.settled_step == 1


def test_a_checkpoint_nobody_heard_of_is_taken_up(submit: MakeLife) -> None:
    """1. the gang dies right after a commit that was never reported; 2. the next attempt continues from it."""
    life = running(submit())
    life.train_to(4)
    life.lose()
    life.begin(5, "step-00000005")
    assert (life.state.checkpoint_step, life.state.step) == (5, 6)


def test_what_an_unheard_checkpoint_covers_is_useful(submit: MakeLife) -> None:
    """1. step 3 is saved, and 6 is durable when the gang dies, but unheard; 2. an attempt dies before it says where it
    starts: nothing is decided; 3. the next one starts from 6: useful until the end of step 6, and the rest is lost; 4.
    that is said once; 5. step 6 is settled, so that saving it again is no progress and makes nothing useful."""
    life = running(submit())
    life.save(3)
    life.train_to(6)
    covers_ns = life.now_ns + SECOND // 2
    life.train_to(8)
    for attempt in (2, 3):
        assert life.lose()[0] == BookActivity(Activity.RESTART, life.now_ns)
        assert life.commands[1:] == (StartAttempt(attempt),)
    restored = {"step": 6, "uri": "step-00000006", "covers_ns": covers_ns}
    assert life.tell(CheckpointRestored, **restored) == (SettleWork(covers_ns, useful=True), REST_IS_LOST)
    assert (life.state.settled_step, life.state.checkpoint_step) == (6, 6)
    assert life.tell(CheckpointRestored, **restored) == ()
    assert life.tell(FirstStepDone, step=7) == (BookActivity(Activity.TRAINING, life.now_ns),)
    assert life.tell(CheckpointRestored, **restored) == ()
    assert life.save(6) == (SettleWork(life.now_ns - SECOND // 2, useful=False),)
    assert not life.state.progressed


@pytest.mark.parametrize(("step", "covers_ns"), [(0, None), (3, 7), (5, None)])
def test_what_no_state_covers_is_lost(submit: MakeLife, step: int, covers_ns: int | None) -> None:
    """A start from the beginning, from what is settled already, or from a state of unknown time makes nothing useful."""
    life = running(submit())
    life.save(3)
    life.train_to(5)
    life.lose()
    uri = f"step-{step:08d}" if step else None
    assert life.tell(CheckpointRestored, step=step, uri=uri, covers_ns=covers_ns) == (REST_IS_LOST,)
    assert life.state.settled_step == 3


def test_an_attempt_that_never_says_where_it_starts_saves_nothing(submit: MakeLife) -> None:
    """Its first step settles what was at risk before it as lost, and a report that comes later settles nothing."""
    life = running(submit())
    life.lose()
    assert life.tell(FirstStepDone, step=1) == (REST_IS_LOST, BookActivity(Activity.TRAINING, life.now_ns))
    assert life.tell(FirstStepDone, step=1) == (BookActivity(Activity.TRAINING, life.now_ns),)
    assert life.tell(CheckpointRestored, step=1, uri="x", covers_ns=life.now_ns) == ()


def test_settlement_does_not_reach_into_the_future(submit: MakeLife) -> None:
    """A worker whose clock is ahead cannot settle time that has not passed yet."""
    life = running(submit())
    (settle,) = life.tell(CheckpointCommitted, step=1, uri="x", covers_ns=life.now_ns + 10**15)
    assert settle == SettleWork(life.now_ns, useful=True)


def test_errors_are_retried_as_often_as_allowed(submit: MakeLife) -> None:
    """`maxRestarts: 2` gives three attempts; the end keeps the error, says what was allowed, and counts two restarts."""
    life = submit(Limits(max_restarts=2))
    life.admit()
    for first in (0, 1, 2):
        life.begin(first)
        life.save(first + 1)
        life.lose("ApplicationError", "ValueError: bad label.")
    assert (life.phase, life.state.reason, life.state.attempt) == (Phase.FAILED, "ApplicationError", 3)
    assert life.state.application_restarts == 2
    assert life.state.message == (
        "The job's own code failed. ValueError: bad label. spec.failure.maxRestarts allows 2 restarts after errors."
    )


def test_losses_have_a_budget_of_their_own(submit: MakeLife) -> None:
    """`maxPreemptions: 1` ends the job at the second loss; errors are not charged to it."""
    life = submit(Limits(max_restarts=1, max_preemptions=1))
    life.admit()
    life.begin()
    life.lose("ApplicationError")
    life.begin()
    life.train_to(2)
    life.lose("WorkerLost")
    life.begin()
    life.train_to(3)
    life.lose("DriverLost", "The node is gone.")
    assert (life.phase, life.state.reason) == (Phase.FAILED, "PreemptionsExhausted")
    assert (life.state.application_restarts, life.state.preemption_restarts) == (1, 1)
    assert "It allows 1; last: DriverLost. The node is gone." in life.state.message


@pytest.mark.parametrize("reason", ["DataInvalid", "ConfigInvalid", "NonFiniteLoss", "OutOfMemory", "StorageFull"])
def test_what_would_only_fail_again_is_not_retried(submit: MakeLife, reason: str) -> None:
    """A failure that a further attempt cannot mend ends the job at once, whatever the budgets."""
    life = running(submit(Limits(max_restarts=9)))
    life.lose(reason, "why.")
    assert (life.phase, life.state.reason, life.state.attempt) == (Phase.FAILED, reason, 1)


def test_a_gang_lost_before_its_first_step_again_and_again_is_a_crash_loop(submit: MakeLife) -> None:
    """Five attempts without a step end the job, each further attempt after twice the pause."""
    life = submit()
    life.admit()
    delays = []
    while not life.phase.ended:
        life.lose()
        delays += [command.delay_seconds for command in life.commands if isinstance(command, StartAttempt)]
    assert delays == [0.0, 2.0, 4.0, 8.0]
    assert (life.state.reason, life.state.attempt, life.state.preemption_restarts) == ("CrashLoop", 5, 4)


def test_redoing_the_same_steps_for_ever_is_a_crash_loop(submit: MakeLife) -> None:
    """A step that kills every attempt ends the job, though each attempt trains up to it; the end says what helps."""
    life = running(submit())
    life.train_to(2, 3)
    life.lose()
    for _ in range(5):
        assert life.state.phase is Phase.RECOVERING
        life.begin()
        life.train_to(2, 3)
        life.lose()
    assert (life.phase, life.state.reason, life.state.attempt) == (Phase.FAILED, "CrashLoop", 6)
    assert "a smaller spec.checkpoint.every" in life.state.message


def test_one_new_step_or_checkpoint_is_progress(submit: MakeLife) -> None:
    """One step beyond the newest known one, or a checkpoint beyond the newest settled one, starts the count anew."""
    life = running(submit())
    life.train_to(9)
    for expected in (0, 1, 2):
        life.lose()
        assert life.state.fruitless_attempts == expected
        life.begin()
    life.save(2)  # far below step 9, but durable
    life.lose()
    assert life.state.fruitless_attempts == 0
    life.begin(2, "step-00000002")
    life.lose()
    assert life.state.fruitless_attempts == 1
    life.begin(2, "step-00000002")
    life.train_to(10)
    life.lose()
    assert life.state.fruitless_attempts == 0


def test_the_pause_is_bounded(submit: MakeLife) -> None:
    """However many fruitless attempts are allowed, the next one comes within five minutes."""
    life = submit(Limits(max_fruitless_attempts=2_000))
    life.admit()
    for _ in range(1_500):
        life.lose()
    start = life.commands[-1]
    assert isinstance(start, StartAttempt)
    assert start.delay_seconds == 300


@pytest.mark.parametrize("word", ["Cancelled", "Suspended", "CrashLoop", "NoCapacity", "no such word", ""])
def test_a_word_that_no_attempt_may_end_with_is_an_error_of_its_code(submit: MakeLife, word: str) -> None:
    """A worker cannot cancel or suspend its job by what it reports."""
    life = running(submit())
    life.lose(word, "told")
    assert (life.phase, life.state.reason) == (Phase.FAILED, "ApplicationError")
    assert f"It reported {word!r}. told" in life.state.message


def test_a_gang_that_stops_unasked_is_tried_again(submit: MakeLife) -> None:
    """A stop that this controller did not ask for costs no budget, and is followed by a further attempt."""
    life = running(submit(Limits(max_restarts=0, max_preemptions=0)))
    life.lose("Stopped")
    assert (life.phase, life.state.attempt) == (Phase.RECOVERING, 2)


def test_a_missing_pair_prints_the_story() -> None:
    """An event that must not occur is a defect whose message tells the whole story, and changes nothing."""
    life = running(Life())
    with pytest.raises(InternalError, match="no transition from Running on Queued") as caught:
        life.tell(Queued, message="?")
    assert all(str(entry) in str(caught.value) for entry in life.story)
    with pytest.raises(InternalError, match="never submitted"):
        transition(None, Queued(0, "?"), Limits())
