"""The built-in trainer: text-classification and causal-lm on transformers models with DeepSpeed.

Each step: forward and backward over the rank's micro-batches, one small all-reduce, the optimizer's step. The all-reduce
carries the loss, what is wished (save, stop), whether time has come to save, and whether a number was not finite; so all
ranks take every decision at the same step, and a bad loss is known before the weights are touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import storage
from orchestrator.domain.clock import seconds_between
from orchestrator.domain.errors import StorageError
from orchestrator.planning.batch import Batch, BatchDoesNotDivide, divide
from orchestrator.planning.stage import choose_stage
from orchestrator.spec.models import Data, Model
from orchestrator.storage import storage_error
from orchestrator.training import dataset, fragments, importing, models, presets, randomness, tokens
from orchestrator.training.agreement import Peers
from orchestrator.training.assignment import Assignment
from orchestrator.training.cadence import Cadence
from orchestrator.training.engine import Batches, evaluate, gradient_norm, initialize, set_learning_rate
from orchestrator.training.errors import Reason, WorkerFailed
from orchestrator.training.order import SampleOrder, micro_batches, share
from orchestrator.training.progress import Progress
from orchestrator.training.reporting import Reporter
from orchestrator.training.run_state import RANGES, RunState
from orchestrator.training.saving import Part, Saver, as_worker_failure, retention, stored, teller
from orchestrator.training.schedule import learning_rate, warmup_steps
from orchestrator.training.sources import read_rows

LARGER_IS_BETTER = frozenset({"accuracy", "macro-f1"})
EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Prepared:
    """Data and tokenizer of a run, the same on every rank."""

    tokenizer: Any
    splits: dict[str, tokens.Tokens]
    labels: tuple[str, ...]
    counts: dict[str, Any]

    def digest(self) -> str:
        parts = [*(self.splits[name].digest() for name in dataset.SPLITS), *self.labels]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def prepare(model: Model, data: Data, working_dir: Path) -> Prepared:
    """Read, clean, split and tokenise. Every rank does all of it: seconds for what fits in memory, and no shared folder."""
    causal = model.task == "causal-lm"
    places = {"source": data.source, "train": data.train, "validation": data.validation, "test": data.test}
    files = {
        name: read_rows(place.uri, place.format, data.cleaning.encoding, working_dir)
        for name, place in places.items()
        if place is not None
    }
    found = dataset.build(files, data, labelled=not causal)
    texts = {name: [sample.text for sample in samples] for name, samples in found.splits.items()}
    tokenizer = models.tokenizer_for(model, texts["train"], working_dir)
    if causal:
        splits = {name: tokens.pack(tokenizer, texts[name], data.max_length) for name in dataset.SPLITS}
    else:
        number = {label: index for index, label in enumerate(found.labels)}
        splits = {
            name: tokens.encode(tokenizer, texts[name], [number[s.label or ""] for s in samples], data.max_length)
            for name, samples in found.splits.items()
        }
    if not len(splits["train"]):
        raise WorkerFailed(Reason.DATA_INVALID, "the training texts hold no block of two tokens", "give more text")
    return Prepared(tokenizer, splits, found.labels, found.counts)


class Trainer:
    """One rank of one attempt. `run` does everything; the other methods are its parts."""

    def __init__(
        self, assignment: Assignment, reporter: Reporter, peers: Peers, torch: Any, deepspeed: Any, precision: str
    ) -> None:
        spec = assignment.spec
        if spec.model is None or spec.data is None:
            raise WorkerFailed(
                Reason.CONFIG_INVALID, "the built-in trainer needs spec.model and spec.data", "or set spec.entrypoint"
            )
        self.assignment = assignment
        self.model_spec = spec.model
        self.data_spec = spec.data
        self.training = spec.training
        self.reporter = reporter
        self.peers = peers
        self.torch = torch
        self.deepspeed = deepspeed
        self.precision = precision
        self.causal = spec.model.task == "causal-lm"
        self.choice = choose_stage(spec.deepspeed, peers.world_size)
        self.wishes_handled = 0
        self.own_randomness_told = False

    def run(self) -> dict[str, Any]:
        """Train from the newest whole checkpoint to the end, evaluate, export."""
        self._set_up()
        try:
            outcome = self._train()
            self.saver.finish()
            if outcome is not None:
                return outcome
            return self._finish()
        finally:
            self.saver.close()

    # ---- start

    def _set_up(self) -> None:
        assignment, peers, reporter = self.assignment, self.peers, self.reporter
        plan = self._batch()
        with reporter.stage("data"):
            prepared = peers.settle(lambda: prepare(self.model_spec, self.data_spec, assignment.working_dir))
            digests = peers.gather(prepared.digest())
            if len(set(digests)) > 1:
                odd = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
                raise WorkerFailed(
                    Reason.DATA_INVALID, f"rank {odd} reads other data than rank 0", "give every worker the same files"
                )
        reporter.first("data", **prepared.counts, digest=digests[0])
        self.plan, self.prepared = plan, prepared
        self._plan_steps()
        seed = self.training.seed
        with reporter.stage("model"):
            self.torch.manual_seed(seed)
            model = peers.settle(
                lambda: models.create(
                    self.model_spec,
                    prepared.labels,
                    prepared.tokenizer,
                    self.data_spec.max_length,
                    assignment.working_dir,
                )
            )
            parameters = sum(p.numel() for p in model.parameters())
            trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
            shapes = [(name, list(p.shape)) for name, p in model.named_parameters()]
        with reporter.stage("engine"):
            config = presets.configuration(
                self.choice,
                assignment.spec.deepspeed.config,
                plan,
                working_dir=assignment.working_dir,
                precision=self.precision,
                learning_rate=self.training.learning_rate,
                weight_decay=self.training.weight_decay,
                max_gradient_norm=self.training.max_gradient_norm,
            )
            self.model = model
            self.randomness = randomness.install(model, seed)
            self.engine = initialize(self.deepspeed, model, config)
        pad = model.config.pad_token_id or 0
        self.batches = {
            name: Batches(self.torch, self.prepared.splits[name], causal=self.causal, pad=pad, device=peers.device)
            for name in dataset.SPLITS
        }
        self._restore(shapes)
        reporter.first(
            "plan",
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            train_samples=len(self.prepared.splits["train"]),
            world_size=plan.world_size,
            micro_batch=plan.micro_batch,
            accumulation=plan.accumulation,
            parameters=parameters,
            trainable_parameters=trainable,
        )

    def _batch(self) -> Batch:
        wish = self.training.micro_batch_size
        try:
            return divide(
                self.training.global_batch_size, self.peers.world_size, wish if isinstance(wish, int) else None
            )
        except BatchDoesNotDivide as error:
            raise WorkerFailed(Reason.CONFIG_INVALID, error.what, error.hint) from error

    def _plan_steps(self) -> None:
        samples, batch = len(self.prepared.splits["train"]), self.plan.global_batch
        self.steps_per_epoch = math.ceil(samples / batch)
        total_samples = None
        if self.training.max_steps is not None:
            self.total_steps = self.training.max_steps
        else:
            total_samples = samples * (self.training.epochs or 1)
            self.total_steps = math.ceil(total_samples / batch)
        self.order = SampleOrder(samples, self.training.seed, batch, total_samples)
        self.warmup = warmup_steps(self.training.warmup, self.total_steps)

    def _restore(self, shapes: list[tuple[str, list[int]]]) -> None:
        import transformers

        assignment, peers = self.assignment, self.peers
        identity = [self.prepared.digest(), self.plan.global_batch, self.training.seed, shapes]
        store = stored(lambda: storage.open_store(assignment.checkpoint_uri))
        checkpoint = assignment.spec.checkpoint
        self.saver = Saver(
            peers,
            store,
            self.reporter.clock,
            attempt=assignment.attempt,
            retention=retention(checkpoint),
            verify=checkpoint.verify,
        )
        attached = fragments.attach(self.engine, peers, deepspeed_version=self.deepspeed.__version__)
        self.state = RunState(
            self.torch,
            peers,
            store,
            attached,
            storage.Manifest(
                global_step=0,
                samples_seen=0,
                world=storage.World(self.plan.world_size, self.plan.micro_batch, self.plan.accumulation),
                zero_stage=self.choice.stage,
                layout=RANGES,
                created_ns=0,
                covers_ns=0,
                attempt=assignment.attempt,
                fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
                versions={
                    "torch": self.torch.__version__,
                    "deepspeed": self.deepspeed.__version__,
                    "transformers": transformers.__version__,
                },
            ),
            self._model_files(),
            frozen_once=True,
        )
        with self.reporter.stage("restore"):
            found, refused, where = self.state.restore(assignment.attempt)
            self.progress = Progress() if where is None else Progress.from_document(where)
            imported = self._import(attached) if found is None else None
            if found is not None and checkpoint.import_from is not None:
                line = f"checkpoint.importFrom is not read: the job has a checkpoint of its own, {found.uri}"
                self.reporter.first("log", rank=0, lines=[line])
        self.restored_from = imported if found is None else found.uri
        self.cadence = Cadence(checkpoint, self.reporter.clock, peers.rank)
        self.reporter.first(
            "restored",
            step=self.progress.step,
            uri=self.restored_from,
            covers_ns=None if found is None or found.manifest is None else found.manifest.covers_ns,
            refused=[{"uri": item.uri, "why": item.why} for item in refused],
        )
        if self.progress.reports.kept:
            self.reporter.first("steps_again", steps=list(self.progress.reports.kept))
            self.progress.reports.kept.clear()

    def _import(self, attached: fragments.EngineState) -> str | None:
        """Begin from what `checkpoint.importFrom` names, if it names something: its place. Steps are counted on."""
        wanted = self.assignment.spec.checkpoint.import_from
        if wanted is None:
            return None
        folder = self.assignment.working_dir / Path(wanted.uri.removeprefix("file://")).expanduser()
        source = importing.take_up(attached, self.peers, folder, wanted.tag)
        if source.global_steps >= self.total_steps:
            raise WorkerFailed(
                Reason.CONFIG_INVALID,
                f"checkpoint.importFrom: {source.place} is of step {source.global_steps}, and this job has {self.total_steps} steps",
                "raise training.maxSteps or epochs, which count from the first step of all",
            )
        self.progress.step = source.global_steps
        self.progress.samples_seen = self.order.samples_before(source.global_steps)
        return str(source.place)

    def _model_files(self) -> dict[str, bytes]:
        """What a reader of the weights needs to know beside them: the model's configuration and tokenizer, as files."""
        if self.peers.rank != 0:
            return {}
        with tempfile.TemporaryDirectory() as name:
            self.model.config.architectures = [type(self.model).__name__]
            self.model.config.save_pretrained(name)
            self.prepared.tokenizer.save_pretrained(name)
            facts = {"task": self.model_spec.task, "precision": self.precision}
            models.describe(Path(name), self.prepared.labels, facts)
            return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}

    # ---- steps

    def _train(self) -> dict[str, Any] | None:
        """Run until the end (None), or until somebody wants the run to stop (its result)."""
        clock = self.reporter.clock
        self.engine.train()
        first = clock.monotonic_ns()
        while self.progress.step < self.total_steps and not self.progress.stopped_early:
            start = clock.monotonic_ns()
            decision = self._step()
            covers_ns = clock.now_ns()
            progress = self.progress
            if first:
                self.reporter.first("stage", stage="first_step", seconds=seconds_between(first, clock.monotonic_ns()))
                first = 0
            report = {
                "step": progress.step,
                "epoch": progress.samples_seen / len(self.prepared.splits["train"]),
                "loss": decision.loss,
                "lr": decision.rate,
                "samples": decision.samples,
                "samples_seen": progress.samples_seen,
                "seconds": seconds_between(start, clock.monotonic_ns()),
                **({} if decision.norm is None else {"grad_norm": decision.norm}),
            }
            self.reporter.first("step", **report)
            progress.reports.remember({**report, "attempt": self.assignment.attempt, "at_ns": covers_ns})
            improved = self._evaluate_if_due(decision.samples)
            due = (
                improved
                or decision.save
                or decision.stop
                or progress.stopped_early
                or progress.step == self.total_steps
                or self.cadence.steps_due(progress.step - 1, progress.step)
            )
            if due:
                self._save(covers_ns, best=improved, wish=decision.wish)
            if decision.stop and progress.step < self.total_steps and not progress.stopped_early:
                return {
                    "outcome": "stopped",
                    "reason": "Stopped",
                    "step": progress.step,
                    "metrics": progress.metrics,
                    "model_uri": None,
                }
        return None

    def _step(self) -> _Decision:
        torch, peers, progress, plan = self.torch, self.peers, self.progress, self.plan
        batches = self.batches["train"]
        batch = self.order.batch(progress.step)
        weight = batches.weight(batch)
        scale = peers.world_size * plan.accumulation / weight
        rate = learning_rate(
            self.training.learning_rate, self.training.schedule, progress.step, self.total_steps, self.warmup
        )
        set_learning_rate(self.engine, rate)
        self.randomness.begin(progress.step, peers.rank)
        total = torch.zeros((), dtype=torch.float64, device=peers.device)
        parts = micro_batches(share(batch, peers.rank, peers.world_size), plan.micro_batch, plan.accumulation)
        for number, part in enumerate(parts, start=1):
            self.randomness.at(progress.step, part if len(part) else [0])
            loss, _, _ = batches.loss_sum(self.engine, part)
            total += loss.detach().double()
            self.engine.backward(loss * scale)
            if number < plan.accumulation:
                self.engine.step()
        self._look_for_other_randomness()
        decision = self._agree(float(total), weight, len(batch), rate)
        self.engine.step()
        decision.norm = gradient_norm(self.engine)
        if decision.norm is not None and not math.isfinite(decision.norm):
            if self.precision != "fp16":
                raise self._non_finite("gradient", progress.step + 1)
            decision.norm = None  # loss scaling skips such a step and halves its scale
        progress.step += 1
        progress.samples_seen += len(batch)
        return decision

    def _look_for_other_randomness(self) -> None:
        """Say once in the log that the model draws random numbers which depend on the ranks."""
        if not self.own_randomness_told and self.randomness.unhandled:
            self.own_randomness_told = True
            self.reporter.first(
                "log",
                rank=0,
                lines=[
                    f"{type(self.model).__name__} draws random numbers of its own: the run repeats exactly at the same "
                    "number of workers; at another number they differ"
                ],
            )

    def _agree(self, loss_sum: float, weight: int, samples: int, rate: float) -> _Decision:
        peers = self.peers
        wishes = self.reporter.link.wishes()
        finite = math.isfinite(loss_sum)
        time_due = self.cadence.time_due(wishes)
        counts = [float(wishes.checkpoint) if rank == peers.rank else 0.0 for rank in range(peers.world_size)]
        flags = self.saver.flags()
        summed = peers.sum([loss_sum if finite else 0.0, not finite, wishes.stop, time_due, *flags, *counts])
        self.saver.agreed(summed[4], summed[5])
        if summed[1]:
            raise self._non_finite("loss", self.progress.step + 1)
        wish = int(max(summed[6:]))
        asked = wish > self.wishes_handled
        self.wishes_handled = wish
        return _Decision(
            loss=summed[0] / weight,
            samples=samples,
            rate=rate,
            stop=summed[2] > 0,
            save=asked or summed[3] > 0,
            wish=wish,
        )

    def _non_finite(self, what: str, step: int) -> WorkerFailed:
        newest = self.saver.finish() or self.restored_from  # what was saved before is good, and all ranks are here
        good = "there is no checkpoint" if newest is None else f"the last good checkpoint is {newest}"
        return WorkerFailed(
            Reason.NON_FINITE_LOSS,
            f"the {what} of step {step} is not a finite number; {good}",
            "lower training.learningRate, lengthen training.warmup, or look for odd samples; nothing was saved after it",
        )

    # ---- evaluation and saving

    def _evaluate_if_due(self, samples: int) -> bool:
        """Evaluate on validation when it is time; True when this is the best so far. Sets `stopped_early`."""
        progress = self.progress
        if not len(self.prepared.splits["validation"]):
            return False
        every = self.training.eval_every
        train = len(self.prepared.splits["train"])
        if isinstance(every, int):
            due = progress.step % every == 0
        else:
            due = progress.samples_seen // train > (progress.samples_seen - samples) // train
        if not due and progress.step < self.total_steps:
            return False
        progress.metrics = self._evaluate("validation")
        stopping = self.training.early_stopping
        metric = "loss" if stopping is None else stopping.metric
        if metric not in progress.metrics:
            raise WorkerFailed(
                Reason.CONFIG_INVALID,
                f"training.earlyStopping.metric {metric} is not measured here",
                f"use one of {', '.join(progress.metrics)}",
            )
        value = progress.metrics[metric]
        larger = metric in LARGER_IS_BETTER if stopping is None or stopping.mode == "Auto" else stopping.mode == "Max"
        gain = math.inf if progress.best_value is None else (value - progress.best_value) * (1 if larger else -1)
        if gain > (0.0 if stopping is None else stopping.min_delta):
            progress.best_value, progress.best_step, progress.best_metrics = value, progress.step, progress.metrics
            progress.evaluations_without_improvement = 0
            return True
        progress.evaluations_without_improvement += 1
        if stopping is not None and progress.evaluations_without_improvement >= stopping.patience:
            progress.stopped_early = True
        return False

    def _evaluate(self, split: str) -> dict[str, float]:
        metrics = evaluate(
            self.torch,
            self.engine,
            self.batches[split],
            self.prepared.splits[split],
            self.peers,
            len(self.prepared.labels),
            EVALUATION_BATCH,
        )
        self.reporter.first("evaluation", step=self.progress.step, split=split, metrics=metrics)
        return metrics

    def _save(self, covers_ns: int, *, best: bool, wish: int) -> None:
        progress, reporter = self.progress, self.reporter

        def prepare() -> tuple[list[Part], storage.Manifest]:
            parts = self.state.parts(progress.to_document())
            facts = replace(
                self.state.facts(),
                global_step=progress.step,
                samples_seen=progress.samples_seen,
                covers_ns=covers_ns,
                metrics=progress.metrics,
                best=best,
            )
            progress.reports.kept.clear()
            return parts, facts

        self.saver.save(progress.step, prepare, teller(reporter, covers_ns=covers_ns, wish=wish, best=best))
        self.cadence.saved()

    # ---- the end

    def _finish(self) -> dict[str, Any]:
        """Take the best weights that were kept, evaluate them on test, write the model's folder."""
        progress, peers = self.progress, self.peers
        found = progress.metrics
        if self.assignment.spec.checkpoint.keep_best and progress.best_step is not None:
            found = progress.best_metrics
            if progress.best_step != progress.step:
                self.state.load_step(progress.best_step)
        metrics = {f"validation_{name}": value for name, value in found.items()}
        if len(self.prepared.splits["test"]):
            metrics |= {f"test_{name}": value for name, value in self._evaluate("test").items()}
        folder = self._export(metrics)
        reason = "EarlyStopped" if progress.stopped_early else "Completed"
        return {
            "outcome": "succeeded",
            "reason": reason,
            "step": progress.step,
            "metrics": metrics,
            "model_uri": str(folder) if peers.rank == 0 else None,
        }

    def _export(self, metrics: dict[str, float]) -> Path:
        """The model as a transformers folder (`run_dir/model`), written aside and renamed."""
        final = self.assignment.run_dir / "model"
        state = self._whole_weights()

        def write() -> None:
            partial = final.with_name(f"model.partial-{self.assignment.attempt}")
            try:
                for leftover in final.parent.glob("model.partial-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                self.model.save_pretrained(partial, state_dict=state)
                self.prepared.tokenizer.save_pretrained(partial)
                facts = {
                    "task": self.model_spec.task,
                    "step": self.progress.step,
                    "metrics": metrics,
                    "precision": self.precision,
                }
                models.describe(partial, self.prepared.labels, facts)
                files = storage.LocalFiles()
                for name in files.tree(partial):
                    files.sync(partial / name)
                files.sync(partial)
                shutil.rmtree(final, ignore_errors=True)
                os.rename(partial, final)
                files.sync(final.parent)
            except OSError as error:
                raise as_worker_failure(storage_error("write the model to", final, error), error) from error
            except StorageError as error:
                raise as_worker_failure(error, error.__cause__) from error

        self.peers.first(write)
        return final

    def _whole_weights(self) -> dict[str, Any] | None:
        """All weights, on rank 0; ZeRO-3 gathers them, and every rank must take part."""
        if self.choice.stage < 3:
            return dict(self.model.state_dict()) if self.peers.rank == 0 else None
        gathered: dict[str, Any] | None = self.engine._zero3_consolidated_16bit_state_dict()
        return gathered


@dataclass
class _Decision:
    """What all ranks know after a step's all-reduce."""

    loss: float
    samples: int
    rate: float
    stop: bool
    save: bool
    wish: int
    norm: float | None = None


def compute_device(torch: Any, local_rank: int, *, gpu: bool) -> str:
    """`cpu`, or `cuda:N` for this rank; the device becomes the current one."""
    if not gpu:
        return "cpu"
    index = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def start_group(torch: Any, deepspeed: Any, device: str) -> None:
    """Join torch's process group (a new one unless the launcher made it) and let DeepSpeed use it."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", auto_mpi_discovery=False, verbose=False)
