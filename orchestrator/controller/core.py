"""The controller: one thread decides, everyone else asks it.

Requests, driver updates and due times gather in an inbox. The decision thread takes all that is there, lets the
lifecycle decide on each, writes the whole turn into the journal as one commit, and only then answers the callers and
tells the drivers. So what was acknowledged is durable, many submits share one disk flush, and no lock guards a decision.

Reads (`job`, `jobs`, `statement`) never wait for the decision thread: records are immutable values.

A commit that fails (disk full, database away) changes nothing: requests get the error, what drivers reported is tried
again, and `ready` is false until a commit succeeds. A commit refused because a newer controller exists ends this one.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from orchestrator import __version__
from orchestrator.accounting import (
    Ledger,
    PriceBook,
    Statement,
)
from orchestrator.controller import budgets, cadence, slots, terms
from orchestrator.controller.bookkeeping import book_command, book_dead_time, book_slot, exported_until_ns
from orchestrator.controller.hearing import fresh, hear
from orchestrator.controller.home import Home
from orchestrator.controller.hosts import DriverHost, Gone, Heard
from orchestrator.controller.journal.base import SCHEMA_VERSION, JobRecord, Journal
from orchestrator.controller.queueing import look
from orchestrator.controller.secrecy import put_back, recall
from orchestrator.controller.submission import Submission, Submit, accept
from orchestrator.controller.turn import Book, Turn
from orchestrator.controller.views import cost_document, resource
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock, to_rfc3339
from orchestrator.domain.errors import (
    Conflict,
    InternalError,
    NotFound,
    OrchestrateError,
    StaleEpoch,
    StorageError,
    UsageError,
)
from orchestrator.domain.money import Nanodollars
from orchestrator.domain.quantities import parse_duration_ns
from orchestrator.lifecycle import (
    SAVE_FIRST,
    Admitted,
    AttemptEnded,
    CancelRequested,
    CheckpointCommitted,
    CheckpointRequested,
    Command,
    Event,
    FirstStepDone,
    KillAttempt,
    Phase,
    Queued,
    Refusal,
    ReleaseMachines,
    ResumeRequested,
    SaveCheckpoint,
    ScaleRequested,
    StartAttempt,
    StartDeadlinePassed,
    StopAttempt,
    StopOverdue,
    SuspendRequested,
    TooLargeForCluster,
    WishSize,
    transition,
)
from orchestrator.platforms.engines.base import WORKER_LOOP

log = logging.getLogger(__name__)

SAVE_GRACE_SECONDS = 120
"""How long a gang that was asked to save and stop may take before it is killed."""
KILL_GRACE_SECONDS = 30
"""How long a killed gang may take to be gone before its driver is ended with it."""
RETRY_SECONDS = 1.0
"""Pause before a failed commit is tried again."""
VERSION_BITS = 32
"""Commits that one controller's versions have room for."""
BUDGET_SECONDS = 1.0
"""Between two looks at what jobs with a budget have cost."""
TURN_ITEMS = 1_000
"""Most inbox items of one turn."""

REQUESTS: Mapping[str, Callable[[int], Event]] = {
    "cancel": CancelRequested,
    "suspend": SuspendRequested,
    "resume": ResumeRequested,
    "checkpoint": CheckpointRequested,
}


CADENCE_MOVES = (Admitted, FirstStepDone, CheckpointCommitted, AttemptEnded)
"""Events after which the time between checkpoints is planned anew."""


@dataclass(slots=True)
class _Ask:
    namespace: str
    name: str
    verb: str
    event: Callable[[int], Event]
    """What happens to the job, given the time."""
    answer: Future[JobRecord]


@dataclass(frozen=True, slots=True)
class _Happened:
    """An event that the controller itself found out (a lost driver, a start that was called off)."""

    uid: str
    event: AttemptEnded


@dataclass(frozen=True, slots=True)
class _Wake:
    """Look at the clock and the queue again."""


_Item = Submit | _Ask | Heard | Gone | _Happened | _Wake


@dataclass(slots=True)
class _Stopping:
    """A gang that was asked to stop: when patience ends, and whether it was killed already."""

    attempt: int
    due_ns: int
    killed: bool


class Controller:
    """See the module. `on_fatal` is called once, from the decision thread, when this controller may not go on."""

    def __init__(
        self,
        journal: Journal,
        host: DriverHost,
        clock: Clock,
        prices: PriceBook,
        home: Home,
        *,
        engine: str,
        standbys: str = "warm",
        worker_loop: str = WORKER_LOOP,
        on_fatal: Callable[[OrchestrateError], None] = lambda error: None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.journal = journal
        self.home = home
        self.prices = prices
        self.clock = clock
        self._host = host
        self._engine = engine
        self._standbys = standbys
        self._worker_loop = worker_loop
        self._on_fatal = on_fatal
        self._retry_seconds = retry_seconds
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._book = Book()
        self._delayed: list[tuple[int, str, int]] = []
        self._stopping: dict[str, _Stopping] = {}
        self._next_look_ns = 0
        """When what jobs cost is to be held against their budgets again."""
        self._reading = threading.Lock()
        self._read_ledgers: dict[str, tuple[Ledger, int]] = {}
        """Ledgers of active jobs as far as they are committed, with the number of their entries; for readers alone."""
        self._changed = threading.Condition()
        self._first_version = self._version = 0
        self._changed_at: dict[str, int] = {}
        """The version in which each job changed last, for those that did since this controller began."""
        self._listeners: list[Callable[[Collection[str]], None]] = []
        self._in_order: tuple[Book, int, list[JobRecord]] = (self._book, -1, [])
        """Current jobs, newest first, as of a book and a version: ten thousand need not be sorted at every request."""
        self._closing = threading.Event()
        self._healthy = False
        self._refusal: StorageError | None = None
        """Why the journal took nothing lately; None when it does."""
        self._epoch = 0
        self._started_ns = clock.now_ns()
        self._last_commit_ns: int | None = None
        self._thread = threading.Thread(target=self._decide_for_ever, name="decisions", daemon=True)

    # --- life of the controller

    def start(self) -> None:
        """Become the writer, take up what an earlier controller left, and begin to decide."""
        self._epoch = self.journal.open_epoch()
        self._first_version = self._version = self._epoch << VERSION_BITS
        self._book = Book(self.journal.jobs())
        self._healthy = True
        self._host.begin(self._inbox.put)
        for record in list(self._book.records.values()):
            if record.state.phase.holds_machines:
                self._take_up(record)
        self._thread.start()

    def _take_up(self, record: JobRecord) -> None:
        """A job that held machines when the last controller ended: its driver lives on, or its workers alone do, or the
        attempt is lost, or it was never begun."""
        state = record.state
        driver_id = self._host.adopt(record.uid, record.driver_seq)
        if driver_id is not None:
            log.info("took up the driver of %s/%s, attempt %d", record.namespace, record.name, state.attempt)
            if not state.attempt_seen:
                self._delayed.append((0, record.uid, state.attempt))
            if (plan := cadence.planned(record)) is not None:
                self._host.wish_cadence(record.uid, state.attempt, plan)
            if state.elastic:
                self._host.wish_size(record.uid, state.attempt, state.workers)
            if state.stopping is not None:
                self._ask_to_stop(record.uid, state.attempt, save=state.stopping in SAVE_FIRST)()
            return
        goes_on = state.elastic and state.stopping is None and self._host.outlived(record.uid)
        if goes_on:
            log.info("the workers of %s/%s outlived their driver; another takes over", record.namespace, record.name)
        if not goes_on and (state.attempt_seen or state.stopping is not None):
            event = AttemptEnded(
                self.clock.now_ns(),
                state.attempt,
                "DriverLost",
                "It was gone when the controller came back.",
                state.attempt_step,
            )
            self._inbox.put(_Happened(record.uid, event))
        else:
            self._delayed.append((0, record.uid, state.attempt))

    def close(self) -> None:
        """Stop deciding. Drivers that can outlive the controller go on."""
        self._closing.set()
        self._inbox.put(_Wake())
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._host.close()
        self.journal.close()
        with self._changed:
            self._changed.notify_all()

    @property
    def ready(self) -> bool:
        """Whether the last commit succeeded and decisions are being made."""
        return self._healthy and self._thread.is_alive()

    # --- what callers ask

    def submit(
        self, document: Mapping[str, Any], idempotency_key: str | None = None, rerun: bool = False
    ) -> Submission:
        """Accept a job. When this returns, the job is durable.

        Raises `InvalidSpec` for a document that is wrong and `Conflict` when the name or the key is taken by another one.
        """
        from orchestrator.spec import parse_document, spec_digest

        job = parse_document(document)
        filled = job.model_dump(mode="json", by_alias=True, exclude_none=True)
        answer: Future[Submission] = Future()
        self._inbox.put(Submit(filled, spec_digest(job), idempotency_key, rerun, answer))
        return answer.result()

    def request(self, namespace: str, name: str, verb: str) -> JobRecord:
        """Carry out `cancel`, `suspend`, `resume` or `checkpoint` on the job of that name. Raises `NotFound`, `Conflict`."""
        return self._asked(namespace, name, verb, REQUESTS[verb])

    def scale(self, namespace: str, name: str, workers: int) -> JobRecord:
        """Set the number of workers that is wished for. Raises `NotFound`, and `Conflict` for a size that the job may not
        have."""
        return self._asked(namespace, name, "scale", partial(ScaleRequested, workers=workers))

    def resume(self, namespace: str, name: str, budget: Nanodollars | None = None) -> JobRecord:
        """Continue a suspended job; with `budget` it may cost so much in all. Raises `NotFound`, and `Conflict` for a job that
        has cost what it may."""
        return self._asked(namespace, name, "resume", partial(ResumeRequested, budget_nanodollars=budget))

    def _asked(self, namespace: str, name: str, verb: str, event: Callable[[int], Event]) -> JobRecord:
        answer: Future[JobRecord] = Future()
        self._inbox.put(_Ask(namespace, name, verb, event, answer))
        return answer.result()

    def job(self, namespace: str, name: str) -> JobRecord:
        """The current job of that name. Raises `NotFound`, with the nearest names that exist."""
        uid = self._book.names.get((namespace, name))
        if uid is None:
            raise NotFound(f"there is no job {namespace}/{name}", hint="`orchestrate list -A` shows those there are")
        return self._book.records[uid]

    def jobs(self, namespace: str | None = None) -> list[JobRecord]:
        """Current jobs, newest first."""
        book, version = self._book, self._version
        known_book, known_version, records = self._in_order
        if known_book is not book or known_version != version:
            records = [record for record in list(book.records.values()) if record.current]
            records.sort(key=lambda record: (-record.created_ns, record.uid))
            self._in_order = (book, version, records)
        return [record for record in records if namespace in (None, record.namespace)]

    def records(self) -> list[JobRecord]:
        """Every job there ever was, those whose name has passed to a newer one included."""
        return list(self._book.records.values())

    def statement(self, uid: str) -> Statement:
        """What the job has cost until now, from committed ledger entries only."""
        record = self._book.records[uid]
        ended_ns = record.state.ended_ns
        with self._reading:
            ledger, count = self._read_ledgers.get(uid, (Ledger(), 0))
            for entry in self.journal.ledger(uid, after=count):
                ledger.append(entry)
                count += 1
            if ended_ns is None:
                self._read_ledgers[uid] = (ledger, count)
            else:
                self._read_ledgers.pop(uid, None)
            return ledger.statement(ended_ns if ended_ns is not None else self.clock.now_ns())

    def view(self, record: JobRecord) -> dict[str, Any]:
        """The resource with its status, as of now. While the journal refuses, the message of a job that has not ended says
        so: what became of it since cannot be known from here."""
        version = self._version
        # Read after the version: a resource that is older than its version would make a long poll miss a change.
        record = self._book.records.get(record.uid, record)
        cost = record.cost
        if cost is None and record.state.phase.holds_machines:
            cost = cost_document(self.statement(record.uid), record.samples_kept)
        document = resource(record, cost, version)
        if (refusal := self._refusal) is not None and not record.state.phase.ended:
            document["status"]["message"] = f"nothing new is known, since the journal refuses it: {refusal}"
        return document

    @property
    def version(self) -> int:
        """Grows with each commit, and from each controller of this journal to the next."""
        return self._version

    @property
    def commits(self) -> int:
        """Commits of this controller since it started."""
        return self._version - self._first_version

    def is_newer(self, uid: str, version: int) -> bool:
        """Whether the job was changed after `version`; True for a version of another controller, which nothing is known of."""
        return not max(self._first_version, self._changed_at.get(uid, 0)) <= version <= self._version

    def listen(self, changed: Callable[[Collection[str]], None]) -> None:
        """After each commit, call `changed` with the jobs that it is about: from the decision thread, so it must return at
        once and raise nothing."""
        self._listeners.append(changed)

    def wait_for_change(self, after_version: int, timeout_seconds: float) -> int:
        """Wait until something was committed after `after_version`; the newest version."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > after_version or self._closing.is_set(), timeout_seconds)
            return self._version

    def info(self) -> dict[str, Any]:
        return {
            "product": "orchestrate",
            "version": __version__,
            "api": "v1",
            "journalSchema": SCHEMA_VERSION,
            "pid": os.getpid(),
            "startedAt": to_rfc3339(self._started_ns),
            "engine": self._engine,
            "home": str(self.home.path),
            "epoch": self._epoch,
            "jobs": len(self._book.records),
            "activeJobs": sum(
                self._book.records[uid].state.phase is not Phase.SUSPENDED for uid in list(self._book.active)
            ),
        }

    @property
    def started_ns(self) -> int:
        """When this controller came to be; whatever it decides is later."""
        return self._started_ns

    @property
    def last_commit_ns(self) -> int | None:
        """When the journal last took a commit of this controller."""
        return self._last_commit_ns

    # --- the decision thread

    def _decide_for_ever(self) -> None:
        retry: list[_Item] = []
        while not self._closing.is_set():
            items = retry + self._gather(0.0 if retry else self._patience())
            try:
                retry = self._take_turn(items)
            except StaleEpoch as error:
                log.error("another controller owns the journal; this one ends: %s", error)
                self._healthy = False
                _refuse(items, error)
                self._on_fatal(error)
                return
            if not self._healthy:
                self._closing.wait(self._retry_seconds)
        _refuse(self._gather(0.0), Conflict("the controller is stopping", hint="try again when it is back"))

    def _gather(self, patience_seconds: float) -> list[_Item]:
        items: list[_Item] = []
        try:
            items.append(
                self._inbox.get(timeout=patience_seconds) if patience_seconds > 0 else self._inbox.get_nowait()
            )
            while len(items) < TURN_ITEMS:
                items.append(self._inbox.get_nowait())
        except queue.Empty:
            pass
        return items

    def _patience(self) -> float:
        """Seconds until something is due."""
        due = [when for when, _, _ in self._delayed] + [stop.due_ns for stop in self._stopping.values()]
        now_ns = self.clock.monotonic_ns()
        return min(1.0, max(0.0, min((when - now_ns) / NANOSECONDS_PER_SECOND for when in due))) if due else 1.0

    def _take_turn(self, items: Sequence[_Item]) -> list[_Item]:
        """Decide on all items and commit. Returns what is to be tried again, which is empty but when the store failed."""
        turn = Turn(self._book, self.clock.now_ns(), self._ledger)
        due = list(self._delayed), dict(self._stopping)
        try:
            for item in items:
                self._handle(turn, item)
            self._start_what_is_due(turn)
            self._lose_patience(turn)
            self._look_at_budgets(turn)
            self._look_at_the_queue(turn)
            turn.settle_costs(lambda record, ledger: cost_document(ledger.statement(turn.now_ns), record.samples_kept))
        except Exception as error:  # the edge of the decisions: a defect in one item must not end all jobs
            self._forget(turn, due)
            if len(items) > 1:
                return [left for item in items for left in self._take_turn([item])]
            log.exception("a defect; %r is dropped", items)
            told = error if isinstance(error, OrchestrateError) else InternalError(f"{type(error).__name__}: {error}")
            _refuse(items, told)
            return []
        try:
            if turn.commit or not self._healthy:  # an empty commit finds out whether the store is back
                self.journal.commit(turn.commit)
                self._last_commit_ns = turn.now_ns
        except StorageError as error:
            self._forget(turn, due)
            if self._healthy:
                log.error("the journal refuses: %s", error)
            self._healthy, self._refusal = False, error
            _refuse(items, error)
            return [item for item in items if not isinstance(item, Submit | _Ask)]
        self._healthy, self._refusal = True, None
        changed = turn.changed()
        with self._changed:
            for record in turn.commit.jobs.values():
                self._book.put(record)
                if record.state.phase.ended:
                    self._book.ledgers.pop(record.uid, None)
            if turn.commit:
                self._version += 1
                self._changed_at.update(dict.fromkeys(changed, self._version))
                self._changed.notify_all()
        if changed:
            for listener in self._listeners:
                listener(changed)
        for reply in turn.replies:
            reply()
        for action in turn.actions:
            action()
        return []

    def _ledger(self, uid: str) -> Ledger:
        ledger = self._book.ledgers.get(uid)
        if ledger is None:
            ledger = self._book.ledgers[uid] = Ledger(self.journal.ledger(uid))
        return ledger

    def _forget(self, turn: Turn, due: tuple[list[tuple[int, str, int]], dict[str, _Stopping]]) -> None:
        """The turn did not happen: what was due before it is due still, and ledgers are read from the journal again."""
        self._delayed, self._stopping = due
        for uid, _ in turn.commit.ledger:
            self._book.ledgers.pop(uid, None)

    def _handle(self, turn: Turn, item: _Item) -> None:
        match item:
            case Submit():
                if (why := budgets.refusal(item.document, self.prices)) is not None:
                    hint = "raise the limit, name a price file with ORCHESTRATE_PRICES, or leave the budget out"
                    turn.replies.append(partial(item.answer.set_exception, UsageError(why, hint=hint)))
                else:
                    accept(turn, item, self.home, self._book.records.__getitem__)
            case _Ask():
                self._ask(turn, item)
            case Heard():
                self._heard(turn, item)
            case Gone():
                self._gone(turn, item)
            case _Happened():
                self._apply(turn, item.uid, item.event)
            case _Wake():
                pass

    # --- requests

    def _ask(self, turn: Turn, item: _Ask) -> None:
        record = turn.by_name(item.namespace, item.name)
        if record is None:
            missing = NotFound(
                f"there is no job {item.namespace}/{item.name}", hint="`orchestrate list -A` shows those there are"
            )
            turn.replies.append(lambda: item.answer.set_exception(missing))
            return
        event = item.event(turn.now_ns)
        try:
            self._check_budget(turn, record, event)
            self._apply(turn, record.uid, event)
        except Refusal as refusal:
            conflict = Conflict(f"cannot {item.verb} {item.namespace}/{item.name}: {refusal}")
            turn.replies.append(lambda: item.answer.set_exception(conflict))
            return
        turn.replies.append(lambda: item.answer.set_result(self._book.records[record.uid]))

    # --- drivers

    def _heard(self, turn: Turn, item: Heard) -> None:
        record = turn.get(item.uid)
        if record is None:
            return
        if record.driver_id != item.driver_id:
            record = slots.doubt(replace(record, driver_id=item.driver_id, driver_seq=0))
        for update in fresh(item.updates, record.driver_seq):
            found = hear(record, update, turn.now_ns)
            turn.put(replace(found.record, driver_seq=update.seq))
            for line in found.story:
                turn.tell(item.uid, line)
            for row in found.steps:
                turn.add_step(row)
            for event in found.events:
                self._apply(turn, item.uid, event)
            for entry in found.entries:
                turn.book(item.uid, entry)
            for change in found.slots:
                record = turn.get(item.uid)
                assert record is not None
                exported_ns = exported_until_ns(self._started_ns, self._last_commit_ns, turn.now_ns)
                book_slot(turn, record, change, self.prices, exported_ns)
            record = turn.get(item.uid)
            assert record is not None
        newest = item.updates[-1].seq
        turn.actions.append(lambda: self._host.acknowledge(item.uid, item.driver_id, newest))

    def _gone(self, turn: Turn, item: Gone) -> None:
        record = turn.get(item.uid)
        if record is None or not record.state.phase.holds_machines:
            return
        self._apply(
            turn,
            item.uid,
            AttemptEnded(turn.now_ns, record.state.attempt, "DriverLost", item.why, record.state.attempt_step),
        )

    # --- lifecycle

    def _apply(self, turn: Turn, uid: str, event: Event) -> None:
        record = turn.get(uid)
        assert record is not None
        if isinstance(event, AttemptEnded) and event.reason == "DriverLost" and event.attempt == record.state.attempt:
            book_dead_time(turn, record)
        decision = transition(record.state, event, terms.limits(record))
        if decision.entry is not None:
            turn.tell(uid, decision.entry)
        if decision.state is not record.state:
            turn.put(record.with_state(decision.state))
        if not decision.state.phase.holds_machines:
            self._stopping.pop(uid, None)
        for command in decision.commands:
            self._carry_out(turn, uid, command, event)
        if isinstance(event, CADENCE_MOVES):
            self._plan_cadence(turn, uid)

    def _plan_cadence(self, turn: Turn, uid: str) -> None:
        """Plan the time between checkpoints anew; a plan that moved is told, kept and sent down."""
        record = turn.get(uid)
        assert record is not None
        if not record.state.phase.holds_machines or not cadence.is_automatic(record):
            return
        if (moved := cadence.replan(record, turn.observed(record), turn.now_ns)) is not None:
            record, entry = moved
            turn.put(record)
            turn.tell(uid, entry)
            plan = cadence.planned(record)
            assert plan is not None
            turn.actions.append(partial(self._host.wish_cadence, uid, record.state.attempt, plan))

    def _carry_out(self, turn: Turn, uid: str, command: Command, event: Event) -> None:
        record = turn.get(uid)
        assert record is not None
        if book_command(turn, record, command, event, self.prices):
            if isinstance(command, ReleaseMachines):
                turn.actions.append(lambda: self._host.release(uid))
            return
        match command:
            case StartAttempt(attempt, delay_seconds):
                self._delayed.append((self._in(delay_seconds), uid, attempt))
                turn.actions.append(lambda: self._inbox.put(_Wake()))
            case StopAttempt(attempt, save):
                self._stop(turn, uid, attempt, save)
            case KillAttempt(attempt):
                turn.actions.append(lambda: self._host.kill(uid, attempt))
            case SaveCheckpoint(attempt):
                turn.actions.append(lambda: self._host.wish_checkpoint(uid, attempt))
            case WishSize(attempt, workers):
                turn.actions.append(lambda: self._host.wish_size(uid, attempt, workers))
            case _:
                raise InternalError(f"nobody carries out {command!r}")

    def _in(self, seconds: float) -> int:
        return self.clock.monotonic_ns() + round(seconds * NANOSECONDS_PER_SECOND)

    def _stop(self, turn: Turn, uid: str, attempt: int, save: bool) -> None:
        waiting = [entry for entry in self._delayed if entry[1] == uid]
        if waiting:
            self._delayed = [entry for entry in self._delayed if entry[1] != uid]
            called_off = AttemptEnded(turn.now_ns, attempt, "Stopped", "The attempt had not begun.", 0)
            turn.actions.append(lambda: self._inbox.put(_Happened(uid, called_off)))
            return
        turn.actions.append(self._ask_to_stop(uid, attempt, save))

    def _ask_to_stop(self, uid: str, attempt: int, save: bool) -> Callable[[], None]:
        """Begin to be patient; what tells the driver."""
        grace = SAVE_GRACE_SECONDS if save else KILL_GRACE_SECONDS
        self._stopping[uid] = _Stopping(attempt, self._in(grace), killed=not save)
        return partial(self._host.wish_stop if save else self._host.kill, uid, attempt)

    # --- what is due

    def _start_what_is_due(self, turn: Turn) -> None:
        now_ns = self.clock.monotonic_ns()
        due = [entry for entry in self._delayed if entry[0] <= now_ns]
        if not due:
            return
        self._delayed = [entry for entry in self._delayed if entry[0] > now_ns]
        for _, uid, attempt in due:
            record = turn.get(uid)
            if record is None or not record.state.phase.holds_machines or record.state.attempt != attempt:
                continue
            try:
                document = put_back(record.document, recall(self.home.secrets_file(uid)))
                capacity = self.prices.local_offering().capacity_type
                names, seen = (self._worker_loop, self._engine), turn.observed_by_all()
                request = terms.run_request(
                    record, document, self.home, *names, capacity, seen, standbys=self._standbys
                )
            except StorageError as error:
                self._apply(turn, uid, AttemptEnded(turn.now_ns, attempt, "StorageFailed", str(error), 0))
            else:
                turn.actions.append(partial(self._host.start, request, self.home.run_dir(uid)))

    def _lose_patience(self, turn: Turn) -> None:
        now_ns = self.clock.monotonic_ns()
        for uid, stop in list(self._stopping.items()):
            if stop.due_ns > now_ns:
                continue
            if stop.killed:
                del self._stopping[uid]
                turn.actions.append(partial(self._host.release, uid))
                why = "It did not end when it was killed, so its driver was ended with it."
                record = turn.get(uid)
                step = record.state.attempt_step if record is not None else 0
                self._apply(turn, uid, AttemptEnded(turn.now_ns, stop.attempt, "EngineLost", why, step))
            else:
                self._stopping[uid] = _Stopping(stop.attempt, self._in(KILL_GRACE_SECONDS), killed=True)
                self._apply(turn, uid, StopOverdue(turn.now_ns, stop.attempt))

    def _look_at_budgets(self, turn: Turn) -> None:
        if self.clock.monotonic_ns() < self._next_look_ns:
            return
        self._next_look_ns = self._in(BUDGET_SECONDS)
        for record in turn.active():
            if not record.state.phase.holds_machines or budgets.limit(record) is None:
                continue
            verdict = budgets.look(record, turn.ledger(record.uid).owed(turn.now_ns), turn.now_ns)
            if verdict is None:
                continue
            if verdict.entry is not None:
                turn.tell(record.uid, verdict.entry)
            if verdict.event is not None:
                self._apply(turn, record.uid, verdict.event)

    def _check_budget(self, turn: Turn, record: JobRecord, event: Event) -> None:
        """Raises Refusal for a resume that would be stopped at once."""
        if not isinstance(event, ResumeRequested) or record.state.phase is not Phase.SUSPENDED:
            return
        owed = turn.ledger(record.uid).owed(turn.now_ns)
        if (why := budgets.cannot_resume(record, event.budget_nanodollars, owed, self.prices)) is not None:
            raise Refusal(why)

    def _look_at_the_queue(self, turn: Turn) -> None:
        active = turn.active()
        waiting = [record for record in active if record.state.phase in (Phase.PENDING, Phase.QUEUED)]
        if not waiting:
            return
        for record in waiting:
            deadline = record.document["spec"].get("startDeadline")
            if deadline is not None and turn.now_ns - record.created_ns > parse_duration_ns(deadline):
                self._apply(turn, record.uid, StartDeadlinePassed(turn.now_ns, f"It waited for more than {deadline}."))
        waiting = [r for record in waiting if (r := turn.get(record.uid)) is not None and not r.state.phase.ended]
        for record in list(waiting):
            if (why := budgets.too_dear(record.document, self.prices)) is not None:
                waiting.remove(record)
                if record.state.phase is Phase.PENDING or record.state.message != why:
                    self._apply(turn, record.uid, Queued(turn.now_ns, why))
        holding = [terms.need(record) for record in active if record.state.phase.holds_machines]
        for verdict in look([terms.need(record) for record in waiting], holding, self._host.room()):
            before = turn.get(verdict.uid)
            assert before is not None
            if verdict.kind == "admit":
                self._apply(turn, verdict.uid, Admitted(turn.now_ns, verdict.message))
            elif verdict.kind == "too-large":
                self._apply(turn, verdict.uid, TooLargeForCluster(turn.now_ns, verdict.message))
            elif before.state.phase is Phase.PENDING or before.state.message != verdict.message:
                self._apply(turn, verdict.uid, Queued(turn.now_ns, verdict.message))


def _refuse(items: Sequence[_Item], error: OrchestrateError) -> None:
    """Give every caller that waits for an answer the error."""
    for item in items:
        if isinstance(item, Submit | _Ask) and not item.answer.done():
            item.answer.set_exception(error)
