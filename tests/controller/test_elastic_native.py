"""The controller on the native engine with real processes: what the engine tells is what the controller understands."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orchestrator.accounting import Category
from orchestrator.controller.core import Controller
from orchestrator.controller.hosts import LocalHost, Room
from orchestrator.domain.clock import SystemClock
from orchestrator.lifecycle import Phase
from orchestrator.platforms.engines.native import NativeEngine
from orchestrator.platforms.engines.native.processes import LocalAgents
from orchestrator.platforms.prices import load_prices
from tests.controller.world import FailingJournal, World

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


class NativeWorld(World):
    """As `World`, with an agent of one slot on each of two nodes."""

    def _start(self) -> Controller:
        environ, clock = dict(os.environ), SystemClock()
        self.journal = FailingJournal(self.home.journal_file)
        host = LocalHost(
            lambda: NativeEngine(lambda request: LocalAgents(environ, [1, 1]), clock, environ=environ),
            clock,
            Room(self.cpus, 0),
        )
        controller = Controller(
            self.journal, host, clock, load_prices(None), self.home, engine="native", worker_loop=self.worker_loop
        )
        controller.start()
        return controller


def test_losses_and_wishes_on_real_processes(tmp_path: Path) -> None:
    """A killed worker is a lost world inside the attempt, a wish for another size a resize; slots are held and released,
    and every nano-dollar is in a category."""
    world = NativeWorld(tmp_path / "home", worker_loop="tests.controller.native_loop:train")
    try:
        world.submit("job", 120, workers={"min": 1, "max": 2})
        record = world.until("job", lambda record: record.state.attempt_step >= 15)
        assert record.state.world_workers == 2
        ranks = {rank["rank"]: rank for rank in world.controller.view(record)["status"]["workers"]["ranks"]}
        os.kill(ranks[1]["pid"], signal.SIGKILL)
        record = world.until(
            "job",
            lambda record: (
                record.state.worlds_lost == 1
                and record.state.phase is Phase.RUNNING
                and record.state.attempt_step > record.state.disruptions[0].step
            ),
        )
        assert record.state.disruptions[0].reason == "WorkerLost"
        world.controller.scale("default", "job", 1)
        record = world.until(
            "job", lambda record: record.state.world_workers == 1 and record.state.phase is Phase.RUNNING
        )
        assert [each.reason for each in record.state.disruptions][-1] == "Resized"
        ended = world.until_phase("job", Phase.SUCCEEDED, Phase.FAILED)
        assert (ended.state.phase, ended.state.attempt) == (Phase.SUCCEEDED, 1), world.told("job")
        statement = world.controller.statement(ended.uid)
        spent = statement.by_category()
        for category in (Category.USEFUL, Category.RESTART, Category.RESIZE, Category.PROVISIONING):
            assert spent[category], category
        assert ended.state.interruptions == 1  # nothing was kept in memory
    finally:
        world.close()
