from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.controller.world import World

MakeWorld = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A controller with room for many jobs; the end of the test checks invariants and conservation."""
    made = World(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Worlds with other settings."""
    made: list[World] = []

    def make(**settings: Any) -> World:
        made.append(World(tmp_path / f"home-{len(made)}", **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()
