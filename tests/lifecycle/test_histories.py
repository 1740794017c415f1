"""Random histories of a job and its ledger: any interleaving of requests, attempts, lost and repeated messages.

The machine under test is the lifecycle with the ledger that follows its commands, as the controller books them. The
world around it is a model: a gang that trains, saves, dies or obeys, whose messages may come twice or too late, with
workers' clocks that run behind the controller's, and checkpoints that are durable though nobody heard of them. Half of the
gangs are elastic: their slots come and go, and their worlds are lost, left, and taken up from memory. (Weighted dice, not hypothesis' rules: those seldom get as far as a
second attempt, and the test counts how far it got.)
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from orchestrator.accounting import (
    Category,
    CategoryBooked,
    CheckpointStalled,
    Entry,
    Ledger,
    MachineHeld,
    MachineReleased,
    MachineTurned,
    Role,
    WorkSettled,
    entry_from_document,
    entry_to_document,
)
from orchestrator.domain.money import cumulative_cost
from orchestrator.lifecycle import (
    Activity,
    Admitted,
    AttemptEnded,
    BookActivity,
    BudgetReached,
    CancelRequested,
    CaughtUp,
    CheckpointCommitted,
    CheckpointRequested,
    CheckpointRestored,
    Command,
    Event,
    FirstStepDone,
    HoldMachines,
    KillAttempt,
    Limits,
    MemoryTakenUp,
    Phase,
    Queued,
    Refusal,
    ReleaseMachines,
    ReleaseSlots,
    ResumeRequested,
    ScaleRequested,
    SettleWork,
    StartAttempt,
    StartDeadlinePassed,
    StopAttempt,
    StopOverdue,
    SuspendRequested,
    TerminationReason,
    TooLargeForCluster,
    WorldFormed,
    WorldLost,
)
from tests.lifecycle.life import SECOND, Life

PRICE = 3_060_000_000
REASONS = [reason.value for reason in TerminationReason] + ["no such word"]
SETTLED = [category for category in Category if category is not Category.AT_RISK]


class Books:
    """The ledger entries that follow from lifecycle commands, as the controller books them."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.entries: list[Entry] = []
        self._holds = 0

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.ledger.append(entry)

    def carry_out(self, command: Command, event: Event, now_ns: int) -> None:
        match command:
            case HoldMachines(workers):
                for worker in range(workers):
                    self._holds += 1
                    name = f"m{self._holds}-{worker}"
                    self.append(
                        MachineHeld(
                            now_ns, name, "t", "z", "on-demand", 1, PRICE, PRICE, "test", True, SECOND, 60 * SECOND
                        )
                    )
            case ReleaseMachines() | ReleaseSlots():
                for machine in self.ledger.held:
                    self.append(MachineReleased(now_ns, machine))
            case BookActivity(activity, at_ns):
                training = activity is Activity.TRAINING
                self.append(CategoryBooked(at_ns, Category.AT_RISK.value if training else activity.value))
            case SettleWork(until_ns, useful, from_ns):
                at_ns = event.at_ns if until_ns is None else until_ns
                self.append(WorkSettled(at_ns, useful, whole=until_ns is None, from_ns=from_ns))

    def hold(self, now_ns: int, name: str, role: Role, phase: Phase) -> None:
        """A slot is there. What the gang is busy with is booked anew when it held no machine."""
        if not self.ledger.held:
            self.append(CategoryBooked(now_ns, CATEGORY_IN[phase].value))
        self.append(
            MachineHeld(now_ns, name, "t", "z", "spot", 1, PRICE, PRICE, "test", True, SECOND, 60 * SECOND, role.value)
        )


CATEGORY_IN = {
    Phase.PROVISIONING: Category.PROVISIONING,
    Phase.RUNNING: Category.AT_RISK,
    Phase.RECOVERING: Category.RESTART,
    Phase.RESIZING: Category.RESIZE,
}


class History:
    """A job, the gang of its present attempt as far as the world knows, and the books."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.elastic = self.dice.random() < 0.5
        limits = Limits(
            max_restarts=2,
            max_preemptions=self.dice.choice([None, 1, 4]),
            max_fruitless_attempts=3,
            max_fruitless_worlds=4,
            sizes=(1, 2, 4) if self.elastic else (),
        )
        self.life = Life(limits, 4 if self.elastic else 2, suspended=self.dice.random() < 0.1, elastic=self.elastic)
        self.books = Books()
        self.started: list[int] = []
        self.sent: list[Event] = []
        self.gang_step: int | None = None
        self.saved: list[tuple[int, int]] = []
        """Step of each durable checkpoint, heard of or not, and when that step ended."""
        self.generation = 1
        self.formed = False
        self.slots: set[str] = set()
        self.memory: list[tuple[int, int]] = []
        """Newest steps of the present attempt that memory holds, and when each ended."""
        self.asked_to_stop = False
        self.skew_ns = 0
        self.settled_before: dict[Category, int] = dict.fromkeys(SETTLED, 0)
        self.total_before = 0
        self.happened: Counter[str] = Counter()

    def step(self) -> None:
        """One thing happens, if it can; then all that must hold is checked."""
        weights = {
            self.time_passes: 2,
            self.a_clock_changes: 1,
            self.someone_asks: 1,
            self.the_queue_looks: 5,
            self.the_gang_begins: 8,
            self.the_gang_trains: 8,
            self.the_gang_saves: 5,
            self.the_gang_ends: 2,
            self.the_gang_obeys: 2,
            self.patience_ends: 1,
            self.a_slot_comes: 4 * self.elastic,
            self.a_slot_goes: self.elastic,
            self.a_slot_turns: 2 * self.elastic,
            self.the_world_is_lost: 5 * self.elastic,
            self.a_message_comes_again: 2,
        }
        (act,) = self.dice.choices(list(weights), weights=list(weights.values()))
        act()
        self.check()

    # --- the shell

    def hear(self, event: Event) -> None:
        ended_before = self.life.phase.ended
        self.happened[f"{type(event).__name__} in {self.life.phase}"] += 1
        try:
            self.life.hear(event)
        except Refusal:
            self.happened["Refusal"] += 1
            return
        assert self.life.phase.ended or not ended_before
        for command in self.life.commands:
            self.books.carry_out(command, event, self.life.now_ns)
            match command:
                case StartAttempt(attempt):
                    self.started.append(attempt)
                    self.gang_step, self.asked_to_stop = None, False
                    self.generation, self.formed, self.memory = 1, False, []
                case StopAttempt() | KillAttempt():
                    self.asked_to_stop = True

    def send(self, event: Event) -> None:
        self.sent.append(event)
        self.hear(event)

    def later(self, milliseconds: int) -> None:
        self.life.now_ns += self.dice.randrange(milliseconds) * 1_000_000

    @property
    def worker_ns(self) -> int:
        """A worker's clock; never ahead of the controller's, which bounds what it hears."""
        return min(self.life.now_ns, self.life.now_ns + self.skew_ns)

    def trains(self) -> bool:
        return self.life.phase.holds_machines and self.gang_step is not None

    # --- time, requests, the queue

    def time_passes(self) -> None:
        self.later(100_000)

    def a_clock_changes(self) -> None:
        if self.dice.random() < 0.5:
            self.life.now_ns -= self.dice.randrange(50_000) * 1_000_000
        else:
            self.skew_ns = -self.dice.randrange(5_000) * 1_000_000

    def someone_asks(self) -> None:
        if self.life.phase is Phase.SUSPENDED and self.dice.random() < 0.8:
            self.hear(ResumeRequested(self.life.now_ns, self.dice.choice([None, 10**9])))
            return
        if self.life.phase.holds_machines and self.dice.random() < 0.04:
            self.hear(BudgetReached(self.life.now_ns, "It has cost all.", fail=self.dice.random() < 0.5))
            return
        if self.dice.random() < 0.3:
            self.hear(ScaleRequested(self.life.now_ns, self.dice.randint(1, 4)))
            return
        kinds = [SuspendRequested, ResumeRequested, CheckpointRequested, CancelRequested]
        (kind,) = self.dice.choices(kinds, weights=[10, 5, 5, 2])
        self.hear(kind(self.life.now_ns))

    def the_queue_looks(self) -> None:
        if self.life.phase in (Phase.PENDING, Phase.QUEUED):
            kinds = [Admitted, Queued, TooLargeForCluster, StartDeadlinePassed]
            (kind,) = self.dice.choices(kinds, weights=[30, 10, 1, 1])
            self.hear(kind(self.life.now_ns, "as it is"))

    # --- the gang

    def the_gang_begins(self) -> None:
        if not self.life.phase.holds_machines or self.gang_step is not None:
            return
        if self.elastic and not self.formed:
            self.formed = True
            workers = self.dice.choice([1, 2, 4])
            self.send(WorldFormed(self.worker_ns, self.life.state.attempt, workers, generation=self.generation))
            return
        if self.memory and self.dice.random() < 0.5:
            self.the_gang_takes_up_memory()
            return
        refused = self.dice.choice([0, 0, 0, 0, 1, 2, 99])
        step, covers_ns = [(0, None), *self.saved][-1 - min(refused, len(self.saved))]
        self.gang_step = step
        self.later(10_000)
        if self.dice.random() < 0.9:
            uri = f"step-{step}" if step else None
            unheard = step > self.life.state.settled_step
            bounded = None if covers_ns is None else min(covers_ns, self.life.now_ns)
            at_risk, useful = self.spent(Category.AT_RISK), self.spent(Category.USEFUL)
            attempt = self.life.state.attempt
            self.send(CheckpointRestored(self.worker_ns, attempt, step, uri, bounded, generation=self.generation))
            assert not self.spent(Category.AT_RISK)
            gained = self.spent(Category.USEFUL) - useful
            assert 0 <= gained <= (at_risk if unheard else 0)
            self.happened["unheard checkpoint saves work"] += gained > 0
            self.happened["rest is lost"] += gained < at_risk

    def the_gang_takes_up_memory(self) -> None:
        """The newest step, or one before it; what was trained after it is lost, and nothing else."""
        step, covers_ns = self.dice.choice(self.memory)
        self.memory = [each for each in self.memory if each[0] <= step]
        self.gang_step = step
        self.later(3_000)
        if self.dice.random() < 0.9:
            at_risk, lost = self.spent(Category.AT_RISK), self.spent(Category.LOST_WORK)
            bounded = min(covers_ns, self.life.now_ns)
            attempt = self.life.state.attempt
            self.send(MemoryTakenUp(self.worker_ns, attempt, step, bounded, generation=self.generation))
            assert self.spent(Category.AT_RISK) + self.spent(Category.LOST_WORK) == at_risk + lost
            self.happened["memory keeps what is at risk"] += self.spent(Category.AT_RISK) > 0
            self.happened["steps after memory are lost"] += self.spent(Category.LOST_WORK) > lost

    def the_world_is_lost(self) -> None:
        """Or left; its machines may go with it, or stay for the next."""
        if not self.life.phase.holds_machines or not self.formed:
            return
        began_ns = self.worker_ns
        self.later(2_000)
        reason = self.dice.choice(["WorkerLost", "Preempted", "Hung", "Notice", "Joined", "Resized", "no such word"])
        attempt = self.life.state.attempt
        self.send(WorldLost(self.worker_ns, attempt, reason, "told", began_ns, 1, generation=self.generation))
        self.generation, self.formed, self.gang_step = self.generation + 1, False, None
        if self.dice.random() < 0.5:
            self.a_slot_goes()

    # --- the slots of an elastic gang

    def a_slot_comes(self) -> None:
        if self.life.phase.holds_machines and len(self.slots) < 4:
            self.later(1_000)
            name = f"slot-{len(self.books.entries)}"
            self.slots.add(name)
            role = self.dice.choice([Role.MEMBER, Role.WARMING])
            self.books.hold(self.worker_ns, name, role, self.life.phase)

    def a_slot_goes(self) -> None:
        if self.slots:
            name = self.dice.choice(sorted(self.slots))
            self.slots.remove(name)
            self.books.append(MachineReleased(self.life.now_ns, name))

    def a_slot_turns(self) -> None:
        if self.slots:
            name, role = self.dice.choice(sorted(self.slots)), self.dice.choice(list(Role))
            self.books.append(MachineTurned(self.life.now_ns, name, role.value))

    # --- the gang at work

    def the_gang_trains(self) -> None:
        for _ in range(self.dice.randint(1, 5)):
            if not self.trains():
                return
            assert self.gang_step is not None
            before_ns = self.worker_ns
            self.later(10_000)
            self.gang_step += 1
            state = self.life.state
            behind = (state.restored_step or 0) < state.settled_step
            if state.phase is not Phase.RUNNING:
                self.send(FirstStepDone(before_ns, state.attempt, self.gang_step, generation=self.generation))
            if behind and state.attempt_step < state.settled_step <= self.gang_step:
                self.send(CaughtUp(self.worker_ns, state.attempt, generation=self.generation))
            self.life.train_to(self.gang_step)
            if self.elastic:
                self.memory = [*self.memory, (self.gang_step, self.worker_ns)][-2:]

    def the_gang_saves(self) -> None:
        if not self.trains():
            return
        assert self.gang_step is not None
        covers_ns = self.worker_ns
        self.later(5_000)
        self.saved.append((self.gang_step, covers_ns))
        if self.dice.random() < 0.6:
            uri = f"step-{self.gang_step}"
            self.send(CheckpointCommitted(self.worker_ns, self.life.state.attempt, self.gang_step, uri, covers_ns))
            if self.worker_ns > covers_ns:
                self.books.append(CheckpointStalled(self.dice.randint(covers_ns, self.worker_ns), covers_ns))

    def the_gang_ends(self) -> None:
        if self.life.phase.holds_machines:
            self.later(60_000)
            state, reason = self.life.state, self.dice.choice(["WorkerLost", "WorkerLost", "DriverLost", *REASONS])
            self.send(AttemptEnded(self.worker_ns, state.attempt, reason, "told", state.attempt_step))

    def the_gang_obeys(self) -> None:
        if self.life.phase.holds_machines and self.asked_to_stop:
            state = self.life.state
            self.send(AttemptEnded(self.worker_ns, state.attempt, "Stopped", "", state.attempt_step))

    def patience_ends(self) -> None:
        if self.life.phase.holds_machines:
            self.hear(StopOverdue(self.life.now_ns, self.life.state.attempt))

    def a_message_comes_again(self) -> None:
        if not self.sent:
            return
        event = self.dice.choice([self.sent[-1], self.dice.choice(self.sent)])
        if isinstance(event, CaughtUp) and self.life.phase is not Phase.RUNNING:
            return  # derived by the controller from a step, so it cannot be repeated by the wire
        self.happened["repeated"] += 1
        self.hear(event)

    # --- what must hold

    def check(self) -> None:
        assert self.started == list(range(1, self.life.state.attempt + 1))
        if self.elastic:
            self.slots &= set(self.books.ledger.held)
        expected = len(self.slots) if self.elastic else self.life.state.workers if self.life.phase.holds_machines else 0
        assert len(self.books.ledger.held) == expected
        statement = self.books.ledger.statement(0)
        by_category = {category: amount for category, amount in statement.by_category().items() if amount is not None}
        assert sum(by_category.values()) == statement.total
        machines: dict[str, list[int]] = {}
        for segment in statement.segments:
            times = machines.setdefault(segment.machine, [segment.start_ns, segment.start_ns])
            assert times[1] == segment.start_ns < segment.end_ns
            times[1] = segment.end_ns
        costs = [cumulative_cost(PRICE, end_ns - start_ns) for start_ns, end_ns in machines.values()]
        assert sum(costs) == statement.total
        owed = self.books.ledger.owed(self.life.now_ns)
        assert owed is not None
        assert owed >= sum(costs)  # with what is billed at least
        assert self.books.ledger.held or owed == sum(costs)
        assert sum(costs) >= self.total_before
        self.total_before = sum(costs)
        for category in SETTLED:
            amount = by_category.get(category, 0)
            assert amount >= self.settled_before[category], category
            self.settled_before[category] = amount
        if self.life.phase not in (Phase.RUNNING, Phase.RECOVERING, Phase.RESIZING):
            assert not self.spent(Category.AT_RISK)

    def spent(self, category: Category) -> int:
        return self.books.ledger.statement(self.life.now_ns).by_category().get(category) or 0


def live(seed: int, steps: int) -> History:
    history = History(seed)
    after_the_end = 0
    for _ in range(steps):
        after_the_end += history.life.phase.ended
        if after_the_end > 5:
            break
        history.step()
    history.life.check()
    return history


@pytest.mark.parametrize(("seeds", "often"), [(range(400), 2), pytest.param(range(900), 5, marks=pytest.mark.faults)])
def test_any_history_keeps_state_commands_and_money_consistent(seeds: range, often: int) -> None:
    """No interleaving raises `InternalError`, breaks an invariant, leaves an ended phase or loses a nano-dollar, and
    the dice reached every end, late and repeated messages, refused checkpoints and redone work."""
    happened: Counter[str] = Counter()
    for seed in seeds:
        try:
            history = live(seed, steps=90)
        except BaseException as error:
            error.add_note(f"reproduce with live({seed}, steps=90)")
            raise
        happened.update(history.happened)
        happened[f"ended {history.life.phase}"] += 1
        happened[f"attempts {min(4, history.life.state.attempt)}"] += 1
        happened[f"because {history.life.state.reason}"] += 1
        again = Ledger(entry_from_document(entry_to_document(entry)) for entry in history.books.entries)
        assert again.statement(history.life.now_ns) == history.books.ledger.statement(history.life.now_ns)
    for what in (
        "ended Succeeded",
        "ended Failed",
        "ended Cancelled",
        "attempts 4",
        "because CrashLoop",
        "because PreemptionsExhausted",
        "because BudgetExceeded",
        "because ApplicationError",
        "because NoCapacity",
        "CaughtUp in Running",
        "CheckpointCommitted in Running",
        "AttemptEnded in Recovering",
        "AttemptEnded in Succeeded",
        "StopOverdue in Running",
        "ResumeRequested in Suspended",
        "SuspendRequested in Recovering",
        "CheckpointRestored in Recovering",
        "unheard checkpoint saves work",
        "rest is lost",
        "WorldLost in Running",
        "WorldLost in Provisioning",
        "WorldLost in Recovering",
        "WorldLost in Resizing",
        "MemoryTakenUp in Recovering",
        "MemoryTakenUp in Resizing",
        "CheckpointRestored in Resizing",
        "AttemptEnded in Resizing",
        "ScaleRequested in Running",
        "memory keeps what is at risk",
        "steps after memory are lost",
        "repeated",
        "Refusal",
    ):
        assert happened[what] >= often, f"{what}: {happened[what]}"
