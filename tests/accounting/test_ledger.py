"""The ledger against an independent recomputation, and the cases that are easy to get wrong."""

from __future__ import annotations

import json
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
    Statement,
    WorkSettled,
    entry_from_document,
    entry_to_document,
)
from orchestrator.domain.errors import InternalError
from orchestrator.domain.money import NANOSECONDS_PER_HOUR

HORIZON = 400
SECOND = 1_000_000_000
BOOKED = (
    Category.PROVISIONING,
    Category.AT_RISK,
    Category.AT_RISK,
    Category.AT_RISK,
    Category.RESTART,
    Category.RESIZE,
    Category.SHUTDOWN,
)
OUTSIDE = {"warming": Category.PROVISIONING, "idle": Category.IDLE, "leaving": Category.SHUTDOWN}
"""What a machine's own time is for while it is no member of the gang."""


def hold(
    at_ns: int,
    machine: str = "m",
    price: int | None = NANOSECONDS_PER_HOUR,
    listed: int | None = None,
    granularity_ns: int = 0,
    minimum_ns: int = 0,
    gpus: int = 1,
    capacity_type: str = "on-demand",
    role: str = "member",
) -> MachineHeld:
    """A machine that costs a nano-dollar a nanosecond unless told otherwise."""
    return MachineHeld(
        at_ns, machine, "t", "z", capacity_type, gpus, price, listed, "test", True, granularity_ns, minimum_ns, role
    )


def spent(ledger: Ledger, now_ns: int = 0) -> dict[str, int | None]:
    return {category.value: amount for category, amount in ledger.statement(now_ns).by_category().items()}


class Oracle:
    """The same account kept nanosecond by nanosecond: one category for each, no spans, no cumulative sums."""

    def __init__(self) -> None:
        self.latest = 0
        self.now: Category | None = None
        self.gang: list[Category | None] = [None] * HORIZON
        self.holds: dict[str, MachineHeld] = {}
        self.start: dict[str, int] = {}
        self.end: dict[str, int] = {}
        self.roles: dict[str, list[str]] = {}

    def append(self, entry: Entry) -> None:
        self.latest = at = max(self.latest, entry.at_ns)
        match entry:
            case MachineHeld():
                self.holds[entry.machine], self.start[entry.machine] = entry, at
                self.roles[entry.machine] = [entry.role] * HORIZON
            case MachineTurned():
                self.roles[entry.machine][at:] = [entry.role] * (HORIZON - at)
            case MachineReleased():
                self.end[entry.machine] = at
                if len(self.end) == len(self.holds):
                    self._turn_to(None, at)
            case CategoryBooked():
                self._turn_to(Category(entry.category), at)
            case CheckpointStalled():
                self._change(range(entry.from_ns, entry.at_ns), Category.CHECKPOINT_STALL)
            case WorkSettled():
                until = at if entry.whole else entry.at_ns
                self._change(range(entry.from_ns, until), Category.USEFUL if entry.useful else Category.LOST_WORK)

    def _turn_to(self, category: Category | None, at: int) -> None:
        self.now = category
        self.gang[at:] = [category] * (HORIZON - at)

    def _change(self, times: range, category: Category) -> None:
        for time in times:
            if self.gang[time] is Category.AT_RISK:
                self.gang[time] = category

    def costs(self, now: int) -> Counter[tuple[str, Category]]:
        """Cost by machine and category until `now`; of time, where the price is unknown."""
        found: Counter[tuple[str, Category]] = Counter()
        for machine, entry in self.holds.items():
            start = self.start[machine]
            end = self.end.get(machine, max(now, self.latest))
            billed = end
            if machine in self.end:
                held = max(end - start, entry.minimum_ns)
                while entry.granularity_ns and held % entry.granularity_ns:
                    held += 1
                billed = start + held
            for time in range(start, billed):
                own = OUTSIDE.get(self.roles[machine][time])
                category = Category.SHUTDOWN if time >= end else own or self.gang[time] or Category.PROVISIONING
                price = entry.price_nanodollars_per_hour
                cost = 1
                if price is not None:
                    before, after = (price * t // NANOSECONDS_PER_HOUR for t in (time - start, time - start + 1))
                    cost = after - before
                found[machine, category] += cost
        return found


def costs_of(statement: Statement) -> Counter[tuple[str, Category]]:
    found: Counter[tuple[str, Category]] = Counter()
    for segment in statement.segments:
        cost = segment.cost_nanodollars
        found[segment.machine, segment.category] += segment.end_ns - segment.start_ns if cost is None else cost
    return found


class World:
    """Random entries that a controller could write: several machines, clocks that differ and step."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.time = 0
        self.held: list[str] = []
        self.count = 0

    def entry(self) -> Entry | None:
        self.time = max(0, self.time + self.dice.choice([0, 0, 1, 3, 7, 12, -9]))
        kind = self.dice.choice(["hold", "turn", "turn", "release", "book", "book", "stall", "settle", "settle"])
        if kind == "hold" or not self.held:
            self.count += 1
            self.held.append(f"m{self.count}")
            price = self.dice.choice([None, NANOSECONDS_PER_HOUR, self.dice.randrange(1, 3 * NANOSECONDS_PER_HOUR)])
            granularity, minimum = self.dice.choice([0, 1, 7, 20]), self.dice.choice([0, 0, 33])
            return hold(self.time, self.held[-1], price, price, granularity, minimum, role=self.role())
        if kind == "turn":
            return MachineTurned(self.time, self.dice.choice(self.held), self.role())
        if kind == "release":
            machine = self.held.pop(self.dice.randrange(len(self.held)))
            return MachineReleased(self.time, machine)
        if kind == "book":
            return CategoryBooked(self.time, self.dice.choice(BOOKED).value)
        if kind == "stall":
            at_ns = max(0, self.time - self.dice.randrange(4))
            return CheckpointStalled(at_ns, max(0, at_ns - self.dice.randrange(-2, 9)))
        at_ns = max(0, self.time - self.dice.randrange(12))
        from_ns = max(0, at_ns - self.dice.randrange(-3, 15)) if self.dice.random() < 0.3 else 0
        return WorkSettled(at_ns, self.dice.random() < 0.6, self.dice.random() < 0.3, from_ns)

    def role(self) -> str:
        return self.dice.choice(["member", "member", *OUTSIDE])


def compare(ledger: Ledger, oracle: Oracle, now_ns: int) -> None:
    statement = ledger.statement(now_ns)
    assert +costs_of(statement) == +oracle.costs(now_ns)
    known = all(entry.price_nanodollars_per_hour is not None for entry in oracle.holds.values())
    amounts = statement.by_category().values()
    if known:
        assert statement.total == sum(oracle.costs(now_ns).values())
        assert sum(amount for amount in amounts if amount is not None) == statement.total
    else:
        touched = {s.machine for s in statement.segments if s.cost_nanodollars is None}
        assert (statement.total is None) == bool(touched)
    ends: dict[str, tuple[int, Category]] = {}
    for segment in statement.segments:
        if segment.machine in ends:
            assert ends[segment.machine][0] == segment.start_ns
            assert ends[segment.machine][1] is not segment.category
        else:
            assert segment.start_ns == oracle.start[segment.machine]
        assert segment.start_ns < segment.end_ns
        ends[segment.machine] = (segment.end_ns, segment.category)


@pytest.mark.parametrize("seeds", [range(500), pytest.param(range(500, 5_000), marks=pytest.mark.faults)])
def test_the_ledger_equals_a_count_of_every_nanosecond(seeds: range) -> None:
    """Over 500 random histories (4,500 more in `make faults`) each machine's cost in each category is what counting nanoseconds gives, and what
    is settled never falls."""
    for seed in seeds:
        world, ledger, oracle = World(seed), Ledger(), Oracle()
        settled: Counter[tuple[str, Category]] = Counter()
        now_ns = 0
        try:
            for _ in range(world.dice.randrange(5, 30)):
                entry = world.entry()
                assert entry is not None
                document = json.loads(json.dumps(entry_to_document(entry)))
                assert entry_from_document(document) == entry
                ledger.append(entry)
                oracle.append(entry)
                now_ns = max(now_ns, world.time)
                after = costs_of(ledger.statement(now_ns))
                for key, amount in settled.items():
                    assert after[key] >= amount, key
                going_on = {
                    (machine, OUTSIDE.get(roles[oracle.latest]) or oracle.now or Category.PROVISIONING)
                    for machine, roles in oracle.roles.items()
                    if machine not in oracle.end
                }
                settled = Counter(
                    {k: v for k, v in after.items() if k[1] is not Category.AT_RISK and k not in going_on}
                )
                if world.dice.random() < 0.1:
                    compare(ledger, oracle, now_ns + world.dice.randrange(20))
            assert ledger.held == tuple(world.held)
            compare(ledger, oracle, now_ns)
        except BaseException as error:
            error.add_note(f"reproduce with World({seed})")
            raise


def test_a_jobs_time_falls_into_the_categories_it_was_for() -> None:
    """Provisioning, training saved and lost, a stall, a restart and the shutdown are told apart to the nanosecond."""
    ledger = Ledger(
        [
            hold(100),
            CategoryBooked(100, "provisioning"),
            CategoryBooked(110, "at_risk"),
            WorkSettled(150, useful=True),
            CheckpointStalled(155, from_ns=150),
            CategoryBooked(170, "restart"),
            WorkSettled(170, useful=False),
            CategoryBooked(190, "at_risk"),
            CategoryBooked(240, "shutdown"),
            WorkSettled(240, useful=True),
            MachineReleased(243, "m"),
        ]
    )
    assert spent(ledger) == {
        "provisioning": 10,
        "useful": 90,
        "lost_work": 15,
        "checkpoint_stall": 5,
        "restart": 20,
        "shutdown": 3,
    }
    statement = ledger.statement(10_000)
    assert statement.total == 143
    assert statement.machine_seconds(Category.USEFUL) == 90 / SECOND
    assert statement.machine_seconds() == 143 / SECOND
    assert statement.per_hour_nanodollars == 0


def test_a_machine_that_joins_warms_up_on_its_own_account() -> None:
    """While two machines train, a third one warms up (provisioning), waits (idle), joins, leaves (shutdown); the resize
    is that of the members alone."""
    ledger = Ledger(
        [
            hold(0, "a"),
            hold(0, "b"),
            CategoryBooked(0, "provisioning"),
            CategoryBooked(10, "at_risk"),
            hold(50, "c", role="warming"),
            MachineTurned(70, "c", "idle"),
            CategoryBooked(80, "resize"),
            MachineTurned(81, "c", "member"),
            CategoryBooked(83, "at_risk"),
            CategoryBooked(120, "resize"),
            MachineTurned(121, "a", "leaving"),
            CategoryBooked(122, "at_risk"),
            MachineReleased(130, "a"),
            WorkSettled(200, useful=True),
            CategoryBooked(200, "shutdown"),
            MachineReleased(200, "b"),
            MachineReleased(200, "c"),
        ]
    )
    of_c = {key[1].value: cost for key, cost in costs_of(ledger.statement(0)).items() if key[0] == "c"}
    assert of_c == {"provisioning": 20, "idle": 11, "resize": 2 + 2, "useful": 37 + 78}
    assert spent(ledger) == {
        "provisioning": 10 + 10 + 20,
        "useful": (70 + 37) + (70 + 37 + 78) + (37 + 78),
        "resize": (3 + 1) + (3 + 2) + (2 + 2),
        "idle": 11,
        "shutdown": 9,
    }
    assert ledger.statement(0).total == 130 + 200 + 150


def test_steps_redone_from_memory_are_lost_and_what_is_older_stays_at_risk() -> None:
    """A world is lost and goes on from the state of an earlier step: training since that step is lost work, training
    before it waits for a checkpoint."""
    ledger = Ledger([hold(0), CategoryBooked(0, "at_risk"), CategoryBooked(100, "restart")])
    ledger.append(WorkSettled(103, useful=False, whole=True, from_ns=90))
    ledger.append(CategoryBooked(105, "at_risk"))
    assert spent(ledger, 110) == {"at_risk": 95, "lost_work": 10, "restart": 5}
    ledger.append(WorkSettled(108, useful=True))
    assert spent(ledger, 110) == {"at_risk": 2, "useful": 93, "lost_work": 10, "restart": 5}


def test_a_hold_of_an_older_journal_is_a_member() -> None:
    """Entries of a journal from before machines had roles are read as those of members."""
    document = entry_to_document(hold(3))
    del document["role"]
    entry = entry_from_document(document)
    assert isinstance(entry, MachineHeld)
    assert entry.role == Role.MEMBER


def test_a_stall_leaves_settled_time_alone() -> None:
    """A stall that is reported late cuts only what is still at risk."""
    ledger = Ledger([hold(0), CategoryBooked(0, "at_risk"), WorkSettled(50, True), CheckpointStalled(60, from_ns=40)])
    assert spent(ledger, 100) == {"at_risk": 40, "useful": 50, "checkpoint_stall": 10}


def test_nothing_stays_at_risk_when_a_workers_clock_was_ahead() -> None:
    """1. a worker whose clock is ahead reports a stall until 120; 2. the gang ends at 100 by the controller's clock."""
    ledger = Ledger(
        [
            hold(0),
            CategoryBooked(0, "at_risk"),
            CheckpointStalled(120, from_ns=110),
            CategoryBooked(100, "shutdown"),
            WorkSettled(100, useful=False, whole=True),
            MachineReleased(101, "m"),
        ]
    )
    assert spent(ledger) == {"lost_work": 110, "checkpoint_stall": 10}


def test_settled_work_survives_a_clock_that_steps_back() -> None:
    """1. work until 100 is settled; 2. the clock goes back to 10; 3. the end does not take the settled time away."""
    ledger = Ledger([hold(0), CategoryBooked(0, "at_risk"), WorkSettled(100, useful=True)])
    assert spent(ledger, 100) == {"useful": 100}
    ledger.append(CategoryBooked(10, "shutdown"))
    ledger.append(WorkSettled(10, useful=False, whole=True))
    ledger.append(MachineReleased(12, "m"))
    assert spent(ledger, 500) == {"useful": 100}


def test_what_survives_is_settled_in_part_and_the_rest_as_a_whole() -> None:
    """1. an attempt trains from 10 to 60 and is lost; 2. another one too, from 70 to 90; 3. the state taken up after
    that covers the time until 40: only that is useful, and the rest, of both attempts, is lost."""
    ledger = Ledger([hold(0), CategoryBooked(10, "at_risk"), CategoryBooked(60, "restart")])
    ledger.append(CategoryBooked(70, "at_risk"))
    ledger.append(CategoryBooked(90, "restart"))
    assert spent(ledger, 100) == {"provisioning": 10, "at_risk": 70, "restart": 20}
    ledger.append(WorkSettled(40, useful=True))
    assert spent(ledger, 100) == {"provisioning": 10, "at_risk": 40, "useful": 30, "restart": 20}
    ledger.append(WorkSettled(5, useful=False, whole=True))
    assert spent(ledger, 100) == {"provisioning": 10, "useful": 30, "lost_work": 40, "restart": 20}


def test_a_whole_settlement_ends_where_training_goes_on() -> None:
    """While the gang trains, all that was done so far is settled, and what follows is at risk again."""
    ledger = Ledger([hold(0), CategoryBooked(0, "at_risk"), WorkSettled(50, useful=False, whole=True)])
    assert spent(ledger, 80) == {"lost_work": 50, "at_risk": 30}


def test_a_settlement_of_an_older_journal_is_read_as_one_in_part() -> None:
    """An entry that was written before there was `whole` still loads."""
    entry = entry_from_document({"kind": "WorkSettled", "at_ns": 7, "useful": True})
    assert entry == WorkSettled(7, useful=True, whole=False)


def test_a_machine_that_nothing_was_booked_for_is_provisioning() -> None:
    """Time of a held machine without any category is provisioning, before and after its release."""
    ledger = Ledger([hold(0)])
    assert spent(ledger, 5) == {"provisioning": 5}
    ledger.append(MachineReleased(7, "m"))
    assert spent(ledger, 50) == {"provisioning": 7}


def test_shutdown_ends_with_the_last_machine() -> None:
    """A machine held after a suspension does not begin in the shutdown of the one before it."""
    ledger = Ledger([hold(0, "a"), CategoryBooked(0, "shutdown"), MachineReleased(5, "a")])
    ledger.append(hold(20, "b"))
    ledger.append(CategoryBooked(23, "restart"))
    assert spent(ledger, 30) == {"provisioning": 3, "restart": 7, "shutdown": 5}


def test_machines_have_prices_of_their_own() -> None:
    """Two machines with different prices add up, and the spending now is that of those still held."""
    ledger = Ledger([hold(0, "a", 2 * NANOSECONDS_PER_HOUR, 3 * NANOSECONDS_PER_HOUR), hold(0, "b", None)])
    assert ledger.statement(10).per_hour_nanodollars is None
    assert ledger.statement(10).total is None
    ledger.append(MachineReleased(10, "b"))
    assert ledger.held == ("a",)
    assert ledger.statement(10).per_hour_nanodollars == 2 * NANOSECONDS_PER_HOUR
    assert [(s.machine, s.cost_nanodollars, s.list_cost_nanodollars) for s in ledger.statement(20).segments] == [
        ("a", 40, 60),
        ("b", None, None),
    ]


@pytest.mark.parametrize(
    ("held", "granularity", "minimum", "billed"),
    [
        (61, 60, 0, 120),
        (60, 60, 0, 60),
        (0, 60, 0, 0),
        (0, 60, 60, 60),
        (10, 1, 60, 60),
        (10, 0, 0, 10),
        (70, 60, 60, 120),
    ],
)
def test_what_the_provider_rounds_up_is_shutdown(held: int, granularity: int, minimum: int, billed: int) -> None:
    """The bill is rounded up to the granularity, and to the minimum, and the rest is booked as shutdown."""
    ledger = Ledger([hold(7, granularity_ns=granularity, minimum_ns=minimum), CategoryBooked(7, "at_risk")])
    ledger.append(MachineReleased(7 + held, "m"))
    assert ledger.statement(0).total == billed
    assert spent(ledger).get("shutdown", 0) == billed - held


@pytest.mark.parametrize(
    "entry",
    [
        hold(9),
        MachineReleased(9, "never held"),
        MachineReleased(9, "gone"),
        hold(9, "gone"),
        hold(9, "n", capacity_type="rented"),
        hold(9, "n", role="guest"),
        MachineTurned(9, "m", "guest"),
        MachineTurned(9, "gone", "idle"),
        CategoryBooked(9, "holiday"),
        Entry(9),
    ],
)
def test_a_contradiction_is_refused_and_leaves_the_ledger_as_it_was(entry: Entry) -> None:
    """Holding twice, releasing what is not held and unknown words are defects; nothing changes."""
    ledger = Ledger([hold(0), hold(0, "gone"), MachineReleased(3, "gone")])
    before = ledger.statement(0)
    with pytest.raises(InternalError):
        ledger.append(entry)
    assert ledger.statement(0) == before


@pytest.mark.parametrize("document", [{"kind": "Gift", "at_ns": 1}, {"at_ns": 1}, {"kind": "WorkSettled", "at_ns": 1}])
def test_a_foreign_entry_is_refused(document: dict[str, object]) -> None:
    """A journal row of unknown kind or form is told as such."""
    with pytest.raises(InternalError, match="unknown"):
        entry_from_document(document)


def test_ten_thousand_checkpoints_stay_cheap() -> None:
    """Spans of the same category are joined, and an entry looks at no more spans than are at risk."""
    ledger = Ledger([hold(0), CategoryBooked(0, "provisioning"), CategoryBooked(5, "at_risk")])
    for number in range(1, 10_001):
        ledger.append(WorkSettled(number * 10, useful=True))
    assert len(ledger.statement(200_000).segments) == 3
    stalled = Ledger([hold(0), CategoryBooked(0, "provisioning"), CategoryBooked(5, "at_risk")])
    for number in range(1, 10_001):
        stalled.append(WorkSettled(number * 10, useful=True))
        stalled.append(CheckpointStalled(number * 10 + 1, from_ns=number * 10))
        assert len(stalled._spans) - stalled._first_at_risk <= 1
    for _ in range(100):  # losses: an attempt that ends must not leave a remainder that is looked at for ever
        last = stalled._latest_ns
        stalled.append(CategoryBooked(last, "restart"))
        stalled.append(WorkSettled(last, useful=False, whole=True))
        stalled.append(CategoryBooked(last + 5, "at_risk"))
        stalled.append(CategoryBooked(last + 5, "restart"))
        stalled.append(CategoryBooked(last + 6, "at_risk"))
        stalled.append(WorkSettled(last + 9, useful=True))
        assert len(stalled._spans) - stalled._first_at_risk <= 1
