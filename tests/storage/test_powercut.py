"""What was acknowledged survives a power cut on a disk that forgets whatever was not synced."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.powercut import File, ForgetfulFiles, Tally, trial


def total(seeds: range, files: type[ForgetfulFiles] = ForgetfulFiles) -> Tally:
    whole = Tally()
    for seed in seeds:
        tally = trial(seed, files)
        whole.cuts += tally.cuts
        whole.acknowledged += tally.acknowledged
        whole.lost += tally.lost
    return whole


def test_no_power_cut_takes_what_was_acknowledged() -> None:
    """Over 60 seeded jobs with four power cuts each, every acknowledged checkpoint that retention keeps is there, byte for byte."""
    tally = total(range(60))
    assert tally.lost == []
    assert tally.cuts == 240
    assert tally.acknowledged > 200


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
    assert total(range(30), files).lost
