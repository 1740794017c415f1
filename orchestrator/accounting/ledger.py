"""The ledger of one job: an append-only list of entries, and the segments that follow from it.

Entries are facts, journaled before or as they happen: a machine is held (written before a worker starts on it), a
machine is released, the gang turns to another activity, a checkpoint stalled the gang, work at risk is settled.
`Ledger` folds them; `statement(now)` cuts every machine's time into segments of exactly one category each and prices
them by differences of a cumulative floor (see `orchestrator.domain.money`), so that the segments of a machine add up to
its cost to the nano-dollar, whatever the cuts.

The wall clock may step: an instant that precedes an earlier one of the same ledger counts as that earlier one. So an
instant must not lie ahead of the writer's own clock; whoever reports a worker's time bounds it first.

Activities are those of the gang, and a machine shares them while it is a member of it. A machine that is not (it warms
up, waits for a place, or has given its place up) has a category of its own, told by its role.

What is settled never changes: the amounts of all categories but at_risk only rise, as entries come and time goes on.

Limits of this form: one price for as long as a machine is held.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from orchestrator.domain.errors import InternalError
from orchestrator.domain.money import Nanodollars, add, cumulative_cost
from orchestrator.domain.offerings import CapacityType


class Category(StrEnum):
    """What a second of a machine was for. Every second is in exactly one category."""

    PROVISIONING = "provisioning"
    """From the first hold to the first step; for a machine that joins later, until it becomes a member of the gang."""
    AT_RISK = "at_risk"
    """Training that no durable checkpoint covers yet; settled later as useful or lost work."""
    USEFUL = "useful"
    LOST_WORK = "lost_work"
    CHECKPOINT_STALL = "checkpoint_stall"
    """The gang stood still while a checkpoint was taken."""
    RESTART = "restart"
    """From the loss of an attempt, or of a world inside it, to the next first step."""
    RESIZE = "resize"
    """From the last step of a world that was left on purpose (a notice, a worker that joins) to the next first step."""
    IDLE = "idle"
    """A machine that could be a member of the gang and has no place in it."""
    SHUTDOWN = "shutdown"
    """From the end of the work to the release, and what the provider's granularity or minimum adds."""


class Role(StrEnum):
    """What a machine is to the gang."""

    MEMBER = "member"
    """Shares the gang's activities."""
    WARMING = "warming"
    """Starts up, to become a member: provisioning of this machine alone."""
    IDLE = "idle"
    """Ready, and without a place."""
    LEAVING = "leaving"
    """Has given up its place and will be released: shutdown of this machine alone."""


_CATEGORY_OF_ROLE = {Role.WARMING: Category.PROVISIONING, Role.IDLE: Category.IDLE, Role.LEAVING: Category.SHUTDOWN}


@dataclass(frozen=True, slots=True)
class Entry:
    at_ns: int


@dataclass(frozen=True, slots=True)
class MachineHeld(Entry):
    """A machine is paid for from `at_ns` on. Prices are None when unknown."""

    machine: str
    """Unique over all jobs and attempts."""
    instance_type: str
    zone: str
    capacity_type: str
    gpus: int
    price_nanodollars_per_hour: int | None
    list_price_nanodollars_per_hour: int | None
    price_source: str
    billed: bool
    granularity_ns: int
    minimum_ns: int
    role: str = Role.MEMBER.value


@dataclass(frozen=True, slots=True)
class MachineTurned(Entry):
    """From `at_ns` on, the machine has another role."""

    machine: str
    role: str


@dataclass(frozen=True, slots=True)
class MachineReleased(Entry):
    machine: str


@dataclass(frozen=True, slots=True)
class CategoryBooked(Entry):
    """From `at_ns` on, the job's machines are busy with this (training is booked as at_risk)."""

    category: str


@dataclass(frozen=True, slots=True)
class CheckpointStalled(Entry):
    """The gang stood still for a checkpoint from `from_ns` to `at_ns`. Only time at risk is cut: what is settled stays."""

    from_ns: int


@dataclass(frozen=True, slots=True)
class WorkSettled(Entry):
    """Training at risk that was done before `at_ns` was useful, or is lost. `whole`: all training at risk until now,
    whatever the clocks of its machines say. What was done before `from_ns` stays at risk."""

    useful: bool
    whole: bool = False
    from_ns: int = 0


_KINDS: dict[str, type[Entry]] = {
    kind.__name__: kind
    for kind in (MachineHeld, MachineTurned, MachineReleased, CategoryBooked, CheckpointStalled, WorkSettled)
}


def entry_to_document(entry: Entry) -> dict[str, Any]:
    """A JSON-able form; `entry_from_document` reads it back."""
    return {"kind": type(entry).__name__, **asdict(entry)}


def entry_from_document(document: dict[str, Any]) -> Entry:
    values = dict(document)
    kind = _KINDS.get(values.pop("kind", ""))
    if kind is None:
        raise InternalError(f"the ledger holds an entry of unknown kind: {document!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InternalError(f"the ledger holds an entry of unknown form: {document!r}") from error


class Segment(NamedTuple):
    """The time [start_ns, end_ns) of one machine in one category, and its cost (None: price unknown)."""

    machine: str
    instance_type: str
    zone: str
    capacity_type: CapacityType
    gpus: int
    category: Category
    start_ns: int
    end_ns: int
    cost_nanodollars: Nanodollars | None
    list_cost_nanodollars: Nanodollars | None


@dataclass(frozen=True, slots=True)
class Statement:
    """What a job has cost until an instant. Amounts are None when a price behind them is unknown."""

    until_ns: int
    segments: tuple[Segment, ...]
    per_hour_nanodollars: Nanodollars | None
    """What is being spent now."""
    billed: bool
    """False when every price is an example that nobody will bill."""
    price_sources: tuple[str, ...]

    @property
    def total(self) -> Nanodollars | None:
        return _sum(segment.cost_nanodollars for segment in self.segments)

    @property
    def list_total(self) -> Nanodollars | None:
        """The same time at the on-demand list price."""
        return _sum(segment.list_cost_nanodollars for segment in self.segments)

    def by_category(self) -> dict[Category, Nanodollars | None]:
        """Cost of every category that has any time; the values add up to `total`."""
        sums: dict[Category, Nanodollars | None] = {}
        for segment in self.segments:
            sums[segment.category] = add(sums.get(segment.category, Nanodollars(0)), segment.cost_nanodollars)
        return {category: sums[category] for category in Category if category in sums}

    def machine_seconds(self, category: Category | None = None) -> float:
        chosen = (s for s in self.segments if category in (None, s.category))
        return sum(s.end_ns - s.start_ns for s in chosen) / 1e9


def _sum(amounts: Iterable[Nanodollars | None]) -> Nanodollars | None:
    total: Nanodollars | None = Nanodollars(0)
    for amount in amounts:
        total = add(total, amount)
    return total


@dataclass(slots=True)
class _Span:
    """Time of the gang in one category; `end_ns` None while it lasts."""

    start_ns: int
    end_ns: int | None
    category: Category


class Ledger:
    """Fold of the entries of one job, in the order they were journaled.

    Spans are in order of time and do not overlap; neighbours of one category are joined. Spans before `_first_at_risk`
    are settled, so an entry costs no more than the spans that are at risk. Not safe over threads.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._spans: list[_Span] = []
        self._holds: dict[str, MachineHeld] = {}
        self._roles: dict[str, list[tuple[int, Role]]] = {}
        """Of every machine, in order of time: since when it has which role."""
        self._ends: dict[str, int] = {}
        self._held: dict[str, None] = {}
        self._latest_ns = 0
        self._first_at_risk = 0
        for entry in entries:
            self.append(entry)

    @property
    def held(self) -> tuple[str, ...]:
        """Machines that are paid for now."""
        return tuple(self._held)

    def append(self, entry: Entry) -> None:
        """Take in one entry. Raises `InternalError` when it contradicts the ledger, which stays as it was."""
        match entry:
            case MachineHeld():
                self._hold(entry)
            case MachineTurned():
                self._turn(entry)
            case MachineReleased():
                self._release(entry)
            case CategoryBooked():
                self._book(entry)
            case CheckpointStalled():
                self._stall(entry)
            case WorkSettled():
                self._settle(entry)
            case _:
                raise InternalError(f"the ledger cannot book {entry!r}")

    def _clamped(self, at_ns: int) -> int:
        self._latest_ns = max(self._latest_ns, at_ns)
        return self._latest_ns

    def _hold(self, entry: MachineHeld) -> None:
        if entry.machine in self._holds:
            raise InternalError(f"machine {entry.machine} is or was held already")
        if entry.capacity_type not in set(CapacityType):
            raise InternalError(f"machine {entry.machine} is of unknown capacity type {entry.capacity_type!r}")
        if entry.role not in set(Role):
            raise InternalError(f"machine {entry.machine} has the unknown role {entry.role!r}")
        held = self._holds[entry.machine] = replace(entry, at_ns=self._clamped(entry.at_ns))
        self._roles[entry.machine] = [(held.at_ns, Role(entry.role))]
        self._held[entry.machine] = None

    def _turn(self, entry: MachineTurned) -> None:
        if entry.machine not in self._held:
            raise InternalError(f"machine {entry.machine} turns to {entry.role} but is not held")
        if entry.role not in set(Role):
            raise InternalError(f"machine {entry.machine} cannot turn to the unknown role {entry.role!r}")
        at_ns, roles = self._clamped(entry.at_ns), self._roles[entry.machine]
        if roles[-1][0] == at_ns:
            roles.pop()
        roles.append((at_ns, Role(entry.role)))

    def _release(self, entry: MachineReleased) -> None:
        if entry.machine not in self._held:
            raise InternalError(f"machine {entry.machine} is released but not held")
        at_ns = self._clamped(entry.at_ns)
        self._ends[entry.machine] = at_ns
        del self._held[entry.machine]
        if not self._held:  # no machine, no activity: what the next machine is for is booked anew
            self._close_span(at_ns)

    def _book(self, entry: CategoryBooked) -> None:
        if entry.category not in set(Category):
            raise InternalError(f"the ledger cannot book the unknown category {entry.category!r}")
        category, at_ns = Category(entry.category), self._clamped(entry.at_ns)
        if self._spans and self._spans[-1].end_ns is None and self._spans[-1].category is category:
            return
        self._close_span(at_ns)
        last = self._spans[-1] if self._spans else None
        if last is not None and last.category is category and last.end_ns == at_ns:
            last.end_ns = None
        else:
            self._spans.append(_Span(at_ns, None, category))
        self._advance()

    def _close_span(self, at_ns: int) -> None:
        if self._spans and self._spans[-1].end_ns is None:
            self._spans[-1].end_ns = at_ns
            if self._spans[-1].start_ns >= at_ns:
                self._spans.pop()
                self._first_at_risk = min(self._first_at_risk, len(self._spans))

    def _stall(self, entry: CheckpointStalled) -> None:
        """Cut the stall out of training time, wherever it lies; time of other categories stays as it is."""
        self._clamped(entry.at_ns)
        self._recut(entry.from_ns, entry.at_ns, Category.CHECKPOINT_STALL)

    def _settle(self, entry: WorkSettled) -> None:
        latest_ns = self._clamped(entry.at_ns)
        until_ns = latest_ns if entry.whole else entry.at_ns
        self._recut(entry.from_ns, until_ns, Category.USEFUL if entry.useful else Category.LOST_WORK)

    def _recut(self, from_ns: int, until_ns: int, category: Category) -> None:
        """Give the at-risk time within [from_ns, until_ns) another category."""
        first = max(0, self._first_at_risk - 1)  # the last settled span may be joined with what follows it
        if category is Category.CHECKPOINT_STALL:
            first = max(first, bisect_right(self._spans, from_ns, lo=first, key=lambda span: span.start_ns) - 1)
        recut: list[_Span] = []
        for span in self._spans[first:]:
            for part in _cut(span, from_ns, until_ns, category):
                if recut and recut[-1].category is part.category and recut[-1].end_ns == part.start_ns:
                    recut[-1].end_ns = part.end_ns
                else:
                    recut.append(part)
        self._spans[first:] = recut
        self._advance()

    def _advance(self) -> None:
        while (
            self._first_at_risk < len(self._spans) and self._spans[self._first_at_risk].category is not Category.AT_RISK
        ):
            self._first_at_risk += 1

    def owed(self, now_ns: int) -> Nanodollars | None:
        """What the job would have cost if it gave everything back now: what a provider bills at least is in it from the start.
        None when a price is unknown. Takes a step for each machine there ever was."""
        until_ns = max(now_ns, self._latest_ns)
        amounts: list[Nanodollars | None] = []
        for machine, hold in self._holds.items():
            price, end_ns = hold.price_nanodollars_per_hour, self._ends.get(machine, until_ns)
            amounts.append(None if price is None else cumulative_cost(price, _billed_end(hold, end_ns) - hold.at_ns))
        return _sum(amounts)

    def statement(self, now_ns: int) -> Statement:
        """Every machine's time until `now_ns`, cut into segments and priced. Walks all spans of each machine's time."""
        until_ns = max(now_ns, self._latest_ns)
        segments: list[Segment] = []
        for machine, hold in self._holds.items():
            segments.extend(self._segments_of(hold, self._ends.get(machine), until_ns))
        holds = self._holds.values()
        prices = [self._holds[machine].price_nanodollars_per_hour for machine in self._held]
        return Statement(
            until_ns,
            tuple(segments),
            _sum(None if price is None else Nanodollars(price) for price in prices),
            any(hold.billed for hold in holds),
            tuple(dict.fromkeys(hold.price_source for hold in holds)),
        )

    def _segments_of(self, hold: MachineHeld, released_ns: int | None, until_ns: int) -> list[Segment]:
        """Time that nothing was booked for counts as provisioning; what is billed beyond the release, as shutdown."""
        end_ns = until_ns if released_ns is None else released_ns
        pieces: list[_Piece] = []
        roles = self._roles[hold.machine]
        ends = [*(at_ns for at_ns, _ in roles[1:]), end_ns]
        for (start_ns, role), stop_ns in zip(roles, ends, strict=True):
            if role is Role.MEMBER:
                self._add_spans(pieces, start_ns, stop_ns)
            else:
                _add(pieces, start_ns, stop_ns, _CATEGORY_OF_ROLE[role])
        if released_ns is not None:
            _add(pieces, end_ns, _billed_end(hold, end_ns), Category.SHUTDOWN)
        capacity_type = CapacityType(hold.capacity_type)
        costs = _costs(hold, hold.price_nanodollars_per_hour, pieces)
        list_costs = _costs(hold, hold.list_price_nanodollars_per_hour, pieces)
        return [
            Segment(
                hold.machine,
                hold.instance_type,
                hold.zone,
                capacity_type,
                hold.gpus,
                category,
                start_ns,
                end_ns,
                cost,
                list_cost,
            )
            for (start_ns, end_ns, category), cost, list_cost in zip(pieces, costs, list_costs, strict=True)
        ]

    def _add_spans(self, pieces: list[_Piece], start_ns: int, end_ns: int) -> None:
        """The gang's activities within [start_ns, end_ns)."""
        cursor = start_ns
        first = max(0, bisect_right(self._spans, cursor, key=lambda span: span.start_ns) - 1)
        for index in range(first, len(self._spans)):
            span = self._spans[index]
            if span.start_ns >= end_ns:
                break
            low = max(span.start_ns, cursor)
            high = end_ns if span.end_ns is None else min(span.end_ns, end_ns)
            if high > low:
                _add(pieces, cursor, low, Category.PROVISIONING)
                _add(pieces, low, high, span.category)
                cursor = high
        _add(pieces, cursor, end_ns, Category.PROVISIONING)


def _cut(span: _Span, from_ns: int, until_ns: int, category: Category) -> Iterator[_Span]:
    """The span in up to three parts: its time within [from_ns, until_ns) in another category, if it is at risk."""
    low = max(span.start_ns, from_ns)
    high = until_ns if span.end_ns is None else min(span.end_ns, until_ns)
    if span.category is not Category.AT_RISK or high <= low:
        yield span
        return
    if span.start_ns < low:
        yield _Span(span.start_ns, low, Category.AT_RISK)
    yield _Span(low, high, category)
    if span.end_ns is None or high < span.end_ns:
        yield _Span(high, span.end_ns, Category.AT_RISK)


_Piece = tuple[int, int, Category]
"""[start_ns, end_ns) of one machine; pieces of a machine follow each other without a gap."""


def _add(pieces: list[_Piece], start_ns: int, end_ns: int, category: Category) -> None:
    """Add the time [start_ns, end_ns) if there is any, joined with the piece before it when that is of one category."""
    if end_ns <= start_ns:
        return
    if pieces and pieces[-1][2] is category:
        start_ns = pieces.pop()[0]
    pieces.append((start_ns, end_ns, category))


def _costs(hold: MachineHeld, price: int | None, pieces: Sequence[_Piece]) -> Iterator[Nanodollars | None]:
    """Cost of each piece: by how much it raises what the machine has cost since it was held."""
    before = Nanodollars(0)
    for _, end_ns, _ in pieces:
        if price is None:
            yield None
        else:
            until = cumulative_cost(price, end_ns - hold.at_ns)
            yield Nanodollars(until - before)
            before = until


def _billed_end(hold: MachineHeld, end_ns: int) -> int:
    """When the provider stops billing: the held time rounded up to its granularity, and at least its minimum."""
    held_ns = max(end_ns - hold.at_ns, hold.minimum_ns)
    if hold.granularity_ns > 0:
        held_ns = -(-held_ns // hold.granularity_ns) * hold.granularity_ns
    return hold.at_ns + held_ns
