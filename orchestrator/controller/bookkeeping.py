"""What the ledger is told: the entries that follow from the lifecycle's commands and from slots that come and go."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.accounting import CategoryBooked, MachineReleased, MachineTurned, PriceBook, WorkSettled
from orchestrator.controller import terms
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.slots import Change
from orchestrator.controller.turn import Turn
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.lifecycle import (
    Activity,
    BookActivity,
    Command,
    Event,
    HoldMachines,
    Phase,
    ReleaseMachines,
    ReleaseSlots,
    SettleWork,
)

EXPORT_LAG_NS = 5 * NANOSECONDS_PER_SECOND
"""How far the export of machine time may stay behind when nothing is committed."""
CATEGORY_OF = {
    Activity.PROVISIONING: "provisioning",
    Activity.TRAINING: "at_risk",
    Activity.RESTART: "restart",
    Activity.RESIZE: "resize",
    Activity.SHUTDOWN: "shutdown",
}
_ACTIVITY_IN = {
    Phase.PROVISIONING: Activity.PROVISIONING,
    Phase.RUNNING: Activity.TRAINING,
    Phase.RECOVERING: Activity.RESTART,
    Phase.RESIZING: Activity.RESIZE,
}


def book_command(turn: Turn, record: JobRecord, command: Command, event: Event, prices: PriceBook) -> bool:
    """Book what a command means for the ledger; False when it means nothing there."""
    uid = record.uid
    match command:
        case HoldMachines(workers):
            turn.put(_rented(record, prices))
            for worker in range(workers):
                name = f"{uid}/{record.state.attempt}/{worker}"
                turn.book(uid, terms.machine(record, prices, name, turn.now_ns))
        case ReleaseMachines() | ReleaseSlots():
            for machine in turn.held_machines(uid):
                turn.book(uid, MachineReleased(turn.now_ns, machine))
        case BookActivity(activity, at_ns):
            turn.book(uid, CategoryBooked(at_ns, CATEGORY_OF[activity]))
        case SettleWork(until_ns, useful, from_ns):
            # Not turn.now_ns: what the worker did since, and is heard in the same turn, has still to be booked.
            at_ns = event.at_ns if until_ns is None else until_ns
            turn.book(uid, WorkSettled(at_ns, useful, whole=until_ns is None, from_ns=from_ns))
        case _:
            return False
    return True


def book_dead_time(turn: Turn, record: JobRecord) -> None:
    """Nobody worked since the driver was last heard of: that time is restart, not training."""
    heard_ns = record.progress.get("heard_ns")
    if record.state.phase is Phase.RUNNING and heard_ns is not None:
        turn.book(record.uid, CategoryBooked(heard_ns, CATEGORY_OF[Activity.RESTART]))


def exported_until_ns(started_ns: int, last_commit_ns: int | None, now_ns: int) -> int:
    """Until when the metrics of a controller may have counted machine time. A counter must not fall."""
    lagging_ns = now_ns - EXPORT_LAG_NS
    return max(last_commit_ns or 0, lagging_ns if lagging_ns > started_ns else 0)


def book_slot(turn: Turn, record: JobRecord, change: Change, prices: PriceBook, exported_ns: int) -> None:
    """Book what became of a slot's machine. One that was lost before `exported_ns` is released then: what was counted must
    not be taken back."""
    uid = record.uid
    held = turn.held_machines(uid)
    if change.new:
        if not held and record.state.phase in _ACTIVITY_IN:  # the ledger forgot it with the last machine
            turn.book(uid, CategoryBooked(change.at_ns, CATEGORY_OF[_ACTIVITY_IN[record.state.phase]]))
            turn.put(_rented(record, prices))
        turn.book(uid, terms.machine(record, prices, change.machine, change.at_ns, change.role))
    elif change.machine not in held:
        return  # given back with its attempt
    elif change.role is None:
        turn.book(uid, MachineReleased(max(change.at_ns, exported_ns), change.machine))
    else:
        turn.book(uid, MachineTurned(change.at_ns, change.machine, change.role.value))


def _rented(record: JobRecord, prices: PriceBook) -> JobRecord:
    capacity = prices.local_offering().capacity_type.value
    return replace(record, progress={**record.progress, "capacity_type": capacity})
