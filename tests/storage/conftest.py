from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import storage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def store(root: Path) -> storage.Store:
    return storage.open_store(str(root))
