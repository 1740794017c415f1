"""A job on a market that is played: real agents, a real controller and ledger, a pretended training."""

from __future__ import annotations

import os
import random
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

SEED = next(seed for seed in range(100) if random.Random(seed).sample([0, 1], 1) == [0])
"""The market draws the first of two machines."""
pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def test_a_job_moves_to_the_machine_that_stays(tmp_path: Path) -> None:
    """A second machine comes; the market takes the first, with a notice. Nothing is redone, every machine-second that the
    market delivered is in the ledger once, and nothing is left running."""
    trace = Trace("made-up", 10.0, (1,) * 3 + (2,) * 5 + (1,) * 5)
    job = document(
        "moves", 1_000_000, workers={"min": 1, "max": 2, "allowedSizes": [1]}, checkpoint={"every": 1_000_000}
    )
    said: list[str] = []
    loop = "tests.controller.replay_loops:train"
    replay = Replay(trace, 10.0, 20.0, seed=SEED)
    replayed = play(job, replay, tmp_path, dict(os.environ), SystemClock(), said.append, worker_loop=loop)
    assert replayed.record.state.phase is Phase.SUSPENDED, said
    assert [machine.gone is not None for machine in replayed.machines] == [True, False], said
    assert [why for *_, why in transitions(replayed)] == ["Notice"], said
    assert replayed.record.state.step > 10
    assert replayed.record.progress["capacity_type"] == "spot"  # checkpoints come as often as the market asks for
    assert replayed.record.progress.get("steps_redone", 0) == 0
    held = sum(replayed.seconds_of(category) for category in Category)
    assert held == pytest.approx(replayed.delivered_seconds, abs=3.0)
    assert replayed.seconds_of(Category.AT_RISK) == 0
    assert replayed.useful_share is not None
    assert 0 < replayed.useful_share <= 1
    assert "taken away" in timeline(replayed)
    mine = psutil.Process().children(recursive=True)
    assert [process for process in mine if "engines.native" in " ".join(process.cmdline())] == []
