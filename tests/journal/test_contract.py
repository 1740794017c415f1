"""What every journal promises, on SQLite and on a real Postgres."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.controller.journal.base import Commit, Journal
from orchestrator.domain.errors import InternalError, StaleEpoch
from orchestrator.lifecycle import JobState, Phase
from tests.journal.samples import SECOND, entries, everything, held, record, step, story_entry

OpenAgain = Callable[[], Journal]


def test_a_record_comes_back_as_it_was(journal: Journal) -> None:
    """Every field of a job record survives the journal, with and without its optional values."""
    full = record(
        "u2",
        idempotency_key="key-1",
        current=False,
        driver_id="driver",
        driver_seq=2**40,
        progress={"step": 3, "metrics": {"validation": {"accuracy": 0.5}}, "epoch": None},
        result={"model_uri": "/somewhere", "metrics": {}},
        samples_kept=2**40,
        cost={"totalUSD": "0.5"},
        state=JobState(Phase.RUNNING, 1, 2, 4, attempt=2, started_ns=2**62, reason=None, message="ü → \u2603"),
    )
    journal.commit(Commit(jobs={"u1": record(), "u2": full}))
    assert journal.jobs() == [record(), full]


def test_every_kind_of_ledger_entry_comes_back_in_order(journal: Journal, open_again: OpenAgain) -> None:
    """Ledger entries of all kinds, unknown prices included, are read back in the order of their commits."""
    for entry in entries():
        journal.commit(Commit(ledger=[("u1", entry)]))
    assert journal.ledger("u1") == entries() == open_again().ledger("u1")
    assert journal.ledger("nobody") == []


def test_jobs_are_replaced_by_uid_and_keep_their_order(journal: Journal) -> None:
    """A second commit of a job replaces it; the list stays oldest first even when the clock stepped back."""
    journal.commit(Commit(jobs={"u1": record(created_ns=9 * SECOND)}))
    journal.commit(Commit(jobs={"u2": record("u2", created_ns=SECOND)}))
    changed = replace(record(), state=JobState(Phase.QUEUED, 1, 2, 2), progress={"step": 1})
    journal.commit(Commit(jobs={"u1": changed}))
    assert journal.jobs() == [changed, record("u2", created_ns=SECOND)]


def test_story_is_numbered_on_for_each_job(journal: Journal, open_again: OpenAgain) -> None:
    """Story entries of a job count from 1 over commits and restarts; `after` and `limit` page through them."""
    journal.commit(Commit(story=[("u1", story_entry(1)), ("u2", story_entry(2)), ("u1", story_entry(3))]))
    later = open_again()
    later.open_epoch()
    later.commit(Commit(story=[("u1", story_entry(4))]))
    assert [(number, entry.at_ns) for number, entry in later.story("u1")] == [(1, 1), (2, 3), (3, 4)]
    assert [number for number, _ in later.story("u2")] == [1]
    assert [number for number, _ in later.story("u1", after=1, limit=1)] == [2]
    assert later.story("u1")[0][1] == story_entry(1)


def test_steps_are_ordered_and_a_redone_step_has_a_row_an_attempt(journal: Journal) -> None:
    """Steps come by step and attempt; reported twice by one attempt, the newer report counts."""
    journal.commit(Commit(steps=[step(2), step(1), step(3), step(3, loss=0.25)]))
    journal.commit(Commit(steps=[step(2, attempt=2), step(1, loss=0.125)]))
    assert [(row.step, row.attempt) for row in journal.steps("u1")] == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert [row.values["loss"] for row in journal.steps("u1", attempt=1)] == [0.125, 0.5, 0.25]
    assert [row.step for row in journal.steps("u1", after_step=1, limit=2)] == [2, 2]
    assert journal.steps("u1", after_step=1, limit=1)[0] == step(2)


def test_what_json_and_databases_refuse_is_kept_readable(journal: Journal) -> None:
    """A loss that is no number comes back as such; NUL and lone surrogates in a message do not stop a commit."""
    bad = Commit(
        jobs={"u1": record(progress={"loss": math.inf, "more": [-math.inf, {"x": math.nan}], "text": "a\0b"})},
        steps=[step(1, loss=math.nan)],
        story=[("u1", story_entry(message="nul \0 and \udcff end"))],
    )
    journal.commit(bad)
    progress = journal.jobs()[0].progress
    assert progress["loss"] == math.inf
    assert progress["more"][0] == -math.inf
    assert math.isnan(progress["more"][1]["x"])
    assert progress["text"] == "a\0b"
    assert math.isnan(journal.steps("u1")[0].values["loss"])
    assert journal.story("u1")[0][1].message == "nul \ufffd and ? end"


def test_an_older_epoch_cannot_write(journal: Journal, open_again: OpenAgain) -> None:
    """Once a newer controller has opened an epoch, a commit of the older one is refused and writes nothing."""
    newer = open_again()
    assert newer.open_epoch() == 2
    with pytest.raises(StaleEpoch, match="epoch 2; this controller opened 1"):
        journal.commit(everything("u1", 2))
    assert newer.jobs() == []
    newer.commit(Commit(jobs={"u1": record()}))
    assert journal.jobs() == [record()], "the older one may still read"


def test_writing_before_an_epoch_is_a_defect(open_again: OpenAgain) -> None:
    """A journal that nobody opened an epoch of refuses to write."""
    with pytest.raises(InternalError, match="before an epoch"):
        open_again().commit(everything("u1", 1))


def test_a_commit_is_whole_or_not_there(journal: Journal) -> None:
    """When one row of a commit cannot be written, none of its rows is, and the journal goes on working."""
    journal.commit(everything("u1", 1))
    bad = everything("u2", 3)
    bad.steps.append(replace(step(1, uid="u2"), attempt=2**70))
    with pytest.raises(Exception, match=r"(?i)overflow|too large|out of range|int"):
        journal.commit(bad)
    assert [job.uid for job in journal.jobs()] == ["u1"]
    assert journal.story("u2") == []
    assert journal.ledger("u2") == []
    assert journal.steps("u2") == []
    journal.commit(everything("u2", 3))
    assert [number for number, _ in journal.story("u2")] == [1, 2, 3]


def test_many_rows_in_one_commit(journal: Journal) -> None:
    """A commit of a thousand rows of each kind is read back whole and in order."""
    journal.commit(everything("u1", 1_000))
    assert [number for number, _ in journal.story("u1", limit=2_000)] == list(range(1, 1_001))
    assert journal.ledger("u1") == [held(f"u1-{n}") for n in range(1_000)]
    assert [row.step for row in journal.steps("u1")] == list(range(1_000))
    assert journal.size_bytes() > 100_000


def test_readers_and_writer_share_the_journal(journal: Journal) -> None:
    """While one thread commits, others read whole commits only: as many steps as ledger entries at any moment."""
    stop = threading.Event()
    torn: list[tuple[int, int]] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                before = len(journal.steps("u1"))
                entries_then = len(journal.ledger("u1"))
                after = len(journal.steps("u1"))
                if not before <= entries_then <= after:
                    torn.append((before, entries_then))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(60):
        journal.commit(Commit(ledger=[("u1", held(f"m{number}"))], steps=[step(number)]))
    stop.set()
    for reader in readers:
        reader.join()
    assert (torn, failures) == ([], [])
    assert len(journal.steps("u1")) == 60
