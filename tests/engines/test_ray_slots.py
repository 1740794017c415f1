"""What a job's slots on a Ray cluster need, decided from what the cluster shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.platforms.engines.native.ray_slots import AgentKnown, Look, Slot, Steps, decide

ALIVE = frozenset({"a", "b"})


def look(slots: tuple[Slot, ...], agents: tuple[AgentKnown, ...] = (), draining: frozenset[str] = frozenset()) -> Look:
    return Look(slots, agents, ALIVE, draining)


def agent(*slots: int) -> AgentKnown:
    return AgentKnown("agent-" + ".".join(map(str, slots)), slots)


def test_what_is_missing_is_asked_for() -> None:
    """Slots that wait count: nothing is asked for twice."""
    assert decide(look((Slot(1),)), wanted=3) == Steps(ask=2)
    assert decide(look((Slot(1), Slot(2), Slot(3))), wanted=3) == Steps()


def test_slots_of_one_node_get_one_agent() -> None:
    """Slots that were placed together are served together; slots that come later get an agent of their own."""
    placed = (Slot(1, "a"), Slot(2, "b"), Slot(3, "a"))
    assert decide(look(placed), wanted=3).begin == (("a", (1, 3)), ("b", (2,)))
    assert decide(look((*placed, Slot(4, "a")), (agent(1, 3), agent(2))), wanted=4).begin == (("a", (4,)),)


def test_a_lost_slot_is_given_up_and_asked_for_anew() -> None:
    """Of a dead node, whether Ray says so of the slot or of the node."""
    slots = (Slot(1, "a"), Slot(2, "gone"), Slot(3, lost=True))
    assert decide(look(slots, (agent(1), agent(2), agent(3))), wanted=3) == Steps(
        give_up=(2, 3), ask=2, kill=("agent-2", "agent-3")
    )


def test_a_draining_node_is_never_given_an_agent() -> None:
    """Its slots without an agent are given up at once; those with one are kept until it is gone."""
    slots = (Slot(1, "a"), Slot(2, "b"))
    drained = frozenset({"b"})
    assert decide(look(slots, (agent(1),), drained), wanted=2) == Steps(give_up=(2,), ask=1)
    assert decide(look(slots, (agent(1), agent(2)), drained), wanted=3) == Steps(ask=1)


def test_what_waits_goes_before_what_is_placed() -> None:
    """With fewer wanted, waiting slots go, the newest first, then placed ones without an agent, and never an agent."""
    slots = (Slot(1, "a"), Slot(2), Slot(3), Slot(4, "b"))
    assert decide(look(slots, (agent(1),)), wanted=3).give_up == (3,)
    assert decide(look(slots, (agent(1),)), wanted=1) == Steps(give_up=(2, 3, 4))
    assert decide(look(slots, (agent(1),)), wanted=0) == Steps(give_up=(2, 3, 4))


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "a", "b", "gone"]), st.booleans(), st.booleans()), min_size=0, max_size=8
    ),
    st.sets(st.sampled_from("ab")),
    st.integers(0, 10),
)
def test_it_comes_to_rest(drawn: list[tuple[str | None, bool, bool]], draining: set[str], wanted: int) -> None:
    """Carried out, the steps leave nothing more to do (with what is asked for still waiting), every sound placed slot has
    exactly one agent, and no agent was taken away but with all its slots."""
    slots = tuple(Slot(number, node, lost) for number, (node, lost, _) in enumerate(drawn, 1))
    agents = tuple(agent(number) for number, (node, _, served) in enumerate(drawn, 1) if node and served)
    before = Look(slots, agents, ALIVE, frozenset(draining))
    steps = decide(before, wanted)
    kept = tuple(slot for slot in slots if slot.number not in steps.give_up)
    served = [a for a in agents if a.name not in steps.kill] + [agent(*numbers) for _, numbers in steps.begin]
    asked = tuple(Slot(100 + number) for number in range(steps.ask))
    after = Look((*kept, *asked), tuple(served), ALIVE, frozenset(draining))
    assert decide(after, wanted) == Steps()
    for slot in kept:
        if slot.node is not None:
            assert sum(slot.number in a.slots for a in served) == 1
    gone = set(steps.give_up)
    assert all(gone >= set(a.slots) for a in agents if a.name in steps.kill)
