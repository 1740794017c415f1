"""SIGKILL in the middle of a real run, once for each victim; `make bench-kills` does it at more moments."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import kills
from benchmarks.throughput import stop_server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kills.World]:
    """A home with a running controller, and the losses of an undisturbed run."""
    made = kills.World(Path(tmp_path_factory.mktemp("kills")))
    made.learn()
    yield made
    stop_server(made.environ)
    assert made.processes() == [], "processes of Ray are left after server stop"


@pytest.mark.parametrize("victim", kills.VICTIMS)
def test_a_killed_part_changes_nothing_but_the_bill(world: kills.World, victim: str) -> None:
    """After the kill the job ends Succeeded, once, with every loss as in the undisturbed run and all money accounted for."""
    at_step = random.Random(f"test-{victim}").randint(1, len(world.reference) - 5)
    found = kills.run_once(world, victim, victim, at_step)
    assert found["killed"] >= 1
