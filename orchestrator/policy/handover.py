"""When the gang leaves a node that was given notice.

As late as is safe: the node trains until then, and what comes meanwhile (its replacement, another notice) needs no transition
of its own. Safe is

    deadline - p99 of publishing - p99 of the transition that reads from its memory - a margin

The sum of two p99s is at least the p99 of the sum. The margin covers clocks that differ and what the source is known for.
Nobody told a deadline: the source's usual time from the first notice on; a termination without one is left at once.

Staggered notices. A node with a later deadline leaves with the first when that costs less than a transition of its own: its
share of the gang's speed for the time that it would still have had, against the mean transition; or when its own leaving would
begin before the first is surely over. So does every node whose work standbys that are ready can take: it loses nothing.

A rebalance recommendation has no deadline and nothing is certain. Such a node is left when a standby that is ready can take its
place, at the next step; else it goes on training, and goes with a transition that happens anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.policy.durations import Span, seconds


@dataclass(frozen=True, slots=True)
class Custom:
    """What a source usually leaves, in seconds. `lead`: from the first notice to the end, when it tells no deadline."""

    lead: float
    margin: float


CUSTOMS: Mapping[str, Custom] = {
    "aws": Custom(120.0, 5.0),  # EC2: two minutes before the interruption
    "gcp": Custom(30.0, 5.0),  # Compute Engine: 30 s, best effort; then ACPI G2
    "azure": Custom(
        30.0, 15.0
    ),  # Scheduled Events: at least 30 s, and NotBefore is the earliest moment, not the likely one
    "kubernetes": Custom(30.0, 3.0),  # terminationGracePeriodSeconds, if the pod says nothing else
    "ray": Custom(30.0, 3.0),
    "sigterm": Custom(10.0, 2.0),  # the shortest usual time to SIGKILL (docker stop)
}
"""By the first word of a notice's source, as in `aws-instance-action`."""
OTHER = Custom(30.0, 5.0)


@dataclass(frozen=True, slots=True)
class Standing:
    """How the gang stands."""

    workers: Mapping[str, int]
    """In the gang, by node."""
    ready_standbys: int
    """On nodes without a notice."""
    publishing: Span
    transition: Span
    transition_now: bool = False
    """One happens now whatever is decided here."""
    kubernetes_grace_seconds: float | None = None
    """The pod's own; None: Kubernetes' default."""


@dataclass(frozen=True, slots=True)
class Handover:
    """Which nodes the gang leaves together, and when. No nodes: nothing to do yet."""

    nodes: tuple[str, ...]
    at_ns: int | None
    """By the clock of the notices; not in the future: now. None: no time is set."""
    reason: str


def hand_over(now_ns: int, notices: Iterable[Notice], standing: Standing) -> Handover:
    """The next leaving (see the module). Of several notices to a node the one that leaves least time counts. Nodes without workers in the gang have nothing to leave."""
    soonest: dict[str, Notice] = {}
    advice: dict[str, Notice] = {}
    for notice in notices:
        if not standing.workers.get(notice.node):
            continue
        if not notice.kind.certain:
            advice.setdefault(notice.node, notice)
        elif notice.node not in soonest or safe_until_ns(notice, standing) < safe_until_ns(
            soonest[notice.node], standing
        ):
            soonest[notice.node] = notice
    certain = list(soonest.values())
    advised = [notice for node, notice in advice.items() if node not in soonest]
    advised.sort(key=lambda notice: notice.received_ns)
    if not certain:
        return _advised(now_ns, advised, standing)
    safe = {notice.node: safe_until_ns(notice, standing) for notice in certain}
    first = min(certain, key=lambda notice: (safe[notice.node], notice.node))
    at_ns = now_ns if standing.transition_now else safe[first.node]
    spare = standing.ready_standbys
    leaving = [first.node]
    spare -= standing.workers[first.node]
    kept = []
    for notice in sorted(certain, key=lambda each: (safe[each.node], each.node)):
        if notice.node == first.node:
            continue
        replaced = spare >= standing.workers[notice.node]
        if replaced or _cheaper_together((safe[notice.node] - at_ns) / NANOSECONDS_PER_SECOND, notice, standing):
            leaving.append(notice.node)
            spare -= standing.workers[notice.node]
        else:
            kept.append(notice.node)
    for notice in advised:
        if spare >= standing.workers[notice.node]:
            leaving.append(notice.node)
            spare -= standing.workers[notice.node]
    return Handover(tuple(leaving), at_ns, _told(now_ns, first, at_ns, safe, leaving, kept, standing))


def safe_until_ns(notice: Notice, standing: Standing) -> int:
    """The last moment at which leaving the notice's node is safe; may be past."""
    if notice.deadline_ns is None and notice.kind is NoticeKind.TERMINATION:
        return notice.received_ns
    return deadline_ns(notice, standing) - round(_needs(notice, standing) * NANOSECONDS_PER_SECOND)


def deadline_ns(notice: Notice, standing: Standing) -> int:
    """When the node is taken to be gone: as told, else after its source's usual time."""
    if notice.deadline_ns is not None:
        return notice.deadline_ns
    lead = custom(notice.source).lead
    if standing.kubernetes_grace_seconds is not None and _word(notice.source) == "kubernetes":
        lead = standing.kubernetes_grace_seconds
    return notice.received_ns + round(lead * NANOSECONDS_PER_SECOND)


def custom(source: str) -> Custom:
    """What a source of notices usually leaves."""
    return CUSTOMS.get(_word(source), OTHER)


def _word(source: str) -> str:
    return source.partition("-")[0]


def _needs(notice: Notice, standing: Standing) -> float:
    return standing.publishing.p99 + standing.transition.p99 + custom(notice.source).margin


def _cheaper_together(gap_seconds: float, notice: Notice, standing: Standing) -> bool:
    """Whether leaving this node so much earlier than it has to be costs less than leaving it alone."""
    if gap_seconds <= standing.publishing.p99 + standing.transition.p99:
        return True
    share = standing.workers[notice.node] / sum(standing.workers.values())
    return gap_seconds * share <= standing.transition.mean


def _advised(now_ns: int, advised: list[Notice], standing: Standing) -> Handover:
    if not advised:
        return Handover((), None, "no node of the gang was given notice")
    spare, leaving = standing.ready_standbys, []
    for notice in advised:
        if spare >= standing.workers[notice.node]:
            leaving.append(notice.node)
            spare -= standing.workers[notice.node]
    names = _names([notice.node for notice in advised])
    if not leaving:
        return Handover(
            (), None, f"{names} may be taken away, at no known time: left when a standby can take the place"
        )
    return Handover(
        tuple(leaving), now_ns, f"leave {_names(leaving)} at the next step: may be taken away, and a standby is ready"
    )


def _told(
    now_ns: int,
    first: Notice,
    at_ns: int,
    safe: Mapping[str, int],
    leaving: list[str],
    kept: list[str],
    standing: Standing,
) -> str:
    def away(instant_ns: int) -> str:
        return seconds(max(0.0, (instant_ns - now_ns) / NANOSECONDS_PER_SECOND))

    late = (now_ns - safe[first.node]) / NANOSECONDS_PER_SECOND
    when = f"in {away(at_ns)}" if at_ns > now_ns else "now"
    said = "its deadline" if first.deadline_ns is not None else f"the usual end after a notice of {_word(first.source)}"
    parts = [f"leave {_names(leaving)} {when}"]
    if standing.transition_now:
        parts.append("a transition happens anyway")
    elif first.deadline_ns is None and first.kind is NoticeKind.TERMINATION:
        parts.append(f"{first.node} is being ended and nobody told when it is gone")
    else:
        parts.append(
            f"{said} on {first.node} is {away(deadline_ns(first, standing))} away, and leaving takes up to "
            f"{seconds(standing.publishing.p99 + standing.transition.p99)}, with {seconds(custom(first.source).margin)} to spare"
        )
        if late > 0:
            parts.append(f"that is {seconds(late)} later than is safe")
    if len(leaving) > 1:
        parts.append("together, which costs less than one after the other")
    if kept:
        parts.append(f"{_names(kept)} can train longer than another transition costs")
    return "; ".join(parts)


def _names(nodes: list[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{', '.join(nodes[:-1])} and {nodes[-1]}"
