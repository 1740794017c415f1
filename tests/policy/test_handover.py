"""When a node with a notice is left: as late as safe, together with others, and never later than its deadline allows."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.policy.durations import Span
from orchestrator.policy.handover import CUSTOMS, Standing, hand_over, safe_until_ns

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
QUICK = Standing({"a": 1, "b": 1, "c": 1, "d": 1}, 0, Span(0.05, 0.2, 0.5, 9), Span(0.4, 0.9, 1.5, 9))


def notice(
    node: str,
    deadline: float | None = 120.0,
    received: float = 0.0,
    source: str = "aws-action",
    kind: str = "interruption",
) -> Notice:
    """Seconds from NOW on."""
    ends = None if deadline is None else NOW + round(deadline * SECOND)
    return Notice(source, node, NoticeKind(kind), NOW + round(received * SECOND), ends)


def in_seconds(at_ns: int | None) -> float:
    assert at_ns is not None
    return (at_ns - NOW) / SECOND


def test_a_node_is_left_as_late_as_is_safe() -> None:
    """120 s, less 0.5 s to publish, 1.5 s for the transition and 5 s margin; the sentence has the figures."""
    leaving = hand_over(NOW, [notice("b")], QUICK)
    assert (leaving.nodes, in_seconds(leaving.at_ns)) == (("b",), pytest.approx(113.0))
    assert leaving.reason == (
        "leave b in 1 min 53 s; its deadline on b is 2 min away, and leaving takes up to 2 s, with 5 s to spare"
    )


@pytest.mark.parametrize(
    ("source", "leads", "margin"),
    [("aws-action", 120, 5), ("gcp", 30, 5), ("azure-events", 30, 15), ("kubernetes", 30, 3), ("unheard-of", 30, 5)],
)
def test_without_a_deadline_the_source_says_how_long(source: str, leads: float, margin: float) -> None:
    """The usual time of the source counts from the notice on."""
    leaving = hand_over(NOW, [notice("b", None, source=source)], QUICK)
    assert in_seconds(leaving.at_ns) == pytest.approx(leads - margin - 2.0)
    assert "the usual end after a notice of" in leaving.reason


def test_a_pod_may_have_its_own_grace_period() -> None:
    """Kubernetes' default gives way to the pod's."""
    pod = replace(QUICK, kubernetes_grace_seconds=15.0)
    assert in_seconds(hand_over(NOW, [notice("b", None, source="kubernetes")], pod).at_ns) == pytest.approx(10.0)


def test_what_is_being_ended_is_left_at_once() -> None:
    """A termination of which nobody knows the end leaves no time to wait."""
    leaving = hand_over(NOW, [notice("b", None, source="sigterm", kind="termination")], QUICK)
    assert leaving.nodes == ("b",)
    assert in_seconds(leaving.at_ns) <= 0
    assert "nobody told when it is gone" in leaving.reason


def test_too_late_is_said_and_left_at_once() -> None:
    """With less time than leaving takes, the moment is past, and the sentence says by how much."""
    leaving = hand_over(NOW, [notice("b", 4.0)], QUICK)
    assert in_seconds(leaving.at_ns) < 0
    assert leaving.reason.startswith("leave b now; ")
    assert leaving.reason.endswith("that is 3 s later than is safe")


def test_notices_that_come_one_after_the_other_are_one_transition() -> None:
    """Deadlines within what a transition takes, or whose waiting is worth less than one, leave with the first; a much later
    one does not."""
    staggered = [notice("a"), notice("b", 121.5), notice("c", 300.0)]
    leaving = hand_over(NOW, staggered, QUICK)
    assert (leaving.nodes, in_seconds(leaving.at_ns)) == (("a", "b"), pytest.approx(113.0))
    assert "together" in leaving.reason
    assert "c can train longer than another transition costs" in leaving.reason
    dear = replace(QUICK, transition=Span(60.0, 80.0, 90.0, 9))
    assert hand_over(NOW, staggered, dear).nodes == ("a", "b", "c"), "a quarter of 180 s is less than a minute's pause"


def test_whose_place_is_taken_leaves_with_the_first() -> None:
    """A standby that is ready makes leaving cost nothing, also for a node that only might be taken away."""
    ready = replace(QUICK, ready_standbys=3)
    notices = [notice("a"), notice("b", 900.0), notice("c", None, kind="rebalance")]
    assert hand_over(NOW, notices, ready).nodes == ("a", "b", "c")
    assert hand_over(NOW, notices, replace(ready, ready_standbys=2)).nodes == ("a", "b")


def test_a_recommendation_waits_for_a_replacement() -> None:
    """No deadline, nothing certain: left at the next step when a standby is ready, otherwise not."""
    advice = [notice("c", None, kind="rebalance"), notice("a", None, 1.0, kind="rebalance")]
    waiting = hand_over(NOW, advice, QUICK)
    assert (waiting.nodes, waiting.at_ns) == ((), None)
    assert waiting.reason == "c and a may be taken away, at no known time: left when a standby can take the place"
    leaving = hand_over(NOW, advice, replace(QUICK, ready_standbys=1))
    assert (leaving.nodes, leaving.at_ns) == (("c",), NOW), "the one that was told first"


def test_a_transition_that_happens_anyway_takes_along_who_is_near() -> None:
    """With one now, a node whose end is near leaves with it."""
    now = replace(QUICK, transition_now=True)
    leaving = hand_over(NOW, [notice("b", 9.0)], now)
    assert (leaving.nodes, leaving.at_ns) == (("b",), NOW)


def test_nodes_outside_the_gang_have_nothing_to_leave() -> None:
    """A notice to a node without workers calls for nothing, and of a node's notices the one that leaves least time counts."""
    assert hand_over(NOW, [notice("elsewhere")], QUICK).nodes == ()
    both = [notice("b", None, kind="rebalance", source="aws-rebalance"), notice("b", 60.0, 5.0)]
    assert in_seconds(hand_over(NOW, both, QUICK).at_ns) == pytest.approx(53.0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.floats(0, 400), st.sampled_from(sorted(CUSTOMS))), min_size=1, max_size=6
    ),
    st.integers(0, 4),
    st.floats(0.01, 30),
)
def test_nobody_is_ever_left_later_than_is_safe(
    told: list[tuple[str, float, str]], standbys: int, transition: float
) -> None:
    """Whatever comes together, every node that leaves does so at or before its own last safe moment, and one always leaves."""
    standing = replace(QUICK, ready_standbys=standbys, transition=Span(transition, 2 * transition, 3 * transition))
    notices = [notice(node, deadline, source=source) for node, deadline, source in told]
    leaving = hand_over(NOW, notices, standing)
    assert leaving.nodes
    assert leaving.at_ns is not None
    assert leaving.at_ns <= min(safe_until_ns(each, standing) for each in notices)


def test_over_storms_of_notices_no_node_dies_with_workers_and_transitions_are_few() -> None:
    """Over 200 seeded storms (four nodes, notices within a minute), asking anew at each notice: every node is left before it
    goes, and there are never more transitions than nodes; storms within 3 s are one transition."""
    random = Random(4)
    for storm in range(200):
        within = 3.0 if storm % 2 else 60.0
        notices = sorted((random.uniform(0, within), node) for node in "abcd")
        standing, transitions, told = QUICK, 0, list[Notice]()
        moments = [NOW + round(at * SECOND) for at, _ in notices]
        for number, (at, node) in enumerate(notices):
            told.append(notice(node, at + 120.0, at))
            until = moments[number + 1] if number + 1 < len(moments) else NOW + 500 * SECOND
            now = moments[number]
            while (leaving := hand_over(now, told, standing)).nodes and (leaving.at_ns or 0) < until:
                now = max(now, leaving.at_ns or 0)
                transitions += 1
                for gone in leaving.nodes:
                    (own,) = [each for each in told if each.node == gone]
                    assert own.deadline_ns is not None
                    assert now + 2 * SECOND <= own.deadline_ns, f"seed 4, storm {storm}"
                left = {name: count for name, count in standing.workers.items() if name not in leaving.nodes}
                standing = replace(standing, workers=left)
        assert not standing.workers, f"seed 4, storm {storm}"
        assert transitions <= (2 if within == 3.0 else 4), f"seed 4, storm {storm}"
