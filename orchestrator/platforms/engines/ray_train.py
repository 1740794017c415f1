"""The engine on Ray Train 2.60 (its second form, `ray.train.v2`), by a thin subclass.

What we take from Ray Train: the placement group, the worker actors, their ranks and accelerators, and the poll that sees
a worker die. What we replace, and why:

* The scaling policy: a gang of one fixed size that never talks to Ray's autoscaling coordinator. What that one holds for a
  driver that crashed expires only after 180 s.
* The failure policy: always raise. Attempts belong to the lifecycle.
* The controller runs in the driver's own process instead of an actor of its own, and neither the watcher of preemptions
  nor the cleaner of placement groups is started: that is three processes fewer to wait for. A placement group that a
  driver created goes when the driver does.
* The torch process group: the worker loop makes it itself, as it does under torchrun. So torch is imported by all ranks
  at once and never by the driver.
* `ray.train.report` is not used at all; see `ray_worker`.

The engine must live in a Ray actor that has a method `exchange` which calls the engine's: the workers talk to it.

Limits: Ray Train's internals are private and move; the extra `train` holds Ray to one minor version, and the contract tests
of `tests/engines` are what to run before a change of it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Coroutine, Mapping, MutableMapping, Sequence
from typing import Any, cast

import psutil
import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import AcceleratorSetupCallback, BackendSetupCallback
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.context import DistributedContext, TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import (
    WorkerGroup,
    WorkerGroupContext,
    WorkerGroupPollStatus,
    WorkerGroupState,
)
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    DefaultPlacementGroupHandle,
    PlacementGroupHandle,
)
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker, Worker
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from orchestrator.platforms.engines import ray_worker
from orchestrator.platforms.engines.base import Events, Listener, Outcome, RunRequest, WishBoard, Wishes
from orchestrator.platforms.engines.rank import RankFailed
from orchestrator.platforms.engines.ray_worker import DriverGone, Exchange

POLL_SECONDS = 0.5
"""Between two looks at the workers. Bounds how late an end is seen; a look costs one small call a worker."""
START_SECONDS = 60.0
"""For the whole gang to be placed and its processes up."""
GRACE_SECONDS = 3.0
"""How long a rank that lost its peers waits for the peer's own story: the death of a process is told later than the
broken connection, and it is the cause."""
LEAVE_SECONDS = 10.0
"""For the processes of an ended gang to leave, before they are killed by number."""
ANSWER_SECONDS = 5.0

RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS),
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # for its placement alone; Ray waits 60 s for nodes that are gone
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # notices are the platform adapters' business
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # it takes the root logger's handlers away
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it turns print into a logger call with a prefix
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def tune(environ: MutableMapping[str, str]) -> None:
    """Ray Train reads its settings from the process's environment, in the driver and in each worker."""
    for name, value in RAY_TRAIN_SETTINGS.items():
        environ.setdefault(name, value)


class RayTrainEngine:
    """See the module. `mailbox` is the actor that it lives in."""

    name = "ray"

    def __init__(self, mailbox: ActorHandle[Any] | None = None) -> None:
        tune(os.environ)  # noqa: TID251 - the edge: the driver's process is the engine's alone
        self._mailbox = mailbox if mailbox is not None else ray.get_runtime_context().current_actor
        self._lock = threading.Lock()
        self._run: _Run | None = None

    def run(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> Outcome:
        run = _Run(request, listener, wishes)
        with self._lock:
            self._run = run
        late = threading.Timer(START_SECONDS, run.give_up_start)
        late.daemon = True
        late.start()
        try:
            with tempfile.TemporaryDirectory(prefix="ray-train-", dir=request.assignment.get("run_dir")) as storage:
                outcome = self._fit(run, storage)
        finally:
            late.cancel()
            with self._lock:
                self._run = None
            run.see_off()
        return outcome

    def kill(self) -> None:
        with self._lock:
            run = self._run
        if run is not None:
            run.end("the gang was killed")

    def exchange(self, uid: str, attempt: int, rank: int, first: int, events: Events) -> Wishes:
        """A rank's batch comes in, the wishes go out. A batch of a gang that is no more is dropped."""
        with self._lock:
            run = self._run
        if run is None or (run.request.uid, run.request.attempt) != (uid, attempt):
            return Wishes()
        return run.exchange(rank, first, events)

    def _fit(self, run: _Run, storage: str) -> Outcome:
        request = run.request
        trainer = GangTrainer(
            _work,
            train_loop_config={
                "uid": request.uid,
                "attempt": request.attempt,
                "worker_loop": request.worker_loop,
                "assignment": dict(request.assignment),
                "env": dict(request.env),
                "mailbox": self._mailbox,
            },
            backend_config=_RanksConfig(),
            scaling_config=ScalingConfig(
                num_workers=request.world_size,
                use_gpu=request.gpus_per_worker > 0,
                resources_per_worker=resources_per_rank(request),
            ),
            run_config=cast(Any, RunConfig)(name=f"{request.uid}-{request.attempt}", storage_path=storage),
        )
        trainer.watch = run
        try:
            result: Any = trainer.fit()
        except TrainingFailedError as error:
            return run.failure(error)
        value = result.return_value
        if not isinstance(value, Mapping):
            return Outcome(
                "ApplicationError", f"the worker loop {request.worker_loop} returned {value!r}, not a mapping"
            )
        return Outcome(str(value.get("reason", "Completed")), "", dict(value))


def resources_per_rank(request: RunRequest) -> dict[str, float]:
    """What Ray sets aside for one rank: a worker with several GPUs is one rank a GPU, sharing its CPUs and memory."""
    ranks = max(1, request.gpus_per_worker)
    resources: dict[str, float] = {"CPU": request.cpus_per_worker / ranks}
    if request.gpus_per_worker:
        resources["GPU"] = 1
    if request.memory_bytes_per_worker:
        resources["memory"] = request.memory_bytes_per_worker // ranks
    return resources


class _Run(WorkerGroupCallback):
    """One attempt, as the engine sees it: told by `Gang` of what there is to end, and by the ranks of what happens."""

    def __init__(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> None:
        self.request = request
        self._listener = listener
        self._wishes = wishes
        self._lock = threading.Lock()
        self._placement_group: PlacementGroup | None = None
        self._started = False
        self._ended_because: str | None = None
        self._heard: dict[int, int] = {}
        self._workers: dict[int, str] = {}
        self._processes: list[psutil.Process] = []

    def exchange(self, rank: int, first: int, events: Events) -> Wishes:
        with self._lock:
            known = self._heard.get(rank, 0)
            self._heard[rank] = max(known, first + len(events))
        fresh = events[max(0, known - first) :]
        if fresh:
            self._listener(fresh)
        return self._wishes.read()

    # --- told by the gang ---

    def placed(self, group: PlacementGroup) -> None:
        with self._lock:
            self._placement_group = group
            ended = self._ended_because is not None
        if ended:
            remove_placement_group(group)

    def recruited(self, workers: Sequence[Worker]) -> None:
        here = ray.get_runtime_context().get_node_id()
        for worker in workers:
            assert worker.distributed_context is not None
            self._workers[worker.distributed_context.world_rank] = (
                f"process {worker.metadata.pid} on {worker.metadata.hostname}"
            )
            if worker.metadata.node_id == here and psutil.pid_exists(worker.metadata.pid):
                self._processes.append(psutil.Process(worker.metadata.pid))

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        self._started = True

    # --- ending ---

    def give_up_start(self) -> None:
        if not self._started:
            self.end(f"the workers did not start within {START_SECONDS:.0f} s")

    def end(self, why: str) -> None:
        """End the gang, wherever it stands: Ray kills what runs in a placement group that is removed."""
        with self._lock:
            self._ended_because = self._ended_because or why
            group = self._placement_group
        if group is not None:
            remove_placement_group(group)

    def see_off(self) -> None:
        """Wait until no process of the gang is left on this machine; kill by number what does not leave."""
        for process in psutil.wait_procs(self._processes, timeout=LEAVE_SECONDS)[1]:
            try:
                process.kill()
                process.wait(LEAVE_SECONDS)
            except psutil.NoSuchProcess:
                continue

    # --- why ---

    def failure(self, error: TrainingFailedError) -> Outcome:
        if self._ended_because is not None:
            return Outcome("WorkerLost" if self._started else "EngineLost", self._ended_because)
        if isinstance(error, WorkerGroupError):
            return self._worker_failure(error.worker_failures)
        cause: BaseException = error.controller_failure if isinstance(error, ControllerError) else error
        if isinstance(cause, (WorkerGroupStartupTimeoutError, InsufficientClusterResourcesError)):
            wanted = f"{self.request.world_size} x {_readable(resources_per_rank(self.request))}"
            return Outcome("EngineLost", f"Ray did not place the gang in time: wanted {wanted}, free {_free()}")
        while isinstance(cause.__cause__, RayActorError):
            cause = cause.__cause__
        if isinstance(cause, RayActorError):
            return Outcome("WorkerLost", f"a worker died while the gang was starting: {_first_line(cause)}")
        return Outcome("EngineLost", f"Ray Train failed: {type(cause).__name__}: {_first_line(cause)}")

    def _worker_failure(self, failures: Mapping[int, BaseException]) -> Outcome:
        """The cause among what the ranks tell: a reason of their own, an error of the user's code, a dead process, and
        last a rank that lost its peers; the earliest where there are several."""
        told = [failure for failure in failures.values() if isinstance(failure, RankFailed)]
        own = [failure for failure in told if not failure.collateral]
        if own:
            first = min(own, key=lambda failure: (failure.reason == "ApplicationError", failure.at_ns))
            return Outcome(first.reason, f"rank {first.rank}: {first.message}")
        for rank, failure in sorted(failures.items()):
            if isinstance(failure, RankFailed):
                continue
            cause = failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure
            who = f"rank {rank} ({self._workers.get(rank, 'process unknown')})"
            if (
                isinstance(cause, RayActorError)
                and "memory" in str(cause)
                and "killed" in str(cause)
                and "threshold" in str(cause)
            ):
                return Outcome("OutOfMemory", f"{who} was killed by Ray because the machine ran out of memory")
            if isinstance(cause, RayActorError):
                return Outcome("WorkerLost", f"{who} died: {_exit_of(cause)}")
            return Outcome("WorkerLost", f"{who} does not answer: {_first_line(cause)}")
        first = min(told, key=lambda failure: failure.at_ns)
        return Outcome("WorkerLost", f"rank {first.rank} lost its peers: {first.message}")


class GangTrainer(DataParallelTrainer):
    """Ray Train's trainer with our policies, our callbacks, and its controller in this process."""

    watch: _Run
    scaling_config: Any  # declared by Ray as the class of its first form, which it refuses
    run_config: Any

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            AcceleratorSetupCallback(self.backend_config, self.scaling_config),
            BackendSetupCallback(self.backend_config),
            self.watch,
        ]

    def _initialize_and_run_controller(self, **kwargs: Any) -> Result:
        kwargs["scaling_policy"] = FixedGang(self.scaling_config)
        kwargs["failure_policy"] = NeverAgain(FailureConfig())
        controller = GangController(**kwargs)
        control: Coroutine[Any, Any, None] = controller.run()  # type: ignore[no-untyped-call]
        asyncio.run(control)
        return controller.get_result()


class FixedGang(ScalingPolicy):
    """One size, asked for by the placement group alone."""

    def _get_num_workers_for_resource_request(self) -> int:
        assert isinstance(self.scaling_config.num_workers, int)
        return self.scaling_config.num_workers

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        return ResizeDecision(
            num_workers=self._get_num_workers_for_resource_request(),
            resources_per_worker=self.scaling_config._resources_per_worker_not_none,
        )

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        return NoopDecision()

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Nothing is reserved."""

    async def before_controller_shutdown(self) -> None:
        """Nothing was reserved."""

    def before_controller_abort(self) -> None:
        """Nothing was reserved."""


class NeverAgain(FailurePolicy):
    """The first failure ends the attempt."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        return FailureDecision.RAISE


class GangWorker(RayTrainWorker):
    """A worker actor. Its variables are set in the process, not by a runtime environment: for one of those Ray starts a
    fresh process, while without it a waiting one is taken."""

    def init_train_context(  # type: ignore[override]  # Ray calls it by keywords, whose list changes
        self, *, distributed_context: DistributedContext, **context: Any
    ) -> None:
        environ = os.environ  # noqa: TID251 - the edge of a worker's process
        tune(environ)
        environ["RANK"] = str(distributed_context.world_rank)
        environ["WORLD_SIZE"] = str(distributed_context.world_size)
        environ["LOCAL_RANK"] = str(distributed_context.local_rank)
        environ["LOCAL_WORLD_SIZE"] = str(distributed_context.local_world_size)
        environ["NODE_RANK"] = environ["GROUP_RANK"] = str(distributed_context.node_rank)
        super().init_train_context(distributed_context=distributed_context, **context)


class Gang(WorkerGroup):
    """A worker group that tells `_Run` what it is made of, and waits for the cause when a rank only lost its peers."""

    _worker_cls = GangWorker

    @property
    def _watch(self) -> _Run:
        return next(callback for callback in self._callbacks if isinstance(callback, _Run))

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> dict[str, Any]:
        return {}

    def _create_placement_group(
        self, scaling_config: ScalingConfig, worker_group_context: WorkerGroupContext
    ) -> PlacementGroupHandle:
        """As Ray Train does it for anything but TPUs, with a name by which what is left of a gang can be found."""
        request = self._watch.request
        group = placement_group(
            bundles=[worker_group_context.resources_per_worker] * worker_group_context.num_workers,
            strategy=worker_group_context.placement_strategy,
            name=f"gang-{request.uid}-{request.attempt}",
        )
        self._watch.placed(group)
        return DefaultPlacementGroupHandle(group)

    def _create_workers(self, *args: Any, **kwargs: Any) -> list[Worker]:
        workers = super()._create_workers(*args, **kwargs)
        self._watch.recruited(workers)
        return workers

    def poll_status(self, timeout: float | None = None) -> WorkerGroupPollStatus:
        status = super().poll_status(timeout)
        pause = threading.Event()
        for _ in range(round(GRACE_SECONDS / POLL_SECONDS)):
            errors = status.errors.values()
            if not errors or not all(isinstance(error, RankFailed) and error.collateral for error in errors):
                break
            if len(status.errors) == len(status.worker_statuses):
                break
            pause.wait(POLL_SECONDS)
            status = super().poll_status(timeout)
        return status


class GangController(TrainController):
    worker_group_cls = Gang


class _Ranks(Backend):
    """Tells all ranks where rank 0 will listen. The worker loop does the rest (`init_method="env://"`)."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_meet_at, address, port)


class _RanksConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[_Ranks]:
        return _Ranks


def _meet_at(address: str, port: int) -> None:
    os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port)})  # noqa: TID251 - the edge of a worker's process


def _work(config: Mapping[str, Any]) -> Any:
    """Ray Train's training function, on every rank."""
    rank = int(os.environ["RANK"])  # noqa: TID251 - the edge of a worker's process
    exchange = _exchange_with(config["mailbox"], config["uid"], config["attempt"], rank)
    return ray_worker.run_rank(config["worker_loop"], config["assignment"], config["env"], exchange)


def _exchange_with(mailbox: Any, uid: str, attempt: int, rank: int) -> Exchange:
    def exchange(first: int, events: Events) -> Wishes | None:
        try:
            answer: Wishes = ray.get(mailbox.exchange.remote(uid, attempt, rank, first, events))
        except ActorUnavailableError:
            return None
        except RayError as error:
            raise DriverGone(str(error)) from error
        return answer

    return exchange


def _exit_of(error: RayActorError) -> str:
    """What Ray knows of a dead worker's exit, in short: its own text goes on for a page about what might have been."""
    for line in str(error).splitlines():
        _, found, detail = line.partition("Worker exit detail:")
        if found and "connection error" in detail:
            return "it crashed, or was killed (by the kernel when memory ran out, for instance)"
        if found:
            return detail.strip().partition(". ")[0]
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _readable(resources: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {value:g}" for name, value in sorted(resources.items())) + "}"


def _free() -> str:
    kept = {name: value for name, value in ray.available_resources().items() if name in ("CPU", "GPU", "memory")}
    return _readable(kept)
