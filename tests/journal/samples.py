"""Values to put into a journal."""

from __future__ import annotations

from typing import Any

from orchestrator.accounting import (
    CategoryBooked,
    CheckpointStalled,
    Entry,
    MachineHeld,
    MachineReleased,
    MachineTurned,
    WorkSettled,
)
from orchestrator.controller.journal.base import Commit, JobRecord, StepRow
from orchestrator.lifecycle import JobState, Phase, StoryEntry

SECOND = 1_000_000_000


def record(uid: str = "u1", **changes: Any) -> JobRecord:
    values: dict[str, Any] = {
        "uid": uid,
        "namespace": "default",
        "name": f"job-{uid}",
        "digest": "d" * 64,
        "document": {"metadata": {"name": f"job-{uid}"}, "spec": {"training": {"maxSteps": 10}}},
        "working_dir": "/tmp/somewhere",
        "state": JobState(Phase.PENDING, 1 * SECOND, 1 * SECOND, 2, message="accepted"),
        "created_ns": 1 * SECOND,
    }
    return JobRecord(**(values | changes))


def story_entry(at_ns: int = SECOND, message: str = "accepted") -> StoryEntry:
    return StoryEntry(at_ns, "Submitted", "", "Pending", "Submitted", message)


def held(machine: str = "m1", at_ns: int = SECOND) -> MachineHeld:
    return MachineHeld(
        at_ns, machine, "p3.2xlarge", "z1", "spot", 1, 918_000_000, 3_060_000_000, "list", True, SECOND, 0
    )


def entries() -> list[Entry]:
    """One of each kind, and a machine of unknown price."""
    unknown = MachineHeld(
        2 * SECOND, "m2", "local", "z1", "on-demand", 0, None, None, "no price", False, SECOND, 60 * SECOND
    )
    return [
        held(),
        unknown,
        CategoryBooked(3 * SECOND, "at_risk"),
        CheckpointStalled(5 * SECOND, 4 * SECOND),
        WorkSettled(4 * SECOND, True),
        MachineTurned(7 * SECOND, "m2", "idle"),
        MachineReleased(9 * SECOND, "m1"),
    ]


def step(number: int, attempt: int = 1, uid: str = "u1", loss: float = 0.5) -> StepRow:
    return StepRow(uid, attempt, number, {"loss": loss, "lr": 1e-4, "samples": 8, "at_ns": number * SECOND})


def everything(uid: str, count: int) -> Commit:
    """A commit that touches every table, with `count` rows of each kind for one job."""
    return Commit(
        jobs={uid: record(uid)},
        story=[(uid, story_entry(n)) for n in range(count)],
        ledger=[(uid, held(f"{uid}-{n}")) for n in range(count)],
        steps=[step(n, uid=uid) for n in range(count)],
    )
