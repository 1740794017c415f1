"""Agents on a Ray of several nodes: where slots are placed there is an agent, and nothing is left behind.

The coordinator here is a stand-in that takes the agents' greetings and says goodbye.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import RunRequest
from orchestrator.platforms.engines.native.messages import Frames, Hello, NoticeSeen, encode, read
from tests.cluster.ray_nodes import RayNode, RayNodes, ray_nodes
from tests.engines.launchers import dismissing_ends_that_agent_alone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
DEADLINE_SECONDS = 60.0
TOKEN = "a-token"
REQUEST = RunRequest("uid", "default", "job", 1, 3, 1, 0, None, "tests.engines.loops:count", {}, elastic=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_nodes(os.environ) as nodes:
        yield nodes


class Coordinator:
    """Agents that are connected, by name, and the notices that they passed on."""

    def __init__(self) -> None:
        self._server = socket.create_server(("0.0.0.0", 0))  # noqa: S104 - the nodes' address is not loopback
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._ended = threading.Event()
        self._agents: dict[socket.socket, Hello] = {}
        self._frames: dict[socket.socket, Frames] = {}
        self.notices: list[Any] = []
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        import ray

        return ray.util.get_node_ip_address(), self._server.getsockname()[1]

    @property
    def agents(self) -> dict[str, Hello]:
        return {hello.agent: hello for hello in list(self._agents.values())}

    def slots_by_node(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for hello in self.agents.values():
            found[hello.node] = found.get(hello.node, 0) + hello.slots
        return found

    def say_goodbye(self) -> None:
        for connection in list(self._agents):
            with contextlib.suppress(OSError):
                connection.sendall(encode({"kind": "bye"}))

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for connection in (*self._frames, self._server):
            connection.close()
        self._selector.close()

    def _work(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._server:
                    connection, _ = self._server.accept()
                    self._frames[connection] = Frames()
                    self._selector.register(connection, selectors.EVENT_READ)
                else:
                    self._read(key.fileobj)

    def _read(self, connection: Any) -> None:
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            self._agents.pop(connection, None)
            return
        for message in self._frames[connection].feed(data):
            told = read(message)
            if isinstance(told, Hello):
                assert told.token == TOKEN
                self._agents[connection] = told
            elif isinstance(told, NoticeSeen):
                self.notices.append(told.notice)


@pytest.fixture
def coordinator(cluster: RayNodes) -> Iterator[Coordinator]:
    coordinator = Coordinator()
    yield coordinator
    coordinator.close()


class Driver:
    """Stands for the job's driver actor."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def native_address(self) -> tuple[str, int]:
        return self._address


@pytest.fixture
def launch(cluster: RayNodes, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Launchers of this test's job, which are stopped after it."""
    from orchestrator.platforms.engines.native.ray_launcher import RayLauncher, sweep

    uid = f"uid-{request.node.name}"
    begun: list[RayLauncher] = []

    def launch(coordinator: Coordinator, **options: Any) -> RayLauncher:
        launcher = RayLauncher(replace(REQUEST, uid=uid), f"driver-{uid}", SystemClock(), sources="", **options)
        launcher.start(coordinator.address, TOKEN)
        begun.append(launcher)
        return launcher

    yield launch
    for launcher in begun:
        launcher._stopping.set()  # agents that nobody says goodbye to are not waited for
        if launcher._thread is not None:
            launcher._thread.join()
    sweep(uid)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        threading.Event().wait(0.05)


def groups(uid: str) -> list[str]:
    from ray.util.placement_group import placement_group_table

    found = placement_group_table().values()
    return [str(entry["state"]) for entry in found if str(entry["name"]).startswith(f"gang-{uid}-")]


def agents_of_node(node: RayNode) -> list[psutil.Process]:
    return [process for process in node.processes() if "AgentActor" in " ".join(process.cmdline())]


def test_agents_come_where_there_is_room_and_wait_for_more(
    cluster: RayNodes, coordinator: Coordinator, launch: Callable[..., Any]
) -> None:
    """Slots of one node are one agent's; what has no room stays asked for, and a node that joins gets it. When all is
    over, no agent, no group and no process is left."""
    pair, single = cluster.add_node(cpus=2), cluster.add_node()
    launcher = launch(coordinator)
    launcher.want(4)
    until(lambda: coordinator.slots_by_node() == {pair.node_id: 2, single.node_id: 1})
    assert len(coordinator.agents) == 2
    uid = launcher._request.uid
    assert sorted(groups(uid)).count("PENDING") == 1
    late = cluster.add_node()
    until(lambda: coordinator.slots_by_node().get(late.node_id) == 1)
    processes = [process for node in (pair, single, late) for process in agents_of_node(node)]
    assert len(processes) == 3
    coordinator.say_goodbye()
    launcher.stop()
    assert set(groups(uid)) == {"REMOVED"}
    until(lambda: not any(process.is_running() for process in processes))
    for node in (pair, single, late):
        node.kill()


def test_an_agent_can_be_dismissed(cluster: RayNodes, coordinator: Coordinator, launch: Callable[..., Any]) -> None:
    """As any launcher's; its slot gets another agent later."""
    nodes = cluster.add_node(), cluster.add_node()
    launcher = launch(coordinator)
    launcher.want(2)
    until(lambda: len(coordinator.slots_by_node()) == 2)
    dismissing_ends_that_agent_alone(launcher, lambda: {agent.name for agent in launcher._named_agents()}, until)
    for node in nodes:
        node.kill()


def test_a_dead_node_is_given_up(cluster: RayNodes, coordinator: Coordinator, launch: Callable[..., Any]) -> None:
    """The slot of a node that died is asked for anew, and the next node that comes gets it; an agent that died alone on
    a living node is replaced."""
    first, second = cluster.add_node(), cluster.add_node()
    launcher = launch(coordinator)
    launcher.want(2)
    until(lambda: coordinator.slots_by_node() == {first.node_id: 1, second.node_id: 1})
    first.kill()
    until(lambda: coordinator.slots_by_node() == {second.node_id: 1})
    (before,) = agents_of_node(second)
    before.kill()
    until(lambda: any(process.pid != before.pid for process in agents_of_node(second)))
    third = cluster.add_node()
    until(lambda: coordinator.slots_by_node() == {second.node_id: 1, third.node_id: 1})
    second.kill()
    third.kill()


def test_a_draining_node_is_told_and_never_used(
    cluster: RayNodes, coordinator: Coordinator, launch: Callable[..., Any]
) -> None:
    """Ray's drain reaches the coordinator as a notice with its deadline, the agent stays until it is sent away, and no
    new slot goes to the node."""
    node = cluster.add_node()
    launcher = launch(coordinator)
    launcher.want(1)
    until(lambda: coordinator.slots_by_node() == {node.node_id: 1})
    node.drain(60)
    until(lambda: len(coordinator.notices) == 1)
    (notice,) = coordinator.notices
    assert (notice["source"], notice["node"], notice["kind"]) == ("ray", node.node_id, "drain")
    assert notice["deadline_ns"] is not None
    launcher.want(2)
    until(lambda: sorted(groups(launcher._request.uid)) == ["CREATED", "PENDING"])
    assert coordinator.slots_by_node() == {node.node_id: 1}
    node.kill()


def test_a_driver_that_comes_back_takes_up_what_is_there(
    cluster: RayNodes, coordinator: Coordinator, launch: Callable[..., Any]
) -> None:
    """After the loss of launcher and coordinator the agents find the next coordinator by the driver's name, and its
    launcher asks for nothing that is there already."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = cluster.add_node()
    launcher = launch(coordinator)
    launcher.want(1)
    until(lambda: coordinator.slots_by_node() == {node.node_id: 1})
    (process,) = agents_of_node(node)
    launcher._stopping.set()
    launcher._thread.join()
    coordinator.close()
    later = Coordinator()
    try:
        name = f"driver-{launcher._request.uid}"
        head = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"name": name, "namespace": "orchestrate", "num_cpus": 0, "scheduling_strategy": head}
        driver: Any = ray.remote(Driver).options(**options).remote(later.address)
        second = launch(later)
        second.want(1)
        until(lambda: later.slots_by_node() == {node.node_id: 1})
        assert [found.pid for found in agents_of_node(node)] == [process.pid]
        assert groups(launcher._request.uid) == ["CREATED"]
        later.say_goodbye()
        second.stop()
        ray.kill(driver)
    finally:
        later.close()
    node.kill()


def test_sweep_removes_what_nobody_wants(
    cluster: RayNodes, coordinator: Coordinator, launch: Callable[..., Any]
) -> None:
    """Agents and groups of a job go by its uid alone."""
    from orchestrator.platforms.engines.native.ray_launcher import sweep

    node = cluster.add_node()
    launcher = launch(coordinator)
    launcher.want(2)
    until(lambda: coordinator.slots_by_node() == {node.node_id: 1})
    (process,) = agents_of_node(node)
    launcher._stopping.set()
    launcher._thread.join()
    assert sweep(launcher._request.uid) == 3
    until(lambda: set(groups(launcher._request.uid)) == {"REMOVED"} and not process.is_running())
    assert sweep(launcher._request.uid) == 0
    node.kill()
