"""A new world: who is in it, and what its members are told."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.platforms.engines.native.batches import Batches
from orchestrator.platforms.engines.native.commands import Tell
from orchestrator.platforms.engines.native.messages import Plan, Source
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
    for member in members:
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
            replica_of(member, members),
            batches.micro_batch(len(members)),
            batches.failed,
        )
        plans.append(Tell(member.agent, plan))
    return World(generation, tuple(members), read, now_ns), plans
