"""What is read from a recorded spot market, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import NotFound, UsageError
from orchestrator.simulation import Trace, read_trace


def write(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_trace_is_read_with_its_polarity(tmp_path: Path) -> None:
    """A file that says that its values are unavailable machines is turned round; one that says nothing is not."""
    plain = write(tmp_path / "us-east-1.json", {"metadata": {"gap_seconds": 300}, "data": [2, 4, 0]})
    assert read_trace(plain) == Trace("us-east-1", 300.0, (2, 4, 0))
    turned = {"metadata": {"gap_seconds": 60, "value": "unavailable"}, "data": [2, 4, 0]}
    assert read_trace(write(tmp_path / "other.json", turned)).available == (2, 0, 4)


WRONG: dict[str, Any] = {
    "cannot be read as a trace": "{",
    "metadata.gap_seconds is None": [1, 2],
    "metadata.gap_seconds is 0": {"metadata": {"gap_seconds": 0}, "data": [1]},
    "data holds no values": {"metadata": {"gap_seconds": 1}, "data": []},
    "data\\[1\\] is -1": {"metadata": {"gap_seconds": 1}, "data": [1, -1]},
    "data\\[0\\] is True": {"metadata": {"gap_seconds": 1}, "data": [True]},
    "metadata.value is 'free'": {"metadata": {"gap_seconds": 1, "value": "free"}, "data": [1]},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_no_trace_is_refused_with_its_place(said: str, tmp_path: Path) -> None:
    """The message names the file, the entry and the form."""
    with pytest.raises(UsageError, match=said) as raised:
        read_trace(write(tmp_path / "t.json", WRONG[said]))
    assert "t.json" in raised.value.what
    assert raised.value.hint


def test_a_trace_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A missing file is not a broken one."""
    with pytest.raises(NotFound, match=r"there is no trace .*nowhere\.json"):
        read_trace(tmp_path / "nowhere.json")


@given(st.lists(st.integers(0, 16), min_size=1, max_size=60), st.floats(1, 1000))
def test_changes_tell_the_whole_trace(counts: list[int], gap: float) -> None:
    """The machines at any tick, the machine-seconds, the joins and the losses follow from the changes alone."""
    trace = Trace("t", gap, tuple(counts))
    changes = list(trace.changes())
    assert changes[0] == (0.0, counts[0])
    for tick, count in enumerate(counts):
        assert [held for at, held in changes if at <= tick * gap][-1] == count
    steps = [after[1] - before[1] for before, after in pairwise(changes)]
    assert all(steps)
    assert trace.joins - trace.losses == sum(steps) == counts[-1] - counts[0]
    assert trace.joins == sum(step for step in steps if step > 0)


def test_a_window_is_a_piece_of_the_trace() -> None:
    """Ticks are taken whole; a window that leaves the trace is refused with its length."""
    trace = Trace("t", 300.0, tuple(range(48)))
    piece = trace.window(3600, 7200)
    assert piece.available == tuple(range(12, 36))
    assert piece.seconds == 7200
    with pytest.raises(UsageError, match=r"t has 4\.0 hours, which end before 5\.0"):
        trace.window(3 * 3600, 2 * 3600)
