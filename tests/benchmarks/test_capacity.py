"""What the capacity benchmark works out again, it works out by itself: a run that tells another story is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.capacity import check
from orchestrator.policy.capacity import POLICY_NAMES
from orchestrator.simulation.market import HOUR_NS, market
from orchestrator.simulation.study import Result, Terms, study
from orchestrator.simulation.synthetic import synthetic_trace
from orchestrator.simulation.traces import Series
from orchestrator.simulation.world import Held

TRACE = synthetic_trace(3, hours=60, up_hours=3, down_hours=1)
SERIES = Series(TRACE.name, (TRACE,))
TERMS = Terms(12 * HOUR_NS, (1.5,), HOUR_NS // 10, 8, POLICY_NAMES)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return list(study([market(SERIES, 1, 1)], TERMS))


def test_runs_of_every_policy_add_up(results: list[Result]) -> None:
    """Cost, availability and work follow from the segments and the trace, under each policy and from each start."""
    assert len(results) == 8 * len(POLICY_NAMES)
    for result in results:
        check(result, SERIES)


@pytest.mark.parametrize(
    "lie",
    [
        lambda first: first._replace(end_ns=first.end_ns - HOUR_NS // 20),
        lambda first: first._replace(start_ns=first.start_ns - HOUR_NS // 20),
        lambda first: first._replace(end_ns=first.end_ns + HOUR_NS // 20),
    ],
    ids=["work that was not done", "work that was not told", "a machine after it was taken"],
)
def test_a_run_that_does_not_add_up_is_found(results: list[Result], lie: Callable[[Held], Held]) -> None:
    """A spot segment that is shorter or longer than it was fails the check."""
    told = next(each for each in results if each.policy == "greedy" and each.run.preemptions)
    segments = (lie(told.run.segments[0]), *told.run.segments[1:])
    with pytest.raises(AssertionError):
        check(replace(told, run=replace(told.run, segments=segments)), SERIES)
