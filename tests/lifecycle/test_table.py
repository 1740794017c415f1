"""The table as a whole: which pairs are missing and why, and that every reason says all that it must."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.domain.errors import ExitCode, InternalError
from orchestrator.lifecycle import (
    Admitted,
    AttemptEnded,
    Budget,
    BudgetReached,
    CancelRequested,
    CaughtUp,
    CheckpointCommitted,
    CheckpointRequested,
    CheckpointRestored,
    Disruption,
    Event,
    FirstStepDone,
    JobState,
    Limits,
    MemoryTakenUp,
    Phase,
    Queued,
    Refusal,
    ResumeRequested,
    ScaleRequested,
    StartDeadlinePassed,
    StopOverdue,
    Submitted,
    SuspendRequested,
    TerminationReason,
    TooLargeForCluster,
    WorldFormed,
    WorldLost,
    check_invariants,
    events,
    transition,
)

SAMPLES: tuple[Event, ...] = (
    Submitted(5, 1),
    Queued(5, "m"),
    Admitted(5, "m"),
    TooLargeForCluster(5, "m"),
    StartDeadlinePassed(5, "m"),
    WorldFormed(5, 1, 1),
    WorldLost(5, 1, "WorkerLost", "m", 4, 1),
    MemoryTakenUp(5, 1, 0, None),
    CheckpointRestored(5, 1, 0, None, None),
    FirstStepDone(5, 1, 1),
    CheckpointCommitted(5, 1, 1, "u", 4),
    CaughtUp(5, 1),
    AttemptEnded(5, 1, "WorkerLost", "m", 1),
    StopOverdue(5, 1),
    CancelRequested(5),
    SuspendRequested(5),
    ResumeRequested(5),
    CheckpointRequested(5),
    BudgetReached(5, "m", fail=True),
    ScaleRequested(5, 2),
)
QUEUE = frozenset({"Queued", "Admitted", "TooLargeForCluster", "StartDeadlinePassed"})
EVERY = {type(event).__name__ for event in SAMPLES}


def state_in(phase: Phase) -> JobState:
    attempt = 1 if phase.holds_machines else 0
    ended_ns = 3 if phase.ended else None
    reason = "Suspended" if phase.ended or phase is Phase.SUSPENDED else None
    state = JobState(phase, 1, 2, 1, attempt=attempt, started_ns=2, ended_ns=ended_ns, reason=reason, elastic=True)
    check_invariants(state)
    return state


def why_missing(phase: Phase, event: str) -> str | None:
    """Why a pair is not in the table; None: it must be there."""
    if event == "Submitted":
        return "a job is submitted once, and `Submitted` is what makes its state"
    if event in QUEUE and phase not in (Phase.PENDING, Phase.QUEUED):
        return "the queue looks only at jobs that wait, in the same turn in which it decides"
    if event == "BudgetReached" and not phase.holds_machines:
        return "only what jobs that hold machines cost is watched"
    if event == "CaughtUp" and phase in (Phase.PROVISIONING, Phase.RECOVERING, Phase.RESIZING):
        return "it is derived from a step, and a world's first step makes the job Running first"
    return None


def test_the_samples_name_every_event() -> None:
    """Every concrete event class of the package is in the sample."""

    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)}
    assert {kind.__name__ for kind in kinds - {Event, events.AttemptEvent, events.WorldEvent}} == EVERY


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_a_pair_is_handled_or_cannot_occur(phase: Phase, event: Event) -> None:
    """Each (phase, event) changes the state, is refused, is stale, or is missing for a reason written down here."""
    state, missing = state_in(phase), why_missing(phase, type(event).__name__)
    if isinstance(event, StopOverdue) and phase.holds_machines:
        state = replace(state, stopping="Cancelled")
    try:
        decision = transition(state, event, Limits(sizes=(1, 2)))
    except InternalError:
        assert missing is not None
    except Refusal:
        assert missing is None
        assert isinstance(
            event, SuspendRequested | ResumeRequested | CheckpointRequested | CancelRequested | ScaleRequested
        )
    else:
        assert missing is None
        check_invariants(decision.state)
        if decision.entry is None:
            assert decision.state is state


@pytest.mark.parametrize("reason", list(TerminationReason))
def test_a_reason_says_all_that_it_must(reason: TerminationReason) -> None:
    """Every reason has a final phase, says whether it is retried and who pays, and has a sentence and an exit code."""
    consequence = reason.consequence
    assert consequence.phase.ended or consequence.phase is Phase.SUSPENDED
    assert consequence.sentence[0].isupper()
    assert consequence.sentence.endswith(".")
    assert isinstance(consequence.budget, Budget)
    if consequence.phase is Phase.FAILED:
        assert consequence.exit_code not in (ExitCode.OK, ExitCode.CANCELLED)
    else:
        assert not consequence.retried
        codes = {Phase.CANCELLED: ExitCode.CANCELLED}
        budget = reason is TerminationReason.BUDGET_SUSPENDED
        assert consequence.exit_code is (ExitCode.BUDGET if budget else codes.get(consequence.phase, ExitCode.OK))
    if not consequence.retried:
        assert consequence.budget is Budget.NONE


def test_sentences_are_one_each() -> None:
    """No two reasons read alike."""
    sentences = [reason.consequence.sentence for reason in TerminationReason]
    assert len(sentences) == len(set(sentences))


@pytest.mark.parametrize(
    "broken",
    [
        JobState(Phase.FAILED, 1, 1, 1, reason="x"),
        JobState(Phase.PENDING, 1, 1, 1, ended_ns=1),
        JobState(Phase.FAILED, 1, 1, 1, ended_ns=1),
        JobState(Phase.SUSPENDED, 1, 1, 1),
        JobState(Phase.PROVISIONING, 1, 1, 1),
        JobState(Phase.PENDING, 1, 1, 1, stopping="Cancelled"),
        JobState(Phase.RUNNING, 1, 1, 1, attempt=1),
        JobState(Phase.PENDING, 1, 1, 1, attempt_step=1),
        JobState(Phase.PENDING, 1, 1, 1, settled_step=1),
        JobState(Phase.PENDING, 1, 1, 1, checkpoint_step=1, checkpoint_uri="x", checkpoint_ns=1),
        JobState(Phase.PENDING, 1, 1, 1, checkpoint_step=0),
        JobState(Phase.PENDING, 1, 1, 1, application_restarts=1),
        JobState(Phase.PENDING, 1, 1, 1, lost_generation=1),
        JobState(Phase.PENDING, 1, 1, 1, disruptions=(Disruption(1, "r", False, 1, 1, 1, 1, 1),) * 21),
        JobState(Phase.PENDING, 1, 1, 0),
    ],
)
def test_a_contradiction_is_found(broken: JobState) -> None:
    """Each invariant fails on a state that breaks it."""
    with pytest.raises(InternalError, match="broken invariant"):
        check_invariants(broken)


def test_a_state_of_a_newer_version_can_be_read() -> None:
    """Fields that this version does not know are left out; those that are missing have their defaults."""
    state = JobState(Phase.PENDING, 1, 1, 1)
    document = {"phase": "Pending", "submitted_ns": 1, "phase_since_ns": 1, "workers": 1, "of_the_future": 3}
    assert JobState.from_document(document) == state
