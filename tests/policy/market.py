"""A market of machines that come and go, and a gang that lives on it under one rule or another: for the tests of resizing.

Machines are up and down for exponentially distributed times, each for itself or many at once. The same history is played to
every rule. What counts is the work done: steps of the gang at its size, none while it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.resize import ResizeSense

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Change:
    """Machines that are up from this second on."""

    at: float
    up: frozenset[int]


@dataclass(frozen=True)
class Outcome:
    work: float
    chosen: int
    """Transitions that were chosen."""
    forced: int


def history(
    random: Random, machines: int, lifetime: Callable[[float], float], away: float, horizon: float
) -> list[Change]:
    """`lifetime(now)`: mean seconds that a machine stays which is up at `now`; `away`: mean seconds that one is down."""
    up = set(range(machines))
    events = sorted((random.expovariate(1 / lifetime(0.0)), machine) for machine in up)
    changes = [Change(0.0, frozenset(up))]
    while events:
        at, machine = events.pop(0)
        if at > horizon:
            break
        if machine in up:
            up.remove(machine)
            events.append((at + random.expovariate(1 / away), machine))
        else:
            up.add(machine)
            events.append((at + random.expovariate(1 / lifetime(at)), machine))
        events.sort()
        changes.append(Change(at, frozenset(up)))
    return [*changes, Change(horizon, frozenset())]


def play(
    changes: Sequence[Change],
    allowed: Sequence[int],
    speed: Callable[[int], float],
    joining: float,
    losing: float,
    rule: str | ResizeSense,
) -> Outcome:
    """`rule`: "always" or "never" grows when it could, or a sense; after a loss each takes everybody in."""
    gang: frozenset[int] = frozenset()
    stands_until = work = now = 0.0
    chosen = forced = 0
    ask_at: float | None = None

    def best(count: int) -> int:
        return max((size for size in allowed if size <= count), default=0)

    def form(up: frozenset[int], size: int, cost: float) -> None:
        nonlocal gang, stands_until
        stayed = sorted(gang & up)
        gang = frozenset([*stayed, *sorted(up - gang)][:size])
        stands_until = now + cost
        if isinstance(rule, ResizeSense):
            rule.world(round(now * SECOND), size, {CapacityType.ON_DEMAND: size} if size else {})

    def pass_until(later: float) -> None:
        nonlocal work, now
        start = max(now, min(stands_until, later))
        if gang:
            work += (later - start) * speed(len(gang))
            if isinstance(rule, ResizeSense) and later > start:
                rule.step(round(start * SECOND), len(gang), 1 / speed(len(gang)))
        now = later

    for number, change in enumerate(changes[:-1]):
        pass_until(change.at)
        if number == 0:
            form(change.up, best(len(change.up)), joining)
        elif not gang <= change.up or not gang:
            if isinstance(rule, ResizeSense) and gang:
                rule.interrupted(round(now * SECOND), CapacityType.ON_DEMAND)
                rule.lost(losing)
            forced += 1
            form(change.up, best(len(change.up)), losing)
        ask_at = max(now, stands_until)  # a gang that forms is left to form
        until = changes[number + 1].at
        while ask_at is not None and ask_at < until:
            pass_until(max(ask_at, now))
            ask_at = None
            if isinstance(rule, ResizeSense):
                verdict = rule.worth_growing(round(now * SECOND), len(gang), len(change.up))
                target = verdict.target
                ask_at = None if verdict.again_seconds is None else now + verdict.again_seconds
            else:
                target = best(len(change.up)) if rule == "always" else len(gang)
            if target > len(gang) > 0:
                chosen += 1
                form(change.up, target, joining)
                if isinstance(rule, ResizeSense):
                    rule.joined(joining)
    pass_until(changes[-1].at)
    return Outcome(work, chosen, forced)
