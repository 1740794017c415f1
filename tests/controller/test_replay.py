"""A job on a market that is played: real agents, a real controller and ledger, a pretended training."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from orchestrator.accounting import Category
from orchestrator.cli.timeline import timeline, transitions
from orchestrator.controller.replay import Replay, play
from orchestrator.domain.clock import SystemClock
from orchestrator.lifecycle import Phase
from orchestrator.simulation import Trace
from tests.controller.world import document

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def test_a_job_moves_to_the_machine_that_stays(tmp_path: Path) -> None:
    """Two machines; the market takes the one that trains, with a notice. Nothing is redone, every machine-second that the
    market delivered is in the ledger once, and nothing is left running."""
    trace = Trace("made-up", 10.0, (2,) * 5 + (1,) * 4)
    job = document(
        "moves", 1_000_000, workers={"min": 1, "max": 2, "allowedSizes": [1]}, checkpoint={"every": 1_000_000}
    )
    said: list[str] = []
    clock = SystemClock()
    for seed in range(2):  # of two seeds at least one takes the machine that trains
        folder = tmp_path / str(seed)
        loop = "tests.controller.replay_loops:train"
        replay = Replay(trace, 10.0, 20.0, seed)
        replayed = play(job, replay, folder, dict(os.environ), clock, said.append, worker_loop=loop)
        assert replayed.record.state.phase is Phase.SUSPENDED, said
        assert replayed.record.state.step > 10
        assert replayed.record.progress.get("steps_redone", 0) == 0
        assert replayed.losses == 1
        held = sum(replayed.seconds_of(category) for category in Category)
        assert held == pytest.approx(replayed.delivered_seconds, abs=3.0)
        assert replayed.seconds_of(Category.AT_RISK) == 0
        assert replayed.seconds_of(Category.USEFUL) > 0
        assert replayed.useful_share is not None
        assert 0 < replayed.useful_share <= 1
        assert "taken away" in timeline(replayed)
        if moved := transitions(replayed):
            assert [why for *_, why in moved] == ["Notice"]
            break
    else:
        pytest.fail(f"no seed took the machine that trained: {said}")
    mine = psutil.Process().children(recursive=True)
    assert [process for process in mine if "engines.native" in " ".join(process.cmdline())] == []
