"""What `orchestrate plan` says of memory, time and money: the planner's arithmetic beside the simulator's forecast.

What cannot be told is a note that says why, never a guess.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from orchestrator.domain.money import Nanodollars, for_people, to_decimal_string
from orchestrator.planning.hardware import PRECISIONS
from orchestrator.planning.memory import Memory, estimate
from orchestrator.planning.options import Layout, Work, layouts, work
from orchestrator.planning.shapes import BUILT_VOCABULARY, ModelShape, UnknownShape, read_shape

if TYPE_CHECKING:
    from orchestrator.accounting import PriceBook
    from orchestrator.planning.plan import Plan
    from orchestrator.simulation.forecast import Forecast
    from orchestrator.spec import TrainingJob

FORECASTS = 3
"""Options whose spot cost is simulated: those that are cheapest on demand."""
SIZES = 3
"""Numbers of machines of one kind that are shown."""
PROBE_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Option:
    """A layout with its price. Amounts are nano-dollars; None: unknown."""

    layout: Layout
    hours: tuple[float, float]
    """At the share of the peak that tuned training reaches, and at the built-in trainer's."""
    on_demand_per_hour: int | None
    """Of all workers."""
    spot_per_hour: int | None
    forecast: Forecast | None = None

    start_hours: float = 0.0
    """From renting the machines until they train: paid for."""

    @property
    def on_demand(self) -> int | None:
        """At the built-in trainer's speed."""
        if self.on_demand_per_hour is None:
            return None
        return round(self.on_demand_per_hour * (self.start_hours + self.hours[1]))


@dataclass
class Estimates:
    """All that could be told."""

    notes: list[str] = field(default_factory=list)
    shape: ModelShape | None = None
    memory: Memory | None = None
    memory_of: str = ""
    steps: int | None = None
    work: Work | None = None
    options: list[Option] = field(default_factory=list)
    chosen: Option | None = None
    why: str = ""
    deadline_hours: float | None = None
    probe: Mapping[str, Any] | None = None
    probe_hours: tuple[float, float, float] | None = None
    """p10, p50, p90 of the whole job on workers like this machine."""
    probe_cost: int | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says about an estimate."""

    deadline_hours: float | None
    overhead_hours: float
    seed: int
    probe_steps: int
    say: Callable[[str], None] = lambda _: None
    """Told what takes long."""


def estimates(job: TrainingJob, planned: Plan, working_dir: Path, prices: PriceBook, wishes: Wishes) -> Estimates:
    """For a job with the built-in trainer; of another one only a note."""
    found = Estimates()
    if planned.batch is None or planned.stage is None:
        found.notes.append("memory, time and cost: your own function decides them; unknown")
        return found
    found.steps = planned.total_steps or _steps_of_epochs(job, working_dir, found.notes)
    if wishes.probe_steps:
        _probe(job, planned, working_dir, prices, wishes.probe_steps, wishes.say, found)
    try:
        found.shape = _shape(job, working_dir, found.notes)
    except UnknownShape as error:
        found.notes.append(f"memory and time: {error}; --probe measures them" if not wishes.probe_steps else str(error))
        return found
    tokens = min(job.spec.data.max_length if job.spec.data else 128, found.shape.positions or 2**31)
    precision = PRECISIONS.get(planned.precision)
    if precision is None:  # Auto: as measured here, else as most machines of the kind decide
        measured = None if found.probe is None else PRECISIONS.get(str(found.probe["precision"]).upper())
        precision = measured or ("bf16" if planned.gpus_per_worker else "fp32")
    found.memory = estimate(
        found.shape,
        stage=planned.stage.stage,
        ranks=planned.world_size,
        precision=precision,
        micro_batch=planned.batch.micro_batch,
        tokens=tokens,
        offload=planned.stage.offload,
    )
    found.memory_of = (
        f"{precision}, ZeRO-{planned.stage.stage}, {planned.world_size} ranks, {planned.batch.micro_batch} samples of "
        f"{tokens} tokens at a time"
    )
    if found.steps is None:
        return found
    found.work = work(job, found.shape, found.steps)
    _options(job, found, prices, wishes)
    return found


def _shape(job: TrainingJob, working_dir: Path, notes: list[str]) -> ModelShape:
    from orchestrator.training.errors import WorkerFailed
    from orchestrator.training.sources import local_model

    model = job.spec.model
    assert model is not None  # the built-in trainer needs one; the loader saw to it
    try:
        folder = local_model(model.source, working_dir)
    except WorkerFailed as error:
        raise UnknownShape(str(error)) from error
    language_model, scratch = model.task == "causal-lm", model.init == "Scratch"
    if folder is None and not (scratch and "/" not in model.source):
        raise UnknownShape(f"the model {model.source} is not on this machine, so its sizes are unknown")
    config: dict[str, Any] = {"model_type": model.source}
    if folder is not None:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnknownShape(f"{folder / 'config.json'} cannot be read ({error})") from error
        if not isinstance(config, dict):
            raise UnknownShape(f"{folder / 'config.json'} is not a JSON object")
    vocabulary = None
    if scratch and (folder is None or not (folder / "tokenizer.json").is_file()):
        vocabulary = BUILT_VOCABULARY
        notes.append(f"the vocabulary is built from the data; {BUILT_VOCABULARY:,} tokens, its most, are taken")
    labels = len(job.spec.data.labels) if job.spec.data is not None and job.spec.data.labels else 2
    return read_shape({**config, **model.config}, language_model=language_model, labels=labels, vocabulary=vocabulary)


def _steps_of_epochs(job: TrainingJob, working_dir: Path, notes: list[str]) -> int | None:
    """Optimizer steps, by the samples that are there after cleaning and splitting; None, with a note, where nobody knows."""
    from orchestrator.training import dataset
    from orchestrator.training.errors import WorkerFailed
    from orchestrator.training.sources import read_rows

    data, model = job.spec.data, job.spec.model
    if data is None or model is None or model.task == "causal-lm":
        notes.append("steps: the number of tokens in the data decides them; --probe, or set training.maxSteps")
        return None
    places = {"source": data.source, "train": data.train, "validation": data.validation, "test": data.test}
    try:
        files = {
            name: read_rows(place.uri, place.format, data.cleaning.encoding, working_dir)
            for name, place in places.items()
            if place is not None
        }
        samples = len(dataset.build(files, data, labelled=True).splits["train"])
    except WorkerFailed as error:
        notes.append(f"steps: {error}")
        return None
    notes.append(f"{samples:,} samples to train on, after cleaning and splitting")
    return -(-samples * (job.spec.training.epochs or 1) // job.spec.training.global_batch_size)


def _options(job: TrainingJob, found: Estimates, prices: PriceBook, wishes: Wishes) -> None:
    from dataclasses import replace

    from orchestrator.domain.offerings import CapacityType

    assert found.shape is not None
    assert found.work is not None
    kinds = list(dict.fromkeys(offer.instance_type for offer in prices.offers))
    laid_out, left = layouts(job, found.shape, kinds)
    found.notes += [f"left out: {reason}" for reason in left]
    limit = None if job.spec.capacity.max_price_per_hour is None else float(job.spec.capacity.max_price_per_hour) * 1e9
    for layout in laid_out:
        one, spot = (
            prices.offering(layout.instance_type, kind).price_nanodollars_per_hour
            for kind in (CapacityType.ON_DEMAND, CapacityType.SPOT)
        )
        if limit is not None and one is not None and one > limit and (spot is None or spot > limit):
            found.notes.append(f"left out: {layout.instance_type} costs more than capacity.maxPricePerHour")
            continue
        fast, slow = (seconds / 3600 for seconds in layout.seconds(found.work.flops, found.shape))
        times = layout.workers
        found.options.append(
            Option(
                layout,
                (fast, slow),
                None if one is None else one * times,
                None if spot is None else spot * times,
                start_hours=wishes.overhead_hours,
            )
        )
    found.options = _worth_showing(found.options, wishes)
    found.options.sort(key=lambda option: (option.on_demand is None, option.on_demand or 0, option.hours[1]))
    simulated = 0
    if not job.spec.workers.gpus and wishes.deadline_hours is None:
        simulated = FORECASTS  # a job of this machine's CPUs: the table is there to look at, and is not worth the wait
    elif any(option.spot_per_hour is not None for option in found.options):
        wishes.say("simulating what spot machines would cost")
    for place, option in enumerate(found.options):
        if simulated == FORECASTS or option.spot_per_hour is None or option.on_demand_per_hour is None:
            continue
        hours = option.hours[1]
        deadline = wishes.deadline_hours or 2 * hours + 4 * wishes.overhead_hours
        if deadline >= hours + wishes.overhead_hours:
            try:
                found.options[place] = replace(option, forecast=_forecast(option, hours, deadline, wishes))
            except ModuleNotFoundError as error:
                found.notes.append(f"spot: a forecast needs {error.name}: pip install 'orchestrate[simulate]'")
                simulated = FORECASTS
            simulated += 1
    found.deadline_hours = wishes.deadline_hours
    _choose(found, wishes)


def _worth_showing(options: Sequence[Option], wishes: Wishes) -> list[Option]:
    """Of each kind of machine the fewest that will do, up to `SIZES`: those that meet the deadline, where any does."""
    kinds: dict[str, list[Option]] = {}
    for option in options:  # by number, ascending
        kinds.setdefault(option.layout.instance_type, []).append(option)
    found: list[Option] = []
    for sizes in kinds.values():
        limit = wishes.deadline_hours
        in_time = [o for o in sizes if limit is None or o.hours[1] + wishes.overhead_hours <= limit]
        found += in_time[:SIZES] if in_time else sizes[-1:]
    return found


def _forecast(option: Option, hours: float, deadline: float, wishes: Wishes) -> Forecast:
    from orchestrator.simulation.forecast import spot_forecast

    assert option.on_demand_per_hour is not None
    assert option.spot_per_hour is not None
    return spot_forecast(
        work_hours=hours,
        deadline_hours=deadline,
        overhead_hours=wishes.overhead_hours,
        on_demand_nanodollars_per_hour=option.on_demand_per_hour,
        spot_nanodollars_per_hour=option.spot_per_hour,
        seed=wishes.seed,
    )


def _choose(found: Estimates, wishes: Wishes) -> None:
    """The cheapest that meets the deadline even at the built-in trainer's speed."""
    priced = [option for option in found.options if option.on_demand is not None]
    if not priced:
        found.why = (
            "no machine with a known price holds the job"
            if found.options
            else "no machine in the price file holds the job"
        )
        return
    limit = wishes.deadline_hours
    in_time = [o for o in priced if limit is None or o.hours[1] + wishes.overhead_hours <= limit]
    if not in_time:
        fastest = min(priced, key=lambda option: option.hours[1])
        found.why = (
            f"none meets the deadline of {limit:g} h: the fastest, {fastest.layout.workers} x {fastest.layout.instance_type}, "
            f"takes up to {fastest.hours[1]:.1f} h"
        )
        return

    def cost(option: Option) -> int:
        assert option.on_demand is not None
        return option.on_demand if option.forecast is None else min(option.on_demand, option.forecast.p50)

    found.chosen = min(in_time, key=lambda option: (cost(option), option.hours[1]))
    on_spot = found.chosen.forecast is not None and found.chosen.forecast.p50 < (found.chosen.on_demand or 0)
    kind = "on spot, by the median forecast" if on_spot else "on demand"
    peak, gpu = (0 if found.memory is None else found.memory.peak), found.chosen.layout.gpu
    if peak > gpu.memory_bytes:
        found.notes.append(
            f"with the workers of the file a rank needs {peak / 2**30:.1f} GiB, more than {gpu.name} has; as chosen: "
            f"training.microBatchSize {found.chosen.layout.batch.micro_batch}, deepspeed.stage {found.chosen.layout.stage}"
        )
    found.why = f"the cheapest {kind}" + ("" if limit is None else f" of those that meet the deadline of {limit:g} h")


def _probe(
    job: TrainingJob,
    planned: Plan,
    working_dir: Path,
    prices: PriceBook,
    steps: int,
    say: Callable[[str], None],
    found: Estimates,
) -> None:
    """Real steps in a process of its own. A job that cannot be trained here is a note."""
    say(f"measuring {steps} steps on this machine")
    assert planned.batch is not None
    document = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    asked = {
        "document": document,
        "workingDir": str(working_dir),
        "microBatch": planned.batch.micro_batch,
        "steps": steps,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.training.probe"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        found.notes.append(f"the probe was ended after {PROBE_SECONDS} s; try fewer steps")
        return
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    measured = json.loads(last[0]) if last[0].startswith("{") else {}
    if "seconds" not in measured:
        reason = measured.get("error") or (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        found.notes.append(f"the probe failed: {reason}")
        return
    found.probe = measured
    if found.steps is None:
        return
    low, middle, high = _deciles(measured["seconds"])
    each = found.steps * planned.batch.accumulation / 3600
    found.probe_hours = (low * each, middle * each, high * each)
    price = prices.local_offering().price_nanodollars_per_hour
    if price is not None:
        found.probe_cost = round(price * planned.workers * found.probe_hours[1])


def _deciles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    cut = quantiles(values, n=10, method="inclusive")
    return cut[0], cut[4], cut[8]


# --- shown -----------------------------------------------------------------------------------------------------------
def lines(found: Estimates) -> list[str]:
    """For a terminal, below the plan."""
    from orchestrator.cli.output import table

    rows: list[str] = []
    if found.shape is not None:
        rows += ["", f"Model: {found.shape.family}, {found.shape.parameters / 1e6:,.1f} million parameters"]
    if found.memory is not None:
        rows += ["", f"Memory of a rank ({found.memory_of}):"]
        rows += [f"  {line}" for line in found.memory.lines()]
    if found.work is not None:
        rows += ["", f"Work: {found.work.steps:,} steps, samples of at most {found.work.tokens:,} tokens, "
                 f"{found.work.flops:.3g} FLOPs"]  # fmt: skip
    if found.probe is not None:
        middle = _deciles(found.probe["seconds"])[1]
        rows += ["", f"Measured here ({found.probe['hardware']}, {found.probe['precision']}): {middle:.3g} s for "
                 f"{found.probe['microBatch']} samples of one rank, {found.probe['peakBytes'] / 2**30:.2f} GiB at most"]  # fmt: skip
    if found.probe_hours is not None:
        low, middle, high = found.probe_hours
        cost = "at an unknown price" if found.probe_cost is None else f"for {for_people(Nanodollars(found.probe_cost))}"
        rows.append(f"  so {_time(middle)} on workers like this machine ({_time(low)} to {_time(high)}), {cost}, "
                    "start-up and evaluation aside")  # fmt: skip
    if found.options:
        rows += ["", "Machines (time at the built-in trainer's speed, and at that of tuned training):"]
        rows += table(_HEADINGS, [_row(found, option) for option in found.options], right=_HEADINGS[4:]).splitlines()
    if found.why:
        chosen = (
            "" if found.chosen is None else f"{found.chosen.layout.workers} x {found.chosen.layout.instance_type}: "
        )
        rows += ["", f"Choice: {chosen}{found.why}"]
        if found.chosen is not None:
            rows += [f"  {line}" for line in _explained(found.chosen)]
    return [*rows, *(f"Note: {note}" for note in found.notes)]


_HEADINGS = (
    "MACHINES", "GPU", "ZERO", "MICRO-BATCH", "MEMORY", "TIME", "ON DEMAND", "SPOT P10", "P50", "P90", "LATE",
)  # fmt: skip


def _row(found: Estimates, option: Option) -> tuple[str, ...]:
    layout, forecast = option.layout, option.forecast
    mark = "*" if option is found.chosen else " "
    spot = ("unknown",) * 3 if option.spot_per_hour is None else ("-",) * 3
    late = "-"
    if forecast is not None:
        spot = (_money(forecast.p10), _money(forecast.p50), _money(forecast.p90))
        late = f"{forecast.missed / forecast.jobs:.0%}"
    return (
        f"{mark}{layout.workers} x {layout.instance_type}",
        f"{layout.ranks} x {layout.gpu.name}",
        str(layout.stage) + ("+CPU" if layout.offload else ""),
        f"{layout.batch.micro_batch} x {layout.batch.accumulation}",
        f"{layout.memory.peak / layout.gpu.memory_bytes:.0%}",
        f"{_time(option.hours[1])} ({_time(option.hours[0])})",
        _money(option.on_demand),
        *spot,
        late,
    )


def _explained(option: Option) -> list[str]:
    layout, forecast = option.layout, option.forecast
    said = [f"ZeRO-{layout.stage}, because {layout.because}; {layout.batch}"]
    said.append(f"{layout.gpu.name}: a peak of {layout.gpu.peak_teraflops:g} TFLOP/s, of which tuned training reaches "
                f"{layout.gpu.high:.0%} ({layout.gpu.source}); scaling over the ranks is taken as perfect")  # fmt: skip
    if forecast is not None and option.on_demand is not None:
        saving = 1 - forecast.p50 / option.on_demand
        said.append(
            f"on spot: {saving:.0%} less than on demand at the median, {forecast.preemptions:.1f} preemptions, "
            f"done after {_time(forecast.hours_p50)} (p90 {_time(forecast.hours_p90)}); "
            f"{forecast.missed} of {forecast.jobs} simulated jobs late"
        )
    return said


def _money(amount: int | None) -> str:
    return "unknown" if amount is None else for_people(Nanodollars(amount))


def _time(hours: float) -> str:
    if hours >= 2:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 2 else f"{hours * 3600:.0f} s"


def document(found: Estimates) -> dict[str, Any]:
    """The same as JSON, with camelCase names; null is unknown."""

    def dollars(amount: int | None) -> str | None:
        return None if amount is None else to_decimal_string(Nanodollars(amount))

    memory = found.memory
    return {
        "parameters": None if found.shape is None else found.shape.parameters,
        "memory": None
        if memory is None
        else {
            "of": found.memory_of,
            "peakBytes": memory.peak,
            "hostBytes": memory.host_bytes,
            "terms": [
                {"name": term.name, "bytes": term.bytes, "formula": term.formula, "when": when}
                for when, terms in (
                    ("always", memory.resident),
                    ("backward", memory.backward),
                    ("update", memory.update),
                    ("host", memory.host),
                )
                for term in terms
            ],
        },
        "steps": found.steps,
        "flops": None if found.work is None else found.work.flops,
        "probe": None if found.probe is None else dict(found.probe),
        "probeHours": None
        if found.probe_hours is None
        else dict(zip(("p10", "p50", "p90"), found.probe_hours, strict=True)),
        "probeCostUSD": dollars(found.probe_cost),
        "options": [
            {
                "instanceType": option.layout.instance_type,
                "workers": option.layout.workers,
                "ranks": option.layout.ranks,
                "gpu": option.layout.gpu.name,
                "stage": option.layout.stage,
                "precision": option.layout.precision,
                "microBatch": option.layout.batch.micro_batch,
                "accumulation": option.layout.batch.accumulation,
                "peakBytes": option.layout.memory.peak,
                "gpuBytes": option.layout.gpu.memory_bytes,
                "hours": option.hours[1],
                "hoursTuned": option.hours[0],
                "onDemandUSD": dollars(option.on_demand),
                "spot": None
                if option.forecast is None
                else {
                    "p10USD": dollars(option.forecast.p10),
                    "p50USD": dollars(option.forecast.p50),
                    "p90USD": dollars(option.forecast.p90),
                    "hoursP50": option.forecast.hours_p50,
                    "hoursP90": option.forecast.hours_p90,
                    "late": option.forecast.missed / option.forecast.jobs,
                    "preemptions": option.forecast.preemptions,
                },
                "chosen": option is found.chosen,
            }
            for option in found.options
        ],
        "choice": found.why or None,
        "notes": found.notes,
    }
