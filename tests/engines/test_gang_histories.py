"""Random histories of a gang: nodes and workers come, die, freeze, are cut off and announced to go, in any order.

While it lasts, `Cluster` checks every command: no world beside another, no plan on a node that is being left or with a
worker that is known to be gone, no source that is not whole. When the faults stop, the gang must come to rest.
"""

from __future__ import annotations

import random

import pytest

from orchestrator.platforms.engines.native import messages as m
from orchestrator.platforms.engines.native.commands import Tell
from orchestrator.platforms.engines.native.gang import State
from orchestrator.platforms.engines.native.terms import SECOND
from tests.engines.gang_world import Cluster, SimAgent, SimWorker

SIZES = ((1, 2, 3), (1, 2, 4), (2, 3, 4), (3,), (2, 4))


def history(seed: int, *, live: bool) -> Cluster:
    """One history, until it has come to rest; asserts what must hold on the way and at the end."""
    chance = random.Random(seed)
    cluster = Cluster(
        chance.choice(SIZES),
        seed=seed,
        ranks_per_worker=chance.choice((1, 1, 1, 2)),
        exclusive=chance.random() < 0.5,
        loops_hear_regroup=chance.random() < 0.9,
        delay_ns=(1_000_000, chance.choice((5_000_000, 60_000_000))),
        lives=chance.choice((2, 3, 16)) if live else 1,
        unfit=0.2,
    )
    nodes = 0
    for _ in range(chance.randint(1, 4)):
        nodes += 1
        cluster.start(f"n{nodes}", slots=chance.choice((1, 1, 2)))
    faults = chance.randint(3, 14)
    for _ in range(faults):
        cluster.run(chance.choice((0.0, 0.02, 0.1, 0.3, 1.0, 3.0)) * chance.random())
        if cluster.outcome is not None:
            break
        agents = [agent for agent in cluster.agents.values() if agent.alive]
        agent: SimAgent | None = chance.choice(agents) if agents else None
        workers: list[SimWorker] = [w for w in agent.workers.values() if w.alive] if agent else []
        fault = chance.randrange(12)
        if fault <= 2 or agent is None:
            nodes += 1
            cluster.start(f"n{nodes}", slots=chance.choice((1, 2)))
        elif fault == 3:
            cluster.kill_node(agent)
        elif fault == 4:
            for dying in chance.sample(agents, min(2, len(agents))):
                cluster.kill_node(dying)
        elif fault == 5 and workers:
            cluster.kill_worker(chance.choice(workers))
        elif fault == 6 and workers:
            cluster.kill_worker(chance.choice(workers), "ApplicationError", collateral=True)
        elif fault == 7 and workers:
            chance.choice(workers).frozen = True
        elif fault == 8:
            cluster.cut(agent)
        elif fault == 9:
            cluster.notice(agent, chance.choice((None, 0.5, 2.0, 8.0)))
        elif fault == 10:
            cluster.feed(cluster.gang.resize(chance.randint(1, 5), cluster.now_ns))
        elif fault == 11:
            cluster.new_coordinator(f"c{cluster.now_ns}-")
        returning = [w for w in workers if w.alive and w.state == m.WARMING and w.worker.endswith("+")]
        if returning and chance.random() < 0.3:
            cluster.kill_worker(chance.choice(returning))
        stale(cluster)
    for agent in list(cluster.agents.values()):
        if agent.cut:
            cluster.heal(agent)
        if agent.node in cluster.warned:
            cluster.kill_node(agent)
    cluster.run(15)
    at_rest(cluster)
    return cluster


def stale(cluster: Cluster) -> None:
    """Word of an older generation, out of the past: nothing may follow from it."""
    gang = cluster.gang
    speaking = {agent.agent for agent in cluster.agents.values() if not agent.cut and not agent.frozen}
    agents = [agent for agent in gang.roster.agents if agent in speaking]  # one that is cut off has no past to tell
    present = {worker.worker for worker in gang.roster.workers()}
    old = [plan for plan in cluster.past if plan.generation < gang.generation and plan.worker not in present]
    if not old or not agents or cluster.outcome is not None:
        return
    cluster.feed(gang.tick(cluster.now_ns))
    plan, agent = old[-1], agents[0]
    before = (gang.state, gang.generation, gang.world)
    for message in (
        m.Left(plan.worker, plan.generation, "ApplicationError", "long ago"),
        m.Beat((m.WorkerBeat(plan.worker, m.RUNNING, plan.generation, 10**6, 10 * SECOND),)),
        m.Inventory(0, (m.Shard(plan.generation, 1, 0, 10**9),)),
    ):
        commands = gang.heard(agent, message, cluster.now_ns)
        assert [c for c in commands if not (isinstance(c, Tell) and isinstance(c.message, m.Kill))] == []
        assert (gang.state, gang.generation, gang.world) == before


def at_rest(cluster: Cluster) -> None:
    gang = cluster.gang
    if cluster.outcome is not None:
        assert gang.state is State.ENDED
        assert cluster.outcome.message
        return
    story = cluster.story()
    assert gang.state in (State.STEADY, State.WAITING), story
    assert {a.agent for a in cluster.agents.values() if a.alive} == set(gang.roster.agents), story
    there = [a for a in cluster.agents.values() if a.alive and a.node not in cluster.warned]
    size = cluster.terms.fit(gang.sizing.target, sum(a.slots for a in there))
    if size is None:
        on = set() if gang.world is None else {member.node for member in gang.world.members}
        assert gang.state is State.WAITING or on & cluster.warned, story  # those that go are trained on to the end
        return
    assert gang.state is State.STEADY, story
    world = gang.world
    assert world is not None
    if cluster.loops_hear_regroup:
        assert world.size == size * cluster.terms.ranks_per_worker, story
    step = cluster.steps[gang.generation]
    cluster.run(1)
    assert cluster.steps[gang.generation] > step, "the world that remains makes no step"
    alive = [a for a in cluster.agents.values() if a.alive]
    running = {w.generation for a in alive for w in a.workers.values() if w.alive and w.generation}
    assert running == {gang.generation}


def all_come_to_rest(seeds: range, *, live: bool) -> list[Cluster]:
    found = []
    for seed in seeds:
        try:
            found.append(history(seed, live=live))
        except Exception as error:
            error.add_note(f"seed {seed}, live {live}")
            raise
    return found


@pytest.mark.parametrize("seeds", [range(start, start + 8) for start in range(0, 24, 8)], ids=str)
def test_every_history_comes_to_rest(seeds: range) -> None:
    """Once faults stop, a gang trains at the largest size that has room, waits for more workers, or has ended with a
    reason; and nothing on the way was ever wrong."""
    all_come_to_rest(seeds, live=False)


@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(40, 70, 10)], ids=str)
def test_every_history_comes_to_rest_where_workers_come_back(seeds: range) -> None:
    """The same where processes go on from world to world, fail their self-test or die on the way; and no slot ever has a
    process more than it has ranks."""
    assert any(cluster.returned for cluster in all_come_to_rest(seeds, live=True))


@pytest.mark.parametrize("seed", [183, 442, 451, 503, 576, 835, 980, 1238])
def test_a_history_that_went_wrong_once_comes_to_rest(seed: int) -> None:
    """Processes of an older world left beside a new one, a gang that grew anew for each process that did not come back, a
    rule that was not applied to the end: these do not happen again."""
    history(seed, live=True)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("live", [False, True])
def test_thousands_of_histories_come_to_rest(live: bool) -> None:
    """The same over many more."""
    for seed in range(1_000, 4_000):
        all_come_to_rest(range(seed, seed + 1), live=live)
