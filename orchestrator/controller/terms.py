"""What a job's document means for the shell: its needs, its limits, the machines it pays for, the run it asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.accounting import MachineHeld, PriceBook
from orchestrator.controller import cadence
from orchestrator.controller.home import Home
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.queueing import Need
from orchestrator.controller.views import world_size
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.domain.quantities import parse_bytes
from orchestrator.lifecycle import Limits
from orchestrator.platforms.engines.base import RunRequest


def need(record: JobRecord) -> Need:
    """What the queue must find for the whole gang."""
    workers = record.document["spec"]["workers"]
    count, memory = record.state.workers, workers.get("memory")
    return Need(
        uid=record.uid,
        priority=int(record.document["spec"].get("priority", 0)),
        submitted_ns=record.created_ns,
        cpus=count * int(workers["cpus"]),
        gpus=count * int(workers.get("gpus", 0)),
        memory_bytes=0 if memory is None else count * parse_bytes(memory),
    )


def limits(record: JobRecord) -> Limits:
    """What `spec.failure` allows."""
    failure = record.document["spec"].get("failure", {})
    return Limits(failure.get("maxRestarts", 0), failure.get("maxPreemptions"))


def machines(record: JobRecord, prices: PriceBook, workers: int, now_ns: int) -> list[MachineHeld]:
    """One machine a worker, priced as the price book prices a worker on this machine."""
    offering, billing = prices.local_offering(), prices.billing
    return [
        MachineHeld(
            now_ns,
            machine=f"{record.uid}/{record.state.attempt}/{worker}",
            instance_type=offering.instance_type,
            zone=offering.zone,
            capacity_type=offering.capacity_type.value,
            gpus=int(record.document["spec"]["workers"].get("gpus", 0)),
            price_nanodollars_per_hour=offering.price_nanodollars_per_hour,
            list_price_nanodollars_per_hour=offering.list_price_nanodollars_per_hour,
            price_source=f"{offering.instance_type}: {offering.price_source}",
            billed=offering.billed,
            granularity_ns=billing.granularity_seconds * NANOSECONDS_PER_SECOND,
            minimum_ns=billing.minimum_seconds * NANOSECONDS_PER_SECOND,
        )
        for worker in range(workers)
    ]


def run_request(record: JobRecord, document: Mapping[str, Any], home: Home, worker_loop: str) -> RunRequest:
    """The present attempt, as an engine is asked for it. `document`: the job's with its secrets put back."""
    spec = document["spec"]
    workers, runtime = spec["workers"], spec.get("runtime", {})
    run_dir = home.run_dir(record.uid)
    gpus, cpus, memory = int(workers.get("gpus", 0)), int(workers["cpus"]), workers.get("memory")
    assignment = {
        "job": {"namespace": record.namespace, "name": record.name, "uid": record.uid},
        "spec": dict(document),
        "attempt": record.state.attempt,
        "workers": record.state.workers,
        "world_size": world_size(document),
        "run_dir": str(run_dir),
        "checkpoint_uri": home.checkpoint_uri(record.uid, record.name, spec.get("checkpoint", {}).get("uri")),
        "working_dir": record.working_dir or str(run_dir),
        "threads": max(1, cpus // max(1, gpus)),
    }
    return RunRequest(
        uid=record.uid,
        namespace=record.namespace,
        name=record.name,
        attempt=record.state.attempt,
        workers=record.state.workers,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
        memory_bytes_per_worker=None if memory is None else parse_bytes(memory),
        worker_loop=worker_loop,
        assignment=assignment,
        env={variable["name"]: variable.get("value", "") for variable in runtime.get("env", [])},
        cadence=cadence.planned(record),
    )
