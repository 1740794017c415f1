"""A gang whose processes go on from world to world, and whose slots keep nobody beside them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from orchestrator.platforms.engines.native.gang import State
from orchestrator.platforms.engines.native.terms import MILLISECOND, SECOND
from tests.engines.gang_world import QUICK, Cluster


def growths(cluster: Cluster) -> list[int]:
    """When worlds ended to grow, in nanoseconds."""
    return [event["began_ns"] for event in cluster.events if event.get("reason") == "Joined"]


def test_a_gang_that_loses_a_process_in_each_change_comes_to_its_size() -> None:
    """1. Processes have two lives; a world of four is to have six, and two of the four have had theirs. 2. It goes on with
    four, of which again some have had theirs when it grows anew. 3. The second time fresh ones are waited for."""
    cluster = Cluster((2, 4, 6), lives=2)
    cluster.start_all("ab")
    cluster.until(lambda: cluster.steady(2))
    cluster.start_all("cd")
    cluster.until(lambda: cluster.steady(4))
    cluster.start_all("ef")
    cluster.until(lambda: cluster.steady(6))
    assert [event["world_size"] for event in cluster.events if event["kind"] == "world"] == [2, 4, 4, 6]
    cluster.run(20)
    assert len(growths(cluster)) == 3


def test_a_gang_that_grows_in_vain_tries_ever_more_seldom() -> None:
    """When no process comes back and fresh ones are slower than they are waited for, the pauses between one growth and the
    next become longer, until they are 64 times the time that standbys are gathered for."""
    gather_ns = 100 * MILLISECOND
    limits = replace(QUICK, gather_ns=gather_ns)
    cluster = Cluster((1, 2), lives=16, unfit=1.0, limits=limits, warm_ns=(900 * MILLISECOND, 1_000 * MILLISECOND))
    cluster.start_all("ab")
    cluster.until(lambda: cluster.steady(2))
    cluster.kill_worker(cluster.members()[0])
    cluster.run(90)
    pauses = [later - earlier for earlier, later in pairwise(growths(cluster))]
    assert pauses[0] < 3 * SECOND
    assert 64 * gather_ns < pauses[-1] < 64 * gather_ns + 3 * SECOND
    assert len(pauses) < 20


def test_a_world_that_did_not_come_back_is_followed_at_once() -> None:
    """1. A new coordinator waits for the world of the one before, of which a member is gone. 2. With the word that it waits
    no more it looks for the state to go on from."""
    cluster = Cluster()
    cluster.start_all("abc")
    cluster.until(lambda: cluster.steady(3) and cluster.steps.get(1, 0) >= 2)
    cluster.new_coordinator()
    cluster.kill_node(next(agent for agent in cluster.agents.values() if agent.node == "b"))
    cluster.until(lambda: cluster.gang.generation == 1)
    cluster.until(lambda: cluster.gang.generation == 2)
    assert cluster.gang.state is State.DECIDING
