"""What was acknowledged survives a power cut on a disk that forgets whatever was not synced."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.powercut import File, ForgetfulFiles, Tally, trial


def total(seeds: range) -> Tally:
    whole = Tally()
    for seed in seeds:
        tally = trial(seed)
        whole.cuts += tally.cuts
        whole.acknowledged += tally.acknowledged
        whole.lost += tally.lost
    return whole


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 200), marks=pytest.mark.faults)])
def test_no_power_cut_takes_what_was_acknowledged(seeds: range) -> None:
    """Over seeded jobs (12; 188 more in `make faults`) with four power cuts each, every acknowledged checkpoint that retention
    keeps is there, byte for byte."""
    tally = total(seeds)
    assert tally.lost == []
    assert tally.cuts == 4 * len(seeds)
    assert tally.acknowledged > 3 * len(seeds)


class NoFolderSync(ForgetfulFiles):
    def sync(self, path: Path) -> None:
        if isinstance(self._node(path), File):
            super().sync(path)


class NoFileSync(ForgetfulFiles):
    def sync(self, path: Path) -> None:
        if not isinstance(self._node(path), File):
            super().sync(path)


@pytest.mark.parametrize("files", [NoFolderSync, NoFileSync])
def test_the_model_finds_a_missing_sync(files: type[ForgetfulFiles]) -> None:
    """Without the syncs of folders, or of files, the same trials lose checkpoints: the model can tell."""
    assert any(trial(seed, files).lost for seed in range(30))
