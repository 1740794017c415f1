"""Which notices stand, and what is news about them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.notices import Notice, NoticeKind, in_force
from orchestrator.platforms.notices.base import Sighting, seconds
from orchestrator.platforms.notices.standing import MOVED_NS, Change, Standing

NODE = "node-1"
START = seconds(1_000_000)
REBALANCE, MAINTENANCE, DRAIN = NoticeKind.REBALANCE, NoticeKind.MAINTENANCE, NoticeKind.DRAIN
INTERRUPTION, TERMINATION = NoticeKind.INTERRUPTION, NoticeKind.TERMINATION


def at(after_seconds: float) -> int:
    return START + seconds(after_seconds)


def told(changes: list[Change]) -> list[tuple[str, NoticeKind, int | None, bool]]:
    return [(each.notice.source, each.notice.kind, each.notice.deadline_ns, each.withdrawn) for each in changes]


def test_a_view_that_stays_is_no_news() -> None:
    """The same view again says nothing, also for a source that gives a time to go and not an instant."""
    standing = Standing(NODE)
    view = {"preempted": Sighting(INTERRUPTION, lead_ns=seconds(30))}
    assert told(standing.update("gcp", view, at(0))) == [("gcp", INTERRUPTION, at(30), False)]
    assert standing.update("gcp", view, at(1)) == []
    assert standing.update("gcp", dict(view), at(40)) == []


def test_an_interruption_takes_the_place_of_a_rebalance_recommendation() -> None:
    """What one source says about a node is one notice: a later interruption with a deadline replaces the advice, and the
    advice that vanishes then is not told."""
    standing = Standing(NODE)
    advice, interruption = Sighting(REBALANCE), Sighting(INTERRUPTION, at(120))
    assert told(standing.update("aws", {"r": advice}, at(0))) == [("aws", REBALANCE, None, False)]
    changes = standing.update("aws", {"r": advice, "i": interruption}, at(1))
    assert told(changes) == [("aws", INTERRUPTION, at(120), False)]
    assert standing.update("aws", {"i": interruption}, at(2)) == []
    assert told(standing.update("aws", {}, at(3))) == [("aws", INTERRUPTION, at(120), True)]


def test_advice_after_an_interruption_is_not_told() -> None:
    """A second source with no more to say than the first is silent; when the first withdraws, what the second says is told
    before the withdrawal."""
    standing = Standing(NODE)
    standing.update("aws", {"i": Sighting(INTERRUPTION, at(120))}, at(0))
    assert standing.update("aws-rebalance", {"r": Sighting(REBALANCE)}, at(1)) == []
    changes = standing.update("aws", {}, at(2))
    assert told(changes) == [("aws-rebalance", REBALANCE, None, False), ("aws", INTERRUPTION, at(120), True)]


def test_maintenance_far_away_does_not_hide_advice_and_advice_does_not_hide_maintenance() -> None:
    """Each is told in whichever order they come; a weaker notice with an earlier deadline is told beside a stronger one."""
    maintenance, advice = {"m": Sighting(MAINTENANCE, at(86_400))}, {"r": Sighting(REBALANCE)}
    for first, second in (("aws-maintenance", "aws-rebalance"), ("aws-rebalance", "aws-maintenance")):
        standing = Standing(NODE)
        for source in (first, second):
            assert standing.update(source, maintenance if source == "aws-maintenance" else advice, at(0))
    standing = Standing(NODE)
    assert standing.update("file", {"d": Sighting(DRAIN, at(300))}, at(1))
    assert standing.update("azure", {"m": Sighting(MAINTENANCE, at(400))}, at(2)) == []
    assert told(standing.update("gcp", {"m": Sighting(MAINTENANCE, at(60))}, at(3))) == [
        ("gcp", MAINTENANCE, at(60), False)
    ]


def test_a_deadline_that_moves_is_told() -> None:
    """A deadline that moves is told again, either way; by less than two seconds it has not moved."""
    standing = Standing(NODE)
    standing.update("azure", {"e": Sighting(INTERRUPTION, at(60))}, at(0))
    assert standing.update("azure", {"e": Sighting(INTERRUPTION, at(61))}, at(1)) == []
    assert told(standing.update("azure", {"e": Sighting(INTERRUPTION, at(30))}, at(2))) == [
        ("azure", INTERRUPTION, at(30), False)
    ]
    assert told(standing.update("azure", {"e": Sighting(INTERRUPTION, at(90))}, at(3))) == [
        ("azure", INTERRUPTION, at(90), False)
    ]
    assert standing.update("azure", {"e": Sighting(INTERRUPTION)}, at(4)) == []


def test_an_event_that_starts_early_moves_the_deadline_to_now_and_one_that_is_due_does_not() -> None:
    """Azure empties NotBefore once an event has started: before its time that is news, after it is what was told."""
    early, due = Standing(NODE), Standing(NODE)
    for standing in (early, due):
        standing.update("azure", {"e": Sighting(INTERRUPTION, at(60))}, at(0))
    started = {"e": Sighting(INTERRUPTION, lead_ns=0)}
    assert told(early.update("azure", started, at(10))) == [("azure", INTERRUPTION, at(10), False)]
    assert due.update("azure", started, at(61)) == []


def test_a_deadline_in_the_past_is_told_as_now_with_a_remark() -> None:
    """A notice whose deadline had passed when it was first seen is due now, and somebody is told why."""
    (change,) = Standing(NODE).update("aws", {"i": Sighting(INTERRUPTION, at(-12.5))}, at(0))
    assert change.notice.deadline_ns == at(0)
    assert change.remark == "its deadline was 12.5 s ago when it was seen; taken as now"


def test_a_document_says_that_it_is_withdrawn_only_when_it_is() -> None:
    """The JSON form has the five fields of a notice, and `withdrawn` for one that no longer stands."""
    notice = Notice("aws", NODE, INTERRUPTION, 5, None)
    five = {"source": "aws", "node": NODE, "kind": "interruption", "received_ns": 5, "deadline_ns": None}
    assert Change(notice).to_document() == five
    assert Change(notice, withdrawn=True).to_document() == five | {"withdrawn": True}
    assert Notice.from_document(Change(notice, withdrawn=True).to_document()) == notice


sightings = st.builds(
    Sighting,
    st.sampled_from(NoticeKind),
    st.none() | st.integers(at(-100), at(1_000)),
    st.none() | st.integers(0, seconds(300)),
    st.none() | st.sampled_from(["node-2", "node-3"]),
)
views = st.dictionaries(st.sampled_from("abc"), sightings, max_size=3)
histories = st.lists(st.tuples(st.sampled_from(["aws", "gcp", "kubernetes"]), views, st.integers(0, 50)), max_size=20)


@given(histories)
def test_who_only_listens_knows_what_holds(history: list[tuple[str, dict[str, Sighting], int]]) -> None:
    """Whatever sources show in whatever order: replaying the told changes gives, for each node, the strongest kind and a
    deadline at least as early as any that stands; nothing is told twice, no deadline is in the past, and a withdrawal is
    equal to what it takes back."""
    standing, now = Standing(NODE), START
    shown: dict[str, dict[str, Sighting]] = {}
    listener: dict[tuple[str, str], Notice] = {}
    for source, view, wait in history:
        now += seconds(wait)
        shown[source] = view
        for change in standing.update(source, view, now):
            key = (change.notice.source, change.notice.node)
            if change.withdrawn:
                assert listener.pop(key) == change.notice
            else:
                assert listener.get(key) != change.notice
                listener[key] = change.notice
                assert change.notice.deadline_ns is None or change.notice.deadline_ns >= change.notice.received_ns
        assert sorted(map(repr, listener.values())) == sorted(map(repr, standing.told()))
        for node in (NODE, "node-2", "node-3"):
            here = [each for one in shown.values() for each in one.values() if (each.node or NODE) == node]
            known = in_force(notice for notice in listener.values() if notice.node == node)
            assert (known is None) == (not here)
            if known is not None:
                assert known.kind is max((each.kind for each in here), key=lambda kind: kind.strength)
                limits = [each.deadline_ns for each in here if each.lead_ns is None and each.deadline_ns is not None]
                if limits:
                    assert known.deadline_ns is not None
                    assert known.deadline_ns <= max(min(limits), now) + MOVED_NS


@given(histories)
def test_the_same_again_is_silence(history: list[tuple[str, dict[str, Sighting], int]]) -> None:
    """Each view shown twice in a row is told once, at whatever time it comes again."""
    standing, now = Standing(NODE), START
    for source, view, wait in history:
        now += seconds(wait)
        standing.update(source, view, now)
        assert standing.update(source, dict(view), now + seconds(wait)) == []


notices = st.builds(
    Notice,
    st.sampled_from(["aws", "ray"]),
    st.just(NODE),
    st.sampled_from(NoticeKind),
    st.integers(0, 100),
    st.none() | st.integers(0, 1_000),
)


@given(notices)
def test_a_notice_survives_its_json_form(notice: Notice) -> None:
    """A document made of a notice reads as the same notice, and further keys do no harm."""
    assert Notice.from_document(notice.to_document() | {"more": 1}) == notice


@given(notices, notices)
def test_what_covers_another_leaves_nothing_to_tell(first: Notice, second: Notice) -> None:
    """A notice covers itself; one that covers another is what holds for both, its deadline in the past aside."""
    assert first.covers(first)
    if first.covers(second):
        both = in_force([first, second])
        assert both is not None
        assert both.kind is first.kind
        if first.deadline_ns is not None:
            assert both.deadline_ns == max(first.deadline_ns, both.received_ns)
    assert not first.covers(replace(first, node="node-2"))
