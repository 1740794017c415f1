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

Rules, all of which the built-in trainer keeps too: every rank calls `report`, `save` and `load` equally often and at the
same steps, since the ranks agree inside them. After `report`, `should_checkpoint()` and `should_stop` say the same on all
ranks. A torch process group exists (gloo on a CPU, NCCL on GPUs); DeepSpeed, DDP or plain torch may be used on top.
A returned mapping of numbers becomes the job's metrics.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator import storage
from orchestrator.domain.clock import seconds_between
from orchestrator.domain.errors import StorageError
from orchestrator.training.agreement import Peers
from orchestrator.training.assignment import Assignment
from orchestrator.training.errors import Reason, WorkerFailed, config_invalid
from orchestrator.training.reporting import Reporter, StepReports
from orchestrator.training.saving import HashingWriter, stored

LAYOUT = "context"
CONTEXT_FILE = "context.json"


class Context:
    """One rank's view of a job that runs the user's own function."""

    def __init__(self, assignment: Assignment, reporter: Reporter, peers: Peers, torch: Any, local_rank: int) -> None:
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
        self._stop = False
        self._wish = 0
        self._covers_ns = reporter.clock.now_ns()
        self._reported_ns = self._saved_ns = reporter.clock.monotonic_ns()
        self._reports = StepReports()
        self._found = self._newest()
        self.resumed = self._found is not None
        """True when a checkpoint is there, so that `load` gives a state."""

    @property
    def should_stop(self) -> bool:
        """True once somebody wants the job to stop: save, then return from the function."""
        return self._stop

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
        wishes = self._reporter.link.wishes()
        finite = math.isfinite(loss)
        every_ns = self._assignment.spec.checkpoint.every_ns
        time_due = self.rank == 0 and every_ns is not None and clock.monotonic_ns() - self._saved_ns >= every_ns
        counts = [float(wishes.checkpoint) if rank == self.rank else 0.0 for rank in range(self.world_size)]
        names = sorted(metrics)
        head = [loss * samples if finite else 0.0, samples, not finite, wishes.stop, time_due]
        summed = peers.sum([*head, *counts, *(float(metrics[name]) for name in names)])
        if summed[2]:
            found = self._found
            good = f"the last good checkpoint is {found.folder}" if found is not None else "there is no checkpoint"
            raise WorkerFailed(Reason.NON_FINITE_LOSS, f"the loss of step {step} is not a finite number; {good}")
        wish = int(max(summed[5 : 5 + self.world_size]))
        averages = [value / self.world_size for value in summed[5 + self.world_size :]]
        self.metrics = dict(zip(names, averages, strict=True))
        self._stop = summed[3] > 0
        every = self._assignment.spec.checkpoint.every_steps
        crossed = every is not None and step // every > self.step // every
        self._save_wanted = crossed or wish > self._wish or summed[4] > 0 or self._stop
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

    def save(self, state: Mapping[str, Any]) -> None:
        """Save this rank's state as of the last reported step: tensors, numbers, texts, and lists and dicts of them.

        Every rank calls it, each with its own state. On return the checkpoint is durable: written aside, hashed, renamed.
        Raises WorkerFailed on every rank when the disk refuses on one. Saving a step twice keeps the first.
        """
        clock, peers, attempt = self._reporter.clock, self._peers, self._assignment.attempt
        start = clock.monotonic_ns()
        uri = self._assignment.checkpoint_uri
        writer = HashingWriter(self._torch)

        def begin() -> Path:
            partial: Path = stored(lambda: storage.begin(uri, self.step, attempt))
            return partial

        partial = peers.first(begin)

        def write() -> dict[str, storage.FileEntry]:
            writer.save(dict(state), str(partial / self._rank_file()))
            if self.rank == 0:
                facts = {"samples_seen": self.samples_seen, "step": self.step, "reports": self._reports.kept}
                writer.save_json(facts, partial / CONTEXT_FILE)
            if writer.failure is not None:
                raise writer.failure
            return {path.name: entry for path, entry in writer.written.items()}

        parts = peers.share(write)
        facts = storage.Manifest(
            global_step=self.step,
            samples_seen=self.samples_seen,
            world=storage.World(self.world_size),
            zero_stage=None,
            layout=LAYOUT,
            created_ns=clock.now_ns(),
            covers_ns=self._covers_ns,
            attempt=attempt,
            metrics=self.metrics,
            fingerprint=self._fingerprint(),
            versions={"torch": self._torch.__version__},
        )
        expected = {name: entry for part in parts for name, entry in part.items()}
        read_back = self._assignment.spec.checkpoint.verify

        def commit() -> storage.Listed:
            listed: storage.Listed = stored(
                lambda: storage.commit(partial, facts, expected=expected, read_back=read_back)
            )
            return listed

        saved = self._found = peers.first(commit)
        seconds = seconds_between(start, clock.monotonic_ns())
        self._save_wanted = False
        self._saved_ns = clock.monotonic_ns()
        self._reports.kept.clear()
        assert saved.manifest is not None
        self._reporter.first(
            "checkpoint",
            step=self.step,
            uri=str(saved.folder),
            bytes=saved.manifest.total_bytes,
            seconds=seconds,
            stall_seconds=seconds,
            covers_ns=self._covers_ns,
            wish=self._wish,
            best=False,
        )
        if self.rank == 0:
            try:
                storage.prune(uri, keep=self._assignment.spec.checkpoint.keep, verified=[saved.folder])
            except StorageError:
                return  # deleting old checkpoints is tried again at the next save

    def load(self) -> dict[str, Any] | None:
        """This rank's state of the newest whole checkpoint; None when the job begins. Every rank calls it, or none."""
        found = self._found
        if found is None:
            return None

        def read() -> dict[str, Any]:
            state: dict[str, Any] = self._torch.load(found.folder / self._rank_file(), weights_only=True)
            return state

        return self._peers.settle(read)

    def _newest(self) -> storage.Listed | None:
        uri = self._assignment.checkpoint_uri

        def look() -> tuple[storage.Listed | None, list[storage.Listed]]:
            stored(lambda: storage.clean_leftovers(uri, self._assignment.attempt))
            found, refused = stored(lambda: storage.newest_whole(uri))
            if found is not None:
                manifest = found.manifest
                if manifest.layout != LAYOUT or manifest.fingerprint != self._fingerprint():
                    raise config_invalid(
                        f"{found.folder} was written by another function, other arguments or another number of ranks",
                        "use another checkpoint.uri, or delete the old checkpoints",
                    )
            return found, refused

        found, refused = self._peers.first(look)
        if found is not None and found.manifest is not None:
            self.step, self.samples_seen = found.manifest.global_step, found.manifest.samples_seen
        self._reporter.first(
            "restored",
            step=self.step,
            uri=None if found is None else str(found.folder),
            covers_ns=None if found is None or found.manifest is None else found.manifest.covers_ns,
            refused=[{"uri": str(item.folder), "why": item.why} for item in refused],
        )
        if found is not None and self.rank == 0:
            told = json.loads((found.folder / CONTEXT_FILE).read_text(encoding="utf-8"))
            self._reporter.first("steps_again", steps=told["reports"])
        return found

    def _rank_file(self) -> str:
        return f"rank-{self.rank:05d}.pt"

    def _fingerprint(self) -> str:
        entrypoint = self._assignment.spec.entrypoint
        name = entrypoint.function if entrypoint is not None else ""
        identity = json.dumps([name, dict(self.args), self.world_size, self.seed], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


def call(context: Context, function_name: str) -> dict[str, Any]:
    """Run the user's function to its end. Its own exceptions leave as they are."""
    function = _find(function_name)
    _takes(function, function_name, context.args)
    result = function(context, **context.args)
    metrics = dict(context.metrics)
    if isinstance(result, Mapping):
        metrics |= {str(name): _number(str(name), value) for name, value in result.items()}
    stopped = context.should_stop
    return {
        "outcome": "stopped" if stopped else "succeeded",
        "reason": "Stopped" if stopped else "Completed",
        "step": context.step,
        "metrics": metrics,
        "model_uri": None,
    }


def _find(function_name: str) -> Callable[..., Any]:
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
