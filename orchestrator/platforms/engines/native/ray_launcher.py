"""Agents on a Ray cluster: a placement group of one bundle for every slot, an agent actor where slots were placed.

A group a slot, because Ray cannot resize a group: so the loss of a node touches that node's slots alone, and a group that
finds no room stays asked for, which is the demand that autoscalers see. Groups and agents are detached and carry the job's
uid in their names, so that everything can be found again by Ray's own tables: a driver that comes back takes up what is
there, and `sweep` removes what nobody wants any more. Nothing is remembered here that those tables do not say.

One thread looks at the cluster a few times a second, decides (see `ray_slots`), and carries out.

With GPUs, a small task in each bundle tells which ones are the slot's; they stay the bundle's while it stands.

Limits: an agent's slots never change; slots that come to its node later get an agent of their own. Draining nodes are told
by a private function of Ray (see orchestrator.platforms.notices.given).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors
from ray.util.placement_group import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock
from orchestrator.platforms.engines.base import RunRequest
from orchestrator.platforms.engines.native.agent import ORPHAN_SECONDS, AgentConfig
from orchestrator.platforms.engines.native.messages import Address
from orchestrator.platforms.engines.native.ray_agent import AgentActor
from orchestrator.platforms.engines.native.ray_slots import AgentKnown, Look, Slot, Steps, decide
from orchestrator.platforms.notices import NotHere, Unreadable
from orchestrator.platforms.notices.given import ray_draining

log = logging.getLogger(__name__)

NAMESPACE = "orchestrate"
LOOK_SECONDS = 0.25
AGAIN_SECONDS = 3.0
"""From one try to start an agent for the same slots to the next: a node that kills them is not asked ten times a second."""
LEAVE_SECONDS = 10.0
"""For agents that were said goodbye to, to be gone, before they are killed."""
SOON_SECONDS = 0.05
ANSWER_SECONDS = 5.0
"""For an agent to tell its token. Those on nodes that just died do not."""
PLACED, LOST = "CREATED", "RESCHEDULING"


def group_prefix(uid: str) -> str:
    return f"gang-{uid}-slot-"


def agent_prefix(uid: str) -> str:
    return f"agent-{uid}-"


@dataclass(frozen=True, slots=True)
class _Begun:
    """An agent that was asked for. Ray's table names it some moments later, or never when it could not start; until
    `until_ns` it counts as there."""

    slots: tuple[int, ...]
    until_ns: int
    handle: Any
    """Held, since the making of a named actor whose handle is let go may be dropped."""


@dataclass(slots=True)
class _Gpus:
    """Which GPUs are the slots'."""

    known: dict[int, tuple[str, ...]] = field(default_factory=dict)
    asked: dict[int, Any] = field(default_factory=dict)


class RayLauncher:
    """A launcher of agents (see `coordinator.Launcher`); safe to use from several threads. Must live in a process that is
    connected to Ray."""

    def __init__(
        self,
        request: RunRequest,
        driver: str,
        clock: Clock,
        *,
        namespace: str = NAMESPACE,
        sources: str = "auto",
        orphan_seconds: float = ORPHAN_SECONDS,
    ) -> None:
        """`driver`: the name of the actor that tells, by its method `native_address`, where the coordinator listens.
        `sources`: of notices, as orchestrator.platforms.notices.choose takes them."""
        self._request = request
        self._driver = driver
        self._clock = clock
        self._namespace = namespace
        self._sources = sources
        self._orphan_seconds = orphan_seconds
        self._groups = group_prefix(request.uid)
        self._agents = agent_prefix(request.uid)
        self._lock = threading.Lock()
        self._wanted = 0
        self._next = 1
        self._address: Address | None = None
        self._token = ""
        self._begun: list[_Begun] = []
        self._gpus = _Gpus()
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    # --- the port ---

    def start(self, address: Address, token: str) -> None:
        """Take up what the job has already, and begin to look. Agents come to the coordinator at `address`."""
        self._address, self._token = address, token
        self._stopping.clear()
        self._thread = threading.Thread(target=self._work, name="ray-launcher", daemon=True)
        self._thread.start()

    def want(self, slots: int) -> None:
        """So many slots could be used."""
        with self._lock:
            self._wanted = slots
        self._woken.set()

    def dismiss(self, agent: str, why: str) -> None:
        """End an agent that does not answer, and with it its workers, where Ray still reaches it."""
        log.warning("agent %s is ended: %s", agent, why)
        with contextlib.suppress(ValueError, RayError):
            ray.kill(ray.get_actor(agent, namespace=self._namespace))

    def stop(self) -> None:
        """Wait until the agents, which were told to end, are gone; then remove whatever is left of the job."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        end_ns = self._clock.monotonic_ns() + round(LEAVE_SECONDS * NANOSECONDS_PER_SECOND)
        pause = threading.Event()
        while self._named_agents() and self._clock.monotonic_ns() < end_ns:
            pause.wait(SOON_SECONDS)
        sweep(self._request.uid, self._namespace)
        self._begun.clear()
        self._gpus = _Gpus()

    # --- the thread ---

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                wanted = self._wanted
            try:
                self._carry_out(decide(self._look(), wanted))
            except (
                RayError,
                RuntimeError,
                OSError,
            ) as error:  # the GCS may be away for a while; Ray raises all of these
                log.warning("Ray does not answer: %s", _first_line(error))
            self._woken.wait(LOOK_SECONDS)
            self._woken.clear()

    def _look(self) -> Look:
        now_ns = self._clock.monotonic_ns()
        nodes = ray.nodes()
        agents = {agent.slots: agent for agent in self._named_agents()}
        self._begun = [begun for begun in self._begun if now_ns < begun.until_ns]
        for begun in self._begun:
            agents[begun.slots] = AgentKnown(self._name(begun.slots), begun.slots)
        return Look(
            slots=tuple(self._slots()),
            agents=tuple(agents.values()),
            alive=frozenset(str(node["NodeID"]) for node in nodes if node["Alive"]),
            draining=frozenset(_draining()),
        )

    def _slots(self) -> Iterable[Slot]:
        for name, entry in _groups(self._groups).items():
            number = int(name.removeprefix(self._groups))
            self._next = max(self._next, number + 1)
            placed = entry["state"] == PLACED
            node = str(entry["bundles_to_node_id"][0]) if placed else None
            yield Slot(number, node, lost=entry["state"] == LOST)

    def _named_agents(self) -> list[AgentKnown]:
        return _agents(self._agents, self._namespace)

    def _name(self, slots: Sequence[int]) -> str:
        return self._agents + ".".join(str(number) for number in slots)

    def _carry_out(self, steps: Steps) -> None:
        for name in steps.kill:
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(name, namespace=self._namespace))
        for number in steps.give_up:
            self._gpus.known.pop(number, None)
            self._gpus.asked.pop(number, None)
            with contextlib.suppress(ValueError):
                remove_placement_group(get_placement_group(f"{self._groups}{number}"))
        for _ in range(steps.ask):
            placement_group([self._bundle()], name=f"{self._groups}{self._next}", lifetime="detached")
            self._next += 1
        for node, slots in steps.begin:
            known = [self._knows_gpus(number) for number in slots]
            if all(known):
                self._begin(node, slots)

    def _bundle(self) -> dict[str, float]:
        request = self._request
        bundle: dict[str, float] = {"CPU": float(request.cpus_per_worker)}
        if request.gpus_per_worker:
            bundle["GPU"] = float(request.gpus_per_worker)
        if request.memory_bytes_per_worker:
            bundle["memory"] = float(request.memory_bytes_per_worker)
        return bundle

    def _begin(self, node: str, slots: tuple[int, ...]) -> None:
        assert self._address is not None, "not started"
        host = next(str(entry["NodeManagerAddress"]) for entry in ray.nodes() if entry["NodeID"] == node)
        name = self._name(slots)
        config = AgentConfig(
            agent=name,
            node=node,
            host=host,
            slots=len(slots),
            token=self._token,
            coordinator=self._address,
            orphan_seconds=self._orphan_seconds,
            gpus=self._request.gpus_per_worker > 0,
        )
        gpus = tuple(gpu for number in slots for gpu in self._gpus.known.get(number, ()))
        try:
            handle = (
                ray.remote(AgentActor)
                .options(
                    name=name,
                    namespace=self._namespace,
                    lifetime="detached",
                    num_cpus=0,
                    max_restarts=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                )
                .remote(config, self._driver, self._namespace, self._address, gpus, self._sources)
            )
        except ValueError as error:  # the name is taken: an agent that is just ending, or just beginning
            log.info("agent %s is not begun: %s", name, _first_line(error))
            handle = None
        until_ns = self._clock.monotonic_ns() + round(AGAIN_SECONDS * NANOSECONDS_PER_SECOND)
        self._begun.append(_Begun(slots, until_ns, handle))

    # --- GPUs ---

    def _knows_gpus(self, number: int) -> bool:
        """Whether it is known which GPUs are a slot's; asks when it is not."""
        count = self._request.gpus_per_worker
        if not count or number in self._gpus.known:
            return True
        if number not in self._gpus.asked:
            strategy = PlacementGroupSchedulingStrategy(get_placement_group(f"{self._groups}{number}"))
            options = {"num_cpus": 0, "num_gpus": count, "scheduling_strategy": strategy, "max_retries": 0}
            self._gpus.asked[number] = ray.remote(_gpus_here).options(**options).remote()
        done, _ = ray.wait([self._gpus.asked[number]], timeout=0)
        if done:
            reference = self._gpus.asked.pop(number)
            with contextlib.suppress(RayError):  # asked again at the next look
                self._gpus.known[number] = ray.get(reference)
        return number in self._gpus.known


def token_of(uid: str, namespace: str = NAMESPACE) -> str | None:
    """What the living agents of a job know it by; None without any."""
    for agent in _agents(agent_prefix(uid), namespace):
        with contextlib.suppress(ValueError, RayError):
            handle: Any = ray.get_actor(agent.name, namespace=namespace)
            token: str = ray.get(handle.token.remote(), timeout=ANSWER_SECONDS)
            return token
    return None


def sweep(uid: str, namespace: str = NAMESPACE) -> int:
    """End every agent of a job and remove its placement groups; how many of both there were."""
    agents = _agents(agent_prefix(uid), namespace)
    for agent in agents:
        with contextlib.suppress(ValueError, RayError):
            ray.kill(ray.get_actor(agent.name, namespace=namespace))
    groups = _groups(group_prefix(uid))
    for name in groups:
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(name))
    return len(agents) + len(groups)


def _agents(prefix: str, namespace: str) -> list[AgentKnown]:
    """Living agents whose names begin so."""
    found = []
    for entry in list_named_actors(all_namespaces=True):
        if entry["namespace"] == namespace and entry["name"].startswith(prefix):
            with contextlib.suppress(ValueError):
                found.append(AgentKnown.named(entry["name"], prefix))
    return found


def _groups(prefix: str) -> dict[str, Mapping[str, Any]]:
    """Placement groups that stand, or are asked for, whose names begin so."""
    return {
        str(entry["name"]): entry
        for entry in placement_group_table().values()
        if str(entry["name"]).startswith(prefix) and entry["state"] != "REMOVED"
    }


def _draining() -> Iterable[str]:
    try:
        return ray_draining()().keys()
    except (NotHere, Unreadable):
        return ()


def _gpus_here() -> tuple[str, ...]:
    """Runs in a slot's bundle."""
    return tuple(str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", []))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
