"""What a Ray cluster owes to a job, and what is to be done about it. Pure: what was seen in, steps out.

A slot is a placement group of one bundle; an agent serves the slots of one node that were placed together. Decided is:

* a slot whose node died, or is being drained and has no agent, is given up, and another is asked for;
* slots that were placed on a sound node and have no agent get one, those of one node together;
* what is too much goes: what waits first, then what has no agent. An agent is never taken away here; the coordinator sends
  it away, and then its slots are without one.

Slots of a node that is being drained are kept while its agent lives: without them Ray would call the node idle, and end
it before its state has been handed over. The coordinator counts them out by the notice.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """A placement group. `node` is where it was placed, None while it waits; `lost`: its node died."""

    number: int
    node: str | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class AgentKnown:
    """A living agent and the numbers of its slots, which its name tells."""

    name: str
    slots: tuple[int, ...]

    @classmethod
    def named(cls, name: str, prefix: str) -> AgentKnown:
        """Raises `ValueError` for a name that is no agent's."""
        return cls(name, tuple(int(number) for number in name.removeprefix(prefix).split(".")))


@dataclass(frozen=True, slots=True)
class Look:
    """What Ray's tables say."""

    slots: tuple[Slot, ...]
    agents: tuple[AgentKnown, ...]
    alive: frozenset[str]
    """Nodes."""
    draining: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Steps:
    """What is to be done."""

    give_up: tuple[int, ...] = ()
    """Slots."""
    ask: int = 0
    """New slots."""
    begin: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(node, slots) of new agents."""
    kill: tuple[str, ...] = ()
    """Agents none of whose slots stands."""


def decide(look: Look, wanted: int) -> Steps:
    """See the module."""
    served = {number for agent in look.agents for number in agent.slots}
    give_up = {slot.number for slot in look.slots if slot.lost or (slot.node and slot.node not in look.alive)}
    give_up |= {slot.number for slot in look.slots if slot.node in look.draining and slot.number not in served}
    standing = [slot for slot in look.slots if slot.number not in give_up]
    idle = [slot for slot in standing if slot.number not in served]
    # What waits goes first, and of that the newest: the oldest is nearest to being placed.
    idle.sort(key=lambda slot: (slot.node is not None, -slot.number))
    too_many = idle[: max(0, len(standing) - wanted)]
    give_up |= {slot.number for slot in too_many}
    places: dict[str, list[int]] = {}
    for slot in idle:
        if slot.node is not None and slot.number not in give_up:
            places.setdefault(slot.node, []).append(slot.number)
    there = {slot.number for slot in look.slots} - give_up
    return Steps(
        give_up=tuple(sorted(give_up)),
        ask=max(0, wanted - len(standing)),
        begin=tuple((node, tuple(sorted(numbers))) for node, numbers in sorted(places.items())),
        kill=tuple(sorted(agent.name for agent in look.agents if there.isdisjoint(agent.slots))),
    )
