"""Made-up markets."""

from __future__ import annotations

import pytest

from orchestrator.simulation.synthetic import synthetic_trace


def test_a_seed_gives_one_market_that_is_up_as_often_as_asked() -> None:
    """The same seed, the same market; another, another; over a long time the shares are those of the means."""
    one = synthetic_trace(7, hours=5000, up_hours=3, down_hours=1, most=4)
    assert one == synthetic_trace(7, hours=5000, up_hours=3, down_hours=1, most=4)
    assert one.available != synthetic_trace(8, hours=5000, up_hours=3, down_hours=1, most=4).available
    assert one.seconds == 5000 * 3600
    assert set(one.available) == {0, 1, 2, 3, 4}
    assert sum(count == 4 for count in one.available) / len(one.available) == pytest.approx(0.75, abs=0.05)
