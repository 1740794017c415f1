"""What the elastic gang does when something breaks, the second fault while a world forms first of all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.platforms.engines.base import Outcome
from orchestrator.platforms.engines.native import messages as m
from orchestrator.platforms.engines.native.commands import Tell
from orchestrator.platforms.engines.native.gang import State
from orchestrator.platforms.engines.native.terms import SECOND
from tests.engines.gang_world import QUICK, Cluster, SimAgent


def three(**more: Any) -> Cluster:
    """Three nodes with a slot each, and a world of three that steps."""
    cluster = Cluster(**more)
    cluster.start_all("abc")
    cluster.until(lambda: cluster.steady(3) and cluster.steps.get(1, 0) >= 3)
    return cluster


def agent_of(cluster: Cluster, node: str) -> SimAgent:
    return next(a for a in cluster.agents.values() if a.node == node and a.alive)


def lost(cluster: Cluster) -> list[str]:
    return [event["reason"] for event in cluster.events if event["kind"] == "world_lost"]


@pytest.mark.parametrize("second", ["node", "worker"])
def test_a_second_fault_while_forming_makes_another_generation(second: str) -> None:
    """1. A node of three dies. 2. The world of two is planned. 3. Before it runs, another of its nodes or workers dies.
    4. A third world runs, from the step that was whole, and nothing of the second ever ran."""
    cluster = three()
    cluster.kill_node(agent_of(cluster, "c"))
    cluster.until(lambda: cluster.gang.state is State.FORMING)
    assert cluster.gang.generation == 2
    done = cluster.steps[1]
    if second == "worker":
        cluster.kill_worker(cluster.members()[1])
    else:
        cluster.kill_node(agent_of(cluster, "b"))
    cluster.until(lambda: cluster.steady() and cluster.gang.generation == 3)
    cluster.run(2)
    assert 2 not in cluster.steps
    if second == "worker":
        assert cluster.started_from[3] == done
        assert cluster.steady(2)
    else:  # c kept the copy of b's shard: no step is whole any more
        assert cluster.started_from[3] is None
        assert cluster.steady(1)
    assert cluster.steps[3] > 3
    assert [event["generation"] for event in cluster.events if event["kind"] == "world_lost"] == [1, 2]


@pytest.mark.parametrize("node", ["a", "b", "c"])
def test_a_lost_node_costs_no_finished_step(node: str) -> None:
    """Whichever node dies, that of rank 0 too, the others go on from the last step that all had finished."""
    cluster = three()
    cluster.kill_node(agent_of(cluster, node))
    cluster.until(lambda: cluster.steady(2))
    assert cluster.started_from[2] == cluster.steps[1]
    assert lost(cluster) == ["WorkerLost"]


def test_ranks_stay_where_they_were() -> None:
    """After a worker's death the new world has the same order of nodes; a node that came later comes last."""
    cluster = three()
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.steady(3) and cluster.gang.generation == 2)
    assert [member.node for member in cluster.gang.world.members] == ["a", "b", "c"]  # type: ignore[union-attr]
    assert cluster.started_from[2] == cluster.steps[1]


def test_a_node_that_falls_silent_is_lost() -> None:
    """A frozen node breaks no connection; the beats that do not come tell."""
    cluster = three()
    frozen = agent_of(cluster, "b")
    frozen.frozen = True
    cluster.until(lambda: cluster.steady(2))
    assert lost(cluster) == ["WorkerLost"]


def test_a_coordinator_that_did_not_run_blames_nobody() -> None:
    """After a pause of the coordinator itself no agent counts as silent."""
    cluster = three()
    cluster.now_ns += 30 * 10**9
    cluster.run(1)
    assert cluster.steady(3)
    assert cluster.gang.generation == 1


def test_a_node_that_was_cut_off_comes_back_without_its_old_workers() -> None:
    """Its members are ended, its state is not used for an old world, and it is taken in again."""
    cluster = three()
    cut = agent_of(cluster, "b")
    cluster.cut(cut)
    cluster.until(lambda: cluster.steady(2))
    cluster.heal(cut)
    cluster.until(lambda: cluster.steady(3))
    assert lost(cluster) == ["WorkerLost", "Joined"]
    assert not [w for w in cut.workers.values() if w.alive and w.generation == 1]


def test_a_worker_that_stands_still_is_told_with_its_stack() -> None:
    """One rank is stopped: all stop stepping, stacks are asked for, and who does not answer is the one."""
    cluster = three()
    cluster.members()[1].frozen = True
    cluster.until(lambda: cluster.steady() and cluster.gang.generation == 2)
    hung = [event for event in cluster.events if event["kind"] == "hung"]
    assert [event["rank"] for event in hung] == [1]
    assert lost(cluster) == ["Hung"]
    assert cluster.started_from[2] == cluster.steps[1]


def test_a_world_that_does_not_form_is_given_up() -> None:
    """A member that hangs while forming is ended at the deadline, and the next world runs without its slot."""
    cluster = three()
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.gang.state is State.FORMING)
    cluster.until(lambda: all(worker.state == m.FORMING for worker in cluster.members()))
    cluster.members()[2].frozen = True
    for worker in cluster.members()[:2]:
        worker.state = m.RUNNING
    cluster.until(lambda: cluster.steady(2) and cluster.gang.generation == 3)
    assert lost(cluster) == ["WorkerLost", "Hung"]
    cluster.until(lambda: cluster.steady(3), 60)  # the slot is trusted again after a while


def test_a_gang_of_one_size_waits_for_a_slot() -> None:
    """Without room for its size a gang waits, keeps its state, and goes on where it was when a node comes."""
    cluster = three(sizes=(3,))
    done_on = agent_of(cluster, "c")
    cluster.kill_node(done_on)
    cluster.until(lambda: cluster.gang.state is State.WAITING)
    cluster.run(10)
    assert cluster.gang.state is State.WAITING
    cluster.start("d")
    cluster.until(lambda: cluster.steady(3))
    assert cluster.started_from[2] == cluster.steps[1]


def test_patience_ends() -> None:
    """A gang that finds no replacement ends as WorkerLost, saying what it had, so that another attempt can be made."""
    cluster = three(sizes=(3,))
    cluster.kill_node(agent_of(cluster, "c"))
    cluster.run(70)
    assert cluster.outcome is not None
    assert cluster.outcome.reason == "WorkerLost"
    assert "2 agents, 2 workers ready" in cluster.outcome.message


def test_a_gang_that_is_not_elastic_ends_at_the_first_loss() -> None:
    """The attempt ends, with the rank that died, also when other ranks told of broken connections first."""
    cluster = three(sizes=(3,), elastic=False)
    members = cluster.members()
    cluster.kill_worker(members[0], "ApplicationError", collateral=True)
    cluster.run(0.05)
    cluster.kill_worker(members[1])
    cluster.run(5)
    assert cluster.outcome is not None
    assert cluster.outcome.reason == "WorkerLost"
    assert cluster.outcome.message == "rank 1 (process 4711 on host-b) died: killed by signal 9"


def test_an_error_of_the_job_ends_the_attempt() -> None:
    """A rank's own reason is the outcome, of several the one that is not the user's code; the others are ended."""
    cluster = three()
    members = cluster.members()
    cluster.kill_worker(members[0], "ApplicationError", collateral=True)
    cluster.kill_worker(members[1], "ApplicationError")
    cluster.kill_worker(members[2], "DataInvalid")
    cluster.run(5)
    assert cluster.outcome is not None
    assert (cluster.outcome.reason, cluster.outcome.message[:6]) == ("DataInvalid", "rank 2")


def test_ranks_that_lost_peers_without_a_cause_form_another_world() -> None:
    """When no process died and no rank tells more, the world is made anew after the time of grace."""
    cluster = three()
    cluster.kill_worker(cluster.members()[2], "ApplicationError", collateral=True)
    cluster.until(lambda: cluster.steady(3) and cluster.gang.generation == 2)
    assert lost(cluster) == ["WorkerLost"]


def test_worlds_that_never_step_end_the_attempt() -> None:
    """A job whose every world dies before its first step is not tried for ever."""
    cluster = Cluster((2,))
    for node in "ab":
        cluster.start(node)
    while cluster.outcome is None:
        cluster.until(lambda: cluster.outcome is not None or cluster.gang.state is State.FORMING)
        if cluster.outcome is None:
            cluster.kill_worker(cluster.members()[0])
            cluster.run(0.2)
    assert cluster.outcome.reason == "WorkerLost"
    assert "5 worlds in a row" in cluster.outcome.message
    assert cluster.gang.generation == 5


def test_all_state_lost_at_once_goes_back_to_the_checkpoint() -> None:
    """When a shard is in no memory any more, the plan names no source."""
    cluster = three(sizes=(1, 2, 3))
    cluster.kill_node(agent_of(cluster, "a"))
    cluster.kill_node(agent_of(cluster, "b"))
    cluster.until(lambda: cluster.steady(1))
    assert cluster.started_from[2] is None


def test_what_an_older_generation_says_changes_nothing() -> None:
    """Beats, ends and inventories of the past are heard, and nothing follows."""
    cluster = three()
    old = [plan.worker for plan in cluster.past]
    cluster.kill_node(agent_of(cluster, "c"))
    cluster.until(lambda: cluster.steady(2))
    gang = cluster.gang
    cluster.feed(gang.tick(cluster.now_ns))
    before = (gang.state, gang.generation, gang.world)
    for worker in old[:2]:
        agent = next(iter(cluster.agents))
        stale: list[Any] = [
            m.Left(worker, 1, "ApplicationError", "long ago"),
            m.Left(worker, 1, "Completed", result={"reason": "Completed"}),
            m.Beat((m.WorkerBeat(worker, m.RUNNING, 1, 99, 10**12),)),
            m.Inventory(0, (m.Shard(1, 1, 0, 10**6),)),
            m.Stacks(worker, "..."),
        ]
        for message in stale:
            commands = gang.heard(agent, message, cluster.now_ns)
            assert [c for c in commands if not (isinstance(c, Tell) and isinstance(c.message, m.Kill))] == []
            assert (gang.state, gang.generation, gang.world) == before


def test_the_end_of_a_job_is_rank_0s() -> None:
    """When all ranks have finished, rank 0's result is the outcome; a node lost meanwhile does not undo it."""
    cluster = three()
    zero, one, two = cluster.members()
    result = {"outcome": "succeeded", "reason": "Completed", "step": 7}
    cluster._leave(zero, "Completed", result=result)
    cluster._leave(one, "Completed", result={"reason": "Completed"})
    cluster.run(0.05)
    assert cluster.outcome is None
    cluster.kill_worker(two)
    cluster.run(5)
    assert cluster.outcome is not None
    assert (cluster.outcome.reason, cluster.outcome.result) == ("Completed", result)


def test_standbys_that_cannot_start_tell_why() -> None:
    """When no worker ever gets ready, the attempt ends with what the last of them said, and does not try for ever."""
    cluster = Cluster((1,))
    agent = cluster.start("a")
    for _ in range(3):
        cluster.until(lambda: bool(agent.workers))
        cluster.kill_worker(next(iter(agent.workers.values())), "ApplicationError")
    cluster.run(5)
    assert cluster.outcome is not None
    assert cluster.outcome.reason == "ApplicationError"
    assert "no worker could be made ready" in cluster.outcome.message


def test_a_slot_that_is_needed_is_used_although_its_worker_did_not_answer() -> None:
    """1. One node after the other has its worker stopped, and its slot is put aside for ten minutes. 2. With the last of them a
    world of one could not be had any more. 3. The slot that would be free soonest is used at once."""
    cluster = three(limits=replace(QUICK, suspect_ns=600 * SECOND), hang_ns=None)
    first = cluster.members()[0].agent
    for size in (2, 1, 1):
        stopped = cluster.members()[0]
        stopped.frozen, cluster.stopped[stopped.worker] = True, cluster.now_ns
        cluster.until(lambda: cluster.gang.state is not State.STEADY, seconds=4)
        cluster.until(cluster.steady, seconds=3)
        assert cluster.steady(size)
    assert cluster.members()[0].agent == first


def test_a_world_on_one_node_keeps_copies_with_whoever_else_is_there() -> None:
    """1. The gang shrinks to one worker of three nodes. 2. The agent that keeps its copies is lost: another gets them. 3. The
    worker's own node is lost: the next world begins with the last step, from memory."""
    cluster = three()
    cluster.feed(cluster.gang.resize(1, cluster.now_ns))
    cluster.until(lambda: cluster.steady(1) and cluster.steps.get(2, 0) > cluster.steps[1] + 1)
    world = cluster.gang.world
    assert world is not None
    cluster.kill_node(cluster.agents[world.spares[0]])
    before = cluster.steps[2]
    cluster.until(lambda: cluster.steps[2] > before + 40)
    cluster.kill_node(cluster.members()[0].agent)
    done = cluster.steps[2]
    cluster.until(lambda: cluster.steady(1) and cluster.gang.generation == 3)
    assert cluster.started_from[3] == done


def test_a_node_that_comes_late_keeps_copies_too() -> None:
    """A world of one has nobody for its copies until a second node comes, before which the gang does not grow."""
    cluster = Cluster((1,))
    cluster.start("a")
    cluster.until(lambda: cluster.steady(1) and cluster.steps.get(1, 0) >= 3)
    cluster.start("b")
    before = cluster.steps[1]
    cluster.until(lambda: cluster.steps[1] > before + 40)
    cluster.kill_node(agent_of(cluster, "a"))
    done = cluster.steps[1]
    cluster.until(lambda: cluster.steady(1) and cluster.gang.generation == 2)
    assert cluster.started_from[2] == done


def test_a_kill_ends_everything() -> None:
    """`end` ends a world in any state, and nothing of it is left."""
    cluster = three()
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.gang.state is State.FORMING)
    cluster.feed(cluster.gang.end(Outcome("WorkerLost", "the gang was killed"), cluster.now_ns))
    cluster.run(5)
    assert cluster.outcome == Outcome("WorkerLost", "the gang was killed")
    assert not [w for agent in cluster.agents.values() for w in agent.workers.values() if w.alive and w.generation]


def test_a_world_that_does_not_form_is_given_up_as_soon_as_earlier_ones_allow() -> None:
    """With a limit that was learned, a member that hangs while forming is found long before the bound for all."""
    cluster = three(limits=replace(QUICK, forming_ns=600 * SECOND))
    object.__setattr__(cluster.judgements, "forming_limit_ns", lambda: 3 * SECOND)
    cluster.kill_worker(cluster.members()[2])
    cluster.until(lambda: cluster.gang.state is State.FORMING)
    cluster.members()[1].frozen = True
    cluster.until(lambda: cluster.steady() and cluster.gang.generation == 3, seconds=10)
    assert lost(cluster) == ["WorkerLost", "Hung"]


@pytest.mark.parametrize("state", [State.STEADY, State.FORMING, State.REGROUPING])
def test_a_stopped_member_is_found_in_every_state(state: State) -> None:
    """Three seconds after SIGSTOP a member is given up, however long the gang would wait for one that runs: also while it
    forms, and while it makes its last step before another size."""
    patient = replace(QUICK, forming_ns=600 * SECOND, regroup_ns=600 * SECOND, quiet_ns=600 * SECOND)
    cluster = three(limits=patient, hang_ns=None)
    generation = cluster.gang.generation
    if state is State.FORMING:
        cluster.kill_worker(cluster.members()[2])
        cluster.until(lambda: cluster.gang.state is State.FORMING)
        generation += 1
    stopped = cluster.members()[1]
    if state is State.REGROUPING:
        cluster.feed(cluster.gang.resize(2, cluster.now_ns))
        cluster.until(lambda: cluster.gang.state is State.REGROUPING)
    stopped.frozen = True
    cluster.stopped[stopped.worker], began_ns = cluster.now_ns, cluster.now_ns
    assert (cluster.gang.generation, cluster.gang.state) == (generation, state)
    cluster.until(lambda: cluster.gang.generation > generation and cluster.steady(), seconds=6)
    assert lost(cluster)[-1] == "Hung"
    assert cluster.now_ns - began_ns < 5 * SECOND
    assert stopped.worker not in {member.worker for member in cluster.members()}


@pytest.mark.parametrize("state", [State.STEADY, State.FORMING])
def test_ranks_that_get_no_processor_do_not_hang(state: State) -> None:
    """The same standstill is no hang while one of the ranks waits for a processor all the time; for ten times as long it is."""
    cluster = three(limits=replace(QUICK, quiet_ns=600 * SECOND))
    if state is State.FORMING:
        cluster.kill_worker(cluster.members()[2])
        cluster.until(lambda: cluster.gang.state is State.FORMING)
    stopped = cluster.members()[1]
    stopped.frozen, generation, began_ns = True, cluster.gang.generation, cluster.now_ns
    cluster.starved = {stopped.worker}
    cluster.run(8)
    assert (cluster.gang.generation, cluster.gang.state) == (generation, state)
    cluster.until(lambda: cluster.gang.generation > generation, seconds=40)
    assert cluster.now_ns - began_ns > 9 * SECOND


def test_standbys_warm_beside_a_world_that_forms_for_long() -> None:
    """At first it has the processors to itself; one that takes longer gets its standbys, so that the next loss finds them."""
    cluster = three(limits=replace(QUICK, forming_ns=60 * SECOND, forming_alone_ns=2 * SECOND))
    cluster.kill_worker(cluster.members()[2])
    cluster.until(lambda: cluster.gang.state is State.FORMING)
    cluster.members()[1].frozen = True
    spawned = [
        command for command in cluster.commands if isinstance(command, Tell) and isinstance(command.message, m.Spawn)
    ]
    cluster.run(1.5)
    after = [
        command for command in cluster.commands if isinstance(command, Tell) and isinstance(command.message, m.Spawn)
    ]
    assert len(after) == len(spawned)
    cluster.until(lambda: all(a.standbys(m.READY) for a in cluster.gang.roster.agents.values()), seconds=5)
    assert cluster.gang.state is State.FORMING


def test_members_of_an_older_world_are_ended_when_a_newer_one_is_taken_over() -> None:
    """1. Two of three nodes train; one is cut off with its member. 2. The others train on. 3. The coordinator is lost, and the
    cable is back. 4. The next one hears the node that was cut off first: it takes over the newer world, and ends the member
    of the older one."""
    cluster = Cluster((2,))
    cluster.start_all("abc")
    cluster.until(lambda: cluster.steady(2))
    old = cluster.members()[0]
    cut = old.agent
    cluster.cut(cut)
    old.frozen = True  # it will wait for a peer that is no more
    cluster.until(lambda: cluster.gang.generation == 2 and cluster.steady())
    assert old.alive
    cluster.new_coordinator()
    cluster.heal(cut)
    cluster.until(lambda: cluster.steady())
    cluster.run(0.1)
    assert not old.alive


def test_a_generation_of_which_no_agent_heard_is_not_used_again() -> None:
    """The coordinator is lost when it has told of a world and before any agent has its plan: the next one begins another,
    for the number of a world that was told must not name two."""
    cluster = Cluster((1, 2))
    cluster.start_all("ab")
    cluster.until(lambda: cluster.steady(2))
    cluster.run(1)
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.gang.generation == 2)
    cluster.new_coordinator()
    cluster.until(lambda: cluster.steady())
    assert cluster.gang.generation > 2
