"""How the elastic gang changes its size by its own will: nodes come, nodes are announced to go, sizes are wished for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.domain.notices import NoticeKind
from orchestrator.domain.offerings import CapacityType
from orchestrator.platforms.engines.native import messages as m
from orchestrator.platforms.engines.native.commands import Tell
from orchestrator.platforms.engines.native.gang import State
from orchestrator.platforms.engines.native.terms import SECOND, Judgements, Terms
from orchestrator.policy.elasticity import Decision
from orchestrator.policy.hazard import Observed
from tests.engines.gang_world import Cluster, SimAgent


def gang_on(nodes: str, **more: Any) -> Cluster:
    cluster = Cluster(**more)
    cluster.start_all(nodes)
    cluster.until(lambda: cluster.steady(len(nodes)) and cluster.steps.get(1, 0) >= 2)
    return cluster


def agent_of(cluster: Cluster, node: str) -> SimAgent:
    return next(a for a in cluster.agents.values() if a.node == node and a.alive)


def lost(cluster: Cluster) -> list[str]:
    return [event["reason"] for event in cluster.events if event["kind"] == "world_lost"]


def test_a_node_that_comes_is_taken_in_and_no_step_is_lost() -> None:
    """The world grows when a standby is ready there, from the very step at which the smaller one stopped."""
    cluster = gang_on("ab")
    cluster.start("c")
    cluster.until(lambda: cluster.steady(3))
    assert cluster.started_from[2] == cluster.steps[1]
    assert lost(cluster) == ["Joined"]


def test_growth_is_a_judgement() -> None:
    """While it is not worth it, the world stays as it is."""
    cluster = Cluster()
    cluster.judgements = cluster.gang.judgements
    object.__setattr__(cluster.judgements, "grow_to", lambda now, present, possible: present)
    for node in "ab":
        cluster.start(node)
    cluster.until(lambda: cluster.steady(2))
    cluster.start("c")
    cluster.run(10)
    assert cluster.steady(2)
    assert cluster.gang.generation == 1


def test_sizes_between_are_skipped() -> None:
    """With sizes 1, 2 and 4 three nodes train as two."""
    cluster = Cluster((1, 2, 4))
    for node in "abc":
        cluster.start(node)
    cluster.until(lambda: cluster.steady(2))
    cluster.start("d")
    cluster.until(lambda: cluster.steady(4))


def test_a_smaller_wish_is_granted_and_a_larger_one_again() -> None:
    """A wished size takes effect at a step's end, without losing one."""
    cluster = gang_on("abc")
    cluster.feed(cluster.gang.resize(1, cluster.now_ns))
    cluster.until(lambda: cluster.steady(1))
    assert cluster.wanted == 1
    assert cluster.started_from[2] == cluster.steps[1]
    cluster.feed(cluster.gang.resize(3, cluster.now_ns))
    cluster.until(lambda: cluster.steady(3))
    assert lost(cluster) == ["Resized", "Joined"]


def test_a_notice_is_answered_as_late_as_is_safe() -> None:
    """With 10 s to go and a lead of 1 s the world trains on, leaves the node in time, and loses no step."""
    cluster = gang_on("abc")
    cluster.notice(agent_of(cluster, "a"), 10.0)
    begun = cluster.now_ns
    cluster.run(8.5)
    assert cluster.gang.generation == 1
    cluster.until(lambda: cluster.steady(2))
    assert 8.5 * SECOND < cluster.now_ns - begun < 10.5 * SECOND
    assert cluster.started_from[2] == cluster.steps[1]
    cluster.kill_node(agent_of(cluster, "a"))
    cluster.run(5)
    assert cluster.gang.generation == 2
    assert lost(cluster) == ["Notice"]


def test_a_node_is_told_once_when_nothing_of_worth_is_left_on_it() -> None:
    """Not while the world stands on it, nor before the next world's own state is whole in two memories; then once, and only
    the node that was given notice."""
    cluster = gang_on("abc")
    cluster.notice(agent_of(cluster, "a"), 10.0)
    cluster.run(8.5)
    assert cluster.handed_over == []
    cluster.until(lambda: cluster.steady(2))
    assert cluster.handed_over == []
    cluster.until(lambda: cluster.handed_over != [])
    assert cluster.gang.world is not None
    assert cluster.gang.world.settled
    cluster.run(5)
    assert cluster.handed_over == ["a"]


def test_staggered_notices_are_one_transition() -> None:
    """Three nodes of four are announced to go one after the other; the world moves once."""
    cluster = gang_on("abcd", sizes=(1, 2, 3, 4))
    for number, node in enumerate("bca"):
        cluster.notice(agent_of(cluster, node), 6.0 + number)
        cluster.run(1.0)
    cluster.until(lambda: cluster.steady(1))
    cluster.run(5)
    assert cluster.gang.generation == 2
    assert lost(cluster) == ["Notice"]


def test_notices_without_a_deadline_are_answered_soon_and_together() -> None:
    """When nobody says until when, a short time gathers what comes."""
    cluster = gang_on("abc")
    cluster.notice(agent_of(cluster, "a"), None)
    cluster.run(0.1)
    cluster.notice(agent_of(cluster, "b"), None)
    cluster.until(lambda: cluster.steady(1))
    assert cluster.gang.generation == 2


def test_a_node_with_a_notice_is_no_capacity() -> None:
    """A world is never planned on it, not after a fault either; slots are wanted in its place."""
    cluster = gang_on("abc")
    cluster.notice(agent_of(cluster, "c"), 60.0)
    cluster.run(0.5)
    assert cluster.wanted == 4
    cluster.kill_node(agent_of(cluster, "a"))
    cluster.until(lambda: cluster.steady(1))
    cluster.run(5)
    assert cluster.steady(1)


def test_a_notice_for_all_asks_for_a_checkpoint() -> None:
    """When no world is possible without the nodes that go, the world trains on and is asked to save: at once, for a
    checkpoint may take most of the time that is left, and again at the last moment."""
    cluster = gang_on("abc")
    cluster.run(5)  # standbys are ready: until all are warned, a world without the others is possible
    for node in "abc":
        cluster.notice(agent_of(cluster, node), 60.0)
    cluster.run(3)
    assert cluster.saves == 1
    cluster.run(60)
    assert cluster.saves == 2
    assert cluster.steady(3)
    assert cluster.gang.generation == 1


def test_a_notice_that_is_withdrawn_changes_nothing() -> None:
    """And the node counts again."""
    cluster = gang_on("abc")
    cluster.notice(agent_of(cluster, "c"), 5.0)
    cluster.run(1)
    cluster.warned.clear()
    cluster.feed(cluster.gang.withdrawn("aws", "c", cluster.now_ns))
    cluster.run(8)
    assert cluster.gang.generation == 1
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.steady(3))


def test_advice_is_followed_when_another_node_can_take_the_place() -> None:
    """A node that may be taken is left at the next step for one that is ready, with nothing redone, and is no capacity until
    the advice is withdrawn."""
    cluster = Cluster((2,))
    cluster.start_all("ab")
    cluster.until(lambda: cluster.steady(2))
    cluster.feed(cluster.gang.noticed("aws", "a", NoticeKind.REBALANCE, None, cluster.now_ns))
    cluster.run(3)
    assert cluster.gang.generation == 1
    cluster.start("c")
    cluster.until(lambda: cluster.gang.generation == 2 and cluster.steady(2))
    assert cluster.gang.world is not None
    assert cluster.gang.world.nodes == {"b", "c"}
    assert lost(cluster) == ["Notice"]
    cluster.kill_node(agent_of(cluster, "c"))
    cluster.run(5)
    assert not cluster.steady(2)
    cluster.feed(cluster.gang.withdrawn("aws", "a", cluster.now_ns))
    cluster.until(lambda: cluster.steady(2))


def test_advice_and_far_deadlines_change_nothing_yet() -> None:
    """A rebalance recommendation while all nodes are needed, and maintenance of next week."""
    cluster = gang_on("abc")
    gang = cluster.gang
    cluster.feed(gang.noticed("aws", "a", NoticeKind.REBALANCE, None, cluster.now_ns))
    cluster.feed(gang.noticed("gcp", "b", NoticeKind.MAINTENANCE, cluster.now_ns + 7 * 86_400 * SECOND, cluster.now_ns))
    cluster.run(3)
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.steady(3))


def test_a_noticed_node_that_dies_early_was_preempted() -> None:
    """The reason of the lost world says so."""
    cluster = gang_on("abc")
    cluster.notice(agent_of(cluster, "c"), 30.0)
    cluster.run(1)
    cluster.kill_node(agent_of(cluster, "c"))
    cluster.until(lambda: cluster.steady(2))
    assert lost(cluster) == ["Preempted"]


def test_a_new_node_of_the_same_name_is_trusted() -> None:
    """After the warned node is gone, another agent on a node of that name is capacity."""
    cluster = gang_on("abc")
    cluster.notice(agent_of(cluster, "c"), 2.0)
    cluster.until(lambda: cluster.steady(2))
    cluster.kill_node(agent_of(cluster, "c"))
    cluster.run(1)
    cluster.warned.clear()
    cluster.start("c")
    cluster.until(lambda: cluster.steady(3))


def test_a_loop_that_does_not_know_the_wish_goes_on() -> None:
    """When nobody leaves, the world is left alone for as long as it lives."""
    cluster = gang_on("ab", loops_hear_regroup=False, hang_ns=None)
    cluster.start("c")
    cluster.run(20)
    assert cluster.steady(2)
    assert cluster.gang.generation == 1
    asked = [c for c in cluster.commands if isinstance(c, Tell) and isinstance(c.message, m.Regroup)]
    assert len(asked) == 2


def test_a_death_while_regrouping_is_a_loss() -> None:
    """The others' state is kept, and a world without the dead node follows."""
    cluster = gang_on("abc")
    cluster.feed(cluster.gang.resize(2, cluster.now_ns))
    cluster.until(lambda: cluster.gang.state is State.REGROUPING)
    cluster.kill_node(agent_of(cluster, "a"))
    cluster.until(lambda: cluster.steady(2))
    assert cluster.started_from[2] == cluster.steps[1]
    assert lost(cluster) == ["WorkerLost"]


def test_old_state_is_let_go_when_the_new_is_safe() -> None:
    """Agents are told once that older generations are not needed, after a step of the new one is in two memories."""
    cluster = gang_on("abc")
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.steady(3))
    cluster.run(5)
    forgets = [c.message for c in cluster.commands if isinstance(c, Tell) and isinstance(c.message, m.Forget)]
    assert {message.generation for message in forgets} == {2}
    assert len(forgets) == 3
    assert all(key[0] == 2 for agent in cluster.agents.values() for key in agent.memory)


def test_several_slots_a_node_and_several_ranks_a_worker() -> None:
    """Ranks of a node are neighbours; a copy of each shard lies on another node; a lost rank costs its whole worker."""
    cluster = Cluster((1, 2, 3, 4), ranks_per_worker=2)
    cluster.start_all("ab", slots=2)
    cluster.until(lambda: cluster.steady(8))
    assert cluster.gang.world is not None
    assert [member.node for member in cluster.gang.world.members] == list("aaaabbbb")
    assert [member.local_rank for member in cluster.gang.world.members] == [0, 1, 2, 3] * 2
    assert {member.local_world_size for member in cluster.gang.world.members} == {4}
    for plan in cluster.past:
        assert plan.replica is not None
        assert plan.replica[0] == ("b" if plan.rank < 4 else "a")
    cluster.kill_node(agent_of(cluster, "a"))
    cluster.until(lambda: cluster.steady(4))


def test_a_new_coordinator_takes_the_running_world_over() -> None:
    """1. A world runs. 2. Its coordinator is gone. 3. Another hears the agents' hellos and goes on in the same
    generation, without a plan. 4. A later fault finds the state."""
    cluster = gang_on("abc")
    cluster.new_coordinator()
    steps = cluster.steps[1]
    cluster.until(lambda: cluster.steady(3))
    cluster.run(3)
    assert cluster.gang.generation == 1
    assert cluster.steps[1] > steps
    cluster.kill_node(agent_of(cluster, "b"))
    cluster.until(lambda: cluster.steady(2))
    assert cluster.started_from[2] == cluster.steps[1]


def test_a_rank_that_an_older_world_left_behind_is_ended_when_a_later_one_is_taken_over() -> None:
    """1. A node is away while its world is given up and another runs. 2. The coordinator is gone. 3. All nodes come to the
    next one, the old rank among them: the later world goes on, and the old rank does not."""
    cluster = gang_on("ab", sizes=(2,))
    cluster.start("c")
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.steady(2) and cluster.gang.generation == 2)
    cluster.until(lambda: any(w.state == m.READY for w in agent_of(cluster, "c").workers.values()))
    left = next(w for w in agent_of(cluster, "c").workers.values() if w.alive and not w.generation)
    left.plan, left.generation, left.state = replace(cluster.past[0], worker=left.worker), 1, m.FORMING
    left.frozen = True
    cluster.new_coordinator()
    cluster.until(lambda: cluster.steady(2))
    cluster.run(1)
    assert cluster.gang.generation == 2
    assert not left.alive


def test_a_new_coordinator_that_misses_a_member_makes_a_new_world() -> None:
    """When not all of the old world comes back in time, it is ended, and a new world begins from its state. Generation 2 is
    left out: the coordinator before may have planned it, unheard."""
    cluster = gang_on("abc")
    cluster.new_coordinator()
    cluster.kill_node(agent_of(cluster, "b"))
    cluster.until(lambda: cluster.steady(2))
    assert cluster.gang.generation == 3
    assert cluster.started_from[3] == cluster.steps[1]


def test_stopping_changes_no_size() -> None:
    """A gang that was asked to stop does not regroup any more; one that waits for workers ends at once."""
    cluster = gang_on("ab")
    cluster.feed(cluster.gang.stopping(cluster.now_ns))
    cluster.start("c")
    cluster.run(5)
    assert cluster.gang.generation == 1
    waiting = Cluster((2,))
    waiting.start("a")
    waiting.run(2)
    waiting.feed(waiting.gang.stopping(waiting.now_ns))
    waiting.run(1)
    assert waiting.outcome is not None
    assert waiting.outcome.reason == "Stopped"


def test_a_first_world_gathers_the_whole_gang_for_a_while() -> None:
    """With fewer than wished the first world waits a moment for the others, and then begins without them."""
    cluster = Cluster()
    cluster.start("a")
    cluster.run(0.8)
    assert cluster.gang.generation == 0
    cluster.start("b")
    cluster.until(lambda: cluster.steady())
    assert cluster.gang.generation == 1
    assert cluster.steady(2)


def test_growth_goes_to_the_size_that_the_policy_names() -> None:
    """Two more nodes are ready; the policy wants one of them, and the next world has three members."""
    cluster = gang_on("ab", sizes=(1, 2, 3, 4))
    object.__setattr__(cluster.judgements, "grow_to", lambda now, present, possible: max(present, min(3, possible)))
    cluster.start("c")
    cluster.start("d")
    cluster.until(lambda: cluster.gang.generation == 2 and cluster.steady())
    cluster.run(5)
    assert cluster.steady(3)
    assert cluster.gang.generation == 2
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.gang.generation == 3 and cluster.steady(4))


def test_decisions_are_events() -> None:
    """What the judgements decided is reported, with its word and reason."""
    cluster = gang_on("ab")
    decided = [Decision("Stay", "stay at 2 though 3 could train")]
    object.__setattr__(cluster.judgements, "decisions", lambda: [decided.pop()] if decided else [])
    cluster.run(1)
    (event,) = [event for event in cluster.events if event["kind"] == "decision"]
    assert (event["decision"], event["message"]) == ("Stay", "stay at 2 though 3 could train")


def test_nodes_that_the_market_takes_count_as_spot() -> None:
    """Those of a job rented so, and of another whose cloud announced to take one back; what other jobs saw is known."""
    world: dict[str, Any] = {"kind": "world", "world_size": 2, "workers": [{"node": "a"}, {"node": "b"}]}
    notice = {"kind": "notice", "notice": {"node": "a", "kind": "interruption"}}
    seen = {CapacityType.SPOT: Observed(3, 100.0)}
    for terms, events, kinds in (
        (Terms((1, 2), capacity=CapacityType.SPOT, observed=seen), [world], {CapacityType.SPOT: 2}),
        (Terms((1, 2)), [world], {CapacityType.ON_DEMAND: 2}),
        (Terms((1, 2)), [notice, world], {CapacityType.SPOT: 1, CapacityType.ON_DEMAND: 1}),
    ):
        judgements = Judgements.learned(terms)
        for event in events:
            judgements.hear(0, event)
        policy = judgements.grow_to.__self__  # type: ignore[attr-defined]
        assert policy.sense._machines == kinds
        assert policy.sense.observed.get(CapacityType.SPOT) == (seen[CapacityType.SPOT] if terms.observed else None)
