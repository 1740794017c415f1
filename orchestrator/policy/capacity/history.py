"""What the spot market of one zone did: how many workers it offered, from when to when.

Kept as spells (a count that did not change), and for one threshold (from how many workers on the zone counts as up) summed into
what a hazard needs: how often a spell of an age ended, and for how long spells of that age were watched. A spell whose beginning
was not seen counts from the time when the watch began, which makes it younger than it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

AGE_EDGES_SECONDS = (900.0, 3_600.0, 14_400.0)
"""Where one class of ages ends and the next begins: a quarter of an hour, one hour, four."""
AGE_CLASSES = len(AGE_EDGES_SECONDS) + 1


def age_class(age_seconds: float) -> int:
    """The class of a spell of this age."""
    return sum(age_seconds >= edge for edge in AGE_EDGES_SECONDS)


@dataclass(frozen=True, slots=True)
class Exposure:
    """Spells of one market, up and down, by class of age."""

    ended: tuple[tuple[int, ...], tuple[int, ...]] = ((0,) * AGE_CLASSES, (0,) * AGE_CLASSES)
    """[0] down, [1] up: spells that ended at an age of the class."""
    hours: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,) * AGE_CLASSES, (0.0,) * AGE_CLASSES)
    """[0] down, [1] up: hours that spells were watched at an age of the class."""


class SpotHistory:
    """One zone's spot offers until now. Append-only; told by whoever watches the market."""

    def __init__(self, spells: Iterable[tuple[int, int]] = (), until_ns: int | None = None) -> None:
        """`spells`: (when it began in ns, workers offered), oldest first; watched until `until_ns`."""
        self._began_ns: list[int] = []
        self._counts: list[int] = []
        self._until_ns = 0
        self._sums: dict[int, _Sums] = {}
        for began_ns, count in spells:
            self.observe(began_ns, count)
        if until_ns is not None and self._counts:
            self.observe(until_ns, self._counts[-1])

    def observe(self, now_ns: int, count: int) -> None:
        """`count` workers could be had from `now_ns` on. Say it at each change; saying the same again only moves the clock.
        Times go forward; an older one is taken as the newest known."""
        now_ns = max(now_ns, self._until_ns) if self._counts else now_ns
        self._until_ns = now_ns
        if not self._counts or self._counts[-1] != count:
            self._began_ns.append(now_ns)
            self._counts.append(count)

    @property
    def count(self) -> int:
        """Workers offered as last heard; 0 before anything was."""
        return self._counts[-1] if self._counts else 0

    @property
    def spells(self) -> list[tuple[int, int]]:
        """(Began in ns, workers offered), oldest first."""
        return list(zip(self._began_ns, self._counts, strict=True))

    def copy(self) -> SpotHistory:
        """One that goes on by itself: two jobs that start in the same past share it."""
        other = SpotHistory()
        other._began_ns, other._counts, other._until_ns = self._began_ns.copy(), self._counts.copy(), self._until_ns
        other._sums = {threshold: sums.copy() for threshold, sums in self._sums.items()}
        return other

    def age_seconds(self, now_ns: int, threshold: int = 1) -> float:
        """For how long the zone has been up (`threshold` workers or more) or down, whichever it is now."""
        return max(0.0, (now_ns - self._summed(threshold).began_ns) / 1e9) if self._counts else 0.0

    def exposure(self, threshold: int = 1) -> Exposure:
        """Spells until the newest change of the zone between up (`threshold` workers or more) and down."""
        return self._summed(threshold).exposure

    def learned(self, threshold: int = 1) -> Exposure:
        """As `exposure`, but as of the time when the number of spells had last grown by a fifth: what is derived from it then
        seldom changes, and jobs over the same past share it."""
        return self._summed(threshold).learned

    def _summed(self, threshold: int) -> _Sums:
        sums = self._sums.get(threshold)
        if sums is None:
            sums = self._sums[threshold] = _Sums()
        while sums.read < len(self._counts):
            sums.add(self._began_ns[sums.read], self._counts[sums.read] >= threshold)
        return sums


class _Sums:
    """Running sums for one threshold."""

    def __init__(self) -> None:
        self.read = 0
        self.began_ns = 0
        self.up: bool | None = None
        self.exposure = self.learned = Exposure()
        self.spells = self.learn_at = 0

    def copy(self) -> _Sums:
        other = _Sums()
        other.read, other.began_ns, other.up, other.exposure = self.read, self.began_ns, self.up, self.exposure
        other.learned, other.spells, other.learn_at = self.learned, self.spells, self.learn_at
        return other

    def add(self, began_ns: int, up: bool) -> None:
        """The next spell of counts begins."""
        self.read += 1
        if up is self.up:
            return
        if self.up is not None:
            self.exposure = _with_spell(self.exposure, self.up, (began_ns - self.began_ns) / 1e9)
            self.spells += 1
            if self.spells >= self.learn_at:
                self.learned, self.learn_at = self.exposure, self.spells + 1 + self.spells // 5
        self.up, self.began_ns = up, began_ns


def _with_spell(before: Exposure, up: bool, seconds: float) -> Exposure:
    ended, hours = list(before.ended[up]), list(before.hours[up])
    ended[age_class(seconds)] += 1
    began = 0.0
    for index, edge in enumerate((*AGE_EDGES_SECONDS, seconds)):
        if seconds <= began:
            break
        hours[index] += (min(seconds, edge) - began) / 3600
        began = edge
    ends, watched = tuple(ended), tuple(hours)
    if up:
        return Exposure((before.ended[0], ends), (before.hours[0], watched))
    return Exposure((ends, before.ended[1]), (watched, before.hours[1]))
