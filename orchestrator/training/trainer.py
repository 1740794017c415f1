"""The built-in trainer: text-classification and causal-lm on transformers models with DeepSpeed.

Each step: forward and backward over the rank's micro-batches, one small all-reduce, the optimizer's step. The all-reduce
carries the loss, what is wished (save, stop, regroup), whether time has come to save, and whether a number was not finite; so
all ranks take every decision at the same step, and a bad loss is known before the weights are touched.

Where the engine keeps state in memory, each rank publishes its shard after the optimizer's step, before that step is told to
anybody. What follows a step (evaluation, a save that is due) comes after it: whoever takes the step up from memory does that
part again. So the next world continues with the same numbers wherever this one was interrupted.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import storage
from orchestrator.domain.clock import seconds_between
from orchestrator.domain.errors import StorageError
from orchestrator.planning.batch import Batch, BatchDoesNotDivide, divide
from orchestrator.planning.stage import choose_stage
from orchestrator.training import (
    dataset,
    deepspeed_globals,
    fragments,
    importing,
    model_folder,
    presets,
    randomness,
)
from orchestrator.training.agreement import Peers
from orchestrator.training.assignment import Assignment
from orchestrator.training.cadence import Cadence
from orchestrator.training.engine import Batches, evaluate, gradient_norm, initialize, set_learning_rate
from orchestrator.training.errors import Reason, WorkerFailed
from orchestrator.training.link import Memory
from orchestrator.training.order import SampleOrder, micro_batches, share
from orchestrator.training.preparation import Ready, create_model, prepare, specified
from orchestrator.training.progress import Progress
from orchestrator.training.reporting import Reporter
from orchestrator.training.run_state import RANGES, TRAINER_FILE, RunState
from orchestrator.training.saving import Part, Saver, retention, stored, teller
from orchestrator.training.schedule import learning_rate, warmup_steps

LARGER_IS_BETTER = frozenset({"accuracy", "macro-f1"})
EVALUATION_BATCH = 32
REGROUPED = "regrouped"
LEAVING_SECONDS = 1.0
"""How long ranks that leave for another world wait for a checkpoint that is being written. The others wait for them; and
what is not saved here is saved there."""
REPORTS_IN_MEMORY = 64
"""Step reports that go into memory with each step: the last ones, which may have been lost with the node of rank 0."""


class Trainer:
    """One rank of one generation. `run` does everything; the other methods are its parts."""

    def __init__(
        self,
        assignment: Assignment,
        reporter: Reporter,
        peers: Peers,
        torch: Any,
        deepspeed: Any,
        precision: str,
        *,
        ready: Ready | None = None,
        memory: Memory | None = None,
        generation: int = 0,
    ) -> None:
        """`ready`: data and model, if they were made before there was a rank; the model is used up. `memory`: state that
        outlives this process. `generation`: which world of this attempt."""
        self.assignment = assignment
        self.model_spec, self.data_spec = specified(assignment)
        self.training = assignment.spec.training
        self.reporter = reporter
        self.peers = peers
        self.torch = torch
        self.deepspeed = deepspeed
        self.precision = precision
        self.ready = ready
        self.memory = memory
        self.generation = generation
        self.causal = self.model_spec.task == "causal-lm"
        self.choice = choose_stage(assignment.spec.deepspeed, peers.world_size)
        self.store = stored(lambda: storage.open_store(assignment.checkpoint_uri))
        self.wishes_handled = 0
        self.saves: list[tuple[int, int]] = []
        """(step, wish) of the saves that are not known to be durable."""
        self.wishes_kept = 0
        """The newest wish for a checkpoint that was granted: it is durable."""
        self.saved_step = 0
        """The newest step that this run saved."""
        self.unfinished: _Decision | None = None
        """Of the step that was taken up from memory: what is still to be done after it."""
        self.own_randomness_told = False

    def run(self) -> dict[str, Any]:
        """Train from the state in memory or from the newest whole checkpoint to the end, evaluate, export."""
        self._set_up()
        self.reporter.first("pause", pause="first step")
        try:
            outcome = self._train()
            self.reporter.first("pause", pause="finish")
            if outcome is None or outcome["outcome"] != REGROUPED or self.memory is None:
                self.saver.finish()
            return self._finish() if outcome is None else outcome
        finally:
            self.saver.close()

    def take_down(self) -> None:
        """Let go of the engine and of what writes, however `run` ended; the process goes on without this trainer."""
        saver, engine = getattr(self, "saver", None), getattr(self, "engine", None)
        if saver is not None:
            saver.close()
        if engine is not None:
            engine.destroy()
        self.__dict__.clear()

    # ---- start

    def _set_up(self) -> None:
        self.plan = self._batch()
        self._agree_on_data()
        self._plan_steps()
        self._form()
        restored = self._restore_from_memory() or self._restore_from_checkpoint()
        self.cadence = Cadence(
            self.assignment.spec.checkpoint, self.reporter.clock, self.peers.rank, restored.pop("unsaved_ns", 0)
        )
        self.reporter.first("restored", step=self.progress.step, generation=self.generation, **restored)
        if self.progress.reports.kept:
            self.reporter.first("steps_again", steps=list(self.progress.reports.kept))
        if self.unfinished is None:
            self.progress.reports.kept.clear()
        if self.memory is not None:
            self.state.keep_in(self.memory, self.assignment.spec.checkpoint.replicate_every_steps)
        self.reporter.first(
            "plan",
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            train_samples=len(self.prepared.splits["train"]),
            world_size=self.plan.world_size,
            micro_batch=self.plan.micro_batch,
            accumulation=self.plan.accumulation,
            parameters=sum(math.prod(shape) for _, shape in self.shapes),
            trainable_parameters=self.trainable,
        )

    def _agree_on_data(self) -> None:
        """Read data, unless that is done, and see that all ranks have the same."""
        peers, ready = self.peers, self.ready
        with self.reporter.stage("data"):
            # Together also where it is done: there may be ranks beside ours that were not warm.
            self.prepared = peers.settle(
                lambda: (
                    prepare(self.model_spec, self.data_spec, self.assignment.working_dir)
                    if ready is None
                    else ready.prepared
                )
            )
            digests = peers.gather(self.prepared.digest())
            if len(set(digests)) > 1:
                odd = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
                raise WorkerFailed(
                    Reason.DATA_INVALID, f"rank {odd} reads other data than rank 0", "give every worker the same files"
                )
        self.reporter.first("data", **self.prepared.counts, digest=digests[0])

    def _form(self) -> None:
        """The engine of this world around a model with its first weights, and what saves and loads its state."""
        assignment, peers, reporter = self.assignment, self.peers, self.reporter
        ready, self.ready = self.ready, None
        with reporter.stage("model"):
            self.model = peers.settle(
                lambda: create_model(self.torch, assignment, self.prepared) if ready is None else ready.model
            )
            self.trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            self.shapes = [(name, list(p.shape)) for name, p in self.model.named_parameters()]
        with reporter.stage("engine"):
            config = presets.configuration(
                self.choice,
                assignment.spec.deepspeed.config,
                self.plan,
                working_dir=assignment.working_dir,
                precision=self.precision,
                learning_rate=self.training.learning_rate,
                weight_decay=self.training.weight_decay,
                max_gradient_norm=self.training.max_gradient_norm,
            )
            self.randomness = randomness.install(self.model, self.training.seed)
            self.engine = initialize(self.deepspeed, self.model, config)
        pad = self.model.config.pad_token_id or 0
        self.batches = {
            name: Batches(self.torch, self.prepared.splits[name], causal=self.causal, pad=pad, device=peers.device)
            for name in dataset.SPLITS
        }
        self._keep_state()

    def _batch(self) -> Batch:
        wish = self.assignment.micro_batch or self.training.micro_batch_size
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

    def _keep_state(self) -> None:
        import transformers

        assignment, peers = self.assignment, self.peers
        identity = [self.prepared.digest(), self.plan.global_batch, self.training.seed, self.shapes]
        facts = {"task": self.model_spec.task, "precision": self.precision}
        checkpoint = assignment.spec.checkpoint
        self.saver = Saver(
            peers,
            self.store,
            self.reporter.clock,
            attempt=assignment.attempt,
            generation=self.generation,
            retention=retention(checkpoint),
            verify=checkpoint.verify,
        )
        self.attached = fragments.attach(self.engine, peers, deepspeed_version=self.deepspeed.__version__)
        self.state = RunState(
            self.torch,
            peers,
            self.store,
            self.attached,
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
            {} if peers.rank else model_folder.small_files(self.model, self.prepared, facts),
            frozen_once=True,
        )

    def _restore_from_checkpoint(self) -> dict[str, Any]:
        """Take up the newest whole checkpoint, or what is to be imported, or nothing: the fields of `restored`."""
        wanted = self.assignment.spec.checkpoint.import_from
        with self.reporter.stage("restore"):
            found, refused, where = self.state.restore(self.assignment.attempt)
            self.progress = Progress() if where is None else Progress.from_document(where)
            imported = self._import(self.attached) if found is None else None
            if found is not None and wanted is not None:
                self._log(f"checkpoint.importFrom is not read: the job has a checkpoint of its own, {found.uri}")
        self.restored_from = imported if found is None else found.uri
        return {
            "source": "checkpoint",
            "uri": self.restored_from,
            "covers_ns": None if found is None or found.manifest is None else found.manifest.covers_ns,
            "refused": [{"uri": item.uri, "why": item.why} for item in refused],
        }

    def _restore_from_memory(self) -> dict[str, Any] | None:
        """Take up what an earlier generation left in memory: the fields of `restored`. None when there is nothing, when a
        checkpoint is newer, or when it cannot be had; then the engine is as new."""
        source = None if self.memory is None else self.memory.source
        if source is None:
            return None
        try:
            with self.reporter.stage("restore"):
                whole, where = self.peers.first(lambda: self._whole_checkpoints(source.step))
                if max(whole, default=0) > source.step:
                    return None
                return self._continue_from(self.state.adopt(source), whole, where)
        except WorkerFailed as error:
            why = error.message
        finally:
            source.close()
        self._log(f"the state of step {source.step} in memory cannot be used: {why}; taking the newest checkpoint")
        self.saver.close()
        del self.state, self.attached, self.engine, self.model
        gc.collect()
        deepspeed_globals.forget_engines()
        self._form()
        return None

    def _whole_checkpoints(self, step: int) -> tuple[dict[int, str], Any]:
        """(the places of whole checkpoints by step, where the run was in that of `step` if there is one)."""
        whole = {listed.step: listed for listed in stored(self.store.list) if listed.whole}
        where = None
        if step in whole:
            with suppress(StorageError):  # memory knows it too, apart from what came after the step
                where = json.loads(self.store.read(whole[step], TRAINER_FILE))["where"]
        return {number: listed.uri for number, listed in whole.items()}, where

    def _continue_from(self, found: Any, whole: Mapping[int, str], where: Any) -> dict[str, Any]:
        """Set progress to what memory says, or to what a checkpoint of the same step does, which knows how it went on."""
        progress = self.progress = Progress.from_document(found["progress"] if where is None else where)
        after = _Decision(**found["after"])
        granted = [wish for step, wish in found["owed"] if step in whole]
        self.wishes_kept = max([found["wishes_kept"], *granted])
        after.save = after.save or len(granted) < len(found["owed"])
        self.wishes_handled = after.wish if after.save else self.wishes_kept
        self.saved_step = max(whole, default=0)
        self.restored_from = whole.get(self.saved_step)
        if self.assignment.spec.checkpoint.keep_best and progress.best_step not in (None, *whole):
            self._log(f"the best checkpoint so far, of step {progress.best_step}, was lost before it was durable")
            progress.best_value, progress.best_step, progress.best_metrics = None, None, {}
            after.evaluate = True
        self.unfinished = after if where is None or after.evaluate else None
        self.saver.tidy()
        since_ns = max(0, self.reporter.clock.now_ns() - after.covers_ns)
        return {
            "source": "memory",
            "uri": self.restored_from,
            "covers_ns": after.covers_ns,
            "refused": [],
            "unsaved_ns": found["unsaved_ns"] + since_ns,
        }

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

    # ---- steps

    def _train(self) -> dict[str, Any] | None:
        """Run until the end (None), or until somebody wants the run to stop or to regroup (its result)."""
        clock = self.reporter.clock
        self.engine.train()
        first = clock.monotonic_ns()
        if self.unfinished is not None and (result := self._after(self.unfinished)) is not None:
            return result
        while self.progress.step < self.total_steps and not self.progress.stopped_early:
            start = clock.monotonic_ns()
            self.reporter.own_work.begin()
            decision = self._step()
            self.reporter.own_work.end()
            decision.covers_ns = clock.now_ns()
            progress = self.progress
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
            progress.reports.remember({**report, "attempt": self.assignment.attempt, "at_ns": decision.covers_ns})
            if self.memory is not None and (decision.publish or decision.regroup):
                self._publish(decision)
            if first:
                self.reporter.first("stage", stage="first_step", seconds=seconds_between(first, clock.monotonic_ns()))
                first = 0
            self.reporter.first("step", **report)
            if (result := self._after(decision)) is not None:
                return result
        return None

    def _after(self, decision: _Decision) -> dict[str, Any] | None:
        """What follows a step: leave for another world, evaluate, save. The result of the run when it is to end here."""
        progress = self.progress
        if decision.regroup and self.memory is not None:
            self.saver.leave(LEAVING_SECONDS)
            return self._ended(REGROUPED, "Regrouped")
        improved = self._evaluate_if_due(decision)
        due = (
            improved
            or decision.save
            or decision.stop
            or decision.regroup
            or progress.stopped_early
            or progress.step == self.total_steps
            or self.cadence.steps_due(progress.step - 1, progress.step)
        )
        if due:
            self._save(decision, best=improved)
        over = progress.step >= self.total_steps or progress.stopped_early
        if decision.stop and not over:
            return self._ended("stopped", "Stopped")
        if decision.regroup and not over:
            return self._ended(REGROUPED, "Regrouped")
        return None

    def _ended(self, outcome: str, reason: str) -> dict[str, Any]:
        progress = self.progress
        return {
            "outcome": outcome,
            "reason": reason,
            "step": progress.step,
            "metrics": progress.metrics,
            "model_uri": None,
        }

    def _publish(self, decision: _Decision) -> None:
        """This rank's shard, with all that the next world must know."""
        after = {
            "samples": decision.samples,
            "covers_ns": decision.covers_ns,
            "wish": decision.wish,
            "save": decision.save,
        }
        where = {
            "progress": self.progress.to_document(REPORTS_IN_MEMORY),
            "after": after,
            "wishes_kept": self.wishes_kept,
            "owed": self.saves,
            "unsaved_ns": self.cadence.unsaved_ns,
        }
        self.state.publish(self.progress.step, where)

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
            self._log(
                f"{type(self.model).__name__} draws random numbers of its own: the run repeats exactly at the same number "
                "of workers; at another number they differ"
            )

    def _log(self, line: str) -> None:
        self.reporter.first("log", rank=0, lines=[line])

    def _agree(self, loss_sum: float, weight: int, samples: int, rate: float) -> _Decision:
        peers, progress = self.peers, self.progress
        wishes = self.reporter.link.wishes()
        finite = math.isfinite(loss_sum)
        written, failed = self.saver.flags()
        first = peers.rank == 0
        mine = {
            "loss": loss_sum if finite else 0.0,
            "not finite": not finite,
            "stop": wishes.stop,
            "regroup": getattr(wishes, "regroup", False),  # an engine that never regroups need not know the word
            "time due": self.cadence.time_due(wishes),
            "written": written,
            "failed": failed,
            "durable": self.saver.durable_step,
            "publish every": self.memory.every if first and self.memory is not None else 0,
        }
        if self.memory is not None:
            with self.reporter.own_work.waiting():
                self.memory.settle()  # so that a step is told only when the one published before it cannot be lost with a node
        wanted = [float(wishes.checkpoint) if rank == peers.rank else 0.0 for rank in range(peers.world_size)]
        summed = peers.sum([*(float(value) for value in mine.values()), *wanted])
        all_say = dict(zip(mine, summed, strict=False))
        self.saver.agreed(all_say["written"], all_say["failed"])
        if all_say["not finite"]:
            raise self._non_finite("loss", progress.step + 1)
        for step, granted in self.saves:
            if step <= all_say["durable"]:
                self.wishes_kept = max(self.wishes_kept, granted)
        self.saves = [save for save in self.saves if save[0] > all_say["durable"]]
        wish = int(max(summed[len(mine) :]))
        asked = wish > self.wishes_handled
        self.wishes_handled = wish
        every = all_say["publish every"]
        return _Decision(
            loss=all_say["loss"] / weight,
            samples=samples,
            rate=rate,
            stop=all_say["stop"] > 0,
            regroup=all_say["regroup"] > 0 and not all_say["stop"],
            save=asked or all_say["time due"] > 0,
            publish=every > 0 and (progress.step + 1) % every == 0,
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

    def _evaluate_if_due(self, decision: _Decision) -> bool:
        """Evaluate on validation when it is time; True when this is the best so far. Sets `stopped_early`."""
        progress = self.progress
        if not len(self.prepared.splits["validation"]):
            return False
        every = self.training.eval_every
        train = len(self.prepared.splits["train"])
        if isinstance(every, int):
            due = progress.step % every == 0
        else:
            due = progress.samples_seen // train > (progress.samples_seen - decision.samples) // train
        if not due and not decision.evaluate and progress.step < self.total_steps:
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
        self.reporter.first("pause", pause="evaluation")
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

    def _save(self, decision: _Decision, *, best: bool) -> None:
        progress, reporter = self.progress, self.reporter

        def prepare() -> tuple[list[Part], storage.Manifest]:
            progress.reports.forget(self.saved_step)
            parts = self.state.parts(progress.to_document())
            facts = replace(
                self.state.facts(),
                global_step=progress.step,
                samples_seen=progress.samples_seen,
                covers_ns=decision.covers_ns,
                metrics=progress.metrics,
                best=best,
            )
            return parts, facts

        told = teller(reporter, covers_ns=decision.covers_ns, wish=decision.wish, best=best)
        reporter.first("pause", pause="checkpoint")
        self.saver.save(progress.step, prepare, told)
        self.saves.append((progress.step, decision.wish))
        self.saved_step = progress.step
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
        """The model as a transformers folder, `run_dir/model`."""
        final = self.assignment.run_dir / "model"
        state = self._whole_weights()
        facts = {
            "task": self.model_spec.task,
            "step": self.progress.step,
            "metrics": metrics,
            "precision": self.precision,
        }
        self.peers.first(
            lambda: model_folder.replace(final, self.model, state, self.prepared, facts, self.assignment.attempt)
        )
        return final

    def _whole_weights(self) -> dict[str, Any] | None:
        """All weights, on rank 0; ZeRO-3 gathers them, and every rank must take part."""
        if self.choice.stage < 3:
            return dict(self.model.state_dict()) if self.peers.rank == 0 else None
        gathered: dict[str, Any] | None = self.engine._zero3_consolidated_16bit_state_dict()
        return gathered


@dataclass
class _Decision:
    """What all ranks know after a step's all-reduce; of a step out of memory, as much as still matters."""

    samples: int
    wish: int
    save: bool
    loss: float = 0.0
    rate: float = 0.0
    stop: bool = False
    regroup: bool = False
    publish: bool = False
    evaluate: bool = False
    norm: float | None = None
    covers_ns: int = 0
    """When the step ended."""
