"""When a node with a notice is left: as late as safe, and never later than its deadline allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.policy.handover import CUSTOMS, leave_at_ns

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
NEEDS = 2.0


def notice(deadline: float | None, source: str = "aws-action", kind: str = "interruption") -> Notice:
    """Seconds from NOW on."""
    ends = None if deadline is None else NOW + round(deadline * SECOND)
    return Notice(source, "b", NoticeKind(kind), NOW, ends)


def left_after(told: Notice, needs: float = NEEDS) -> float:
    return (leave_at_ns(told, needs) - NOW) / SECOND


def test_a_node_is_left_as_late_as_is_safe() -> None:
    """120 s, less 2 s to publish and for the transition, and 5 s margin."""
    assert left_after(notice(120.0)) == pytest.approx(113.0)


@pytest.mark.parametrize(
    ("source", "leads", "margin"),
    [("aws-action", 120, 5), ("gcp", 30, 5), ("azure-events", 30, 15), ("kubernetes", 30, 3), ("unheard-of", 30, 5)],
)
def test_without_a_deadline_the_source_says_how_long(source: str, leads: float, margin: float) -> None:
    """The usual time of the source counts from the notice on."""
    assert left_after(notice(None, source)) == pytest.approx(leads - margin - NEEDS)


def test_what_is_being_ended_is_left_at_once() -> None:
    """A termination of which nobody knows the end leaves no time to wait."""
    assert left_after(notice(None, "sigterm", "termination")) == 0


@given(st.floats(0, 400), st.sampled_from(sorted(CUSTOMS)), st.floats(0.01, 30))
def test_nobody_is_ever_left_later_than_is_safe(deadline: float, source: str, needs: float) -> None:
    """What leaving needs is over before the deadline, by the margin of the source."""
    left = left_after(notice(deadline, source), needs)
    assert left + needs + CUSTOMS[source].margin <= deadline + 1e-6
