"""Nodes of a Ray on one machine are lost as machines are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.ray_nodes import RayNode, RayNodes, ray_nodes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]
DEADLINE_SECONDS = 60.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(os.environ) as nodes:
        yield nodes


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        threading.Event().wait(0.1)


def child_on(node: RayNode, cpus: int) -> Any:
    """An actor on the node, that tells its process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Child:
        def pid(self) -> int:
            return os.getpid()

    affinity = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    return ray.remote(Child).options(num_cpus=cpus, scheduling_strategy=affinity).remote()


def pid_of(child: Any) -> int:
    import ray

    pid: int = ray.get(child.pid.remote(), timeout=DEADLINE_SECONDS)
    return pid


def test_a_killed_node_takes_its_workers_along(nodes: RayNodes) -> None:
    """`kill` ends every process of a node, the workers too, and no process of another node."""
    first, second = nodes.add_node(), nodes.add_node()
    children = [child_on(node, cpus=0) for node in (first, second)]
    pids = [pid_of(child) for child in children]
    assert pids[0] in {process.pid for process in first.processes()}
    assert first.kill() >= 2
    assert first.processes() == []
    assert pid_of(children[1]) == pids[1]
    second.kill()


def test_a_drained_node_is_known_as_draining(nodes: RayNodes) -> None:
    """`drain` is Ray's own notice: the cluster knows the node and its deadline. (An idle node would leave at once.)"""
    from ray._private.state import state

    node = nodes.add_node()
    pid_of(working := child_on(node, cpus=1))
    node.drain(60)
    until(lambda: node.node_id in state.get_draining_nodes())
    del working
    node.kill()
