"""The ledger of one job: an append-only list of entries, and the segments that follow from it.

Entries are facts, journaled before or as they happen: a machine is held (written before a worker starts on it), a
machine is released, the gang turns to another activity, a checkpoint stalled the gang, work at risk is settled.
`Ledger` folds them; `statement(now)` cuts every machine's time into segments of exactly one category each and prices
them by differences of a cumulative floor (see `orchestrator.domain.money`), so that the segments of a machine add up to
its cost to the nano-dollar, whatever the cuts.

The wall clock may step: an instant that precedes an earlier one of the same ledger counts as that earlier one.

Limits of this form: one price for as long as a machine is held; activities are those of the whole gang.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from orchestrator.domain.errors import InternalError
from orchestrator.domain.money import Nanodollars, add, cost_between
from orchestrator.domain.offerings import CapacityType


class Category(StrEnum):
    """What a second of a machine was for. Every second is in exactly one category."""

    PROVISIONING = "provisioning"
    """From the first hold to the first step."""
    AT_RISK = "at_risk"
    """Training that no durable checkpoint covers yet; settled later as useful or lost work."""
    USEFUL = "useful"
    LOST_WORK = "lost_work"
    CHECKPOINT_STALL = "checkpoint_stall"
    """The gang stood still while a checkpoint was taken."""
    RESTART = "restart"
    """From the loss of an attempt to the first step of the next one."""
    SHUTDOWN = "shutdown"
    """From the end of the work to the release, and what the provider's granularity or minimum adds."""


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


@dataclass(frozen=True, slots=True)
class MachineReleased(Entry):
    machine: str


@dataclass(frozen=True, slots=True)
class CategoryBooked(Entry):
    """From `at_ns` on, the job's machines are busy with this (training is booked as at_risk)."""

    category: str


@dataclass(frozen=True, slots=True)
class CheckpointStalled(Entry):
    """The gang stood still for a checkpoint from `from_ns` to `at_ns`."""

    from_ns: int


@dataclass(frozen=True, slots=True)
class WorkSettled(Entry):
    """Training at risk that was done before `at_ns` was useful, or is lost."""

    useful: bool


_KINDS: dict[str, type[Entry]] = {
    kind.__name__: kind for kind in (MachineHeld, MachineReleased, CategoryBooked, CheckpointStalled, WorkSettled)
}


def entry_to_document(entry: Entry) -> dict[str, Any]:
    """A JSON-able form; `entry_from_document` reads it back."""
    return {"kind": type(entry).__name__, **asdict(entry)}


def entry_from_document(document: dict[str, Any]) -> Entry:
    values = dict(document)
    kind = _KINDS.get(values.pop("kind", ""))
    if kind is None:
        raise InternalError(f"the ledger holds an entry of unknown kind: {document!r}")
    return kind(**values)


@dataclass(frozen=True, slots=True)
class Segment:
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
        return {
            category: _sum(s.cost_nanodollars for s in self.segments if s.category is category)
            for category in Category
            if any(s.category is category for s in self.segments)
        }

    def machine_seconds(self, category: Category | None = None) -> float:
        chosen = (s for s in self.segments if category in (None, s.category))
        return sum(s.end_ns - s.start_ns for s in chosen) / 1e9

    def gpu_seconds(self, capacity_type: CapacityType) -> float:
        return sum((s.end_ns - s.start_ns) * s.gpus for s in self.segments if s.capacity_type is capacity_type) / 1e9


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
    """Fold of the entries of one job, in the order they were journaled."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._spans: list[_Span] = []
        self._holds: dict[str, MachineHeld] = {}
        self._ends: dict[str, int] = {}
        self._latest_ns = 0
        self._first_at_risk = 0
        for entry in entries:
            self.append(entry)

    @property
    def held(self) -> tuple[str, ...]:
        """Machines that are paid for now."""
        return tuple(machine for machine in self._holds if machine not in self._ends)

    def append(self, entry: Entry) -> None:
        """Take in one entry. Raises `InternalError` when it contradicts the ledger, which stays as it was."""
        match entry:
            case MachineHeld():
                self._hold(entry)
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
            raise InternalError(f"machine {entry.machine} is held already")
        self._holds[entry.machine] = replace(entry, at_ns=self._clamped(entry.at_ns))

    def _release(self, entry: MachineReleased) -> None:
        if entry.machine not in self._holds or entry.machine in self._ends:
            raise InternalError(f"machine {entry.machine} is released but not held")
        self._ends[entry.machine] = self._clamped(entry.at_ns)

    def _book(self, entry: CategoryBooked) -> None:
        category, at_ns = Category(entry.category), self._clamped(entry.at_ns)
        if self._spans and self._spans[-1].end_ns is None:
            if self._spans[-1].category is category:
                return
            self._spans[-1].end_ns = at_ns
        self._spans.append(_Span(at_ns, None, category))

    def _stall(self, entry: CheckpointStalled) -> None:
        """Cut the stall out of training time, wherever it lies; time of other categories stays as it is."""
        self._recut(entry.from_ns, entry.at_ns, Category.CHECKPOINT_STALL)

    def _settle(self, entry: WorkSettled) -> None:
        self._recut(0, entry.at_ns, Category.USEFUL if entry.useful else Category.LOST_WORK)

    def _recut(self, from_ns: int, until_ns: int, category: Category) -> None:
        """Give the at-risk time within [from_ns, until_ns) another category."""
        kept, tail = self._spans[: self._first_at_risk], self._spans[self._first_at_risk :]
        for span in tail:
            if span.category is not Category.AT_RISK:
                kept.append(span)
                continue
            low = max(span.start_ns, from_ns)
            high = until_ns if span.end_ns is None else min(span.end_ns, until_ns)
            if high <= low:
                kept.append(span)
                continue
            if span.start_ns < low:
                kept.append(_Span(span.start_ns, low, Category.AT_RISK))
            kept.append(_Span(low, high, category))
            if span.end_ns is None or high < span.end_ns:
                kept.append(_Span(high, span.end_ns, Category.AT_RISK))
        self._spans = kept
        while self._first_at_risk < len(kept) and kept[self._first_at_risk].category is not Category.AT_RISK:
            self._first_at_risk += 1

    def statement(self, now_ns: int) -> Statement:
        """Every machine's time until `now_ns`, cut into segments and priced."""
        until_ns = max(now_ns, self._latest_ns)
        segments: list[Segment] = []
        for machine, hold in self._holds.items():
            released_ns = self._ends.get(machine)
            segments.extend(self._segments_of(hold, until_ns if released_ns is None else released_ns, released_ns is not None))
        holds = self._holds.values()
        now_prices = [Nanodollars(p) if (p := self._holds[m].price_nanodollars_per_hour) is not None else None for m in self.held]
        return Statement(
            until_ns,
            tuple(segments),
            _sum(now_prices),
            any(hold.billed for hold in holds),
            tuple(dict.fromkeys(hold.price_source for hold in holds)),
        )

    def _segments_of(self, hold: MachineHeld, end_ns: int, released: bool) -> list[Segment]:
        pieces: list[tuple[int, int, Category]] = []
        cursor = hold.at_ns
        for span in self._spans:
            low = max(span.start_ns, cursor)
            high = end_ns if span.end_ns is None else min(span.end_ns, end_ns)
            if high <= low:
                continue
            if cursor < low:
                pieces.append((cursor, low, Category.PROVISIONING))
            pieces.append((low, high, span.category))
            cursor = high
        if cursor < end_ns:
            pieces.append((cursor, end_ns, Category.SHUTDOWN if released else Category.PROVISIONING))
        if released and (billed_end := _billed_end(hold, end_ns)) > end_ns:
            pieces.append((end_ns, billed_end, Category.SHUTDOWN))
        return [self._segment(hold, *piece) for piece in _merged(pieces)]

    def _segment(self, hold: MachineHeld, start_ns: int, end_ns: int, category: Category) -> Segment:
        def cost(price: int | None) -> Nanodollars | None:
            return None if price is None else cost_between(price, hold.at_ns, start_ns, end_ns)

        return Segment(
            hold.machine,
            hold.instance_type,
            hold.zone,
            CapacityType(hold.capacity_type),
            hold.gpus,
            category,
            start_ns,
            end_ns,
            cost(hold.price_nanodollars_per_hour),
            cost(hold.list_price_nanodollars_per_hour),
        )


def _billed_end(hold: MachineHeld, end_ns: int) -> int:
    """When the provider stops billing: the held time rounded up to its granularity, and at least its minimum."""
    held_ns = max(end_ns - hold.at_ns, hold.minimum_ns)
    if hold.granularity_ns > 0:
        held_ns = -(-held_ns // hold.granularity_ns) * hold.granularity_ns
    return hold.at_ns + held_ns


def _merged(pieces: list[tuple[int, int, Category]]) -> list[tuple[int, int, Category]]:
    merged: list[tuple[int, int, Category]] = []
    for start_ns, end_ns, category in pieces:
        if merged and merged[-1][2] is category and merged[-1][1] == start_ns:
            merged[-1] = (merged[-1][0], end_ns, category)
        else:
            merged.append((start_ns, end_ns, category))
    return merged
