"""Lives that are checked once more when their test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from orchestrator.lifecycle import Limits
from tests.lifecycle.life import Life

MakeLife = Callable[..., Life]


@pytest.fixture
def submit() -> Iterator[MakeLife]:
    """Make a life: `submit(Limits(...))`."""
    lives: list[Life] = []

    def make(limits: Limits | None = None, *, suspended: bool = False, elastic: bool = False, workers: int = 2) -> Life:
        lives.append(Life(limits, workers, suspended, elastic))
        return lives[-1]

    yield make
    assert lives
    for life in lives:
        life.check()
