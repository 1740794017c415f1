"""A job as the world sees it: the resource with its status, and its cost. Pure functions of a record and a statement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.accounting import Statement, write_receipt
from orchestrator.controller import budgets, slots
from orchestrator.controller.journal.base import JobRecord
from orchestrator.domain.clock import to_rfc3339
from orchestrator.domain.money import to_decimal_string
from orchestrator.lifecycle import Disruption, JobState, Phase
from orchestrator.storage import Listed


def checkpoint_document(listed: Listed) -> dict[str, Any]:
    """A checkpoint: its step and place, whether it is whole, what it holds."""
    manifest = listed.manifest
    return {
        "step": listed.step,
        "uri": listed.uri,
        "whole": listed.whole,
        "why": listed.why,
        "bytes": None if manifest is None else manifest.total_bytes,
        "time": None if manifest is None else to_rfc3339(manifest.created_ns),
        "metrics": {} if manifest is None else dict(manifest.metrics),
        "best": manifest is not None and manifest.best,
    }


def cost_document(statement: Statement, samples_kept: int) -> dict[str, Any]:
    """`status.cost`: amounts are decimal strings of dollars; an unknown amount is null."""
    receipt = write_receipt(statement, samples_kept)
    return {
        "totalUSD": to_decimal_string(receipt.total),
        "usefulUSD": to_decimal_string(receipt.useful),
        "atRiskUSD": to_decimal_string(receipt.at_risk),
        "wastedUSD": {category: to_decimal_string(amount) for category, amount in receipt.wasted.items()},
        "savedUSD": to_decimal_string(receipt.saved),
        "perHourUSD": to_decimal_string(receipt.per_hour),
        "perThousandSamplesUSD": to_decimal_string(receipt.per_thousand_samples),
        "billed": receipt.billed,
        "priceSources": list(receipt.price_sources),
    }


def segment_documents(statement: Statement) -> list[dict[str, Any]]:
    """Every segment, with times in nanoseconds and costs in nano-dollars, so that anyone can recompute the total."""
    return [
        {
            "machine": segment.machine,
            "instanceType": segment.instance_type,
            "zone": segment.zone,
            "capacityType": segment.capacity_type.value,
            "category": segment.category.value,
            "start_ns": segment.start_ns,
            "end_ns": segment.end_ns,
            "cost_nanodollars": segment.cost_nanodollars,
        }
        for segment in statement.segments
    ]


def resource(record: JobRecord, cost: Mapping[str, Any] | None, version: int) -> dict[str, Any]:
    """The TrainingJob as submitted, with `status`. `cost` is None before any machine was held."""
    metadata = {
        **record.document["metadata"],
        "uid": record.uid,
        "creationTimestamp": to_rfc3339(record.created_ns),
        "resourceVersion": str(version),
    }
    return {**record.document, "metadata": metadata, "status": _status(record, cost)}


def _status(record: JobRecord, cost: Mapping[str, Any] | None) -> dict[str, Any]:
    state, progress = record.state, record.progress
    status: dict[str, Any] = {
        "observedGeneration": 1,
        "phase": state.phase.value,
        "reason": state.reason,
        "message": state.message,
        "conditions": _conditions(state),
        "startTime": _time(state.started_ns),
        "completionTime": _time(state.ended_ns),
        "worldSize": world_size(record),
        "attempt": state.attempt,
        "generation": state.generation or None,
        "workers": {
            "desired": state.workers,
            "ready": ready_workers(record),
            "draining": slots.draining(record),
            "ranks": _ranks(record),
        },
        "progress": _progress(state, progress, record.samples_kept),
        "checkpoint": {
            "last": _checkpoint(state),
            "count": progress.get("checkpoints", 0),
            **_cadence(progress),
        },
        "restarts": {
            "application": state.application_restarts,
            "preemption": state.preemption_restarts,
            "resize": state.resizes,
        },
        "disruptions": [_disruption(each) for each in state.disruptions],
        "cost": dict(cost) if cost is not None else None,
        "result": _result(record),
    }
    if (allowed := budgets.limit(record)) is not None:
        status["budgetUSD"] = to_decimal_string(allowed)
    if "data" in progress:
        status["data"] = progress["data"]
    if "device" in progress:
        status["hardware"] = {"device": progress["device"], "precision": progress["precision"]}
    if "stages" in progress:
        status["stages"] = progress["stages"]
    if "replication" in progress:
        status["replication"] = progress["replication"]
    return status


def world_size(record: JobRecord) -> int:
    """Ranks of the newest world, else those that the wished number of workers has: workers x max(1, gpus)."""
    state = record.state
    there = state.world_workers if state.phase.holds_machines else None
    return (state.workers if there is None else there) * _ranks_per_worker(record)


def _ranks_per_worker(record: JobRecord) -> int:
    return max(1, int(record.document["spec"]["workers"].get("gpus", 0)))


def _disruption(disruption: Disruption) -> dict[str, Any]:
    """What broke training off, and what it cost. `secondsDead` and what follows it are null until it is known."""
    back_ns = disruption.back_ns
    return {
        "time": to_rfc3339(disruption.at_ns),
        "reason": disruption.reason,
        "attempt": disruption.attempt,
        "generation": disruption.generation or None,
        "step": disruption.step,
        "workersBefore": disruption.workers_before,
        "workersAfter": disruption.workers_after,
        "secondsDead": None if back_ns is None else round(max(0, back_ns - disruption.began_ns) / 1e9, 3),
        "stepsRedone": disruption.steps_redone,
    }


def _time(at_ns: int | None) -> str | None:
    return None if at_ns is None else to_rfc3339(at_ns)


def ready_workers(record: JobRecord) -> int:
    """Workers of the present attempt whose every rank has reported that it started."""
    if not record.state.phase.holds_machines or record.progress.get("ready_attempt") != record.state.attempt:
        return 0
    return len(record.progress.get("ready", {})) // _ranks_per_worker(record)


def _ranks(record: JobRecord) -> list[dict[str, Any]]:
    """Where each rank of the present attempt runs, for who wants to look at its process."""
    if not record.state.phase.holds_machines or record.progress.get("ready_attempt") != record.state.attempt:
        return []
    ready = record.progress.get("ready", {})
    return [{"rank": int(rank), **ready[rank]} for rank in sorted(ready, key=int)]


def _progress(state: JobState, progress: Mapping[str, Any], samples_kept: int) -> dict[str, Any]:
    step, total = progress.get("step", 0), progress.get("total_steps")
    seconds = progress.get("seconds_per_step")
    left = None if total is None else max(0, total - step)
    running = state.phase is Phase.RUNNING
    return {
        "step": step,
        "totalSteps": total,
        "epoch": progress.get("epoch"),
        "percent": None if not total else round(100 * step / total, 1),
        "etaSeconds": round(left * seconds, 1) if running and left is not None and seconds is not None else None,
        "loss": progress.get("loss"),
        "learningRate": progress.get("lr"),
        "metrics": progress.get("metrics", {}),
        "samples": samples_kept,
        "samplesPerSecond": progress.get("samples_per_second") if running else None,
    }


def _checkpoint(state: JobState) -> dict[str, Any] | None:
    if state.checkpoint_step is None:
        return None
    return {"step": state.checkpoint_step, "time": _time(state.checkpoint_ns), "uri": state.checkpoint_uri}


def _cadence(progress: Mapping[str, Any]) -> dict[str, Any]:
    """What is planned when `checkpoint.every` is Auto; nothing otherwise."""
    if "cadence" not in progress:
        return {}
    plan = progress["cadence"]
    return {"cadence": {"everySeconds": round(plan["every_seconds"], 3), "because": plan["because"]}}


def _result(record: JobRecord) -> dict[str, Any] | None:
    if record.result is None:
        return None
    return {"metrics": record.result.get("metrics"), "modelUri": record.result.get("model_uri")}


def _conditions(state: JobState) -> list[dict[str, Any]]:
    """Kubernetes conditions: `Complete` and `Failed` as for a Job, `Suspended` and `Running` for people."""
    facts = {
        "Running": state.phase is Phase.RUNNING,
        "Suspended": state.phase is Phase.SUSPENDED,
        "Complete": state.phase is Phase.SUCCEEDED,
        "Failed": state.phase is Phase.FAILED,
    }
    since = to_rfc3339(state.phase_since_ns)
    return [
        {
            "type": kind,
            "status": "True" if holds else "False",
            "reason": (state.reason or state.phase.value) if holds else state.phase.value,
            "message": state.message if holds else "",
            "lastTransitionTime": since,
        }
        for kind, holds in facts.items()
    ]
