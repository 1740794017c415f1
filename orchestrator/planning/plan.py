"""What submitting a job would create, told before anything is created. Values in, values out.

Gang, batch, ZeRO stage, steps where the document alone tells them, and the names of what would be made. What depends on data
(steps of an epoch) or on hardware (precision) is said to be decided there; memory and time are `memory`'s and `options`'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.quantities import format_bytes
from orchestrator.planning.batch import Batch, allowed_world_sizes, divide
from orchestrator.planning.stage import StageChoice, choose_stage
from orchestrator.spec.models import Checkpoint, TrainingJob, Workers
from orchestrator.spec.sizes import allowed_sizes

DECIDED_BY_HARDWARE = "decided by the worker's hardware"
SIZES_SHOWN = 16
"""Most allowed sizes that a terminal is shown one by one."""


@dataclass(frozen=True, slots=True)
class Creation:
    """One thing that submitting would make."""

    kind: str
    """Driver, worker, folder: a word of the glossary."""
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Size:
    """One number of workers that the job may have, and how the global batch is computed then."""

    workers: int
    world_size: int
    batch: Batch | None
    """None: the user's own function decides."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job would be. None in a field: the user's own code or the data decides."""

    namespace: str
    name: str
    workers: int
    """The most that the job may have."""
    sizes: tuple[Size, ...]
    """Every number of workers that the job may have, ascending; one for a job that does not change its size."""
    gpus_per_worker: int
    cpus_per_worker: int
    memory_bytes_per_worker: int | None
    world_size: int
    batch: Batch | None
    other_batches: tuple[Batch, ...]
    """The same global batch at each other world size, up to twice this one and at least to 8, that a job of another size
    can go on with from a checkpoint of this one. Sizes that do not divide it are not there."""
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
                "min": self.sizes[0].workers,
                "gpus": self.gpus_per_worker,
                "cpus": self.cpus_per_worker,
                "memoryBytes": self.memory_bytes_per_worker,
            },
            "worldSize": self.world_size,
            "allowedSizes": [
                {
                    "workers": size.workers,
                    "worldSize": size.world_size,
                    "micro": None if size.batch is None else size.batch.micro_batch,
                    "accumulation": None if size.batch is None else size.batch.accumulation,
                }
                for size in self.sizes
            ],
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
        elastic = len(self.sizes) > 1
        count = f"{self.sizes[0].workers} to {self.workers}" if elastic else f"{self.workers}"
        yield "Workers", f"{count} x ({size})"
        yield "World size", f"up to {_count(self.world_size, 'rank')}" if elastic else _count(self.world_size, "rank")
        if elastic:
            yield from self._size_rows()
        if self.batch is None:
            yield "Batch", "decided by your own function"
        else:
            if not elastic:
                yield "Batch", str(self.batch)
            sizes = ", ".join(str(other.world_size) for other in self.other_batches)
            yield "Resumes on", f"{sizes} ranks as well, with the same global batch" if sizes else "this size only"
        if self.stage is not None:
            yield "ZeRO stage", f"{self.stage.stage}, because {self.stage.because}"
            yield "Offload", "optimizer state to main memory" if self.stage.offload else "none"
        yield "Steps", self._steps()
        yield "Precision", self.precision
        yield "Capacity", self.capacity_mode

    def _size_rows(self) -> Iterator[tuple[str, str]]:
        """`1 worker: 32 = 1 rank x micro-batch 32 x accumulation 1`, a line each."""
        shown = self.sizes if len(self.sizes) <= SIZES_SHOWN else (*self.sizes[: SIZES_SHOWN - 1], self.sizes[-1])
        if all(size.batch is None for size in self.sizes):
            gapless = len(self.sizes) == self.workers - self.sizes[0].workers + 1
            listed = ", ".join(str(size.workers) for size in shown)
            yield "Sizes", f"every number from {self.sizes[0].workers} to {self.workers}" if gapless else listed
            return
        for index, size in enumerate(shown):
            if index == len(shown) - 1 and len(shown) < len(self.sizes):
                yield "", f"and {len(self.sizes) - len(shown)} more, up to"
            yield "" if index else "Sizes", f"{_count(size.workers, 'worker')}: {size.batch}"

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
    fixed_micro = micro if isinstance(micro, int) else None
    batch = stage = None
    others: tuple[Batch, ...] = ()
    sizes = tuple(
        Size(count, ranks, divide(spec.training.global_batch_size, ranks, fixed_micro) if built_in else None)
        for count in allowed_sizes(spec) or (workers.max,)
        for ranks in (count * workers.ranks_per_worker,)
    )
    largest = sizes[-1]
    if largest.batch is not None:
        batch = largest.batch
        stage = choose_stage(spec.deepspeed, largest.world_size)
        others = tuple(_other_batches(batch, fixed_micro))
    precision = "Auto" if spec.model is None else spec.model.precision
    return Plan(
        namespace=job.metadata.namespace,
        name=job.metadata.name,
        workers=largest.workers,
        sizes=sizes,
        gpus_per_worker=workers.gpus,
        cpus_per_worker=workers.cpus,
        memory_bytes_per_worker=workers.memory_bytes,
        world_size=largest.world_size,
        batch=batch,
        other_batches=others,
        stage=stage,
        total_steps=spec.training.max_steps,
        epochs=spec.training.epochs,
        precision=DECIDED_BY_HARDWARE if precision == "Auto" else precision,
        capacity_mode=spec.capacity.mode,
        suspended=spec.suspend,
        creations=tuple(_creations(job, workers, sizes[0].workers, largest.workers)),
    )


def _other_batches(batch: Batch, micro_batch: int | None) -> Iterator[Batch]:
    sizes = range(1, max(8, 2 * batch.world_size) + 1)
    for size in allowed_world_sizes(batch.global_batch, sizes, micro_batch):
        if size != batch.world_size:
            yield divide(batch.global_batch, size, micro_batch)


def _creations(job: TrainingJob, workers: Workers, fewest: int, most: int) -> Iterator[Creation]:
    name = job.metadata.name
    yield Creation("driver", f"{name}-driver", "starts the gang and relays its progress")
    ranks = _count(max(1, workers.gpus), "rank")
    for index in range(min(most, 8)):
        yield Creation("worker", f"{name}-worker-{index}", ranks if index < fewest else f"{ranks}, while there is room")
    if most > 8:
        room = "" if fewest == most else f"; those from {name}-worker-{fewest} on while there is room"
        yield Creation("worker", f"{name}-worker-8 to {name}-worker-{most - 1}", f"{ranks} each{room}")
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
