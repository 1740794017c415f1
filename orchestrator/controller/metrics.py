"""Fills the snapshot that `/metrics` renders, from the journal and the records of a controller.

Machine time is counted until the newest commit, the start of this controller, or five seconds ago, whichever is the
latest (so it covers what an earlier controller exported). A release is written with the
time at which the controller decided on it, a moment before it is durable; a counter that ran up to this instant could
therefore fall by that moment.

What is read once and kept: the amounts of jobs that hold no machines, the sums over ended jobs, and how far each story
has been counted. The first snapshot after a start reads every ledger; later ones only those of jobs that hold machines.

Limit: when the machine's clock is set back by more than these seconds, the cost of a job that holds machines may fall.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator import __version__
from orchestrator.accounting import Ledger
from orchestrator.controller import slots
from orchestrator.controller.bookkeeping import EXPORT_LAG_NS
from orchestrator.controller.core import Controller
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.views import ready_workers
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.domain.errors import StorageError
from orchestrator.lifecycle import Budget, Phase, StoryEntry, TerminationReason
from orchestrator.telemetry import Amounts, JobSample, Snapshot, amounts_of

SHOWN_AFTER_END_NS = 15 * 60 * NANOSECONDS_PER_SECOND
"""How long the series of a job stay after its end, so that a scrape or two see the last values."""
STORY_PAGE = 1_000
_RETRIED = frozenset(reason.value for reason in TerminationReason if reason.consequence.retried)


@dataclass(slots=True)
class _Told:
    """What a job's story has been counted to."""

    seen: tuple[Any, ...] = ()
    """The part of the state that moves whenever one of the counted entries is added."""
    number: int = 0
    preemptions: Counter[str] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Money:
    """What a job's ledger says."""

    attempt: int
    amounts: Amounts
    per_hour: int | None
    """Nano-dollars an hour for the machines held now; None when a price is unknown."""
    instance_type: str
    """That of the newest machine."""


class Sampler:
    """Takes snapshots of one controller. Safe over threads."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._lock = threading.Lock()
        self._resting: dict[str, _Money] = {}
        """Of jobs that hold no machines; it changes only once they hold some again."""
        self._told: dict[str, _Told] = {}
        self._rolled_up: set[str] = set()
        self._ended: dict[tuple[str, str], Amounts] = {}
        """Sums over the jobs of `_rolled_up`, which have ended, by namespace and team."""

    def snapshot(self) -> Snapshot:
        with self._lock:
            return self._take()

    def _take(self) -> Snapshot:
        controller = self._controller
        now_ns = controller.clock.now_ns()
        until_ns = max(controller.started_ns, controller.last_commit_ns or 0, now_ns - EXPORT_LAG_NS)
        rollups = {key: _copy(amounts) for key, amounts in self._ended.items()}
        phases: Counter[tuple[str, str]] = Counter()
        jobs: list[JobSample] = []
        for record in controller.records():
            ended_ns = record.state.ended_ns
            shown = record.current and (ended_ns is None or now_ns - ended_ns <= SHOWN_AFTER_END_NS)
            if record.current:
                if (record.namespace, Phase.PENDING.value) not in phases:
                    phases.update({(record.namespace, phase.value): 0 for phase in Phase})
                phases[record.namespace, record.state.phase.value] += 1
            if record.uid not in self._rolled_up:
                money = self._money(record, until_ns)
                key = (record.namespace, _label(record, "team"))
                rollups.setdefault(key, Amounts()).add(money.amounts)
                if ended_ns is not None:
                    self._rolled_up.add(record.uid)
                    self._ended.setdefault(key, Amounts()).add(money.amounts)
            elif shown:
                money = self._money(record, until_ns)
            else:
                self._told.pop(record.uid, None)
                self._resting.pop(record.uid, None)
                continue
            if shown:
                jobs.append(self._sample(record, money))
        return Snapshot(
            version=__version__,
            ready=controller.ready,
            jobs=tuple(jobs),
            phases=phases,
            rollups=rollups,
            last_commit_ns=controller.last_commit_ns,
            commits=controller.commits,
            journal_bytes=self._journal_bytes(),
        )

    def _journal_bytes(self) -> int | None:
        try:
            return self._controller.journal.size_bytes()
        except StorageError:
            return None

    def _money(self, record: JobRecord, until_ns: int) -> _Money:
        holds = record.state.phase.holds_machines
        known = self._resting.get(record.uid)
        if not holds and known is not None and known.attempt == record.state.attempt:
            return known
        ledger = Ledger(self._controller.journal.ledger(record.uid) if record.state.attempt else ())
        statement = ledger.statement(until_ns)
        instance_type = statement.segments[-1].instance_type if statement.segments else ""
        amounts, per_hour = amounts_of(ledger, until_ns), statement.per_hour_nanodollars
        money = _Money(record.state.attempt, amounts, per_hour, instance_type)
        if not holds and not ledger.held:
            self._resting[record.uid] = money
        return money

    def _sample(self, record: JobRecord, money: _Money) -> JobSample:
        spec, state, told = record.document["spec"], record.state, self._count(record)
        holds = state.phase.holds_machines
        return JobSample(
            namespace=record.namespace,
            name=record.name,
            uid=record.uid,
            team=_label(record, "team"),
            cost_center=_label(record, "cost-center"),
            queue=str(spec.get("queue", "default")),
            model=str((spec.get("model") or {}).get("source", "")),
            zero_stage=str((spec.get("deepspeed") or {}).get("stage", "")),
            instance_type=money.instance_type,
            phase=state.phase.value,
            amounts=money.amounts,
            per_hour=money.per_hour,
            steps={"kept": state.step, "lost": int(record.progress.get("steps_redone", 0))},
            samples=record.samples_kept,
            preemptions=told.preemptions,
            restarts=told.restarts,
            checkpoints={"committed": int(record.progress.get("checkpoints", 0)), "refused": told.refused},
            last_checkpoint_ns=state.checkpoint_ns,
            workers={
                "desired": state.workers if holds else 0,
                "ready": ready_workers(record),
                "draining": slots.draining(record),
            },
        )

    def _count(self, record: JobRecord) -> _Told:
        state = record.state
        told = self._told.setdefault(record.uid, _Told())
        seen = (state.attempt, state.lost_generation, state.restored_step, state.phase)
        while told.seen != seen:
            page = self._controller.journal.story(record.uid, told.number, STORY_PAGE)
            for number, entry in page:
                told.number = number
                _tally(told, entry)
            if len(page) < STORY_PAGE:
                told.seen = seen
        return told


def _tally(told: _Told, entry: StoryEntry) -> None:
    if entry.reason == "CheckpointRefused":
        told.refused += 1
    elif entry.event in ("AttemptEnded", "WorldLost") and entry.reason in _RETRIED:
        if entry.event == "AttemptEnded" and entry.phase_after != Phase.RECOVERING:
            return
        told.restarts[entry.reason] += 1
        if TerminationReason(entry.reason).consequence.budget is Budget.PREEMPTION:
            told.preemptions[entry.reason] += 1


def _copy(amounts: Amounts) -> Amounts:
    copy = Amounts()
    copy.add(amounts)
    return copy


def _label(record: JobRecord, name: str) -> str:
    labels: Mapping[str, Any] = record.document["metadata"].get("labels") or {}
    return str(labels.get(name, ""))
