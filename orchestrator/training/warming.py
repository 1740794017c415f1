"""What a worker does before it has a rank: imports, data, the model's first weights, and a rehearsal.

The rehearsal trains two steps in a world of one, on a copy of the model, and takes everything down again. The first
`deepspeed.initialize` and the first steps of a process cost a second and more, most of it imports and registries that they
reach only then; whoever has rehearsed does them in tens of milliseconds. What fails in a rehearsal only costs that time:
the job itself is begun as ever, and a line in its log says so.

Limits: no rehearsal on a GPU, where it would take memory beside the worker that trains there, nor for a user's own function.
A large model is rehearsed with its first layer alone, and not at all where even that is too large.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.clock import Clock, seconds_between
from orchestrator.planning.batch import divide
from orchestrator.planning.stage import choose_stage
from orchestrator.training import environment
from orchestrator.training.assignment import Assignment
from orchestrator.training.hardware import choose_precision
from orchestrator.training.preparation import Prepared, Ready, create_model, prepare_once, specified
from orchestrator.training.recycling import Fitness

REHEARSED_PARAMETERS = 64_000_000
"""The largest model that is rehearsed, which takes up to 20 bytes a parameter for a moment."""
STEPS = 2
IMPORTED_LATER = (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "torch._inductor.compile_fx",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.generation.utils",
    "transformers.integrations.sdpa_attention",
    "transformers.masking_utils",
    "transformers.modeling_layers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.processing_utils",
    "transformers.tokenization_utils_tokenizers",
)
LAZY = (
    "orchestrator.training.trainer",
    "orchestrator.training.context",
    "orchestrator.training.world",
    "numpy.ctypeslib",
)
"""Imported when a run begins; ours bring most of the rest."""


@dataclass
class Warm:
    """What a worker has before it has a rank."""

    ready: Ready | None
    """None for a user's own function."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each stage took."""
    notes: list[str] = field(default_factory=list)
    """Lines for the job's log."""
    prepared: Prepared | None = None
    fitness: Fitness | None = None
    """What this process was when it had warmed up; None where it is good for one run only."""
    trainer: Any = None
    """Of the run that was begun with this."""


def import_all(environ: MutableMapping[str, str]) -> Any:
    """Import all that a run on the CPU imports whatever its model is. Returns DeepSpeed."""
    import torch

    torch.set_num_threads(1)
    deepspeed = environment.import_deepspeed(environ, cpu=True)
    for name in (*LAZY, *IMPORTED_LATER):
        importlib.import_module(name)
    return deepspeed


def make_ready(work: Assignment, environ: MutableMapping[str, str], clock: Clock) -> Warm:
    """All stages, for one job."""
    done = Warm(None)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = clock.monotonic_ns()
        yield
        done.seconds[name] = seconds_between(start, clock.monotonic_ns())

    gpu = work.spec.workers.gpus > 0
    with stage("imports"):
        import torch

        deepspeed = environment.import_deepspeed(environ, cpu=False) if gpu else import_all(environ)
        from orchestrator.training import context, models

    torch.set_num_threads(work.threads)
    if work.spec.entrypoint is not None:
        try:
            context.find(work.spec.entrypoint.function)
        except Exception as error:  # noqa: BLE001 - it may need a rank; it is imported again with one, and reported there
            done.notes.append(f"the function could not be imported before there was a rank: {error}")
        return done
    models.quiet()
    with stage("data"):
        prepared = prepare_once(work)
    with stage("model"):
        done.ready = Ready(prepared, create_model(torch, work, prepared))
    if gpu:
        return _fit(done)
    try:
        with stage("rehearsal"):
            why = _rehearse(torch, deepspeed, work, done.ready, environ)
    except Exception as error:  # noqa: BLE001 - whatever it is, the job meets it again where it is reported
        why = f"{type(error).__name__}: {error}"
    if why is not None:
        done.seconds.pop("rehearsal", None)
        done.notes.append(f"the first steps were not rehearsed, so that this worker begins more slowly: {why}")
    return _fit(done)


def _fit(done: Warm) -> Warm:
    """With what this process is like now, to compare it with later."""
    from orchestrator.training import deepspeed_globals

    assert done.ready is not None
    deepspeed_globals.forget_engines()
    done.prepared, done.fitness = done.ready.prepared, Fitness.of_this_process()
    return done


def make_ready_again(work: Assignment, before: Warm, clock: Clock) -> Warm:
    """After a run: what `make_ready` gave, for another. Raises NotFit when the process cannot have one."""
    import deepspeed
    import torch

    from orchestrator.training import recycling

    if before.fitness is None or before.prepared is None:
        raise recycling.NotFit("a function of the user's own may leave anything behind")
    start = clock.monotonic_ns()
    trainer, before.trainer = before.trainer, None
    recycling.take_down(torch, deepspeed, trainer)
    del trainer
    recycling.self_test(torch, deepspeed, before.fitness)
    taken_down = clock.monotonic_ns()
    ready = Ready(before.prepared, create_model(torch, work, before.prepared))
    seconds = {
        "recycle": seconds_between(start, taken_down),
        "model": seconds_between(taken_down, clock.monotonic_ns()),
    }
    return Warm(ready, seconds, [], before.prepared, before.fitness)


def _rehearse(
    torch: Any, deepspeed: Any, work: Assignment, ready: Ready, environ: MutableMapping[str, str]
) -> str | None:
    """Two steps in a world of one. Why there were none, or None."""
    from orchestrator.training import deepspeed_globals

    choice = choose_stage(work.spec.deepspeed, work.world_size)
    model = _small(torch, ready.model)
    if model is None:
        return f"a layer of the model has more than {REHEARSED_PARAMETERS:,} parameters"
    with _alone(environ), _operators(work, built=choice.offload):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
            _steps(torch, deepspeed, work, ready, model, choice)
        finally:
            deepspeed_globals.leave_world(torch, deepspeed)
    return None


def _steps(torch: Any, deepspeed: Any, work: Assignment, ready: Ready, model: Any, choice: Any) -> None:
    import numpy as np

    from orchestrator.training import fragments, presets, randomness
    from orchestrator.training.agreement import Peers
    from orchestrator.training.engine import Batches, gradient_norm, initialize, set_learning_rate

    training, (wanted, _) = work.spec.training, specified(work)
    tokens = ready.prepared.splits["train"]
    samples = np.arange(min(2, len(tokens)))
    precision, _ = choose_precision(wanted.precision, environment.detect(torch, 0, gpu=False))
    config = presets.configuration(
        choice,
        work.spec.deepspeed.config,
        divide(len(samples), 1, len(samples)),
        working_dir=work.working_dir,
        precision=precision,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        max_gradient_norm=training.max_gradient_norm,
    )
    rows = randomness.install(model, training.seed)
    engine = initialize(deepspeed, model, config)
    try:
        state = fragments.attach(engine, Peers(torch, 0, 1, "cpu"), deepspeed_version=deepspeed.__version__)
        batches = Batches(
            torch, tokens, causal=wanted.task == "causal-lm", pad=model.config.pad_token_id or 0, device="cpu"
        )
        engine.train()
        for step in range(STEPS):
            set_learning_rate(engine, training.learning_rate)
            rows.begin(step, 0)
            rows.at(step, samples)
            loss, _, _ = batches.loss_sum(engine, samples)
            engine.backward(loss / batches.weight(samples))
            engine.step()
            gradient_norm(engine)
            state.scalars()
    finally:
        engine.destroy()


def _small(torch: Any, model: Any) -> Any:
    """A copy of the model to rehearse with: of a large one, with one layer; None when that is large too."""
    if sum(parameter.numel() for parameter in model.parameters()) <= REHEARSED_PARAMETERS:
        return copy.deepcopy(model)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 1
    with torch.device("meta"):
        outline = type(model)(config)
    if sum(parameter.numel() for parameter in outline.parameters()) > REHEARSED_PARAMETERS:
        return None
    return type(model)(config)


@contextmanager
def _alone(environ: MutableMapping[str, str]) -> Iterator[None]:
    """The environment of a world of one, which DeepSpeed reads; as it was afterwards."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    before: Mapping[str, str | None] = {name: environ.get(name) for name in names}
    environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


@contextmanager
def _operators(work: Assignment, *, built: bool) -> Iterator[None]:
    """Where the engine builds operators, one worker of a machine builds them and the others wait."""
    if not built:
        yield
        return
    with environment.builder(environment.extensions_folder(work.run_dir)):
        yield
