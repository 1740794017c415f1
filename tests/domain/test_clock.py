"""Clocks and instants."""

from __future__ import annotations

import pytest

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, ManualClock, SystemClock, seconds_between, to_rfc3339


def test_a_manual_clock_moves_only_when_told() -> None:
    """Both times move by exactly what was asked for, and never back."""
    clock = ManualClock(start_ns=5)
    assert (clock.now_ns(), clock.monotonic_ns()) == (5, 0)
    clock.advance(1.5)
    assert (clock.now_ns(), clock.monotonic_ns()) == (1_500_000_005, 1_500_000_000)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
    assert clock.monotonic_ns() == 1_500_000_000


def test_the_systems_clock_runs() -> None:
    """The monotonic time never falls, and the wall clock is past the day this was written."""
    clock = SystemClock()
    assert clock.monotonic_ns() <= clock.monotonic_ns()
    assert clock.now_ns() > 1_700_000_000 * NANOSECONDS_PER_SECOND


@pytest.mark.parametrize(
    ("at_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_999_999_999, "2023-11-14T22:13:20.999Z"),
        (951_782_400 * NANOSECONDS_PER_SECOND, "2000-02-29T00:00:00.000Z"),
    ],
)
def test_instants_are_written_in_utc_with_milliseconds(at_ns: int, text: str) -> None:
    """RFC 3339, rounded down to the millisecond."""
    assert to_rfc3339(at_ns) == text


def test_seconds_between_keeps_its_sign() -> None:
    """The difference of two instants is negative when their order is reversed."""
    assert (seconds_between(0, 1_500_000_000), seconds_between(1_500_000_000, 0)) == (1.5, -1.5)
