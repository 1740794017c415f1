"""The slots of a gang, as its engine tells of them, and what each means for the machine behind it. Pure.

A slot is held when its place on a node is there, and released when it is gone. The machine of a slot that comes while a
world trains warms up on its own account until a world names it. One that a world does not name waits for a place, or, when
its node was announced to go, is on its way out. What is known lives in the job's `progress`, for the present attempt.

A driver that takes over from a dead one tells of the slots that it finds. Those that it has not told of when it forms a
world went with the old driver, and are released then.

Fixed gangs pay for all their machines from admission to the end, so of their slots only the places are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.accounting import Role
from orchestrator.controller.journal.base import JobRecord

Slots = Mapping[str, Mapping[str, Any]]
"""By slot: `machine` (its name in the ledger), `role`, `node`, `host`; `doubted` while only a dead driver told of it."""


@dataclass(frozen=True, slots=True)
class Change:
    """From `at_ns` on the machine has this role (None: it is released). `new`: it is held from then on."""

    at_ns: int
    machine: str
    role: Role | None
    new: bool = False


def present(record: JobRecord) -> Slots:
    """The slots that are held now."""
    if not record.state.phase.holds_machines or record.progress.get("slots_attempt") != record.state.attempt:
        return {}
    slots: Slots = record.progress.get("slots", {})
    return slots


def hear(record: JobRecord, event: Mapping[str, Any], at_ns: int) -> tuple[JobRecord, list[Change]]:
    """What a `slot` event changes. One that is held already, or not there, changes nothing."""
    slots, slot = dict(present(record)), str(event["slot"])
    known = slots.get(slot)
    match event["state"]:
        case "held" if known is None:
            anew = record.progress.get("slots_attempt") != record.state.attempt
            number = 0 if anew else record.progress.get("slots_told", 0)
            role = Role.MEMBER if record.state.world_workers is None else Role.WARMING
            machine = f"{record.uid}/{record.state.attempt}/{number}"
            place = {"node": event.get("node"), "host": event.get("host")}
            slots[slot] = {"machine": machine, "role": role.value, **place}
            found = _with(record, slots, slots_told=number + 1)
            return found, _paid(record, [Change(at_ns, machine, role, new=True)])
        case "held" if known is not None and known.get("doubted"):
            slots[slot] = {name: value for name, value in known.items() if name != "doubted"}
            return _with(record, slots), []
        case "ready" if known is not None and known["role"] == Role.WARMING:
            slots[slot] = {**known, "role": Role.IDLE.value}
            return _with(record, slots), _paid(record, [Change(at_ns, known["machine"], Role.IDLE)])
        case "released" if known is not None:
            del slots[slot]
            nodes = {other["node"] for other in slots.values()}
            notices = {node: told for node, told in record.progress.get("notices", {}).items() if node in nodes}
            return _with(record, slots, notices=notices), _paid(record, [Change(at_ns, known["machine"], None)])
    return record, []


def seat(record: JobRecord, named: Iterable[str], at_ns: int) -> tuple[JobRecord, list[Change]]:
    """What a world changes that has places for the slots of these names."""
    members, slots, changes = set(named), dict(present(record)), []
    for slot, known in present(record).items():
        if known.get("doubted") and slot not in members:
            del slots[slot]
            changes.append(Change(at_ns, known["machine"], None))
            continue
        role = Role(known["role"])
        if slot in members:
            turned = Role.MEMBER
        elif known["node"] in record.progress.get("notices", {}):
            turned = Role.LEAVING
        else:
            turned = role if role is Role.WARMING else Role.IDLE
        if turned is not role:
            slots[slot] = {**known, "role": turned.value}
            changes.append(Change(at_ns, known["machine"], turned))
    return (_with(record, slots), _paid(record, changes)) if changes else (record, [])


def doubt(record: JobRecord) -> JobRecord:
    """The record when another driver speaks for the attempt: its slots may have gone unheard."""
    slots = {slot: {**known, "doubted": True} for slot, known in present(record).items()}
    return _with(record, slots) if slots else record


def draining(record: JobRecord) -> int:
    """Slots on nodes that were announced to go."""
    notices = record.progress.get("notices", {})
    return sum(slot["node"] in notices for slot in present(record).values())


def _with(record: JobRecord, slots: Slots, **more: Any) -> JobRecord:
    progress = {**record.progress, "slots": slots, "slots_attempt": record.state.attempt, **more}
    return replace(record, progress=progress)


def _paid(record: JobRecord, changes: list[Change]) -> list[Change]:
    return changes if record.state.elastic else []
