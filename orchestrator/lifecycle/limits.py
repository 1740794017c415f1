"""What a job file allows, what a loss is charged to, and how a job comes to its end. Shared by the handlers of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.lifecycle import events as on
from orchestrator.lifecycle.commands import Command
from orchestrator.lifecycle.reasons import Budget, TerminationReason
from orchestrator.lifecycle.state import JobState


@dataclass(frozen=True, slots=True)
class Limits:
    """What `spec.failure` and `spec.workers` allow. None means unlimited."""

    max_restarts: int = 0
    max_preemptions: int | None = None
    max_fruitless_attempts: int = 5
    """Lost attempts in a row without progress (see `JobState.progressed`), after which the job is in a crash loop."""
    max_fruitless_worlds: int = 20
    """The same for worlds of one attempt, lost or left. More, since a storm may take machines while a world forms, and a
    world forms in a second."""
    sizes: tuple[int, ...] = ()
    """Numbers of workers that an elastic job may have, ascending."""


class Refusal(Exception):
    """A request that the job's phase does not allow; the message is for the user."""


Result = tuple[JobState, Sequence[Command], str, str]
"""new state, commands, reason, message"""


def end(
    state: JobState, event: on.Event, reason: TerminationReason, message: str, commands: Sequence[Command]
) -> Result:
    """The job comes to rest for this reason."""
    phase = reason.consequence.phase
    text = " ".join(part for part in (reason.consequence.sentence, message) if part)
    ended_ns = event.at_ns if phase.ended else None
    after = replace(state, phase=phase, stopping=None, ended_ns=ended_ns, reason=reason.value, message=text)
    return after, commands, reason.value, text


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a job cannot go on after a loss."""

    reason: TerminationReason
    told: str


def charged(state: JobState, reason: TerminationReason, told: str, limits: Limits) -> tuple[JobState, Verdict | None]:
    """The state after the loss was charged to its budget, or why no further attempt or world may follow."""
    if not reason.consequence.retried:
        return state, Verdict(reason, told)
    if reason.consequence.budget is Budget.APPLICATION:
        if state.application_restarts >= limits.max_restarts:
            allowed = f"spec.failure.maxRestarts allows {limits.max_restarts} restarts after errors."
            return state, Verdict(reason, sentences(told, allowed))
        return replace(state, application_restarts=state.application_restarts + 1), None
    if reason.consequence.budget is Budget.PREEMPTION:
        if limits.max_preemptions is not None and state.preemption_restarts >= limits.max_preemptions:
            last = sentences(f"It allows {limits.max_preemptions}; last: {reason}", told)
            return state, Verdict(TerminationReason.PREEMPTIONS_EXHAUSTED, last)
        return replace(state, preemption_restarts=state.preemption_restarts + 1), None
    return state, None


def sentences(*parts: str) -> str:
    """One after the other, with a full stop between where there is none; what comes last stays as it was told."""
    said = [part.strip() for part in parts if part.strip()]
    ended = [part if part.endswith((".", "!", "?")) else f"{part}." for part in said[:-1]]
    return " ".join([*ended, *said[-1:]])
