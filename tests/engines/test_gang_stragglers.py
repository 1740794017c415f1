"""A rank that is slow by itself, in a gang in virtual time with the policies of a real one."""

from __future__ import annotations

from typing import Any

from orchestrator.platforms.engines.native.terms import MILLISECOND, Judgements
from orchestrator.policy.stragglers import FOUND_WITHIN_STEPS
from tests.engines.gang_world import Cluster

FAST, SLOW = 60 * MILLISECOND, 190 * MILLISECOND
"""Of a step of 200 ms."""


def working(cluster: Cluster, **slow: int) -> None:
    """From now on each worker tells its own work, by its node."""
    for agent in cluster.agents.values():
        for worker in agent.workers.values():
            worker.own_ns = slow.get(agent.node, FAST)


def train(nodes: str, sizes: tuple[int, ...], **settings: Any) -> Cluster:
    cluster = Cluster(sizes, judge=Judgements.learned, **settings)
    cluster.start_all(nodes)
    cluster.until(lambda: cluster.steady(sizes[-1]), 60)
    cluster.every(100 * MILLISECOND, lambda: working(cluster, b=SLOW))
    return cluster


def stragglers(cluster: Cluster) -> list[dict[str, Any]]:
    return [dict(event) for event in cluster.events if event["kind"] == "straggler"]


def lost(cluster: Cluster) -> list[Any]:
    return [event["reason"] for event in cluster.events if event["kind"] == "world_lost"]


def nodes(cluster: Cluster) -> set[str]:
    return {worker.agent.node for worker in cluster.members()}


def test_a_slow_rank_is_told_with_its_stack_and_its_node_left_out() -> None:
    """Found within the steps that are promised; the event has rank, node, figures and stack; then the world goes on with the
    others, no step is made again, and the node is not taken back for a while."""
    cluster = train("abc", (1, 2, 3))
    began = cluster.steps.get(1, 0)
    cluster.until(lambda: bool(stragglers(cluster)), 60)
    assert cluster.steps[1] - began <= FOUND_WITHIN_STEPS + 4
    (told,) = stragglers(cluster)
    assert (told["rank"], told["node"], told["slow"], told["stack"]) == (1, "b", True, "File loop.py, line 1")
    assert (round(told["own_seconds"], 2), round(told["others_seconds"], 2)) == (0.19, 0.06)
    assert told["message"].startswith("rank 1 on b is slow: 0.19 s of work of its own a step, 3.17 times the others'")
    cluster.until(lambda: cluster.gang.generation == 2 and cluster.steady(2), 60)
    assert nodes(cluster) == {"a", "c"}
    assert lost(cluster) == ["Resized"]
    assert cluster.started_from[2] == cluster.steps[1]
    cluster.run(60.0)
    assert (cluster.gang.generation, len(stragglers(cluster))) == (2, 1)


def test_with_room_elsewhere_the_gang_keeps_its_size() -> None:
    """A fourth node takes the place of the slow one."""
    cluster = train("abc", (1, 2, 3))
    cluster.start_all("d")
    cluster.until(lambda: cluster.gang.generation == 2 and cluster.steady(3), 90)
    assert nodes(cluster) == {"a", "c", "d"}


def test_where_nothing_is_gained_it_is_only_told() -> None:
    """A gang that has to have three keeps the slow one; the next transition, with a fourth node there, goes without it."""
    cluster = train("abc", (3,))
    cluster.until(lambda: bool(stragglers(cluster)), 60)
    cluster.run(20.0)
    assert (cluster.gang.generation, nodes(cluster)) == (1, {"a", "b", "c"})
    quick = train("abc", (3,))
    quick.until(lambda: bool(stragglers(quick)), 60)
    quick.start_all("d")
    quick.until(lambda: quick.gang.generation == 2 and quick.steady(3), 60)
    assert nodes(quick) == {"a", "c", "d"}


def test_stacks_that_do_not_come_are_not_waited_for() -> None:
    """A rank whose agent hands no stack out is told all the same."""
    cluster = train("abc", (3,))
    cluster.gang.heard = _without_stacks(cluster.gang.heard)  # type: ignore[method-assign]
    cluster.until(lambda: bool(stragglers(cluster)), 60)
    assert stragglers(cluster)[0]["stack"].startswith("(no answer")


def _without_stacks(heard: Any) -> Any:
    from orchestrator.platforms.engines.native.messages import Beat, Stacks

    return lambda agent, message, now_ns: heard(agent, Beat(()) if isinstance(message, Stacks) else message, now_ns)


def test_nobody_who_does_not_tell_is_slow_and_equals_are_not() -> None:
    """Loops that tell nothing of their own work, and ranks that all take the same, are left in peace."""
    cluster = Cluster((1, 2, 3), judge=Judgements.learned)
    cluster.start_all("abc")
    cluster.until(lambda: cluster.steady(3), 60)
    cluster.run(60.0)
    cluster.every(100 * MILLISECOND, lambda: working(cluster))
    cluster.run(60.0)
    assert (stragglers(cluster), cluster.gang.generation) == ([], 1)
