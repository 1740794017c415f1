"""A new world: who is in it, and what its members are told."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.platforms.engines.native.batches import Batches
from orchestrator.platforms.engines.native.commands import Tell
from orchestrator.platforms.engines.native.messages import Pair, Plan, Source
from orchestrator.platforms.engines.native.roster import Member, Roster, World, replica_of


def found(
    roster: Roster,
    generation: int,
    members: Sequence[Member],
    source: Source | None,
    batches: Batches,
    now_ns: int,
) -> tuple[World, list[Tell]]:
    """The world of these members, that begins from `source` (None: from the newest checkpoint), and their plans."""
    read = frozenset(address for held in source.shards.values() for address in held) if source else frozenset()
    plans = []
    spares: dict[int, str] = {}
    for member in members:
        replica = replica_of(member, members)
        if replica is None and (spare := roster.spare(member, now_ns)) is not None:
            replica, spares[member.rank] = spare.address, spare.agent
        worker = roster.agents[member.agent].workers[member.worker]
        worker.generation, worker.rank = generation, member.rank
        worker.step, worker.step_age_ns = None, 0
        worker.quiet_ns = worker.starved_ns = worker.stopped_ns = 0
        plan = Plan(
            member.worker,
            generation,
            member.rank,
            len(members),
            member.local_rank,
            member.local_world_size,
            source,
            replica,
            batches.micro_batch(len(members)),
            batches.failed,
        )
        plans.append(Tell(member.agent, plan))
    return World(generation, tuple(members), read, now_ns, spares=spares), plans


def pair_anew(roster: Roster, world: World, now_ns: int) -> list[Tell]:
    """Give ranks whose world is on no other node somebody else for their copies, where who had them is gone or leaves."""
    usable = {agent.agent for agent in roster.usable(now_ns)}
    tells = []
    for member in world.members:
        if world.spares.get(member.rank) in usable or replica_of(member, world.members) is not None:
            continue
        before = world.spares.pop(member.rank, None)
        spare = roster.spare(member, now_ns)
        if spare is not None:
            world.spares[member.rank] = spare.agent
        if spare is not None or before is not None:
            replica = None if spare is None else spare.address
            tells.append(Tell(member.agent, Pair(member.worker, world.generation, member.rank, replica)))
    return tells
