"""`checkpoint.every: Auto`: what is measured of a job, and the plan that follows from it. Pure.

All of it lives in the job's record, so it is journaled with what it was measured from, and a controller that comes back goes
on with the same plan. What was seen of interruptions is summed over all jobs of a capacity type: a new job starts with what
the ones before it learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.controller.journal.base import JobRecord
from orchestrator.domain.offerings import CapacityType
from orchestrator.lifecycle import JobState, Phase, StoryEntry
from orchestrator.platforms.engines.base import Cadence
from orchestrator.policy import Observed, SaveCost, checkpoint_interval, exposure_hours, hazard, slowdown_seconds
from orchestrator.policy.cadence import REMEMBERED

NANOSECONDS_PER_HOUR = 3_600_000_000_000
STEPS_REMEMBERED = 32
"""Newest steps, with their ends, from which a save's slowdown is found."""
EVENT = "CheckpointCadence"


def is_automatic(record: JobRecord) -> bool:
    """Whether the job asks for `checkpoint.every: Auto`."""
    return bool(record.document["spec"].get("checkpoint", {}).get("every") == "Auto")


def machines(record: JobRecord) -> int:
    """Machines that the gang ran on last: workers that share one are interrupted together. Before anything is known, one a
    worker."""
    hosts = {rank["host"] for rank in record.progress.get("ready", {}).values()}
    return len(hosts) or record.state.world_workers or record.state.workers


def observed(record: JobRecord) -> Observed:
    """What this job has seen of interruptions, as of when it was last heard of."""
    state, ran_ns = record.state, record.state.ran_ns
    if state.phase is Phase.RUNNING:
        ran_ns += max(0, record.progress.get("heard_ns", 0) - state.phase_since_ns)
    if not ran_ns:
        return Observed(state.interruptions)
    hours = ran_ns / NANOSECONDS_PER_HOUR
    return Observed(state.interruptions, exposure_hours(capacity_type(record), machines(record), hours))


def capacity_type(record: JobRecord) -> CapacityType:
    """How the job's machines are, or were last, rented."""
    return CapacityType(record.progress.get("capacity_type", CapacityType.ON_DEMAND))


def with_step(record: JobRecord, ended_ns: int, seconds: float) -> Mapping[str, Any]:
    """Progress after one more step."""
    steps = [*record.progress.get("recent_steps", []), [ended_ns, seconds]]
    return {**record.progress, "recent_steps": steps[-STEPS_REMEMBERED:]}


def with_save(record: JobRecord, begun_ns: int, write_seconds: float, stall_seconds: float) -> Mapping[str, Any]:
    """Progress after one more checkpoint, which was begun at `begun_ns`."""
    stall = max(0.0, stall_seconds)
    save = SaveCost(stall, max(stall, write_seconds))
    steps = [(ended_ns, seconds) for ended_ns, seconds in record.progress.get("recent_steps", [])]
    saves = [
        *record.progress.get("saves", []),
        [save.stall, save.write, slowdown_seconds(steps, begun_ns, save)],
    ]
    return {**record.progress, "saves": saves[-REMEMBERED:]}


def with_start(record: JobRecord, first_step_ns: int) -> Mapping[str, Any]:
    """Progress after the first step of an attempt began: how long the job was without one. The first start of all stands
    for a restart until there was one."""
    seconds = max(0, first_step_ns - record.state.phase_since_ns) / 1e9
    if record.state.phase is Phase.PROVISIONING:
        return {**record.progress, "start_seconds": seconds}
    restarts = [*record.progress.get("restart_seconds", []), seconds]
    return {**record.progress, "restart_seconds": restarts[-REMEMBERED:]}


def planned(record: JobRecord) -> Cadence | None:
    """The plan that holds; None when there is none (the job does not ask for one, or was not admitted yet)."""
    plan = record.progress.get("cadence")
    return None if plan is None else Cadence(plan["number"], plan["every_seconds"])


def replan(record: JobRecord, seen: Observed, now_ns: int) -> tuple[JobRecord, StoryEntry] | None:
    """The record with a new plan and the event that tells it; None when the present plan still does. `seen`: over all jobs
    on the same capacity type, this one included."""
    progress, before = record.progress, planned(record)
    restarts = sorted(progress.get("restart_seconds", []))
    plan = checkpoint_interval(
        [SaveCost(*save) for save in progress.get("saves", [])],
        hazard(capacity_type(record), machines(record), seen, record.state.workers),
        step_seconds=progress.get("seconds_per_step"),
        restart_seconds=restarts[len(restarts) // 2] if restarts else progress.get("start_seconds"),
    )
    if not plan.moved_from(None if before is None else before.every_seconds):
        return None
    number = 1 if before is None else before.number + 1
    cadence = {"number": number, "every_seconds": plan.every_seconds, "because": plan.because}
    state: JobState = record.state
    entry = StoryEntry(now_ns, EVENT, state.phase, state.phase, EVENT, plan.because)
    return replace(record, progress={**progress, "cadence": cadence}), entry
