"""Data that one worker of a machine has prepared, read by the others of its attempt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.training import preparation
from orchestrator.training.assignment import Assignment, read_assignment
from orchestrator.training.preparation import Prepared, prepare_once
from tests.training.gang import Run, job, write_reviews


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where data was prepared anew, one entry a time."""
    places: list[Path] = []

    def counted(model: Any, data: Any, working_dir: Path) -> Prepared:
        places.append(working_dir)
        return prepare(model, data, working_dir)

    prepare = preparation.prepare
    monkeypatch.setattr(preparation, "prepare", counted)
    return places


@pytest.fixture
def work(tmp_path: Path) -> Assignment:
    write_reviews(tmp_path / "reviews.csv")
    return read_assignment(Run(tmp_path / "run", job(), tmp_path).plan()["assignment"])


def same(one: Prepared, other: Prepared) -> bool:
    text = "a film to remember"
    return (
        one.digest() == other.digest() and one.tokenizer(text) == other.tokenizer(text) and one.counts == other.counts
    )


def test_one_worker_prepares_and_the_others_read(work: Assignment, made: list[Path]) -> None:
    """The second gets the same data and tokenizer without preparing anything."""
    first, second = prepare_once(work), prepare_once(work)
    assert same(first, second)
    assert len(made) == 1


@pytest.mark.parametrize("content", [b"", b"short", bytes(40)])
def test_what_is_torn_is_made_anew(work: Assignment, made: list[Path], content: bytes) -> None:
    """A file that is not what was written is never read."""
    first = prepare_once(work)
    (file,) = (path for path in (work.run_dir / "prepared").iterdir() if not path.name.startswith("lock-"))
    file.write_bytes(content)
    assert same(first, prepare_once(work))
    assert same(first, prepare_once(work))
    assert len(made) == 2


def test_another_attempt_prepares_anew(work: Assignment, made: list[Path]) -> None:
    """Files may have changed in between; what the attempt before had made goes."""
    prepare_once(work)
    prepare_once(replace(work, attempt=work.attempt + 1))
    assert len(made) == 2
    assert len(list((work.run_dir / "prepared").iterdir())) == 2


def test_a_folder_that_cannot_be_made_costs_time_only(work: Assignment, made: list[Path]) -> None:
    """Each worker prepares for itself then."""
    work.run_dir.mkdir(parents=True, exist_ok=True)
    (work.run_dir / "prepared").write_text("in the way")
    assert same(prepare_once(work), prepare_once(work))
    assert len(made) == 2
