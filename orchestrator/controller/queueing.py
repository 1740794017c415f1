"""The queue: who starts next. Pure.

Jobs start in the order of priority, then of submission, as whole gangs. The first that does not fit holds back those
behind it, so that a large job is not starved by small ones; there is no backfilling and no preemption of other jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.controller.hosts import Room


@dataclass(frozen=True, slots=True)
class Need:
    """What a whole gang needs."""

    uid: str
    priority: int
    submitted_ns: int
    cpus: int
    gpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    uid: str
    kind: str
    """`admit`, `wait` or `too-large`"""
    message: str


def look(waiting: Iterable[Need], holding: Iterable[Need], room: Room) -> list[Verdict]:
    """A verdict on every waiting job."""
    free_cpus, free_gpus, free_memory = room.cpus, room.gpus, room.memory_bytes
    for need in holding:
        free_cpus, free_gpus = free_cpus - need.cpus, free_gpus - need.gpus
        free_memory = None if free_memory is None else free_memory - need.memory_bytes
    verdicts: list[Verdict] = []
    ahead: str | None = None
    for need in sorted(waiting, key=lambda need: (-need.priority, need.submitted_ns, need.uid)):
        if lacking := _lacking(need, room.cpus, room.gpus, room.memory_bytes):
            verdicts.append(Verdict(need.uid, "too-large", f"The gang needs {lacking} in all."))
            continue
        if ahead is not None:
            verdicts.append(Verdict(need.uid, "wait", "waits behind another job"))
            continue
        if lacking := _lacking(need, free_cpus, free_gpus, free_memory):
            ahead = need.uid
            verdicts.append(Verdict(need.uid, "wait", f"waits for room: the gang needs {lacking} free"))
            continue
        free_cpus, free_gpus = free_cpus - need.cpus, free_gpus - need.gpus
        free_memory = None if free_memory is None else free_memory - need.memory_bytes
        verdicts.append(Verdict(need.uid, "admit", f"room for {_amounts(need)}"))
    return verdicts


def _lacking(need: Need, cpus: int, gpus: int, memory_bytes: int | None) -> str:
    """`2 CPUs and there are 1`, for everything that does not suffice; empty when all does."""
    checks: Sequence[tuple[str, int, int | None]] = (
        ("CPUs", need.cpus, cpus),
        ("GPUs", need.gpus, gpus),
        ("bytes of memory", need.memory_bytes, memory_bytes),
    )
    return ", ".join(
        f"{wanted:,} {what} and there are {max(0, there):,}"
        for what, wanted, there in checks
        if there is not None and wanted > there
    )


def _amounts(need: Need) -> str:
    def some(count: int, what: str) -> str:
        return f"{count} {what}" if count == 1 else f"{count} {what}s"

    return some(need.cpus, "CPU") + (f" and {some(need.gpus, 'GPU')}" if need.gpus else "")
