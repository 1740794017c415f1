"""Recorded spot markets: how many machines could be had, tick by tick.

A trace is the JSON of the public spot-traces archive: `{"metadata": {"gap_seconds": G}, "data": [...]}`; a value is the number
of machines that could be had from its tick to the next. Archives derived from it store the opposite (1 = not to be had);
which one a file is cannot be seen in it, so `metadata.value` may say `available` or `unavailable`, and a file that says
nothing is read as the archive that it comes from: available. `flags` tells what looks wrong in a set of traces: files that
are the same, and files that are each other's opposite.

A series has several zones on one clock, with the spot price of each as a list of changes:
`{"metadata": {"gap_seconds": G, "on_demand_price_per_hour": 3.06}, "zones": {"us-east-1c": {"available": [...],
"spot_price_changes": [[tick, dollars per hour], ...]}}}`; prices may be absent.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import NotFound, UsageError


@dataclass(frozen=True, slots=True)
class Trace:
    """`available[i]` machines could be had in [i x gap, (i + 1) x gap) seconds."""

    name: str
    gap_seconds: float
    available: tuple[int, ...]

    @property
    def seconds(self) -> float:
        return len(self.available) * self.gap_seconds

    @property
    def most(self) -> int:
        return max(self.available)

    @property
    def joins(self) -> int:
        """Machines that came after the first tick."""
        return sum(max(0, after - before) for before, after in pairwise(self.available))

    @property
    def losses(self) -> int:
        """Machines that were taken away."""
        return sum(max(0, before - after) for before, after in pairwise(self.available))

    @property
    def machine_seconds(self) -> float:
        return sum(self.available) * self.gap_seconds

    def window(self, start_seconds: float, length_seconds: float) -> Trace:
        """The ticks from `start_seconds` on, as many as begin within `length_seconds`. Raises UsageError when the trace ends
        before."""
        first = round(start_seconds / self.gap_seconds)
        count = max(1, round(length_seconds / self.gap_seconds))
        if first + count > len(self.available):
            raise UsageError(
                f"{self.name} has {self.seconds / 3600:.1f} hours, which end before {(start_seconds + length_seconds) / 3600:.1f}",
                hint="start earlier, or take a shorter piece",
            )
        return Trace(self.name, self.gap_seconds, self.available[first : first + count])

    def changes(self) -> Iterator[tuple[float, int]]:
        """(seconds from the beginning, machines from then on), the first at 0."""
        before: int | None = None
        for tick, count in enumerate(self.available):
            if count != before:
                yield tick * self.gap_seconds, count
                before = count


@dataclass(frozen=True, slots=True)
class ZonePrices:
    """The spot price of one machine in a zone, in nano-dollars an hour: `prices[i]` from tick `ticks[i]` on."""

    ticks: tuple[int, ...]
    prices: tuple[int, ...]

    def at(self, tick: int) -> int:
        return self.prices[bisect_right(self.ticks, tick) - 1]


@dataclass(frozen=True, slots=True)
class Series:
    """One or more zones on one clock. `prices` and the on-demand price (of one machine, nano-dollars an hour) are None where
    the file tells none."""

    name: str
    zones: tuple[Trace, ...]
    prices: tuple[ZonePrices, ...] | None = None
    on_demand_nanodollars_per_hour: int | None = None

    @property
    def seconds(self) -> float:
        return min(zone.seconds for zone in self.zones)

    @property
    def most(self) -> int:
        """Most machines that one zone ever had."""
        return max(zone.most for zone in self.zones)

    def only(self, names: Sequence[str]) -> Series:
        """The zones of these names, in this order. Raises UsageError for one that it does not have."""
        have = {zone.name: place for place, zone in enumerate(self.zones)}
        if unknown := [name for name in names if name not in have]:
            raise UsageError(f"{self.name} has no zone {unknown[0]}", hint=f"it has {', '.join(have)}")
        places = [have[name] for name in dict.fromkeys(names)]
        prices = None if self.prices is None else tuple(self.prices[place] for place in places)
        return Series(
            self.name, tuple(self.zones[place] for place in places), prices, self.on_demand_nanodollars_per_hour
        )


def read_trace(path: Path) -> Trace:
    """Read and check a trace. Raises NotFound, and UsageError for a file that is none, with what is wrong where."""
    return _as_trace(path, _read(path))


def read_series(path: Path) -> Series:
    """Read and check a file of either form; a trace is a series of one zone without prices."""
    document = _read(path)
    if isinstance(document, dict) and "zones" in document:
        return _as_series(path, document)
    trace = _as_trace(path, document)
    return Series(trace.name, (trace,))


def flags(series: Sequence[tuple[str, Series]]) -> list[str]:
    """What looks wrong in a set of named series: the same data twice, and data that is the opposite of another's."""
    found: list[str] = []
    seen: dict[tuple[float, tuple[int, ...]], str] = {}
    for name, each in series:
        for zone in each.zones:
            title = name if len(each.zones) == 1 else f"{name} {zone.name}"
            top = zone.most
            turned = tuple(top - count for count in zone.available)
            if (same := seen.get((zone.gap_seconds, zone.available))) is not None:
                found.append(f"{title} holds the same data as {same}: it counts twice")
            elif (opposite := seen.get((zone.gap_seconds, turned))) is not None:
                found.append(
                    f"{title} is the exact opposite of {opposite}: one of the two declares the wrong metadata.value"
                )
            seen.setdefault((zone.gap_seconds, zone.available), title)
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"there is no trace {path}", hint="name a JSON file of a spot trace") from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as a trace: {error}", hint="name a JSON file of a spot trace"
        ) from error


def _refused(path: Path, what: str) -> UsageError:
    form = '{"metadata": {"gap_seconds": 300}, "data": [4, 4, 3, ...]}'
    return UsageError(f"{path} is not a trace: {what}", hint=f"a trace looks like {form}")


def _gap(path: Path, document: Any) -> tuple[dict[str, Any], float]:
    metadata: Any = document.get("metadata") if isinstance(document, dict) else None
    gap = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not 0 < gap < float("inf"):
        raise _refused(path, f"metadata.gap_seconds is {gap!r}")
    return metadata, float(gap)


def _counts(path: Path, where: str, values: Any, polarity: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise _refused(path, f"{where} holds no values")
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _refused(path, f"{where}[{place}] is {value!r}, not a number of machines")
    if polarity not in ("available", "unavailable"):
        raise _refused(path, f"metadata.value is {polarity!r}, not available or unavailable")
    if polarity == "unavailable":
        most = max(values)
        values = [most - value for value in values]
    return tuple(values)


def _as_trace(path: Path, document: Any) -> Trace:
    metadata, gap = _gap(path, document)
    counts = _counts(path, "data", document.get("data"), metadata.get("value", "available"))
    return Trace(path.name.removesuffix(".json"), gap, counts)


def _as_series(path: Path, document: dict[str, Any]) -> Series:
    metadata, gap = _gap(path, document)
    zones = document["zones"]
    if not isinstance(zones, dict) or not zones:
        raise _refused(path, "zones holds no zone")
    polarity = metadata.get("value", "available")
    traces, prices = [], []
    for name, zone in zones.items():
        if not isinstance(zone, dict):
            raise _refused(path, f"zones.{name} is {zone!r}")
        traces.append(Trace(name, gap, _counts(path, f"zones.{name}.available", zone.get("available"), polarity)))
        if "spot_price_changes" in zone:
            prices.append(_prices(path, f"zones.{name}.spot_price_changes", zone["spot_price_changes"]))
    if len({len(trace.available) for trace in traces}) > 1:
        raise _refused(path, "its zones are not of one length, so they have no common clock")
    if prices and len(prices) < len(traces):
        raise _refused(path, "some zones have prices and some have none")
    on_demand = metadata.get("on_demand_price_per_hour")
    if prices and on_demand is None:
        raise _refused(path, "it has spot prices but no metadata.on_demand_price_per_hour")
    return Series(
        path.name.removesuffix(".json"),
        tuple(traces),
        tuple(prices) or None,
        None if on_demand is None else _price(path, "metadata.on_demand_price_per_hour", on_demand),
    )


def _prices(path: Path, where: str, changes: Any) -> ZonePrices:
    if not isinstance(changes, list) or not changes:
        raise _refused(path, f"{where} holds no prices")
    ticks: list[int] = []
    prices: list[int] = []
    for place, change in enumerate(changes):
        if not isinstance(change, list) or len(change) != 2 or isinstance(change[0], bool):
            raise _refused(path, f"{where}[{place}] is {change!r}, not [tick, dollars per hour]")
        tick = change[0]
        if not isinstance(tick, int) or tick < 0 or (ticks and tick <= ticks[-1]):
            raise _refused(path, f"{where}[{place}] is at tick {tick!r}, which does not follow the one before")
        ticks.append(tick)
        prices.append(_price(path, f"{where}[{place}]", change[1]))
    if ticks[0] != 0:
        raise _refused(path, f"{where} begins at tick {ticks[0]}; the price before it is not known")
    return ZonePrices(tuple(ticks), tuple(prices))


def _price(path: Path, where: str, dollars: Any) -> int:
    """Nano-dollars; a price of zero is a price that nobody knew."""
    if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 < dollars < 1e9:
        raise _refused(path, f"{where} is the price {dollars!r}, not dollars an hour above 0")
    return round(Decimal(str(dollars)) * 1_000_000_000)
