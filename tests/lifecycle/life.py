"""One job's life in tests: gives events their time, and watches that state, commands and story agree at every step."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.lifecycle import (
    Admitted,
    AttemptEnded,
    CheckpointCommitted,
    CheckpointRestored,
    Command,
    Event,
    FirstStepDone,
    HoldMachines,
    JobState,
    KillAttempt,
    Limits,
    Phase,
    ReleaseMachines,
    ReleaseSlots,
    SaveCheckpoint,
    StartAttempt,
    StopAttempt,
    StoryEntry,
    Submitted,
    WishSize,
    WorldFormed,
    WorldLost,
    check_invariants,
    transition,
)

SECOND = 1_000_000_000


class Life:
    """A job that is told events, one a second. `commands` are those of the newest event."""

    def __init__(
        self, limits: Limits | None = None, workers: int = 2, suspended: bool = False, elastic: bool = False
    ) -> None:
        self.limits = limits if limits is not None else Limits()
        self.now_ns = 1_000 * SECOND
        self.story: list[StoryEntry] = []
        self.commands: tuple[Command, ...] = ()
        self.held = False
        self.attempts_started = 0
        self._state: JobState | None = None
        self.hear(Submitted(self.now_ns, workers, suspended, elastic))

    @property
    def state(self) -> JobState:
        assert self._state is not None
        return self._state

    @property
    def phase(self) -> Phase:
        return self.state.phase

    def tell(self, kind: type[Event], **fields: Any) -> tuple[Command, ...]:
        """An event a second later; events of an attempt are of the present one unless `attempt` is given."""
        self.now_ns += SECOND
        if "attempt" in kind.__dataclass_fields__:
            fields.setdefault("attempt", self.state.attempt)
        return self.hear(kind(self.now_ns, **fields))

    def hear(self, event: Event) -> tuple[Command, ...]:
        before = self._state
        decision = transition(before, event, self.limits, self.story)
        self._state = decision.state
        self.commands = decision.commands
        check_invariants(decision.state)
        if decision.entry is None:
            assert decision.state is before
            assert decision.commands == ()
        else:
            self.story.append(decision.entry)
            self._watch_story(before, decision.entry)
        self._watch_commands(before)
        document = json.loads(json.dumps(decision.state.to_document()))
        assert JobState.from_document(document) == decision.state
        return decision.commands

    def train_to(self, *steps: int) -> None:
        """Progress that is no transition."""
        for step in steps:
            self._state = self.state.at_step(step)
            check_invariants(self.state)

    def admit(self) -> None:
        self.tell(Admitted, message="there is room")

    def begin(self, step: int = 0, uri: str | None = None) -> None:
        """The present attempt stands, takes up `step` and does the next one."""
        self.tell(CheckpointRestored, step=step, uri=uri, covers_ns=None)
        self.tell(FirstStepDone, step=step + 1)

    def begin_world(self, generation: int, step: int) -> None:
        """The world takes up `step` from the checkpoint and redoes the one before, so that nothing new is trained."""
        self.tell(CheckpointRestored, step=step - 1, uri="u", covers_ns=None, generation=generation)
        self.tell(FirstStepDone, step=step, generation=generation)

    def save(self, step: int) -> tuple[Command, ...]:
        return self.tell(CheckpointCommitted, step=step, uri=f"step-{step:08d}", covers_ns=self.now_ns + SECOND // 2)

    def lose(self, reason: str = "WorkerLost", message: str = "") -> tuple[Command, ...]:
        return self.tell(AttemptEnded, reason=reason, message=message, step=self.state.attempt_step)

    def form(self, generation: int, workers: int) -> None:
        self.tell(WorldFormed, workers=workers, generation=generation)

    def lose_world(
        self, generation: int, reason: str = "WorkerLost", message: str = "node b is gone", target: int = 1
    ) -> tuple[Command, ...]:
        """The world stopped training half a second before it is told."""
        began_ns = self.now_ns + SECOND // 2
        return self.tell(
            WorldLost, reason=reason, message=message, began_ns=began_ns, target=target, generation=generation
        )

    def events_told(self) -> list[str]:
        return [entry.event for entry in self.story]

    def phases(self) -> list[Phase]:
        """Every phase of the story, repetitions left out."""
        found: list[Phase] = []
        for entry in self.story:
            if not found or found[-1] != entry.phase_after:
                found.append(Phase(entry.phase_after))
        return found

    def check(self) -> None:
        check_invariants(self.state)
        assert self.held == (self.state.phase.holds_machines and not self.state.elastic)
        assert self.attempts_started == self.state.attempt

    def _watch_story(self, before: JobState | None, entry: StoryEntry) -> None:
        assert entry.phase_before == ("" if before is None else before.phase)
        assert entry.phase_after == self.state.phase
        assert entry.reason
        assert entry.message
        assert str(entry)

    def _watch_commands(self, before: JobState | None) -> None:
        if before is not None and before.phase.ended:
            assert self.state == before
            assert self.commands == ()
        for command in self.commands:
            match command:
                case HoldMachines(workers):
                    assert not self.held
                    assert not self.state.elastic
                    assert workers == self.state.workers
                    self.held = True
                case ReleaseMachines():
                    assert self.held or self.state.elastic
                    self.held = False
                case ReleaseSlots():
                    assert self.state.elastic
                case StartAttempt(attempt, delay_seconds):
                    assert attempt == self.attempts_started + 1 == self.state.attempt
                    assert 0 <= delay_seconds <= 300
                    assert not self.state.phase.ended
                    self.attempts_started = attempt
                case StopAttempt(attempt) | KillAttempt(attempt) | SaveCheckpoint(attempt) | WishSize(attempt):
                    assert attempt == self.state.attempt
        assert self.held == (self.state.phase.holds_machines and not self.state.elastic)
