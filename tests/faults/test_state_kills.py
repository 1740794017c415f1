"""A short form of `make bench-state_kills`: kills, power cuts and damage lose nothing that was acknowledged."""

from __future__ import annotations

import pytest

from benchmarks import state_kills

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(kind: str) -> None:
    """After each of 20 SIGKILLs, falling in several phases, all that was promised is there and the rest gets cleaned."""
    run = state_kills.kill(kind, 20, seed=7)
    assert run.broken == []
    assert run.attempt == sum(run.hit.values()) == 20
    assert len(run.hit) >= 3
    assert run.acknowledged >= 5


def test_a_power_cut_takes_nothing_that_was_acknowledged() -> None:
    """400 cuts on a disk that forgets what was not synced break no promise."""
    done = state_kills.cut_power(400, 1_000_000)
    assert done["broken"] == []
    assert done["cuts"] == 400


def test_every_damage_is_named() -> None:
    """Of 60 torn, flipped, missing and refused files each is told by name, and the older checkpoint is taken."""
    done = state_kills.damage(60, seed=7)
    assert done["broken"] == []
    assert set(done["kinds"]) == {"flip", "torn", "gone", "full"}
