"""A market as one gang sees it: when each zone can hold how many of its workers, and at which price. Changes only, no ticks.

Prices are those of the whole gang, in integer nano-dollars an hour. Without recorded prices an hour of the whole gang on
demand costs one dollar, so that amounts read as on-demand-hours. Times are integer ns since the first tick of the trace.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from orchestrator.domain.errors import UsageError
from orchestrator.policy.capacity import SpotHistory
from orchestrator.simulation.traces import Series, Trace

SECOND_NS = 1_000_000_000
HOUR_NS = 3_600 * SECOND_NS
DOLLAR = 1_000_000_000


class Change(NamedTuple):
    """From `at_ns` on, `zone` (by number) offers so many workers, the whole gang at `price` nano-dollars an hour."""

    at_ns: int
    zone: int
    workers: int
    price: int


@dataclass(frozen=True, slots=True)
class Market:
    """`changes` are in order of time, and the first of each zone is at 0."""

    name: str
    zones: tuple[str, ...]
    changes: tuple[Change, ...]
    on_demand: int
    """Nano-dollars an hour of the whole gang."""
    workers_min: int
    workers_max: int
    length_ns: int
    _times: list[int] = field(default_factory=list, repr=False, compare=False)
    _histories: list[tuple[int, list[SpotHistory]]] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._times.extend(change.at_ns for change in self.changes)

    @property
    def rigid(self) -> bool:
        return self.workers_min == self.workers_max

    def first_after(self, at_ns: int) -> int:
        """Place in `changes` of the first that comes after `at_ns`."""
        return bisect_right(self._times, at_ns)

    def at(self, at_ns: int) -> tuple[list[int], list[int]]:
        """Counts and prices of all zones at an instant."""
        counts, prices, missing = [0] * len(self.zones), [0] * len(self.zones), set(range(len(self.zones)))
        for place in range(self.first_after(at_ns) - 1, -1, -1):
            _, zone, count, price = self.changes[place]
            if zone in missing:
                counts[zone], prices[zone] = count, price
                missing.remove(zone)
                if not missing:
                    break
        return counts, prices

    def histories(self, at_ns: int) -> dict[str, SpotHistory]:
        """What was seen of each zone from the first tick to `at_ns`; the caller's own to go on with."""
        before = max((kept for kept in self._histories if kept[0] <= at_ns), key=lambda kept: kept[0], default=None)
        since, known = before or (-1, [SpotHistory() for _ in self.zones])
        if since < at_ns:
            known = [history.copy() for history in known]
            for change in self.changes[self.first_after(since) : self.first_after(at_ns)]:
                known[change.zone].observe(change.at_ns, change.workers)
            for history in known:
                history.observe(at_ns, history.count)
            self._histories.append((at_ns, known))
        return {name: history.copy() for name, history in zip(self.zones, known, strict=True)}

    def price_of(self, gang_price: int, workers: int) -> int:
        """Of so many workers, in nano-dollars an hour."""
        return (gang_price * workers + self.workers_max // 2) // self.workers_max


def market(
    series: Series,
    workers_min: int,
    workers_max: int,
    *,
    spot_price_ratio: float = 1 / 3,
    recorded_prices: bool = False,
) -> Market:
    """The market for a gang of `workers_min` to `workers_max`. A rigid gang takes all or nothing, so that a zone offers it
    either the whole gang or none. Raises UsageError for a gang that no zone ever held, and for prices that are not there."""
    check_gang(series, workers_min, workers_max)
    on_demand = DOLLAR
    if recorded_prices:
        if series.prices is None or series.on_demand_nanodollars_per_hour is None:
            raise UsageError(f"{series.name} has no prices", hint="leave --prices out, and set --spot-price-ratio")
        on_demand = series.on_demand_nanodollars_per_hour * workers_max
    changes: list[Change] = []
    for number, zone in enumerate(series.zones):
        prices = series.prices[number] if recorded_prices and series.prices is not None else None
        gap_ns = zone.gap_seconds * SECOND_NS
        ticks = {tick for tick in range(1, len(zone.available)) if zone.available[tick] != zone.available[tick - 1]}
        if prices is not None:
            ticks.update(tick for tick in prices.ticks if tick < len(zone.available))
        before: tuple[int, int] | None = None
        for tick in sorted({0, *ticks}):
            count = zone.available[tick]
            if workers_min == workers_max:
                count = workers_max if count >= workers_max else 0
            price = round(on_demand * spot_price_ratio) if prices is None else prices.at(tick) * workers_max
            if (count, price) != before:
                changes.append(Change(round(tick * gap_ns), number, count, price))
                before = (count, price)
    changes.sort()
    length_ns = min(round(len(zone.available) * zone.gap_seconds * SECOND_NS) for zone in series.zones)
    names = tuple(zone.name for zone in series.zones)
    return Market(series.name, names, tuple(changes), on_demand, workers_min, workers_max, length_ns)


def check_gang(series: Series, workers_min: int, workers_max: int) -> None:
    """Raises UsageError, with the numbers."""
    if not 1 <= workers_min <= workers_max:
        raise UsageError(
            f"a gang of {workers_min} to {workers_max} workers is none", hint="--workers takes N or MIN:MAX, from 1 up"
        )
    if workers_max > series.most:
        raise UsageError(
            f"{series.name} never had more than {series.most} machines in a zone; the gang has {workers_max} workers",
            hint=f"--workers takes up to {series.most} here" if series.most else "this market never offers a machine",
        )


def turned_round(trace: Trace) -> Trace:
    """The same market run backwards."""
    return Trace(f"{trace.name}-reversed", trace.gap_seconds, trace.available[::-1])


def fluid_bound(market: Market, start_ns: int, work_ns: int, deadline_ns: int) -> float | None:
    """No schedule of an elastic gang costs less (nano-dollars): workers come and go at no cost in time, one by one, and speed
    is in proportion to their number. None: even the whole gang from the start does not make it."""
    if deadline_ns - start_ns < work_ns:
        return None
    most = market.workers_max
    bought: dict[float, float] = {}  # worker-ns on offer, by the price of the gang

    def take(counts: list[int], prices: list[int], length_ns: int) -> None:
        room = most
        for price, count in sorted(zip(prices, counts, strict=True)):
            if price < market.on_demand and (taken := min(count, room)) > 0:
                bought[price] = bought.get(price, 0.0) + taken * length_ns
                room -= taken
        bought[market.on_demand] = bought.get(market.on_demand, 0.0) + room * length_ns

    counts, prices = market.at(start_ns)
    now = start_ns
    for change in market.changes[market.first_after(start_ns) :]:
        if change.at_ns >= deadline_ns:
            break
        take(counts, prices, change.at_ns - now)
        now, counts[change.zone], prices[change.zone] = change.at_ns, change.workers, change.price
    if now < min(deadline_ns, market.length_ns):
        take(counts, prices, min(deadline_ns, market.length_ns) - now)
        now = min(deadline_ns, market.length_ns)
    take([0], [0], deadline_ns - now)
    left, cost = float(work_ns * most), 0.0
    for price in sorted(bought):
        part = min(left, bought[price])
        cost += part * price / most / HOUR_NS
        left -= part
        if left <= 0:
            return cost
    return inf if left > 0.5 * most else cost
