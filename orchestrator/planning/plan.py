"""What submitting a job would create, told before anything is created. Values in, values out.

First form: gang, batch, ZeRO stage, steps where the document alone tells them, and the names of what would be made. What
depends on data (steps of an epoch), on hardware (precision) or on prices (cost) is said to be decided there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.quantities import format_bytes
from orchestrator.planning.batch import Batch, allowed_world_sizes, divide
from orchestrator.planning.stage import StageChoice, choose_stage
from orchestrator.spec.models import Checkpoint, TrainingJob, Workers

DECIDED_BY_HARDWARE = "decided by the worker's hardware"


@dataclass(frozen=True, slots=True)
class Creation:
    """One thing that submitting would make."""

    kind: str
    """Driver, worker, folder: a word of the glossary."""
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job would be. None in a field: the user's own code or the data decides."""

    namespace: str
    name: str
    workers: int
    gpus_per_worker: int
    cpus_per_worker: int
    memory_bytes_per_worker: int | None
    world_size: int
    batch: Batch | None
    other_batches: tuple[Batch, ...]
    """The same global batch at each other world size, up to twice this one and at least to 8, that can go on from a
    checkpoint of this job. Sizes that do not divide it are not there."""
    stage: StageChoice | None
    total_steps: int | None
    epochs: int | None
    precision: str
    capacity_mode: str
    suspended: bool
    creations: tuple[Creation, ...]

    def lines(self) -> list[str]:
        """The plan for a terminal: one `name  value` line each."""
        rows = list(self._rows())
        width = max(len(name) for name, _ in rows)
        made = [f"  {item.kind:<10} {item.name}  ({item.detail})" for item in self.creations]
        return [*(f"{name:<{width}}  {value}" for name, value in rows), "", "Submitting would create:", *made]

    def to_dict(self) -> dict[str, Any]:
        """The plan as a JSON document with camelCase names."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "workers": {
                "count": self.workers,
                "gpus": self.gpus_per_worker,
                "cpus": self.cpus_per_worker,
                "memoryBytes": self.memory_bytes_per_worker,
            },
            "worldSize": self.world_size,
            "batch": None
            if self.batch is None
            else {
                "global": self.batch.global_batch,
                "micro": self.batch.micro_batch,
                "accumulation": self.batch.accumulation,
            },
            "otherWorldSizes": [
                {"worldSize": other.world_size, "micro": other.micro_batch, "accumulation": other.accumulation}
                for other in self.other_batches
            ],
            "deepspeed": None
            if self.stage is None
            else {"stage": self.stage.stage, "because": self.stage.because, "preset": self.stage.preset},
            "totalSteps": self.total_steps,
            "epochs": self.epochs,
            "precision": self.precision,
            "capacityMode": self.capacity_mode,
            "suspended": self.suspended,
            "creates": [{"kind": item.kind, "name": item.name, "detail": item.detail} for item in self.creations],
        }

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "Job", f"{self.namespace}/{self.name}" + (" (suspended until it is resumed)" if self.suspended else "")
        memory = "" if self.memory_bytes_per_worker is None else f", {format_bytes(self.memory_bytes_per_worker)}"
        size = f"{_count(self.cpus_per_worker, 'CPU core')}{memory}"
        if self.gpus_per_worker:
            size = f"{_count(self.gpus_per_worker, 'GPU')}, {size}"
        yield "Workers", f"{self.workers} x ({size})"
        yield "World size", _count(self.world_size, "rank")
        if self.batch is None:
            yield "Batch", "decided by your own function"
        else:
            yield "Batch", str(self.batch)
            sizes = ", ".join(str(other.world_size) for other in self.other_batches)
            yield "Resumes on", f"{sizes} ranks as well, with the same global batch" if sizes else "this size only"
        if self.stage is not None:
            yield "ZeRO stage", f"{self.stage.stage}, because {self.stage.because}"
            yield "Offload", "optimizer state to main memory" if self.stage.offload else "none"
        yield "Steps", self._steps()
        yield "Precision", self.precision
        yield "Capacity", self.capacity_mode

    def _steps(self) -> str:
        if self.total_steps is not None:
            return f"{self.total_steps:,}"
        if self.epochs is not None:
            return f"{_count(self.epochs, 'epoch')}; the number of samples decides the steps"
        return "decided by your own function"


def plan(job: TrainingJob) -> Plan:
    """The plan of a valid job. Raises BatchDoesNotDivide when the batch does not fit, which the loader refuses before."""
    spec = job.spec
    workers = spec.workers
    built_in = spec.entrypoint is None
    micro = spec.training.micro_batch_size
    batch = stage = None
    others: tuple[Batch, ...] = ()
    if built_in:
        batch = divide(spec.training.global_batch_size, workers.world_size, micro if isinstance(micro, int) else None)
        stage = choose_stage(spec.deepspeed, workers.world_size)
        others = tuple(_other_batches(batch, micro if isinstance(micro, int) else None))
    precision = "Auto" if spec.model is None else spec.model.precision
    return Plan(
        namespace=job.metadata.namespace,
        name=job.metadata.name,
        workers=workers.max,
        gpus_per_worker=workers.gpus,
        cpus_per_worker=workers.cpus,
        memory_bytes_per_worker=workers.memory_bytes,
        world_size=workers.world_size,
        batch=batch,
        other_batches=others,
        stage=stage,
        total_steps=spec.training.max_steps,
        epochs=spec.training.epochs,
        precision=DECIDED_BY_HARDWARE if precision == "Auto" else precision,
        capacity_mode=spec.capacity.mode,
        suspended=spec.suspend,
        creations=tuple(_creations(job, workers)),
    )


def _other_batches(batch: Batch, micro_batch: int | None) -> Iterator[Batch]:
    sizes = range(1, max(8, 2 * batch.world_size) + 1)
    for size in allowed_world_sizes(batch.global_batch, sizes, micro_batch):
        if size != batch.world_size:
            yield divide(batch.global_batch, size, micro_batch)


def _creations(job: TrainingJob, workers: Workers) -> Iterator[Creation]:
    name = job.metadata.name
    yield Creation("driver", f"{name}-driver", "starts the gang and relays its progress")
    ranks = _count(max(1, workers.gpus), "rank")
    for index in range(min(workers.max, 8)):
        yield Creation("worker", f"{name}-worker-{index}", ranks)
    if workers.max > 8:
        yield Creation("worker", f"{name}-worker-8 to {name}-worker-{workers.max - 1}", f"{ranks} each")
    yield Creation("folder", "$ORCHESTRATE_HOME/jobs/<uid>", "run folder: logs, result")
    where = job.spec.checkpoint.uri or "$ORCHESTRATE_HOME/jobs/<uid>/checkpoints"
    every = job.spec.checkpoint.every
    cadence = f"every {every} steps" if isinstance(every, int) else f"every {every}"
    if job.spec.checkpoint.automatic:
        cadence = "a first one soon, then as often as its measured cost and the interruptions to expect ask for"
    yield Creation("checkpoint", where, f"{cadence}, {_kept(job.spec.checkpoint)}")


def _kept(checkpoint: Checkpoint) -> str:
    """`the newest 2, the best and one every 1d are kept`."""
    kept = [f"the newest {checkpoint.keep}"]
    if checkpoint.keep_best:
        kept.append("the best")
    if checkpoint.keep_every is not None:
        kept.append(f"one every {checkpoint.keep_every}")
    return f"{' and '.join([', '.join(kept[:-1]), kept[-1]] if len(kept) > 1 else kept)} are kept"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
