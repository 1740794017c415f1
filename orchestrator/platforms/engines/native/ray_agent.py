"""An agent inside a Ray actor: one of a job's agents on one node.

The actor is detached: it outlives the driver that made it, keeps its workers stepping meanwhile, and finds the next
coordinator by asking the job's named driver. Ray does the supervision: the actor's process ends when its node goes, when
the actor is killed, or when the agent has come to an end; its workers end with it (see `lifeline`).

The agent runs in a thread of its own, which lives as long as the process, because the workers are tied to it. Nothing of
the agent itself knows Ray.

Limits: needs a driver actor with the methods of `Whereabouts`; the process ends with `os._exit`, since an agent that was
orphaned must leave though nobody calls.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from orchestrator.domain.clock import Clock, SystemClock
from orchestrator.platforms import notices
from orchestrator.platforms.engines.native.agent import Agent, AgentConfig
from orchestrator.platforms.engines.native.messages import Address
from orchestrator.platforms.engines.native.shards import ShardStore

ANSWER_SECONDS = 5.0
"""For a driver to say where its coordinator listens."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
OURS = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_WORKER_ID")
"""What Ray tells its own processes of themselves, and a worker's libraries must not take for their own."""


class Whereabouts:
    """Where the job's coordinator listens. Called by the agent's one thread, so it answers at once with what is known, and
    has a thread of its own ask the driver for the next time."""

    def __init__(self, driver: str, namespace: str, known: Address) -> None:
        self._driver = driver
        self._namespace = namespace
        self._known = known
        self._wanted = threading.Event()
        threading.Thread(target=self._follow, name="whereabouts", daemon=True).start()

    def __call__(self) -> Address:
        self._wanted.set()
        return self._known

    def _follow(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            try:
                driver: Any = ray.get_actor(self._driver, namespace=self._namespace)
                told: Address | None = ray.get(driver.native_address.remote(), timeout=ANSWER_SECONDS)
            except (ValueError, RayError):  # no such driver, or not now: the agent goes on asking
                continue
            if told is not None:
                self._known = told


class AgentActor:
    """See the module."""

    def __init__(
        self, config: AgentConfig, driver: str, namespace: str, known: Address, gpus: tuple[str, ...], sources: str
    ) -> None:
        clock = SystemClock()
        self._token = config.token
        whereabouts = Whereabouts(driver, namespace, known)
        environ = _environment(os.environ, gpus)  # noqa: TID251 - the edge of the agent's process
        self._agent = Agent(
            config,
            whereabouts,
            ShardStore(config.host, config.token, clock),
            environ=environ,
            watch=watching(sources, config.node, environ, clock),
            clock=clock,
            say=_say,
        )
        threading.Thread(target=self._run, name="agent", daemon=True).start()

    def pid(self) -> int:
        return os.getpid()

    def token(self) -> str:
        """For a driver that comes back."""
        return self._token

    def notice(self, document: Mapping[str, Any]) -> None:
        """Somebody else knows that this node goes."""
        self._agent.notice(document)

    def _run(self) -> None:
        status = 1
        try:
            status = self._agent.run()
        finally:
            sys.stderr.flush()
            os._exit(status)


def watching(
    sources: str, node: str, environ: Mapping[str, str], clock: Clock
) -> Callable[[Callable[[Mapping[str, Any]], None]], notices.Watcher]:
    """What an agent watches on this node: Ray's drain, and the sources that `sources` names."""
    drain = notices.RayDrain(lambda ray_id: node if ray_id == node else None)
    return notices.for_agent(sources, node, environ, clock, also=[drain])


def _environment(environ: Mapping[str, str], gpus: tuple[str, ...]) -> dict[str, str]:
    """What the node's workers begin with."""
    kept = {name: value for name, value in environ.items() if name not in OURS}
    return {**kept, VISIBLE: ",".join(gpus)}


def _say(line: str) -> None:
    sys.stderr.write(f"agent: {line}\n")
    sys.stderr.flush()
