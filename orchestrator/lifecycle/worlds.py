"""Worlds inside an attempt: what follows when one forms, is lost or is left, and when state is taken up from memory.

An elastic engine goes on by itself after a loss, so these handlers decide on phase, money and budgets, and only stop the
gang when a budget is used up. A loss makes the job Recovering and its time `restart`; a world that is left on purpose makes
it Resizing and its time `resize`. Either lasts until the first step of the next world.

Work and money: a world that takes up step s from memory loses what was trained after s; what was trained before stays at
risk, since memory is not durable, until a checkpoint covers it. A world that takes up a checkpoint does what an attempt
does.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.lifecycle import events as on
from orchestrator.lifecycle.commands import BookActivity, Command, SettleWork, StopAttempt, WishSize
from orchestrator.lifecycle.limits import Limits, Refusal, Result, Verdict, charged, sentences
from orchestrator.lifecycle.reasons import TerminationReason
from orchestrator.lifecycle.state import Activity, Disruption, JobState, Phase

SIZES_TOLD = 12
"""Most sizes that a refusal names one by one."""


def count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def formed(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.WorldFormed)
    if event.generation == state.generation and event.workers == state.world_workers:
        return state, (), "WorldFormed", state.message
    whole = event.workers == state.workers
    size = count(event.workers) if whole else f"{event.workers} of {count(state.workers)}"
    message = f"generation {event.generation} forms with {size}"
    after = replace(state, generation=event.generation, world_workers=event.workers, message=message)
    return after.mended(workers_after=event.workers), (), "WorldFormed", message


def lost(state: JobState, event: on.Event, limits: Limits) -> Result:
    assert isinstance(event, on.WorldLost)
    voluntary = event.reason in on.VOLUNTARY
    began_ns, known = min(event.began_ns, event.at_ns), event.reason in set(TerminationReason)
    if state.phase is Phase.RUNNING:  # it trained for a moment: what came before is over, and does not go on again
        began_ns = max(began_ns, state.phase_since_ns + 1)
    reason = TerminationReason(event.reason) if known else TerminationReason.WORKER_LOST
    word = event.reason if voluntary else reason.value
    before = state.world_workers if state.world_workers is not None else state.workers
    fruitless = 0 if state.world_progressed else state.fruitless_worlds + 1
    phase, commands = _phase_after(state, began_ns, voluntary)
    after = replace(
        state,
        phase=phase,
        generation=max(state.generation, event.generation),
        lost_generation=event.generation,
        restored_step=None,
        world_progressed=False,
        fruitless_worlds=fruitless,
        worlds_lost=state.worlds_lost + (not voluntary),
        resizes=state.resizes + voluntary,
    ).disrupted(
        Disruption(
            at_ns=event.at_ns,
            reason=word,
            voluntary=voluntary,
            attempt=event.attempt,
            generation=event.generation,
            began_ns=began_ns,
            step=state.attempt_step,
            workers_before=before,
        )
    )
    verdict: Verdict | None = None
    if state.stopping is None and not voluntary and reason is not TerminationReason.OUT_OF_MEMORY:
        # Of a world this reason says that the engine goes on with less at a time; when it cannot, the attempt ends.
        after, verdict = charged(after, reason, event.message, limits)
    if state.stopping is None and verdict is None and fruitless >= limits.max_fruitless_worlds:
        verdict = Verdict(
            TerminationReason.CRASH_LOOP,
            sentences(f"{fruitless} worlds of attempt {event.attempt} in a row; last: {word}", event.message),
        )
    if verdict is not None:
        after = replace(after, stopping=verdict.reason.value, message=verdict.told)
        return after, (*commands, StopAttempt(state.attempt, save=False)), verdict.reason.value, verdict.told
    message = _told(after, event, reason, voluntary)
    return replace(after, message=message), commands, word, message


def _phase_after(state: JobState, began_ns: int, voluntary: bool) -> tuple[Phase, tuple[Command, ...]]:
    """A loss while resizing is a recovery; what has not trained yet (Provisioning, Recovering) stays what it is."""
    if state.phase is Phase.RUNNING and voluntary:
        return Phase.RESIZING, (BookActivity(Activity.RESIZE, began_ns),)
    if state.phase is Phase.RUNNING or (state.phase is Phase.RESIZING and not voluntary):
        return Phase.RECOVERING, (BookActivity(Activity.RESTART, began_ns),)
    return state.phase, ()


def _told(state: JobState, event: on.WorldLost, reason: TerminationReason, voluntary: bool) -> str:
    """`A worker process was lost. node b is gone. Generation 3 ended after step 41; the next one may have 3 workers.`"""
    again = " again" if event.target == state.world_workers else ""
    then = (
        f"the next one may have {count(event.target)}{again}" if event.target > 0 else "the next one waits for workers"
    )
    ended = "was left" if voluntary else "ended"
    world = f"Generation {event.generation} {ended} after step {state.attempt_step}; {then}."
    return sentences("" if voluntary else reason.consequence.sentence, event.message, world)


def taken_up(state: JobState, event: on.Event, _: Limits) -> Result:
    assert isinstance(event, on.MemoryTakenUp)
    message = f"generation {event.generation} continues from step {event.step}, which memory kept"
    if state.restored_step is not None or state.phase is Phase.RUNNING:
        return replace(state, message=message), (), "TakenUp", message  # what survived is decided already
    after = replace(
        state,
        step=max(state.step, event.step),
        attempt_step=event.step,
        restored_step=event.step,
        progressed=state.progressed or event.step > state.step,
        fruitless_worlds=0 if event.step > state.step else state.fruitless_worlds,  # steps that went unheard were made
        message=message,
    ).mended(step=event.step)
    # Unknown: all is lost when nothing was kept; else nobody can say which stretch was, and it is one of moments.
    unknown_ns = 0 if event.step == 0 else event.at_ns
    from_ns = event.covers_ns if event.covers_ns is not None else unknown_ns
    return after, (SettleWork(None, useful=False, from_ns=from_ns),), "TakenUp", message


def scale(state: JobState, event: on.Event, limits: Limits) -> Result:
    assert isinstance(event, on.ScaleRequested)
    if not state.elastic:
        raise Refusal(
            f"it has a fixed number of workers ({state.workers}); a job whose spec.workers.min is below max can be scaled"
        )
    if event.workers not in limits.sizes:
        raise Refusal(f"{count(event.workers)} is not a size that it may have; {_near(event.workers, limits.sizes)}")
    if state.stopping is not None:
        raise Refusal("the job is being stopped")
    if event.workers == state.workers:
        return state, (), "ScaleRequested", state.message
    message = f"asked for {count(event.workers)} instead of {state.workers}"
    commands = (WishSize(state.attempt, event.workers),) if state.phase.holds_machines else ()
    return replace(state, workers=event.workers, message=message), commands, "ScaleRequested", message


def _near(workers: int, sizes: tuple[int, ...]) -> str:
    if len(sizes) <= SIZES_TOLD:
        return f"its sizes are {', '.join(str(size) for size in sizes)}"
    below = [size for size in sizes if size < workers][-1:]
    above = [size for size in sizes if size > workers][:1]
    return f"the nearest are {' and '.join(str(size) for size in (*below, *above))}"
