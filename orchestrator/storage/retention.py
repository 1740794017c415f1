"""Which checkpoints stay. Pure.

The newest `last`, the best one, and one a period: the newest of each stretch of `every_ns`, counted from the epoch, so that
pruning after every save ends where pruning once at the end would.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retention:
    last: int
    """How many of the newest stay; at least 1."""
    best: bool = True
    """Whether the newest one that is marked best stays."""
    every_ns: int | None = None
    """One of each such period stays, in nanoseconds; None: age alone decides."""

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"keep must be at least 1, got {self.last}")
        if self.every_ns is not None and self.every_ns < 1:
            raise ValueError(f"a period must be longer than nothing, got {self.every_ns} ns")


@dataclass(frozen=True, slots=True)
class Held:
    """What retention looks at."""

    step: int
    created_ns: int
    best: bool


def retained(held: Iterable[Held], retention: Retention) -> frozenset[int]:
    """Steps of the checkpoints that stay."""
    newest_first = sorted(held, key=lambda item: item.step, reverse=True)
    kept = {item.step for item in newest_first[: retention.last]}
    if retention.best and (best := next((item for item in newest_first if item.best), None)):
        kept.add(best.step)
    if retention.every_ns is not None:
        periods: dict[int, int] = {}
        for item in newest_first:
            periods.setdefault(item.created_ns // retention.every_ns, item.step)
        kept |= set(periods.values())
    return frozenset(kept)
