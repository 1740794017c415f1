"""Drivers as detached Ray actors, one a job: they and their gangs outlive the controller.

Everything this host does happens on one thread that takes small tasks from a queue; what Ray has to say comes back into
the same queue (a future's callback). So no public call waits for a driver, and no lock guards the bookkeeping.

A driver is polled with a question that it leaves open until it has something to tell. The next question goes out when
the controller has journaled the answer, and carries the acknowledgement.

An elastic gang runs on the native engine, whose workers go on without their driver: when such a driver dies, another is
started for the same attempt, which takes up what runs. A gang of one size runs on Ray Train's and ends with its driver.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import get_placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.controller.driver import Driver, Update
from orchestrator.controller.hosts import Deliver, Gone, Heard, Room
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock, SystemClock
from orchestrator.platforms.engines.base import Cadence, Engine, Events, RunRequest, Wishes
from orchestrator.platforms.notices import NotHere, Unreadable
from orchestrator.platforms.notices.given import ray_draining

log = logging.getLogger(__name__)

NAMESPACE = "orchestrate"
OPEN_QUESTION_SECONDS = 20.0
"""How long a driver leaves a question open when there is nothing to tell."""
ASK_AGAIN_SECONDS = 3.0
"""Without an acknowledgement for this long, the same updates are asked for again."""
UNAVAILABLE_SECONDS = 1.0
LEAVING_SECONDS = 0.3
"""Between two looks at whether the name of a driver that was ended is free again."""
ADOPT_SECONDS = 30.0
ROOM_SECONDS = 5.0
"""How old the known size of the cluster may be."""
TAKEOVERS = 3
TAKEOVER_SECONDS = 300.0
"""A gang whose drivers died so often within this time is given up: it may be what kills them."""
KEPT_WISHES = ("wish_stop", "wish_size", "wish_cadence")
RAY_TRAIN, NATIVE = "ray-train", "native"
"""Engines by name, as the setting `engine` names them."""


def driver_name(uid: str) -> str:
    return f"driver-{uid}"


def engine_for(request: RunRequest) -> str:
    """The name of the engine of an attempt."""
    return NATIVE if request.elastic or request.engine == NATIVE else RAY_TRAIN


def make_engine(name: str, uid: str) -> Engine:
    """An engine of this process, which must be the job's driver. What runs of the job already is taken up by the native
    one: its agents know a token, and are told where the new coordinator listens by the driver's name."""
    if name == RAY_TRAIN:
        from orchestrator.platforms.engines.ray_train import RayTrainEngine

        return RayTrainEngine()
    from orchestrator.platforms.engines.native import NativeEngine
    from orchestrator.platforms.engines.native.ray_launcher import RayLauncher, token_of

    clock = SystemClock()
    token = token_of(uid, NAMESPACE)
    return NativeEngine(
        lambda request: RayLauncher(request, driver_name(uid), clock, namespace=NAMESPACE),
        clock,
        environ=dict(os.environ),  # noqa: TID251 - the edge: the driver's process is the engine's alone
        host=ray.util.get_node_ip_address(),
        token=token,
        adopt=token is not None,
    )


class DriverActor:
    """The driver's process. `exchange` is called by the ranks of Ray Train's gang and `native_address` by the agents of the
    native engine, the rest by the host."""

    def __init__(self, run_dir: str, uid: str, engine: str) -> None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        self._engine: Any = make_engine(engine, uid)
        self._driver = Driver(self._engine, SystemClock(), Path(run_dir))
        self._run_dir = run_dir
        self._request: RunRequest | None = None

    @ray.method(concurrency_group="gang")
    def exchange(self, uid: str, attempt: int, rank: int, first: int, events: Events) -> Wishes:
        wishes: Wishes = self._engine.exchange(uid, attempt, rank, first, events)
        return wishes

    @ray.method(concurrency_group="gang")
    def native_address(self) -> tuple[str, int] | None:
        """Where the coordinator of the attempt that runs listens; None without one."""
        address: tuple[str, int] | None = self._engine.address
        return address

    @ray.method(concurrency_group="poll")
    def updates(self, after: int, wait_seconds: float) -> tuple[str, list[Update]]:
        return self._driver.driver_id, self._driver.updates(after, wait_seconds=wait_seconds)

    def driver_id(self) -> str:
        return self._driver.driver_id

    def pid(self) -> int:
        return os.getpid()

    def start(self, request: RunRequest) -> None:
        self._request = request
        self._driver.start(request)

    def started(self) -> tuple[RunRequest | None, str]:
        """The attempt that runs, and the job's folder: what another driver needs to take over."""
        return self._request if self._driver.running else None, self._run_dir

    def wish_checkpoint(self, attempt: int) -> None:
        self._driver.wish_checkpoint(attempt)

    def wish_stop(self, attempt: int) -> None:
        self._driver.wish_stop(attempt)

    def wish_cadence(self, attempt: int, cadence: Cadence) -> None:
        self._driver.wish_cadence(attempt, cadence)

    def wish_size(self, attempt: int, workers: int) -> None:
        self._driver.wish_size(attempt, workers)

    def kill(self, attempt: int) -> None:
        self._driver.kill(attempt)


@dataclass(slots=True)
class _Known:
    """A driver that this host talks to."""

    uid: str
    handle: Any
    driver_id: str | None
    acknowledged: int
    request: RunRequest | None = None
    run_dir: Path | None = None
    asking: bool = False
    delivered: int = 0
    over: bool = False
    """The attempt has ended, or was asked to end at once."""
    wishes: dict[str, tuple[object, ...]] = field(default_factory=dict)
    """The last of each kind, for a driver that takes over."""
    takeovers_ns: list[int] = field(default_factory=list)


class RayHost:
    """See the module. Must live in a process that is connected to Ray, in the namespace `orchestrate`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._ticket = itertools.count()
        self._drivers: dict[str, _Known] = {}
        self._leaving: set[str] = set()
        self._deliver: Deliver = _undelivered
        self._room = self._measure_room()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ray-host", daemon=True)

    # --- the port

    def begin(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._thread.start()
        self._tasks.put(self._refresh_room)

    def adopt(self, uid: str, after: int) -> str | None:
        handle = _named(uid)
        if handle is None:
            return None
        try:
            driver_id: str = ray.get(handle.driver_id.remote(), timeout=ADOPT_SECONDS)
            request, run_dir = ray.get(handle.started.remote(), timeout=ADOPT_SECONDS)
        except ActorDiedError:
            self._tasks.put(lambda: self._leaving.add(uid))  # its name is not free yet
            return None
        except RayError as error:
            log.warning("the driver of %s does not answer (%s), so it is ended", uid, _first_line(error))
            self._tasks.put(lambda: self._release(uid, handle))
            return None
        known = _Known(uid, handle, driver_id, after, request, Path(run_dir))

        def take_up() -> None:
            self._drivers[uid] = known
            self._ask(known)

        self._tasks.put(take_up)
        return driver_id

    def outlived(self, uid: str) -> bool:
        from orchestrator.platforms.engines.native.ray_launcher import token_of

        return token_of(uid, NAMESPACE) is not None

    def start(self, request: RunRequest, run_dir: Path) -> None:
        self._tasks.put(lambda: self._start(request, run_dir))

    def wish_checkpoint(self, uid: str, attempt: int) -> None:
        self._tasks.put(lambda: self._tell(uid, "wish_checkpoint", attempt))

    def wish_stop(self, uid: str, attempt: int) -> None:
        self._tasks.put(lambda: self._tell(uid, "wish_stop", attempt))

    def wish_cadence(self, uid: str, attempt: int, cadence: Cadence) -> None:
        self._tasks.put(lambda: self._wish(uid, "wish_cadence", attempt, cadence, cadence=cadence))

    def wish_size(self, uid: str, attempt: int, workers: int) -> None:
        self._tasks.put(lambda: self._wish(uid, "wish_size", attempt, workers, size=workers))

    def kill(self, uid: str, attempt: int) -> None:
        self._tasks.put(lambda: self._tell(uid, "kill", attempt))

    def acknowledge(self, uid: str, driver_id: str, seq: int) -> None:
        self._tasks.put(lambda: self._acknowledged(uid, driver_id, seq))

    def release(self, uid: str) -> None:
        self._tasks.put(lambda: self._release(uid, None))

    def room(self) -> Room:
        return self._room

    def close(self) -> None:
        self._closing.set()
        self._tasks.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                task = self._tasks.get(timeout=self._until_due_seconds())
            except queue.Empty:
                task = heapq.heappop(self._due)[2]
            try:
                task()
            except Exception:  # the thread's edge: one driver's trouble must not end the others' deliveries
                log.exception("the Ray host failed at a task")

    def _until_due_seconds(self) -> float | None:
        if not self._due:
            return None
        return max(0.0, (self._due[0][0] - self._clock.monotonic_ns()) / NANOSECONDS_PER_SECOND)

    def _later(self, seconds: float, task: Callable[[], None]) -> None:
        due_ns = self._clock.monotonic_ns() + round(seconds * NANOSECONDS_PER_SECOND)
        heapq.heappush(self._due, (due_ns, next(self._ticket), task))

    def _when_answered(self, reference: Any, task: Callable[[Future[Any]], None]) -> None:
        future: Future[Any] = reference.future()
        future.add_done_callback(lambda done: self._tasks.put(lambda: task(done)))

    # --- starting

    def _start(self, request: RunRequest, run_dir: Path) -> None:
        known = self._drivers.get(request.uid)
        if known is None:
            if request.uid in self._leaving and _named(request.uid) is not None:
                self._later(LEAVING_SECONDS, lambda: self._start(request, run_dir))
                return
            try:
                handle = self._make(request, run_dir)
            except (RayError, ValueError) as error:
                self._deliver(Gone(request.uid, None, f"its driver could not be started: {_first_line(error)}"))
                return
            self._leaving.discard(request.uid)
            known = self._drivers[request.uid] = _Known(request.uid, handle, None, 0)
            self._ask(known)
        if known.request is None or request.attempt > known.request.attempt:
            known.request, known.run_dir, known.over = request, run_dir, False
            known.wishes.clear()
        self._tell(request.uid, "start", request)

    def _make(self, request: RunRequest, run_dir: Path) -> Any:
        here = ray.get_runtime_context().get_node_id()
        return (
            cast(Any, ray.remote)(concurrency_groups={"gang": 4, "poll": 4})(DriverActor)  # untyped for threaded actors
            .options(
                name=driver_name(request.uid),
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=0,
                max_restarts=0,
                max_concurrency=4,
                get_if_exists=True,
                scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
            )
            .remote(str(run_dir), request.uid, engine_for(request))
        )

    def _wish(self, uid: str, method: str, attempt: int, wish: object, **fields: Any) -> None:
        """Tell a wish that holds from now on; a driver that takes over begins with it."""
        known = self._drivers.get(uid)
        if known is not None and known.request is not None and known.request.attempt == attempt:
            known.request = replace(known.request, **fields)
        self._tell(uid, method, attempt, wish)

    def _tell(self, uid: str, method: str, *arguments: object) -> None:
        known = self._drivers.get(uid)
        if known is None:
            return
        if method in KEPT_WISHES:
            known.wishes[method] = arguments
        known.over = known.over or method == "kill"
        if known.handle is None:
            self._later(LEAVING_SECONDS, lambda: self._tell(uid, method, *arguments))
            return
        reference = getattr(known.handle, method).remote(*arguments)

        def answered(done: Future[Any]) -> None:
            error = done.exception()
            if isinstance(error, ActorUnavailableError) and self._drivers.get(uid) is known:
                self._later(UNAVAILABLE_SECONDS, lambda: self._tell(uid, method, *arguments))
            elif error is not None:
                self._trouble(known, error)

        self._when_answered(reference, answered)

    # --- hearing

    def _ask(self, known: _Known) -> None:
        if known.asking or self._drivers.get(known.uid) is not known:
            return
        known.asking = True
        reference = known.handle.updates.remote(known.acknowledged, OPEN_QUESTION_SECONDS)
        self._when_answered(reference, lambda done: self._answered(known, done))

    def _answered(self, known: _Known, done: Future[tuple[str, list[Update]]]) -> None:
        known.asking = False
        if self._drivers.get(known.uid) is not known:
            return
        error = done.exception()
        if isinstance(error, ActorUnavailableError):
            self._later(UNAVAILABLE_SECONDS, lambda: self._ask(known))
            return
        if error is not None:
            self._trouble(known, error)
            return
        known.driver_id, updates = done.result()
        if not updates:
            self._ask(known)
            return
        known.delivered = updates[-1].seq
        attempt = None if known.request is None else known.request.attempt
        known.over = known.over or any(
            update.attempt == attempt and update.event["kind"] == "ended" for update in updates
        )
        self._deliver(Heard(known.uid, known.driver_id, tuple(updates)))
        self._later(ASK_AGAIN_SECONDS, lambda: self._ask(known))

    def _acknowledged(self, uid: str, driver_id: str, seq: int) -> None:
        known = self._drivers.get(uid)
        if known is None or known.driver_id != driver_id:
            return
        known.acknowledged = max(known.acknowledged, seq)
        if known.acknowledged >= known.delivered:
            self._ask(known)

    # --- ending

    def _trouble(self, known: _Known, error: BaseException) -> None:
        """A call on a driver failed: it is dead, or it raised, which it should never do."""
        if self._drivers.get(known.uid) is not known:
            return
        if isinstance(error, RayTaskError) and not isinstance(error, RayActorError):
            log.error("the driver of %s failed at a call: %s", known.uid, error)
            return
        if self._taken_over(known):
            return
        del self._drivers[known.uid]
        self._leaving.add(known.uid)
        sweep(known.uid)
        self._deliver(Gone(known.uid, known.driver_id, f"its driver died: {_first_line(error)}"))

    def _taken_over(self, known: _Known) -> bool:
        """Start another driver for a gang that goes on without one; whether that was done."""
        now_ns = self._clock.monotonic_ns()
        recent_ns = now_ns - round(TAKEOVER_SECONDS * NANOSECONDS_PER_SECOND)
        known.takeovers_ns = [at_ns for at_ns in known.takeovers_ns if at_ns > recent_ns]
        request, run_dir = known.request, known.run_dir
        if request is None or run_dir is None or engine_for(request) != NATIVE:
            return False
        if known.over or len(known.takeovers_ns) >= TAKEOVERS:
            return False
        log.warning("the driver of %s died; another takes over", known.uid)
        again = _Known(known.uid, None, None, 0, request, run_dir, wishes=known.wishes)
        again.takeovers_ns = [*known.takeovers_ns, now_ns]
        self._drivers[known.uid] = again
        self._take_over(again)
        return True

    def _take_over(self, known: _Known) -> None:
        if self._drivers.get(known.uid) is not known:
            return
        if _named(known.uid) is not None:  # its name is not free yet
            self._later(LEAVING_SECONDS, lambda: self._take_over(known))
            return
        assert known.request is not None
        assert known.run_dir is not None
        known.handle = self._make(known.request, known.run_dir)
        self._ask(known)
        self._tell(known.uid, "start", known.request)
        for method, arguments in list(known.wishes.items()):
            self._tell(known.uid, method, *arguments)

    def _release(self, uid: str, handle: Any) -> None:
        known = self._drivers.pop(uid, None)
        handle = known.handle if known is not None else handle
        if handle is None:
            handle = _named(uid)
        if handle is not None:
            self._leaving.add(uid)
            with contextlib.suppress(RayError):
                ray.kill(handle)
        sweep(uid)

    # --- room

    def _refresh_room(self) -> None:
        try:
            self._room = self._measure_room()
        finally:
            self._later(ROOM_SECONDS, self._refresh_room)

    def _measure_room(self) -> Room:
        have: Counter[str] = Counter()
        draining = _draining()
        for node in ray.nodes():
            if node["Alive"] and node["NodeID"] not in draining:
                have.update(node["Resources"])
        memory = have.get("memory")
        return Room(int(have.get("CPU", 0)), int(have.get("GPU", 0)), None if memory is None else int(memory))


def _named(uid: str) -> Any:
    """The job's driver by its name, or None."""
    try:
        return ray.get_actor(driver_name(uid), namespace=NAMESPACE)
    except ValueError:
        return None


def sweep(uid: str) -> int:
    """Remove whatever agents and placement groups of a job's gangs are left, and with them the workers; how many there
    were. Ray removes most of them itself when their driver dies; this makes sure."""
    from orchestrator.platforms.engines.native.ray_launcher import sweep as sweep_agents

    swept = sweep_agents(uid, NAMESPACE)
    prefix = f"gang-{uid}-"
    names = [
        str(entry["name"])
        for entry in placement_group_table().values()
        if str(entry["name"]).startswith(prefix) and entry["state"] != "REMOVED"
    ]
    for name in names:
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(name))
    return swept + len(names)


def _draining() -> frozenset[str]:
    """Nodes that are about to go; they are no room."""
    try:
        return frozenset(ray_draining()())
    except (NotHere, Unreadable) as error:
        log.warning("%s", error)
        return frozenset()


def _undelivered(message: Heard | Gone) -> None:
    log.warning("nobody takes %r yet", message)


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
