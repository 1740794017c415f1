from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import World

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

    def make(**settings: object) -> World:
        made.append(World(tmp_path / f"home-{len(made)}", **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()
