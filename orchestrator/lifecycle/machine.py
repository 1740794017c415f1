"""The transition table.

A handler stands for each pair (phase, event) that may occur; a pair that is missing is an `InternalError` that prints
the job's story. A request that makes no sense in a phase (suspend an ended job) is not an error of ours: it is a
`Refusal` that the caller shows. Events of an attempt that is no longer the present one are stale and change nothing.

Work and money: a checkpoint settles the training time up to `covers_ns` as useful. When an attempt is lost and another
follows, what it trained after its last checkpoint stays at risk until it is known what survived, since a checkpoint may
be durable unheard: the next attempt takes up a state, which settles the time that this state covers as useful, and the
rest as lost. The end of the job settles everything: when it succeeds, what is left is useful, since the final model is
durable; otherwise it is lost. What was settled stays settled: if a later attempt has to start before the newest settled step (its checkpoint was refused),
the time until that step is reached again is lost work. A gang that stops as asked with its newest step saved loses
nothing.

Every loop ends: an attempt has made progress only when it brought a step beyond the newest one known, or a checkpoint
beyond the newest settled one. Both are bounded by the length of the training, and `Limits.max_fruitless_attempts`
bounds the attempts between them, so a step that kills every attempt cannot be redone for ever. The same holds for the
worlds inside an attempt (see `worlds`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.domain.errors import InternalError
from orchestrator.lifecycle import events as on
from orchestrator.lifecycle import worlds
from orchestrator.lifecycle.commands import (
    BookActivity,
    Command,
    HoldMachines,
    KillAttempt,
    ReleaseMachines,
    ReleaseSlots,
    SaveCheckpoint,
    SettleWork,
    StartAttempt,
    StopAttempt,
)
from orchestrator.lifecycle.limits import Limits, Refusal, Result, charged, end, sentences
from orchestrator.lifecycle.reasons import Budget, TerminationReason
from orchestrator.lifecycle.state import KEPT_DISRUPTIONS, Activity, Disruption, JobState, Phase, StoryEntry

MAX_DELAY_SECONDS = 300.0
"""Longest pause before a further attempt; the machines are paid for meanwhile."""


@dataclass(frozen=True, slots=True)
class Decision:
    state: JobState
    commands: tuple[Command, ...] = ()
    entry: StoryEntry | None = None
    """None when the event was stale, or asked for what is under way, and changed nothing."""


_Handler = Callable[[JobState, on.Event, Limits], Result]


def transition(state: JobState | None, event: on.Event, limits: Limits, story: Sequence[StoryEntry] = ()) -> Decision:
    """The next state and what to do. Raises `Refusal` for a request that cannot be met and `InternalError` for a pair
    that must not occur; neither changes anything."""
    if state is None:
        if not isinstance(event, on.Submitted):
            raise InternalError(f"{type(event).__name__} for a job that was never submitted")
        return _submitted(event)
    if isinstance(event, on.AttemptEvent):
        if not state.phase.holds_machines or event.attempt != state.attempt:
            return Decision(state)
        if isinstance(event, on.WorldEvent) and _of_another_world(state, event):
            return Decision(state)
        if not isinstance(event, on.StopOverdue):
            state = state if state.attempt_seen else replace(state, attempt_seen=True)
        elif state.stopping is None:
            return Decision(state)
    handler = _TABLE.get((state.phase, type(event)))
    if handler is None:
        told = "\n  ".join(str(entry) for entry in story)
        raise InternalError(f"no transition from {state.phase} on {type(event).__name__}; the story so far:\n  {told}")
    after, commands, reason, message = handler(state, event, limits)
    if after is state and not commands:
        return Decision(state)  # asked for again: nothing new to tell
    if after.phase != state.phase:
        ran_ns = max(0, event.at_ns - state.phase_since_ns) if state.phase is Phase.RUNNING else 0
        after = replace(after, phase_since_ns=event.at_ns, ran_ns=state.ran_ns + ran_ns)
    entry = StoryEntry(event.at_ns, type(event).__name__, state.phase, after.phase, reason, message)
    return Decision(after, tuple(commands), entry)


def _of_another_world(state: JobState, event: on.WorldEvent) -> bool:
    return event.generation <= state.lost_generation or event.generation < state.generation


def _submitted(event: on.Submitted) -> Decision:
    phase = Phase.SUSPENDED if event.suspended else Phase.PENDING
    message = "accepted, and suspended as the job file asks" if event.suspended else "accepted"
    reason = TerminationReason.SUSPENDED.value if event.suspended else None
    state = JobState(
        phase, event.at_ns, event.at_ns, event.workers, elastic=event.elastic, reason=reason, message=message
    )
    return Decision(state, (), StoryEntry(event.at_ns, "Submitted", "", phase, "Submitted", message))


def _queued(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.Queued)
    return replace(state, phase=Phase.QUEUED, message=event.message), (), "Queued", event.message


def _admitted(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.Admitted)
    first = state.attempt == 0
    attempt = state.attempt + 1
    activity = Activity.PROVISIONING if first else Activity.RESTART
    after = _new_attempt(state, Phase.PROVISIONING if first else Phase.RECOVERING, attempt, event.message)
    hold = () if state.elastic else (HoldMachines(state.workers),)
    commands = (*hold, BookActivity(activity, event.at_ns), StartAttempt(attempt))
    return replace(after, fruitless_attempts=0), commands, "Admitted", event.message


def _new_attempt(state: JobState, phase: Phase, attempt: int, message: str) -> JobState:
    return replace(
        state,
        phase=phase,
        attempt=attempt,
        attempt_seen=False,
        attempt_step=0,
        restored_step=None,
        progressed=False,
        generation=0,
        lost_generation=0,
        world_workers=None,
        world_progressed=False,
        fruitless_worlds=0,
        message=message,
    )


def _too_large(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.TooLargeForCluster)
    return end(state, event, TerminationReason.NO_CAPACITY, event.message, ())


def _start_deadline(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.StartDeadlinePassed)
    return end(state, event, TerminationReason.START_DEADLINE_EXCEEDED, event.message, ())


def _restored(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.CheckpointRestored)
    place = f"continues from step {event.step} ({event.uri})" if event.uri else "starts from the beginning"
    message = f"attempt {event.attempt} {place}"
    decided = state.restored_step is not None or state.phase is Phase.RUNNING
    after = replace(
        state,
        step=max(state.step, event.step),
        attempt_step=max(state.attempt_step, event.step) if decided else event.step,
        restored_step=event.step,
        generation=event.generation,
        message=message,
    )
    if not decided:
        after = _world_redoes(after, event.step).mended(step=event.step)
    if state.restored_step is None and event.uri != state.checkpoint_uri:
        # What was the newest checkpoint is refused or gone, or a newer one became durable unheard.
        after = replace(
            after,
            checkpoint_step=event.step if event.uri else None,
            checkpoint_uri=event.uri,
            checkpoint_ns=event.at_ns if event.uri else None,
        )
    if decided:
        return after, (), "Restored", message  # what survived is decided already
    commands: tuple[Command, ...] = (_REST_IS_LOST,)
    if event.step > state.settled_step and event.covers_ns is not None:
        after = replace(after, settled_step=event.step)
        commands = (SettleWork(event.covers_ns, useful=True), _REST_IS_LOST)
    return after, commands, "Restored", message


def _world_redoes(state: JobState, step: int) -> JobState:
    """Counts a world of this attempt that was lost and of which memory kept nothing."""
    last = state.disruptions[-1] if state.disruptions else None
    if last is None or last.voluntary or (last.attempt, last.generation) != (state.attempt, state.lost_generation):
        return state
    return replace(state, interruptions=state.interruptions + (step < last.step))


def _first_step(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.FirstStepDone)
    who = f"attempt {event.attempt}" if event.generation == 1 else f"generation {event.generation}"
    size = f" with {worlds.count(state.world_workers)}" if state.world_workers is not None else ""
    message = f"{who} trains{size}; its first step was {event.step}"
    after = replace(
        state.at_step(event.step),
        phase=Phase.RUNNING,
        generation=event.generation,
        started_ns=state.started_ns if state.started_ns is not None else event.at_ns,
        message=message,
    )
    workers = state.world_workers if state.world_workers is not None else state.workers
    after = after.mended(workers_after=workers, back_ns=event.at_ns)
    commands: tuple[Command, ...] = (BookActivity(Activity.TRAINING, event.at_ns),)
    if state.restored_step is None and state.phase is not Phase.RUNNING:
        commands = (_REST_IS_LOST, *commands)  # it never said what it took up, so nothing shows that anything survived
    return after, commands, "Training", message


def _committed(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.CheckpointCommitted)
    beyond = event.step > state.settled_step
    after = state.at_step(event.step)
    after = replace(
        after,
        # Between two worlds the gang stands nowhere; what it takes up will say where.
        attempt_step=after.attempt_step if state.lost_generation < max(1, state.generation) else state.attempt_step,
        progressed=after.progressed or beyond,
        world_progressed=after.world_progressed or beyond,
        checkpoint_step=event.step,
        checkpoint_uri=event.uri,
        checkpoint_ns=event.at_ns,
        settled_step=max(state.settled_step, event.step),
    )
    settle = SettleWork(min(event.covers_ns, event.at_ns), useful=beyond)
    return after, (settle,), "CheckpointCommitted", f"step {event.step}: {event.uri}"


def _caught_up(state: JobState, event: on.Event, _: Limits) -> Result:
    message = f"step {state.settled_step} is reached again; what was redone until here is lost work"
    return state, (SettleWork(event.at_ns, useful=False),), "CaughtUp", message


def _attempt_ended(state: JobState, event: on.Event, limits: Limits) -> Result:
    assert isinstance(event, on.AttemptEnded)
    reason, told = _reported(event)
    state = state.at_step(event.step)
    why = reason if state.stopping is None or reason in _DONE else TerminationReason(state.stopping)
    saved = why in SAVE_FIRST and reason is TerminationReason.STOPPED and _newest_step_is_saved(state)
    settle = SettleWork(None, useful=reason in _DONE or saved)
    finish = (BookActivity(Activity.SHUTDOWN, event.at_ns), settle, ReleaseMachines())
    if state.stopping is not None and reason not in _DONE:
        if why in SAVE_FIRST:
            stopped = reason is TerminationReason.STOPPED
            instead = () if stopped else (f"The attempt ended on its own: {reason}", told)
            amounts = () if why is TerminationReason.SUSPENDED else (state.message,)
            told = sentences(*amounts, *instead, _where_resume_starts(state))
        else:
            told = "" if why is TerminationReason.CANCELLED else state.message
        return end(state, event, why, told, finish)
    if not reason.consequence.retried:
        return end(state, event, reason, told, finish)
    if reason.consequence.budget is Budget.PREEMPTION and state.phase is Phase.RUNNING and state.progressed:
        state = replace(state, interruptions=state.interruptions + 1)
    paid, verdict = charged(state, reason, told, limits)
    if verdict is not None:
        return end(state, event, verdict.reason, verdict.told, finish)
    fruitless = 0 if state.progressed else state.fruitless_attempts + 1
    if fruitless >= limits.max_fruitless_attempts:
        last = sentences(f"{fruitless} in a row; last: {reason}", told)
        if state.attempt_step > (state.restored_step or 0):
            advice = f"Step {state.step} was reached before; a smaller spec.checkpoint.every keeps more of it."
            last = sentences(last, advice)
        crashed = replace(state, fruitless_attempts=fruitless)
        return end(crashed, event, TerminationReason.CRASH_LOOP, last, finish)
    attempt = state.attempt + 1
    message = sentences(reason.consequence.sentence, told, f"Attempt {attempt} follows.")
    after = replace(_new_attempt(paid, Phase.RECOVERING, attempt, message), fruitless_attempts=fruitless)
    if state.phase is Phase.RUNNING:
        after = after.disrupted(_disruption(state, event, reason))
    release = (ReleaseSlots(),) if state.elastic else ()
    again = StartAttempt(attempt, _delay_seconds(fruitless))
    commands = (*release, BookActivity(Activity.RESTART, event.at_ns), again)
    return after, commands, reason.value, message


def _disruption(state: JobState, event: on.AttemptEnded, reason: TerminationReason) -> Disruption:
    workers = state.world_workers if state.world_workers is not None else state.workers
    step, at_ns = state.attempt_step, event.at_ns
    return Disruption(at_ns, reason.value, False, state.attempt, state.generation, at_ns, step, workers)


def _reported(event: on.AttemptEnded) -> tuple[TerminationReason, str]:
    """The reason of an attempt's end and what is told of it. A word that no attempt may end with (a worker can report
    anything) counts as an error of the job's own code."""
    if event.reason in ATTEMPT_REASONS:
        return TerminationReason(event.reason), event.message
    return TerminationReason.APPLICATION_ERROR, sentences(f"It reported {event.reason!r}", event.message)


def _newest_step_is_saved(state: JobState) -> bool:
    return state.settled_step <= state.attempt_step == state.checkpoint_step


def _where_resume_starts(state: JobState) -> str:
    if state.checkpoint_step is None:
        return "No checkpoint exists, so resume starts from the beginning."
    return f"Resume continues from step {state.checkpoint_step}."


def _delay_seconds(fruitless: int) -> float:
    """Pause before the next attempt: none after the first fruitless one, then 2, 4, 8 ... seconds."""
    return 0.0 if fruitless <= 1 else min(MAX_DELAY_SECONDS, 2.0 ** min(fruitless - 1, 30))


def _cancel_waiting(state: JobState, event: on.Event, _: Limits) -> Result:
    return end(state, event, TerminationReason.CANCELLED, "", ())


def _cancel_holding(state: JobState, event: on.Event, _: Limits) -> Result:
    if state.stopping == TerminationReason.CANCELLED.value:
        return state, (), "CancelRequested", state.message
    message = "cancelling: the workers are asked to stop"
    after = replace(state, stopping=TerminationReason.CANCELLED.value, message=message)
    return after, (StopAttempt(state.attempt, save=False),), "CancelRequested", message


def _suspend_waiting(state: JobState, event: on.Event, _: Limits) -> Result:
    return end(state, event, TerminationReason.SUSPENDED, _where_resume_starts(state), ())


def _suspend_holding(state: JobState, _: on.Event, __: Limits) -> Result:
    if state.stopping == TerminationReason.CANCELLED.value:
        raise Refusal("the job is being cancelled")
    if state.stopping not in (None, TerminationReason.SUSPENDED.value):
        raise Refusal(f"the job is being ended: {state.message}")
    if state.stopping is not None:
        return state, (), "SuspendRequested", state.message
    message = "suspending: the workers are asked to save and stop"
    after = replace(state, stopping=TerminationReason.SUSPENDED.value, message=message)
    return after, (StopAttempt(state.attempt, save=True),), "SuspendRequested", message


def _budget_reached(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.BudgetReached)
    if state.stopping is not None:
        return state, (), "BudgetReached", state.message  # it stops already
    reason = TerminationReason.BUDGET_EXCEEDED if event.fail else TerminationReason.BUDGET_SUSPENDED
    after = replace(state, stopping=reason.value, message=event.message)
    return after, (StopAttempt(state.attempt, save=True),), "BudgetReached", event.message


def _suspend_suspended(state: JobState, _: on.Event, __: Limits) -> Result:
    return state, (), "SuspendRequested", "the job is suspended already"


def _resume(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.ResumeRequested)
    message = "resumed; waits for room"
    budget = state.budget_nanodollars if event.budget_nanodollars is None else event.budget_nanodollars
    after = replace(state, phase=Phase.PENDING, reason=None, message=message, budget_nanodollars=budget)
    return after, (), "ResumeRequested", message


def _resume_active(state: JobState, _: on.Event, __: Limits) -> Result:
    if state.stopping is not None:
        raise Refusal("the job is still stopping; try again when it is Suspended")
    raise Refusal(f"the job is not suspended; it is {state.phase}")


def _checkpoint(state: JobState, _: on.Event, __: Limits) -> Result:
    if state.stopping is not None:
        raise Refusal("the job is being stopped")
    return state, (SaveCheckpoint(state.attempt),), "CheckpointRequested", "a checkpoint is asked for"


def _checkpoint_elsewhere(state: JobState, _: on.Event, __: Limits) -> Result:
    raise Refusal(f"the job does not train now; it is {state.phase}")


def _overdue(state: JobState, _: on.Event, __: Limits) -> Result:
    message = "the workers did not stop in time and are killed"
    return replace(state, message=message), (KillAttempt(state.attempt),), "StopOverdue", message


def _refuse_ended(state: JobState, _: on.Event, __: Limits) -> Result:
    raise Refusal(f"the job has ended; it is {state.phase}")


ATTEMPT_REASONS = frozenset(TerminationReason) - {
    TerminationReason.CANCELLED,
    TerminationReason.SUSPENDED,
    TerminationReason.NO_CAPACITY,
    TerminationReason.START_DEADLINE_EXCEEDED,
    TerminationReason.CRASH_LOOP,
    TerminationReason.PREEMPTIONS_EXHAUSTED,
    TerminationReason.BUDGET_EXCEEDED,
    TerminationReason.BUDGET_SUSPENDED,
}
"""What an attempt may end with; the other reasons are decided here, for the job."""
SAVE_FIRST = frozenset(
    {TerminationReason.SUSPENDED, TerminationReason.BUDGET_EXCEEDED, TerminationReason.BUDGET_SUSPENDED}
)
"""Reasons to stop a gang that let it save its newest step before."""
_DONE = frozenset({TerminationReason.COMPLETED, TerminationReason.EARLY_STOPPED})
_REST_IS_LOST = SettleWork(None, useful=False)

_WAITING = (Phase.PENDING, Phase.QUEUED)
_HOLDING = (Phase.PROVISIONING, Phase.RECOVERING, Phase.RUNNING, Phase.RESIZING)
_ENDED = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)

_TABLE: dict[tuple[Phase, type[on.Event]], _Handler] = {
    **{(phase, on.Queued): _queued for phase in _WAITING},
    **{(phase, on.Admitted): _admitted for phase in _WAITING},
    **{(phase, on.TooLargeForCluster): _too_large for phase in _WAITING},
    **{(phase, on.StartDeadlinePassed): _start_deadline for phase in _WAITING},
    **{(phase, on.CancelRequested): _cancel_waiting for phase in (*_WAITING, Phase.SUSPENDED)},
    **{(phase, on.SuspendRequested): _suspend_waiting for phase in _WAITING},
    **{(phase, on.BudgetReached): _budget_reached for phase in _HOLDING},
    (Phase.SUSPENDED, on.SuspendRequested): _suspend_suspended,
    (Phase.SUSPENDED, on.ResumeRequested): _resume,
    **{(phase, on.ResumeRequested): _resume_active for phase in (*_WAITING, *_HOLDING)},
    **{(phase, on.CheckpointRestored): _restored for phase in _HOLDING},
    **{(phase, on.FirstStepDone): _first_step for phase in _HOLDING},
    **{(phase, on.CheckpointCommitted): _committed for phase in _HOLDING},
    **{(phase, on.AttemptEnded): _attempt_ended for phase in _HOLDING},
    (Phase.RUNNING, on.CaughtUp): _caught_up,
    **{(phase, on.StopOverdue): _overdue for phase in _HOLDING},
    **{(phase, on.CancelRequested): _cancel_holding for phase in _HOLDING},
    **{(phase, on.SuspendRequested): _suspend_holding for phase in _HOLDING},
    (Phase.RUNNING, on.CheckpointRequested): _checkpoint,
    **{
        (phase, on.CheckpointRequested): _checkpoint_elsewhere
        for phase in (*_WAITING, Phase.PROVISIONING, Phase.RECOVERING, Phase.RESIZING, Phase.SUSPENDED)
    },
    **{(phase, on.WorldFormed): worlds.formed for phase in _HOLDING},
    **{(phase, on.WorldLost): worlds.lost for phase in _HOLDING},
    **{(phase, on.MemoryTakenUp): worlds.taken_up for phase in _HOLDING},
    **{(phase, on.ScaleRequested): worlds.scale for phase in (*_WAITING, *_HOLDING, Phase.SUSPENDED)},
    **{
        (phase, request): _refuse_ended
        for phase in _ENDED
        for request in (
            on.CancelRequested,
            on.SuspendRequested,
            on.ResumeRequested,
            on.CheckpointRequested,
            on.ScaleRequested,
        )
    },
}


def check_invariants(state: JobState) -> None:
    """Raise `InternalError` when a state contradicts itself; tests call it after every transition."""
    known = (state.checkpoint_step is None, state.checkpoint_uri is None, state.checkpoint_ns is None)
    rules = {
        "an ended job has an end time, and no other has one": state.phase.ended == (state.ended_ns is not None),
        "an ended or suspended job has a reason": state.reason is not None
        or not (state.phase.ended or state.phase is Phase.SUSPENDED),
        "a job that holds machines has an attempt": not state.phase.holds_machines or state.attempt >= 1,
        "only a job that holds machines is stopping": state.stopping is None or state.phase.holds_machines,
        "a running job has started": state.phase is not Phase.RUNNING or state.started_ns is not None,
        "an attempt is never ahead of the job": state.attempt_step <= state.step,
        "no checkpoint is ahead of the job": (state.checkpoint_step or 0) <= state.step,
        "nothing is settled ahead of the job": state.settled_step <= state.step,
        "a checkpoint has a step, a place and a time": all(known) or not any(known),
        "restarts do not outnumber attempts and lost worlds": state.application_restarts + state.preemption_restarts
        <= max(0, state.attempt - 1) + state.worlds_lost,
        "no world is lost before it is known": 0 <= state.lost_generation <= state.generation,
        "only so many disruptions are kept": len(state.disruptions) <= KEPT_DISRUPTIONS,
        "counts are not negative and there is a worker": state.workers >= 1
        and min(state.attempt, state.step, state.attempt_step, state.fruitless_attempts) >= 0
        and min(state.interruptions, state.ran_ns) >= 0,
        "an interruption ends an attempt or a world": state.interruptions <= state.attempt + state.worlds_lost,
    }
    for rule, holds in rules.items():
        if not holds:
            raise InternalError(f"broken invariant: {rule}; {state}")
