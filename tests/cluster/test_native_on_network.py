"""The native engine on nodes with addresses of their own: killed, frozen, cut off, and joined by others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import RunRequest
from orchestrator.platforms.engines.native import NativeEngine
from tests.cluster.attempt import Attempt
from tests.cluster.loops import MeetingPlace
from tests.cluster.network import Network, why_not
from tests.cluster.network_agents import NetworkAgents, pids_left

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Begin = Callable[[int], tuple[Attempt, NetworkAgents]]


@pytest.fixture
def network() -> Iterator[Network]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Network() as network:
        yield network


@pytest.fixture
def begin(network: Network, tmp_path: Path) -> Iterator[Begin]:
    """Begin an elastic attempt of 1 to 3 workers on so many nodes; ended after the test."""
    begun: list[tuple[Attempt, NetworkAgents]] = []
    place = MeetingPlace(network.address)

    def begin(nodes: int) -> tuple[Attempt, NetworkAgents]:
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        agents = NetworkAgents(network, environ, nodes)
        engine = NativeEngine(lambda request: agents, SystemClock(), environ=environ, host=network.address)
        request = RunRequest(
            uid=f"uid-{tmp_path.name}",
            namespace="default",
            name="network",
            attempt=1,
            workers=3,
            cpus_per_worker=1,
            gpus_per_worker=0,
            memory_bytes_per_worker=None,
            worker_loop="tests.cluster.loops:lockstep",
            assignment={"run_dir": str(tmp_path), "working_dir": str(tmp_path), "threads": 1, "meet": place.address},
            min_workers=1,
            elastic=True,
        )
        begun.append((Attempt(engine, request), agents))
        return begun[-1]

    with place:
        yield begin
        for attempt, _ in begun:
            attempt.close()


def redone(attempt: Attempt) -> int:
    """Steps that the newest world made again."""
    first: int = attempt.steps_of_newest()[0]["step"]
    return attempt.last_step_before_newest() - first + 1


def node_of_rank(attempt: Attempt, agents: NetworkAgents, rank: int) -> str:
    workers = attempt.of_kind("world")[-1]["workers"]
    return next(str(worker["node"]) for worker in workers if worker["rank"] == rank)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_node_costs_one_step_at_most(begin: Begin, victim: int) -> None:
    """Every process of one node of three is killed: the other two go on from memory, with one step redone at most, and
    after the end no process is left anywhere."""
    attempt, agents = begin(3)
    attempt.until_steps(3)
    node = agents.nodes[node_of_rank(attempt, agents, victim)]
    assert node.kill() >= 2
    attempt.until_steps(2)
    assert redone(attempt) <= 1
    (lost,) = attempt.of_kind("world_lost")
    assert lost["reason"] == "WorkerLost"
    assert attempt.finish().reason == "Stopped"
    assert pids_left(list(agents.nodes.values())) == []


@pytest.mark.parametrize("how", ["frozen", "cut off"])
def test_a_node_that_falls_silent_is_left_behind(begin: Begin, how: str) -> None:
    """A node that is frozen, or whose cable is pulled, is given up: nobody gets an error from it, its silence decides. When
    it comes back it does no harm, and is a node again."""
    attempt, agents = begin(3)
    attempt.until_steps(3)
    node = agents.nodes[node_of_rank(attempt, agents, 1)]
    node.freeze() if how == "frozen" else node.pull_cable()
    attempt.until_steps(2)
    assert redone(attempt) <= 1
    node.thaw() if how == "frozen" else node.plug_cable()
    attempt.until_steps(3)
    assert redone(attempt) <= 0
    assert attempt.finish().reason == "Stopped"
    assert pids_left(list(agents.nodes.values())) == []


def test_a_joining_node_costs_no_step(begin: Begin) -> None:
    """A third node comes: the two go on until its worker is ready, and then all three from the very next step."""
    attempt, agents = begin(2)
    attempt.until_steps(2)
    agents.add()
    attempt.until_steps(3)
    assert redone(attempt) == 0
    assert attempt.finish().reason == "Stopped"


def test_two_nodes_lost_at_once_end_nothing(begin: Begin) -> None:
    """Two of three nodes are killed, so that a rank's shard and its replica are lost together: the one left begins again
    from what the store of checkpoints has (here: from nothing)."""
    attempt, agents = begin(3)
    attempt.until_steps(3)
    nodes = [agents.nodes[node_of_rank(attempt, agents, rank)] for rank in (1, 2)]
    for node in nodes:
        node.freeze()
    for node in nodes:
        node.kill()
    attempt.until_steps(1)
    assert attempt.steps_of_newest()[0]["step"] == 1
    assert attempt.finish().reason == "Stopped"
