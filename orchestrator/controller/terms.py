"""What a job's document means for the shell: its needs, its limits, the machines it pays for, the run it asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.accounting import MachineHeld, PriceBook, Role
from orchestrator.controller import cadence, slots
from orchestrator.controller.home import Home
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.queueing import Need
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.domain.offerings import CapacityType
from orchestrator.domain.quantities import parse_bytes
from orchestrator.lifecycle import Limits
from orchestrator.platforms.engines.base import RunRequest
from orchestrator.policy import Observed

ELASTIC_ENGINE = "native"


def elastic(document: Mapping[str, Any]) -> bool:
    """Whether the number of workers may change."""
    workers = document["spec"]["workers"]
    return int(workers["min"]) < int(workers["max"])


def sizes(document: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of workers that the job may have, ascending; the only one of a fixed gang."""
    from orchestrator.spec.sizes import sizes_within

    spec = document["spec"]
    workers, training = spec["workers"], spec.get("training", {})
    allowed, micro = workers.get("allowedSizes", "Auto"), training.get("microBatchSize", "Auto")
    unit = ranks_per_worker(document) * (micro if isinstance(micro, int) else 1)
    batch = global_batch(document)
    least, most = int(workers["min"]), int(workers["max"])
    found = sizes_within(least, most, allowed if isinstance(allowed, str) else tuple(allowed), batch, unit)
    return found or (most,)


def global_batch(document: Mapping[str, Any]) -> int | None:
    """Samples of one step; None of a job with its own function, which divides them itself."""
    spec = document["spec"]
    return None if "entrypoint" in spec else int(spec.get("training", {}).get("globalBatchSize", 32))


def ranks_per_worker(document: Mapping[str, Any]) -> int:
    return max(1, int(document["spec"]["workers"].get("gpus", 0)))


def need(record: JobRecord) -> Need:
    """What the queue must find for the gang. An elastic job waits for its smallest size, and has what it holds."""
    workers = record.document["spec"]["workers"]
    count, memory = record.state.workers, workers.get("memory")
    if record.state.elastic:
        count = max(sizes(record.document)[0], len(slots.present(record)))
    return Need(
        uid=record.uid,
        priority=int(record.document["spec"].get("priority", 0)),
        submitted_ns=record.created_ns,
        cpus=count * int(workers["cpus"]),
        gpus=count * int(workers.get("gpus", 0)),
        memory_bytes=0 if memory is None else count * parse_bytes(memory),
    )


def limits(record: JobRecord) -> Limits:
    """What `spec.failure` and `spec.workers` allow."""
    failure = record.document["spec"].get("failure", {})
    return Limits(
        failure.get("maxRestarts", 0),
        failure.get("maxPreemptions"),
        sizes=sizes(record.document) if record.state.elastic else (),
    )


def machine(
    record: JobRecord, prices: PriceBook, name: str, at_ns: int, role: Role | None = Role.MEMBER
) -> MachineHeld:
    """The machine of one worker, priced as the price book prices a worker on this machine."""
    offering, billing = prices.local_offering(), prices.billing
    return MachineHeld(
        at_ns,
        machine=name,
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
        role=(role or Role.MEMBER).value,
    )


def run_request(
    record: JobRecord,
    document: Mapping[str, Any],
    home: Home,
    worker_loop: str,
    engine: str,
    capacity: CapacityType = CapacityType.ON_DEMAND,
    observed: Mapping[CapacityType, Observed] | None = None,
    *,
    standbys: str = "warm",
) -> RunRequest:
    """The present attempt, as an engine is asked for it. `document`: the job's with its secrets put back. `engine`: the one
    for gangs of fixed size; an elastic job takes the one that can change its size. `observed`: of interruptions, over all
    jobs, by how machines are rented; `capacity`: how those of this one are. `standbys`: as the setting says."""
    spec = document["spec"]
    workers, runtime = spec["workers"], spec.get("runtime", {})
    run_dir = home.run_dir(record.uid)
    gpus, cpus, memory = int(workers.get("gpus", 0)), int(workers["cpus"]), workers.get("memory")
    may_have, may_change = sizes(document), record.state.elastic
    most = may_have[-1] if may_change else record.state.workers
    training = spec.get("training", {})
    micro_batch = training.get("microBatchSize", "Auto")
    assignment = {
        "job": {"namespace": record.namespace, "name": record.name, "uid": record.uid},
        "spec": dict(document),
        "attempt": record.state.attempt,
        "workers": most,
        "world_size": most * ranks_per_worker(document),
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
        workers=most,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
        memory_bytes_per_worker=None if memory is None else parse_bytes(memory),
        worker_loop=worker_loop,
        assignment=assignment,
        env={variable["name"]: variable.get("value", "") for variable in runtime.get("env", [])},
        cadence=cadence.planned(record),
        min_workers=may_have[0] if may_change else None,
        allowed=may_have if may_change else (),
        elastic=may_change,
        live=may_change and standbys == "none",
        engine=ELASTIC_ENGINE if may_change and engine != "fake" else engine,
        size=record.state.workers if may_change else 0,
        global_batch=global_batch(document),
        micro_batch=micro_batch if isinstance(micro_batch, int) else None,
        capacity=capacity,
        observed=dict(observed or {}),
        out_of_memory=tuple((ranks, size) for ranks, size in record.progress.get("out_of_memory", ())),
    )
