"""How fast spells of a spot market end, by class of age: what recorded markets tell beforehand, and what the zone itself did.

A spell's rate in a class is a Gamma posterior's mean: the recorded markets' rate with the weight of `PRIOR_SPELLS` spells, then the
zone's own spells and hours. The recorded counts are facts in `recorded.py`, with their origin; `without` leaves groups of them out,
so that a market is never judged with a prior that has seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.policy.capacity.history import AGE_CLASSES, AGE_EDGES_SECONDS, Exposure
from orchestrator.policy.capacity.recorded import RECORDED

PRIOR_SPELLS = 8.0
"""Spells of the zone's own, in a class, that the recorded markets weigh as much as."""
SLOWEST_PER_HOUR = 1e-3
CLASS_HOURS = tuple(
    (high - low) / 3600 for low, high in zip((0.0, *AGE_EDGES_SECONDS), (*AGE_EDGES_SECONDS, 1e12), strict=True)
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Ends of spells an hour, by class of age."""

    down: tuple[float, ...]
    """Of gaps: spot comes back."""
    up: tuple[float, ...]
    """Of offers: spot is taken."""


class Prior:
    """The recorded markets, less those that are left out."""

    def __init__(self, without: Sequence[str] = ()) -> None:
        """`without`: beginnings of names in `RECORDED`, such as `availability/1-node/aws-02-15-2023`."""
        kept = [row for row in RECORDED if not any(row[0].startswith(start) for start in without)]
        kinds = range(AGE_CLASSES)
        self.down = tuple(_rate([row[1][k] for row in kept], [row[2][k] for row in kept]) for k in kinds)
        self.up = tuple(_rate([row[3][k] for row in kept], [row[4][k] for row in kept]) for k in kinds)

    def rates(self, seen: Exposure) -> Rates:
        """With what one zone did."""
        return Rates(
            tuple(_posterior(rate, seen.ended[0][k], seen.hours[0][k]) for k, rate in enumerate(self.down)),
            tuple(_posterior(rate, seen.ended[1][k], seen.hours[1][k]) for k, rate in enumerate(self.up)),
        )


def _rate(ended: Sequence[int], hours: Sequence[float]) -> float:
    return max(SLOWEST_PER_HOUR, (sum(ended) + 0.5) / (sum(hours) + 1.0))


def _posterior(rate: float, ended: int, hours: float) -> float:
    return max(SLOWEST_PER_HOUR, (PRIOR_SPELLS + ended) / (PRIOR_SPELLS / rate + hours))
