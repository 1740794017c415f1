"""When the gang leaves a node that was given notice.

As late as is safe: the node trains until then, and what comes meanwhile (its replacement, another notice) needs no transition
of its own. Safe is

    deadline - p99 of publishing - p99 of the transition that reads from its memory - a margin

The sum of two p99s is at least the p99 of the sum. The margin covers clocks that differ and what the source is known for.
Nobody told a deadline: the source's usual time from the notice on; a termination without one is left at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.domain.notices import Notice, NoticeKind


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


def custom(source: str) -> Custom:
    """What a source of notices usually leaves."""
    return CUSTOMS.get(source.partition("-")[0], OTHER)


def leave_at_ns(notice: Notice, needs_seconds: float) -> int:
    """The last moment at which leaving the notice's node is safe, by the clock of the notice; may be past.

    `needs_seconds`: publishing and the transition that reads what was published, without the margin.
    """
    if notice.deadline_ns is None and notice.kind is NoticeKind.TERMINATION:
        return notice.received_ns
    usual = custom(notice.source)
    deadline_ns = notice.deadline_ns
    if deadline_ns is None:
        deadline_ns = notice.received_ns + round(usual.lead * NANOSECONDS_PER_SECOND)
    return deadline_ns - round((needs_seconds + usual.margin) * NANOSECONDS_PER_SECOND)
