"""What a user's own training function gets: `def train(context: Context, **args)`.

    from orchestrator.training import Context

    def train(context: Context, learning_rate: float = 0.1) -> None:
        state = context.load() or {"step": 0}
        for step in range(state["step"], 100):
            loss = ...                                     # this rank's part of the work
            context.report(step=step + 1, loss=loss, samples=8)
            if context.should_checkpoint():
                context.save({"step": step + 1})
            if context.should_stop:
                return

A function that does something long between two steps says so with `pause`.

Rules, all of which the built-in trainer keeps too: every rank calls `report`, `save` and `load` equally often and at the
same steps, since the ranks agree inside them. After `report`, `should_checkpoint()` and `should_stop` say the same on all
ranks. A torch process group exists (gloo on a CPU, NCCL on GPUs); DeepSpeed, DDP or plain torch may be used on top.
A returned mapping of numbers becomes the job's metrics.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import storage
from orchestrator.domain.clock import seconds_between
from orchestrator.training import fragments
from orchestrator.training.agreement import Peers
from orchestrator.training.assignment import Assignment
from orchestrator.training.cadence import Cadence
from orchestrator.training.errors import Reason, WorkerFailed, config_invalid
from orchestrator.training.reporting import Reporter, StepReports
from orchestrator.training.run_state import RANGES, RunState
from orchestrator.training.saving import Part, Saver, all_refused, retention, stored, teller

if TYPE_CHECKING:
    import numpy as np

LAYOUT = "context"
CONTEXT_FILE = "context.json"
PAUSES = ("first step", "evaluation", "checkpoint", "data", "finish")
"""The words of `policy.hangs.Pause`, which is not known here."""


class Context:
    """One rank's view of a job that runs the user's own function."""

    def __init__(
        self,
        assignment: Assignment,
        reporter: Reporter,
        peers: Peers,
        torch: Any,
        local_rank: int,
        generation: int = 0,
    ) -> None:
        entrypoint = assignment.spec.entrypoint
        self.rank = peers.rank
        """This process' number, from 0."""
        self.local_rank = local_rank
        """Its number on this machine."""
        self.world_size = peers.world_size
        """How many ranks there are."""
        self.device = peers.device
        """`cpu` or `cuda:N`."""
        self.seed = assignment.spec.training.seed
        """`spec.training.seed`, the same on every rank; add `rank` to draw different numbers."""
        self.args: Mapping[str, Any] = dict(entrypoint.args) if entrypoint is not None else {}
        """`spec.entrypoint.args`, which the function also gets by name."""
        self.run_dir: Path = assignment.run_dir
        """Folder of this job, for files of the function's own."""
        self.working_dir: Path = assignment.working_dir
        """`spec.runtime.workingDir` on this machine."""
        self.attempt = assignment.attempt
        """Number of this run of the job, from 1; above 1 after a restart."""
        self.step = 0
        """The newest step that was reported, or restored."""
        self.samples_seen = 0
        """Samples reported by all ranks up to `step`, earlier attempts included."""
        self.metrics: dict[str, float] = {}
        """The newest metrics that were reported, averaged over the ranks."""
        self._assignment = assignment
        self._reporter = reporter
        self._peers = peers
        self._torch = torch
        self._save_wanted = False
        self._generation = generation
        self._stop = False
        self._regroup = False
        self._announces = False
        self._wish = 0
        self._covers_ns = reporter.clock.now_ns()
        self._reported_ns = reporter.clock.monotonic_ns()
        self._reports = StepReports()
        checkpoint = assignment.spec.checkpoint
        self._cadence = Cadence(checkpoint, reporter.clock, peers.rank)
        self._store = stored(lambda: storage.open_store(assignment.checkpoint_uri))
        self._saver = Saver(
            peers,
            self._store,
            reporter.clock,
            attempt=assignment.attempt,
            generation=generation,
            retention=retention(checkpoint),
            verify=checkpoint.verify,
        )
        self._engine: tuple[Any, RunState] | None = None
        self._found = self._newest()
        self.resumed = self._found is not None
        """True when a checkpoint is there, so that `load` gives a state."""

    @property
    def should_stop(self) -> bool:
        """True once somebody wants the job to stop, or the workers to make room for another number of them: save, then return
        from the function. In the second case it is called again, by the next workers, and `load` gives what was saved."""
        return self._stop or self._regroup

    @property
    def regrouped(self) -> bool:
        """True when it is not the job that is to end but only this number of workers."""
        return self._regroup and not self._stop

    def should_checkpoint(self) -> bool:
        """True when the last report made a save due: by `checkpoint.every`, or because somebody asked, or to stop."""
        return self._save_wanted

    def report(self, *, step: int, loss: float, samples: int, lr: float = 0.0, **metrics: float) -> None:
        """Tell of a finished step; every rank calls it once a step.

        `loss` is the mean over this rank's `samples`; what is shown is the mean over all ranks' samples. Further numbers
        are averaged over the ranks. Raises WorkerFailed (NonFiniteLoss) on every rank when a loss is not finite.
        """
        if step <= self.step:
            raise config_invalid(
                f"report(step={step}) after step {self.step}", "count steps upwards from the restored one"
            )
        clock, peers = self._reporter.clock, self._peers
        self._reporter.own_work.end()
        wishes = self._reporter.link.wishes()
        finite = math.isfinite(loss)
        time_due = self._cadence.time_due(wishes)
        counts = [float(wishes.checkpoint) if rank == self.rank else 0.0 for rank in range(self.world_size)]
        names = sorted(metrics)
        head = [loss * samples if finite else 0.0, samples, not finite, wishes.stop, time_due, *self._saver.flags()]
        head.append(getattr(wishes, "regroup", False))  # an engine that never regroups need not know the word
        summed = peers.sum([*head, *counts, *(float(metrics[name]) for name in names)])
        self._saver.agreed(summed[5], summed[6])
        if summed[2]:
            newest = self._saver.finish() or (None if self._found is None else self._found.uri)
            good = "there is no checkpoint" if newest is None else f"the last good checkpoint is {newest}"
            raise WorkerFailed(Reason.NON_FINITE_LOSS, f"the loss of step {step} is not a finite number; {good}")
        wish = int(max(summed[8 : 8 + self.world_size]))
        averages = [value / self.world_size for value in summed[8 + self.world_size :]]
        self.metrics = dict(zip(names, averages, strict=True))
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise WorkerFailed(
                    Reason.APPLICATION_ERROR,
                    f"report(step={step}): the metric {name!r} is not a finite number on some rank",
                    "leave it out of the report where there is no value",
                )
        self._stop = summed[3] > 0
        self._regroup = summed[7] > 0
        crossed = self._cadence.steps_due(self.step, step)
        self._save_wanted = crossed or wish > self._wish or summed[4] > 0 or self.should_stop
        self._wish = wish
        self.step = step
        self.samples_seen += int(summed[1])
        now = clock.monotonic_ns()
        self._covers_ns = clock.now_ns()
        report = {
            "step": step,
            "epoch": 0.0,
            "loss": summed[0] / max(1.0, summed[1]),
            "lr": lr,
            "samples": int(summed[1]),
            "samples_seen": self.samples_seen,
            "seconds": seconds_between(self._reported_ns, now),
            **({"metrics": self.metrics} if self.metrics else {}),
        }
        self._reporter.first("step", **report)
        self._reports.remember({**report, "attempt": self.attempt, "at_ns": self._covers_ns})
        self._reported_ns = now
        self._reporter.own_work.begin()

    def pause(self, why: str) -> None:
        """Say that something begins which makes the time to the next report longer than a step: `why` is `evaluation`,
        `checkpoint` (writing one takes long), `data` (waiting for it), `first step` (compiling) or `finish` (after the last step).

            if context.step % 500 == 0:
                context.pause("evaluation")
                evaluate(model)

        Any rank may call it, and all may; rank 0's counts. An elastic gang that makes no step for some time is taken to hang, and its
        workers are replaced: with every such time announced it is watched by the length of its own steps, so a real hang is
        found in seconds. A function that announces some must announce all that take seconds, except `save`, which then does so
        itself; one that announces none is given five minutes from step to step. Raises WorkerFailed (ConfigInvalid) for another word.
        """
        if why not in PAUSES:
            raise config_invalid(f"pause({why!r})", f"use one of {', '.join(map(repr, PAUSES))}")
        self._announces = True
        self._reporter.own_work.drop()
        self._reporter.first("pause", pause=why)

    def save(self, state: Mapping[str, Any], engine: Any = None) -> None:
        """Save this rank's state as of the last reported step: tensors, numbers, texts, and lists and dicts of them.

        Every rank calls it, each with its own state. With a DeepSpeed `engine`, its weights, optimizer and counters are
        saved too, so that any number of ranks and any ZeRO stage can load them; `state` must then be the same on all
        ranks, and rank 0's is kept. On return the state is copied and may be changed; it is written while
        training goes on, and becomes a checkpoint when all ranks have written, at a later `report` or `save` or when the
        function returns. These raise WorkerFailed on every rank when the disk refuses on one. Saving a step twice keeps
        the first. Memory: one copy of the state a rank. Where the number of workers may change (`spec.workers.min` below `max`)
        an engine is needed: raises WorkerFailed (ConfigInvalid) at the first save.
        """
        if engine is None and self._assignment.spec.workers.elastic:
            raise config_invalid(
                "save(state) without an engine keeps one state for each rank, which another number of ranks cannot take up, and "
                "the workers of this job may change in number",
                "give save and load your DeepSpeed engine, or set spec.workers.min to spec.workers.max",
            )
        if self._announces:
            self._reporter.first("pause", pause="checkpoint")
        self._reporter.own_work.drop()
        run_state = None if engine is None else self._run_state(engine)
        acknowledge = teller(self._reporter, covers_ns=self._covers_ns, wish=self._wish, best=False)
        self._saver.save(self.step, lambda: self._parts(state, run_state), acknowledge)
        self._save_wanted = False
        self._cadence.saved()

    def load(self, engine: Any = None) -> dict[str, Any] | None:
        """This rank's state of the newest whole checkpoint at the start; None when the job begins. Every rank calls it, or none.

        With the `engine` that was given to `save`, it is filled as well, whatever the number of ranks or the ZeRO stage.
        """
        found = self._found
        if found is None:
            return None
        manifest = found.manifest
        assert manifest is not None
        if (manifest.layout == RANGES) != (engine is not None):
            raise config_invalid(
                f"{found.uri} was saved {'with' if engine is None else 'without'} an engine",
                f"call load({'engine' if engine is None else ''}) as save was called, or use another checkpoint.uri",
            )
        if engine is not None:
            self._run_state(engine).load(found)

        def read() -> dict[str, Any]:
            content = stored(lambda: self._store.read(found, self._rank_file(0 if engine is not None else self.rank)))
            state: dict[str, Any] = self._torch.load(io.BytesIO(content), weights_only=True)
            return state

        return self._peers.settle(read)

    def generator(self, step: int, sample: int) -> np.random.Generator:
        """Random numbers of one sample in one step: the same on whichever rank it falls, at any number of ranks."""
        from orchestrator.training.randomness import generator

        return generator(self.seed, step, sample)

    def finish(self) -> None:
        """Wait until what was saved is durable. Called by every rank after the function has returned."""
        self._saver.finish()

    def close(self) -> None:
        """Let the writing thread go."""
        self._saver.close()

    def _parts(self, state: Mapping[str, Any], run_state: RunState | None) -> tuple[list[Part], storage.Manifest]:
        parts = []
        if run_state is None or self.rank == 0:
            copied = io.BytesIO()
            self._torch.save(dict(state), copied)
            parts.append(Part(self._rank_file(self.rank), lambda: [copied.getbuffer()]))
        if self.rank == 0:
            facts = {"samples_seen": self.samples_seen, "step": self.step, "reports": self._reports.kept}
            text = (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()
            parts.append(Part(CONTEXT_FILE, lambda: [text]))
        self._reports.kept.clear()
        if run_state is None:
            manifest = self._facts(LAYOUT, None)
        else:
            parts = run_state.parts({}, parts)
            manifest = run_state.facts()
        return parts, replace(
            manifest,
            global_step=self.step,
            samples_seen=self.samples_seen,
            covers_ns=self._covers_ns,
            metrics=self.metrics,
        )

    def _facts(self, layout: str, zero_stage: int | None) -> storage.Manifest:
        """What is the same in every manifest of this attempt."""
        return storage.Manifest(
            global_step=0,
            samples_seen=0,
            world=storage.World(self.world_size),
            zero_stage=zero_stage,
            layout=layout,
            created_ns=0,
            covers_ns=0,
            attempt=self.attempt,
            fingerprint=self._fingerprint(layout),
            versions={"torch": self._torch.__version__},
        )

    def _run_state(self, engine: Any) -> RunState:
        """The state of the user's engine; attached once."""
        if self._engine is None or self._engine[0] is not engine:
            import deepspeed

            attached = fragments.attach(engine, self._peers, deepspeed_version=deepspeed.__version__)
            facts = self._facts(RANGES, int(engine.zero_optimization_stage()))
            self._engine = (
                engine,
                RunState(self._torch, self._peers, self._store, attached, facts, {}, frozen_once=False),
            )
        return self._engine[1]

    def _newest(self) -> storage.Listed | None:
        def look() -> tuple[storage.Listed | None, list[storage.Listed]]:
            stored(lambda: self._store.clean_leftovers(self.attempt + 1))
            found, refused = stored(self._store.newest_whole)
            if found is None and refused:
                raise all_refused(self._store.uri, refused)
            if found is not None:
                manifest = found.manifest
                assert manifest is not None
                ours = manifest.layout in (LAYOUT, RANGES)
                if not ours or manifest.fingerprint != self._fingerprint(manifest.layout):
                    raise config_invalid(
                        f"{found.uri} was written by another function, other arguments or another number of ranks",
                        "use another checkpoint.uri, or delete the old checkpoints",
                    )
            return found, refused

        found, refused = self._peers.first(look)
        manifest = None if found is None else found.manifest
        if manifest is not None:
            self.step, self.samples_seen = manifest.global_step, manifest.samples_seen
        self._reporter.first(
            "restored",
            step=self.step,
            source="checkpoint",
            generation=self._generation,
            uri=None if found is None else found.uri,
            covers_ns=None if manifest is None else manifest.covers_ns,
            refused=[{"uri": item.uri, "why": item.why} for item in refused],
        )
        if found is not None and self.rank == 0:
            told = json.loads(stored(lambda: self._store.read(found, CONTEXT_FILE)))
            self._reporter.first("steps_again", steps=told["reports"])
        return found

    def _rank_file(self, rank: int) -> str:
        return f"state-{rank:05d}.pt"

    def _fingerprint(self, layout: str) -> str:
        """Identity of the function; where each rank has a state of its own, of its arguments and the number of ranks too.

        An engine's state is checked against the engine that takes it up, whatever the arguments that made it.
        """
        entrypoint = self._assignment.spec.entrypoint
        name = entrypoint.function if entrypoint is not None else ""
        more = [dict(self.args), self.world_size] if layout == LAYOUT else []
        identity = json.dumps([name, self.seed, *more], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


def call(context: Context, function_name: str) -> dict[str, Any]:
    """Run the user's function to its end. Its own exceptions leave as they are."""
    function = find(function_name)
    _takes(function, function_name, context.args)
    try:
        result = function(context, **context.args)
        context.finish()
    finally:
        context.close()
    metrics = dict(context.metrics)
    if isinstance(result, Mapping):
        metrics |= {str(name): _number(str(name), value) for name, value in result.items()}
    outcome, reason = "succeeded", "Completed"
    if context.should_stop:
        outcome, reason = ("regrouped", "Regrouped") if context.regrouped else ("stopped", "Stopped")
    return {
        "outcome": outcome,
        "reason": reason,
        "step": context.step,
        "metrics": metrics,
        "model_uri": None,
    }


def find(function_name: str) -> Callable[..., Any]:
    """The user's function, by `module:name`. Raises ConfigInvalid when it is not there."""
    module_name, _, path = function_name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there; something that it imports is not
        raise config_invalid(
            f"spec.entrypoint.function: there is no module {module_name!r}", "check spec.runtime.workingDir"
        ) from error
    for name in path.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        raise config_invalid(f"spec.entrypoint.function: {module_name} has no function {path!r}")
    function: Callable[..., Any] = found
    return function


def _takes(function: Callable[..., Any], name: str, args: Mapping[str, Any]) -> None:
    """Refuse, before it is called, a function that does not take the context and `spec.entrypoint.args`."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that does not say
        return
    try:
        signature.bind(None, **args)
    except TypeError as error:
        raise config_invalid(
            f"spec.entrypoint.args: {name}{signature} cannot be called with the context and these: {error}",
            "give the arguments that it asks for, and no others",
        ) from error


def _number(name: str, value: Any) -> float:
    """A metric that the function returned."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise WorkerFailed(
            Reason.APPLICATION_ERROR,
            f"the function returned {name!r}: {value!r}, which is no number",
            "return nothing, or a mapping of names to numbers",
        ) from error
