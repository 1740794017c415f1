"""Which machines a job could be trained on, how it would be laid out there, and for how long. Pure: no prices, no chance.

A machine is one worker. For each kind, the numbers of workers are those that the global batch divides over; for each the ZeRO
stage with the least traffic whose memory fits is taken (the job's own where it names one), with the largest micro-batch.

Time: FLOPs of all tokens / (ranks x what a GPU reaches). It is a span, from what tuned training reaches to what the built-in
trainer was measured at; scaling over ranks is taken as perfect, since nothing was measured there.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.planning.batch import LARGEST_AUTOMATIC_MICRO_BATCH, Batch, divide
from orchestrator.planning.hardware import Gpu, Precision, gpus_of, precision_on
from orchestrator.planning.memory import Memory, estimate
from orchestrator.planning.shapes import ModelShape
from orchestrator.planning.stage import Stage, choose_stage
from orchestrator.spec.models import TrainingJob

MOST_RANKS = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """A job on so many machines of one kind."""

    instance_type: str
    gpu: Gpu
    workers: int
    ranks: int
    stage: Stage
    offload: bool
    precision: Precision
    batch: Batch
    memory: Memory
    because: str
    """Why this stage and micro-batch."""

    @property
    def fits(self) -> bool:
        return self.memory.fits(self.gpu.memory_bytes)

    def seconds(self, flops: float, shape: ModelShape) -> tuple[float, float]:
        """Of so much arithmetic: as tuned training would need, and as the built-in trainer does. In fp32, without tensor cores,
        an eighth of the speed is taken."""
        ranks = self.ranks * 1e12 / (8 if self.precision == "fp32" else 1)
        reached = self.gpu.reached_teraflops(shape.parameters, attention_dropout=shape.attention_dropout)
        return flops / (ranks * self.gpu.peak_teraflops * self.gpu.high), flops / (ranks * reached)


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be computed."""

    steps: int
    tokens: int
    """Of one sample, at most."""
    flops: float


def work(job: TrainingJob, shape: ModelShape, steps: int) -> Work:
    """Of so many steps with every sample as long as `data.maxLength`, which is the most that it can be."""
    tokens = min(_tokens(job), shape.positions or _tokens(job))
    samples = steps * job.spec.training.global_batch_size
    return Work(steps, tokens, samples * tokens * shape.flops_per_token(tokens))


def layouts(job: TrainingJob, shape: ModelShape, instance_types: list[str]) -> tuple[list[Layout], list[str]]:
    """Every layout that fits, by machine and number, and of each kind of machine that is left out, the reason."""
    found: list[Layout] = []
    left: list[str] = []
    for name in instance_types:
        known = gpus_of(name)
        if known is None:
            left.append(f"{name}: its GPUs are unknown to orchestrate")
            continue
        gpu, count = known
        wish = "Auto" if job.spec.model is None else job.spec.model.precision
        precision = precision_on(wish, gpu)
        if precision is None:
            left.append(f"{name}: {gpu.name} has no {wish.lower()}")
            continue
        sizes = _numbers(job, count)
        if not sizes:
            batch = job.spec.training.global_batch_size
            left.append(f"{name}: a global batch of {batch} does not divide among its {count} GPUs")
            continue
        fitting = [layout for size in sizes if (layout := lay_out(job, shape, name, gpu, count, size, precision)).fits]
        found += fitting
        if not fitting:
            least = lay_out(job, shape, name, gpu, count, sizes[-1], precision)
            left.append(
                f"{name}: a rank needs {least.memory.peak / 2**30:.1f} GiB even with {least.ranks} ranks, ZeRO-{least.stage} and "
                f"a micro-batch of {least.batch.micro_batch}; {gpu.name} has {gpu.memory_bytes / 2**30:.1f} GiB"
            )
    return found, left


def lay_out(
    job: TrainingJob, shape: ModelShape, name: str, gpu: Gpu, count: int, workers: int, precision: Precision
) -> Layout:
    """The job on `workers` machines of `count` GPUs: the first choice of stage and micro-batch that fits, or else the last."""
    spec, ranks = job.spec, workers * count
    told = choose_stage(spec.deepspeed, ranks)
    free = spec.deepspeed.stage == "Auto" and not isinstance(spec.deepspeed.config, str)
    more: tuple[Stage, ...] = (2, 3) if free and ranks > 1 else ()
    stages = [told.stage, *(stage for stage in more if stage > told.stage)]
    micro = spec.training.micro_batch_size
    share = spec.training.global_batch_size // ranks
    sizes = [micro] if isinstance(micro, int) else _divisors(share, LARGEST_AUTOMATIC_MICRO_BATCH)
    tokens = min(_tokens(job), shape.positions or _tokens(job))
    layout = None
    for stage in stages:
        for size in sizes:
            memory = estimate(
                shape,
                stage=stage,
                ranks=ranks,
                precision=precision,
                micro_batch=size,
                tokens=tokens,
                offload=told.offload,
            )
            because = (
                told.because if stage == told.stage else f"ZeRO-{stages[stages.index(stage) - 1]} needs more memory"
            )
            batch = divide(spec.training.global_batch_size, ranks, size)
            layout = Layout(name, gpu, workers, ranks, stage, told.offload, precision, batch, memory, because)
            if layout.fits:
                return layout
    assert layout is not None  # there is always a stage and a size
    return layout


def _numbers(job: TrainingJob, gpus: int) -> list[int]:
    """Numbers of machines that the global batch divides over, doubling, up to `MOST_RANKS` ranks."""
    micro = job.spec.training.micro_batch_size
    unit = gpus * (micro if isinstance(micro, int) else 1)
    doubled = (2**power for power in range(MOST_RANKS.bit_length()))
    return [n for n in doubled if n * gpus <= MOST_RANKS and job.spec.training.global_batch_size % (n * unit) == 0]


def _divisors(share: int, limit: int) -> list[int]:
    """Of a rank's samples, falling."""
    return [size for size in range(min(share, limit), 0, -1) if share % size == 0]


def _tokens(job: TrainingJob) -> int:
    return 128 if job.spec.data is None else job.spec.data.max_length
