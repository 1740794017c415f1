"""What holds for every source of notices, the fake one included."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.platforms.notices.watcher import Watcher
from tests.notices.rigs import CLOCK, NODE, QUICK, RIGS, SERVED, Recorder, Rig
from tests.notices.servers import FAULTS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig = request.param(tmp_path)
    with made.closing:
        yield made


every_rig = pytest.mark.parametrize("rig", RIGS, indirect=True, ids=lambda rig: rig.name)
served_rig = pytest.mark.parametrize("rig", SERVED, indirect=True, ids=lambda rig: rig.name)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def watcher(rig: Rig, recorder: Recorder) -> Iterator[Watcher]:
    watching = Watcher([rig.source], recorder, CLOCK, NODE, retry_seconds=QUICK)
    yield watching
    watching.stop()


def settle(rig: Rig) -> None:
    """What stands now has been looked at, twice."""
    rig.source.wait_looks(2, rig.stir)


@every_rig
def test_a_notice_is_told_with_its_fields(rig: Rig, recorder: Recorder, watcher: Watcher) -> None:
    """A notice that appears is told soon, with source, node, kind, and a deadline inside its window and not in the past."""
    settle(rig)
    begun_ns = CLOCK.now_ns()
    rig.appear()
    (change,) = recorder.wait(1)
    notice = change.notice
    assert not change.withdrawn
    assert (notice.source, notice.node, notice.kind) == (rig.name, NODE, rig.kind)
    assert begun_ns <= notice.received_ns <= CLOCK.now_ns()
    if rig.window_seconds is None:
        assert notice.deadline_ns is None
    else:
        remaining = notice.remaining_seconds(notice.received_ns)
        assert remaining is not None
        assert rig.window_seconds > 1e8 or rig.window_seconds - 2.5 < remaining <= rig.window_seconds + 0.01
    assert watcher.told() == [notice]


@every_rig
def test_a_notice_that_stood_before_is_told(rig: Rig, recorder: Recorder) -> None:
    """A notice that stands when the watching begins is told: an agent may start after it."""
    rig.appear()
    watcher = Watcher([rig.source], recorder, CLOCK, NODE)
    (change,) = recorder.wait(1)
    watcher.stop()
    assert change.notice.kind is rig.kind


@every_rig
@pytest.mark.usefixtures("watcher")
def test_a_notice_that_is_seen_again_is_one(rig: Rig, recorder: Recorder) -> None:
    """A notice that goes on to stand, look after look, is told once."""
    rig.appear()
    recorder.wait(1)
    settle(rig)
    settle(rig)
    recorder.wait(1)


@every_rig
def test_a_withdrawn_notice_is_told_and_may_come_back(rig: Rig, recorder: Recorder, watcher: Watcher) -> None:
    """What no longer stands is told as withdrawn, equal to what was told; when it comes again it is a new notice."""
    rig.appear()
    recorder.wait(1)
    rig.withdraw()
    first, second = recorder.wait(2)
    assert second.withdrawn
    assert second.notice == first.notice
    assert watcher.told() == []
    rig.appear()
    third = recorder.wait(3)[2]
    assert not third.withdrawn
    assert third.notice.received_ns > first.notice.received_ns


@served_rig
@pytest.mark.parametrize("fault", FAULTS)
def test_trouble_is_neither_a_notice_nor_its_end(
    rig: Rig, fault: str, recorder: Recorder, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors, silence, dribbles, half answers, nonsense, a captive portal and a redirect tell nothing and withdraw nothing;
    what came meanwhile is told afterwards, and the trouble is said once."""
    assert rig.server is not None
    caplog.set_level(logging.INFO, "orchestrator.platforms.notices.watcher")
    settle(rig)
    rig.server.break_with(fault)
    rig.source.wait_failed(2, rig.stir)
    assert rig.server.injected[fault] >= 1
    rig.appear()
    rig.source.wait_failed(1, rig.stir)
    recorder.wait(0)
    rig.server.break_with(None)
    recorder.wait(1)
    rig.server.break_with(fault)
    rig.source.wait_failed(2, rig.stir)
    recorder.wait(1)
    rig.server.break_with(None)
    rig.withdraw()
    assert recorder.wait(2)[1].withdrawn
    watcher.stop()
    said = [record.message for record in caplog.records]
    assert sum("cannot be read" in line for line in said) == 2, said
    assert sum("can be read again" in line for line in said) == 2, said


@every_rig
def test_stopping_takes_no_time(rig: Rig, recorder: Recorder) -> None:
    """A watcher that is asked to stop stops at once, also while a source waits for an answer, and tells nothing after it."""
    watcher = Watcher([rig.source], recorder, CLOCK, NODE)
    rig.source.wait_looks(1, rig.stir)
    if rig.server is not None:
        rig.server.break_with("hang")
    begun = time.monotonic()
    watcher.stop()
    assert time.monotonic() - begun < 1.0
    watcher.stop()
    rig.appear()
    recorder.wait(0)


@served_rig
@pytest.mark.parametrize("fault", ["html", "redirect", "500", "cut"])
def test_a_server_of_somebody_else_is_told_once_and_given_up(
    rig: Rig, fault: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another server answers, the source is told as absent once, its threads end, and nothing is ever told."""
    assert rig.server is not None
    caplog.set_level(logging.INFO, "orchestrator.platforms.notices.watcher")
    rig.server.break_with(fault)
    watcher = Watcher([rig.source], recorder, CLOCK, NODE, retry_seconds=QUICK)
    for thread in watcher._threads:
        thread.join(10)
        assert not thread.is_alive()
    said = [record.message for record in caplog.records]
    assert len(said) == 1, said
    assert said[0].startswith(f"no notices from {rig.name.partition('-')[0]}: ")
    recorder.wait(0)
    watcher.stop()
