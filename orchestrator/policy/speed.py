"""How fast a gang steps at each number of workers: measured where it was seen, else expected.

The global batch is the same at every size, so a step of w workers takes a + b / w seconds: b is divided among the workers, a
is not (communication, the optimizer's fixed part, waiting for the slowest). That a ring all-reduce takes hardly longer with
more ranks, 2 (w - 1) / w times the bytes over the bandwidth, is from Patarasuk and Yuan (2009); that compute and
communication add up is one end of the model of Pollux (Qiao et al., OSDI 2021), whose other end, full overlap, would promise
more of growing. The prior, a tenth of the first measured step for a, is a choice: doubling then gives 1.8 times the speed. a and
b are fitted by least squares to the medians of all sizes seen, with the prior as one more, light point.

What was measured at a size fades with a half-life of half an hour, towards the fit: a size that was slow because something
else ran beside it is tried again some hours later.

Limits: one kind of machine; nothing of how many workers share one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

UNDIVIDED_SHARE = 0.1
"""Of the first measured step: what more workers are not expected to shorten."""
PRIOR_WEIGHT = 0.5
"""Steps that the prior is worth in the fit."""
MODEL_WEIGHT = 2.0
"""Steps that the fit is worth next to a size's own measurements."""
REMEMBERED = 64
HALF_LIFE_NS = 1_800 * 10**9


@dataclass(slots=True)
class _Seen:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    newest_ns: int = 0


class Speed:
    """Steps a second over numbers of workers."""

    def __init__(self, *, by_workers: bool = False) -> None:
        """`by_workers`: speed is taken to be the number of workers, whatever the steps say. For who counts useful
        worker-seconds, or runs several workers on one machine's cores for practice."""
        self._by_workers = by_workers
        self._seen: dict[int, _Seen] = {}

    def observe(self, now_ns: int, workers: int, step_seconds: float) -> None:
        """One step of a gang of `workers` (0: not known, lets it be). Leave out steps with a pause in them that comes at every size alike."""
        if step_seconds > 0 and workers > 0:
            seen = self._seen.setdefault(workers, _Seen())
            seen.seconds.append(step_seconds)
            seen.newest_ns = now_ns

    def at(self, now_ns: int, sizes: Iterable[int]) -> Mapping[int, float]:
        """Steps a second of each of `sizes` (at least one worker); relative ones, as if one worker made one step a second,
        before any step was measured."""
        if self._by_workers:
            return {size: float(size) for size in sizes}
        if not self._seen:
            return {size: 1 / (UNDIVIDED_SHARE + (1 - UNDIVIDED_SHARE) / size) for size in sizes}
        weights = {
            size: len(seen.seconds) * 0.5 ** (max(0, now_ns - seen.newest_ns) / HALF_LIFE_NS)
            for size, seen in self._seen.items()
        }
        medians = {size: median(seen.seconds) for size, seen in self._seen.items()}
        fixed, divided = _fit(medians, weights)
        speeds = {}
        for size in sizes:
            weight = weights.get(size, 0.0)
            expected = fixed + divided / size
            speeds[size] = (weight + MODEL_WEIGHT) / (weight * medians.get(size, 0.0) + MODEL_WEIGHT * expected)
        return speeds

    def typical_seconds(self, size: int) -> float | None:
        """The median of the newest steps of this size; None: none was seen."""
        return median(self._seen[size].seconds) if size in self._seen else None


def _fit(medians: Mapping[int, float], weights: Mapping[int, float]) -> tuple[float, float]:
    """a and b of the module's formula; neither is negative. The oldest size seen anchors the prior."""
    anchor = medians[next(iter(medians))]
    points = [(0.0, UNDIVIDED_SHARE * anchor, PRIOR_WEIGHT)]
    points += [(1 / size, seconds, max(weights[size], 1e-9)) for size, seconds in medians.items()]
    total = sum(weight for _, _, weight in points)
    mean_x = sum(x * weight for x, _, weight in points) / total
    mean_y = sum(y * weight for _, y, weight in points) / total
    spread = sum(weight * (x - mean_x) ** 2 for x, _, weight in points)
    divided = max(0.0, sum(weight * (x - mean_x) * (y - mean_y) for x, y, weight in points) / spread)
    fixed = mean_y - divided * mean_x
    if fixed >= 0:
        return fixed, divided
    return 0.0, sum(x * y * weight for x, y, weight in points) / sum(x * x * weight for x, _, weight in points)
