"""Recorded spot markets: how many machines could be had, tick by tick.

A trace is the JSON of the public spot-traces archive: `{"metadata": {"gap_seconds": G}, "data": [...]}`; a value is the number
of machines that could be had from its tick to the next. Archives derived from it store the opposite (1 = not to be had);
which one a file is cannot be seen in it, so `metadata.value` may say `available` or `unavailable`, and a file that says
nothing is read as the archive that it comes from: available.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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


def read_trace(path: Path) -> Trace:
    """Read and check a trace. Raises NotFound, and UsageError for a file that is none, with what is wrong where."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"there is no trace {path}", hint="name a JSON file of a spot trace") from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as a trace: {error}", hint="name a JSON file of a spot trace"
        ) from error

    def refused(what: str) -> UsageError:
        form = '{"metadata": {"gap_seconds": 300}, "data": [4, 4, 3, ...]}'
        return UsageError(f"{path} is not a trace: {what}", hint=f"a trace looks like {form}")

    metadata: Any = document.get("metadata") if isinstance(document, dict) else None
    gap = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not gap > 0:
        raise refused(f"metadata.gap_seconds is {gap!r}")
    values = document.get("data")
    if not isinstance(values, list) or not values:
        raise refused("data holds no values")
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise refused(f"data[{place}] is {value!r}, not a number of machines")
    polarity = metadata.get("value", "available")
    if polarity not in ("available", "unavailable"):
        raise refused(f"metadata.value is {polarity!r}, not available or unavailable")
    if polarity == "unavailable":
        most = max(values)
        values = [most - value for value in values]
    return Trace(path.name.removesuffix(".json"), float(gap), tuple(values))
