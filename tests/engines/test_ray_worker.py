"""A rank's side of the Ray engine, without Ray: the link, the words it passes on, and how its end is told."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from orchestrator.domain.clock import ManualClock
from orchestrator.platforms.engines.base import Wishes
from orchestrator.platforms.engines.rank import Tee, classify
from orchestrator.platforms.engines.ray_worker import MAX_KEPT_LINES, RayLink


class Driver:
    """Takes batches; answers every second question only."""

    def __init__(self) -> None:
        self.taken: dict[int, Mapping[str, Any]] = {}
        self.asked = 0
        self.wished = Wishes()
        self.heard = threading.Event()

    def exchange(self, first: int, events: Sequence[Mapping[str, Any]]) -> Wishes | None:
        self.asked += 1
        for number, event in enumerate(events, first):
            self.taken.setdefault(number, event)
        if self.asked % 2:
            return None
        self.heard.set()
        return self.wished


def test_every_event_arrives_once_and_in_order_over_a_bad_line() -> None:
    """Batches that got no answer are sent again under the same numbers; `close` returns when all is delivered."""
    driver = Driver()
    link = RayLink(0, driver.exchange, ManualClock())
    for number in range(50):
        link.send({"kind": "count", "number": number})
    link.close()
    assert [driver.taken[number]["number"] for number in range(50)] == list(range(50))
    assert len(driver.taken) == 50


def test_wishes_come_back_with_the_answer() -> None:
    """What the driver answers is what the rank sees."""
    driver = Driver()
    driver.wished = Wishes(2, True, 90.0)
    link = RayLink(0, driver.exchange, ManualClock())
    link.close()
    assert link.wishes() == Wishes(2, True, 90.0)


def test_a_flood_of_lines_is_bounded_and_told() -> None:
    """More lines than are kept lose the oldest, and the log says how many."""
    gate = threading.Event()
    driver = Driver()

    def exchange(first: int, events: Sequence[Mapping[str, Any]]) -> Wishes | None:
        gate.wait(10)
        return driver.exchange(first, events)

    link = RayLink(3, exchange, ManualClock())
    while link._lines_dropped == 0:
        link.say([f"line {n}" for n in range(1_000)])
    dropped = link._lines_dropped
    gate.set()
    link.close()
    lines = [line for number in sorted(driver.taken) for line in driver.taken[number]["lines"]]
    assert any(f"({dropped} lines were dropped here" in line for line in lines)
    assert len(lines) >= MAX_KEPT_LINES
    assert lines[-1] == "line 999"


def test_lines_are_passed_on_whole() -> None:
    """Pieces are joined to lines, a progress bar gives its last state, and the original stream gets everything."""
    heard: list[str] = []
    stream = io.StringIO()
    tee = Tee(stream, heard.extend)
    for piece in ("a", "b\nc", "\n10%\r20%\r", "30%\n", "rest"):
        tee.write(piece)
    assert heard == ["ab", "c", "30%"]
    tee.finish()
    assert heard[-1] == "rest"
    assert stream.getvalue() == "ab\nc\n10%\r20%\r30%\nrest"


def test_bytes_written_to_the_buffer_are_heard_as_text() -> None:
    """`sys.stdout.buffer` exists, and what is no UTF-8 is replaced."""
    heard: list[str] = []
    tee = Tee(io.StringIO(), heard.extend)
    tee.buffer.write(b"caf\xc3\xa9\n\xff\n")
    tee.buffer.flush()
    assert heard == ["café", "\ufffd"]


def test_code_that_cannot_be_read_is_named_by_its_line() -> None:
    """A syntax error has no frame of its own: file and line come from the error."""
    with pytest.raises(SyntaxError) as caught:
        compile("x = 1\ndef f(:\n", "/home/me/code.py", "exec")
    assert classify(0, caught.value, 0).message.endswith("(/home/me/code.py:2)")


class Classified(Exception):
    reason, message, hint = "StorageFull", "no room", "make some"


def test_the_reason_of_a_cause_is_found() -> None:
    """A classified failure that another exception wraps still gives its reason, message and hint."""
    try:
        try:
            raise Classified
        except Classified as cause:
            raise RuntimeError("saving failed") from cause
    except RuntimeError as error:
        failed = classify(1, error, 5)
    assert (failed.reason, failed.message, failed.collateral) == ("StorageFull", "no room; make some", False)


@pytest.mark.parametrize(
    ("error", "reason", "collateral"),
    [
        (RuntimeError("[../gloo/pair.cc] Connection closed by peer"), "ApplicationError", True),
        (type("DistBackendError", (RuntimeError,), {})("NCCL"), "ApplicationError", True),
        (RuntimeError("shapes do not match"), "ApplicationError", False),
        (ValueError("connection reset"), "ApplicationError", False),
        (MemoryError("1 TiB"), "OutOfMemory", False),
    ],
)
def test_a_lost_peer_is_told_from_a_failure_of_ones_own(error: Exception, reason: str, collateral: bool) -> None:
    """Only errors of the collective libraries count as somebody else's death."""
    failed = classify(0, error, 0)
    assert (failed.reason, failed.collateral) == (reason, collateral)


def test_the_users_own_frame_is_named() -> None:
    """The message gives type, text, file and line of the user's code, not of ours."""
    with pytest.raises(ValueError, match="seven") as caught:
        int("seven")
    failed = classify(0, caught.value, 0)
    assert failed.message.startswith("ValueError: invalid literal")
    assert "test_ray_worker.py:" in failed.message
