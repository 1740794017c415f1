"""Rows of the journal's tables, the same in every database: values to columns and back.

Mappings are JSON in text. Numbers that JSON cannot hold (a loss that is infinite or not a number is just what one wants
to read afterwards) are written as `{"$number": "nan"}` and come back as what they were. Plain text is stored without
what a database may refuse: NUL characters and lone surrogates become U+FFFD.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator import __version__
from orchestrator.accounting import Entry, entry_from_document, entry_to_document
from orchestrator.controller.journal.base import OLDEST_SCHEMA, SCHEMA_VERSION, Commit, JobRecord, StepRow
from orchestrator.domain.errors import StorageError
from orchestrator.lifecycle import JobState, StoryEntry

WRITTEN_BY = f"orchestrate {__version__}"

JOB_COLUMNS = (
    "uid",
    "namespace",
    "name",
    "digest",
    "document",
    "working_dir",
    "state",
    "created_ns",
    "idempotency_key",
    "current",
    "driver_id",
    "driver_seq",
    "progress",
    "result",
    "samples_kept",
    "cost",
)
STORY_COLUMNS = ("uid", "number", "at_ns", "event", "phase_before", "phase_after", "reason", "message")
LEDGER_COLUMNS = ("uid", "number", "entry")
STEP_COLUMNS = ("uid", "step", "attempt", "report")

_NUMBER = "$number"


def to_json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_spelled_out(value), separators=(",", ":"), allow_nan=False)


def from_json(text: str) -> Any:
    return json.loads(text, object_hook=_number if f'"{_NUMBER}"' in text else None)


def _spelled_out(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: repr(value)}
    if isinstance(value, Mapping):
        return {key: _spelled_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled_out(item) for item in value]
    return value


def _number(document: dict[str, Any]) -> Any:
    return float(document[_NUMBER]) if document.keys() == {_NUMBER} else document


def clean(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def job_row(record: JobRecord) -> tuple[Any, ...]:
    return (
        record.uid,
        record.namespace,
        record.name,
        record.digest,
        to_json(record.document),
        clean(record.working_dir),
        to_json(record.state.to_document()),
        record.created_ns,
        None if record.idempotency_key is None else clean(record.idempotency_key),
        record.current,
        record.driver_id,
        record.driver_seq,
        to_json(record.progress),
        None if record.result is None else to_json(record.result),
        record.samples_kept,
        None if record.cost is None else to_json(record.cost),
    )


def job_from_row(row: Sequence[Any]) -> JobRecord:
    uid, namespace, name, digest, document, working_dir, state, created_ns, key, current, *rest = row
    driver_id, driver_seq, progress, result, samples_kept, cost = rest
    return JobRecord(
        uid=uid,
        namespace=namespace,
        name=name,
        digest=digest,
        document=from_json(document),
        working_dir=working_dir,
        state=JobState.from_document(from_json(state)),
        created_ns=created_ns,
        idempotency_key=key,
        current=bool(current),
        driver_id=driver_id,
        driver_seq=driver_seq,
        progress=from_json(progress),
        result=None if result is None else from_json(result),
        samples_kept=samples_kept,
        cost=None if cost is None else from_json(cost),
    )


def story_rows(story: Iterable[tuple[str, StoryEntry]], last: dict[str, int]) -> list[tuple[Any, ...]]:
    """Rows numbered on from `last` (uid to its newest number), which is brought up to date."""
    rows = []
    for uid, entry in story:
        last[uid] = number = last[uid] + 1
        text = (entry.event, entry.phase_before, entry.phase_after, entry.reason, clean(entry.message))
        rows.append((uid, number, entry.at_ns, *text))
    return rows


def story_from_row(row: Sequence[Any]) -> tuple[int, StoryEntry]:
    return row[0], StoryEntry(*row[1:])


def ledger_rows(ledger: Iterable[tuple[str, Entry]], last: dict[str, int]) -> list[tuple[Any, ...]]:
    rows = []
    for uid, entry in ledger:
        last[uid] = number = last[uid] + 1
        rows.append((uid, number, to_json(entry_to_document(entry))))
    return rows


def entry_from_row(row: Sequence[Any]) -> Entry:
    return entry_from_document(from_json(row[0]))


def step_rows(steps: Iterable[StepRow]) -> list[tuple[Any, ...]]:
    """One row a step of an attempt: when it was reported twice, the newer report."""
    newest = {(row.uid, row.step, row.attempt): row.values for row in steps}
    return [(*key, to_json(values)) for key, values in newest.items()]


def step_from_row(uid: str, row: Sequence[Any]) -> StepRow:
    step, attempt, report = row
    return StepRow(uid, attempt, step, from_json(report))


def story_uids(commit: Commit) -> list[str]:
    return list(dict.fromkeys(uid for uid, _ in commit.story))


def ledger_uids(commit: Commit) -> list[str]:
    return list(dict.fromkeys(uid for uid, _ in commit.ledger))


def check_schema(place: str, version: int, written_by: str) -> None:
    """Raise `StorageError` unless this version of orchestrate can use a journal of that schema."""
    if OLDEST_SCHEMA <= version <= SCHEMA_VERSION:
        return
    what = (
        f"the journal {place} has schema {version}, written by {written_by}; this is {WRITTEN_BY}, "
        f"which knows schemas {OLDEST_SCHEMA} to {SCHEMA_VERSION}"
    )
    if version > SCHEMA_VERSION:
        hint = f"upgrade to {written_by} or newer here: what it wrote would be read wrongly; or set another home or journal"
    else:
        hint = "open it once with a version in between, or set another home or journal"
    raise StorageError(what, hint=hint)
