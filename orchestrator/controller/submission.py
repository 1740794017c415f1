"""How a job is accepted: what is new, what was submitted before, and what conflicts."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from orchestrator.controller import terms
from orchestrator.controller.home import Home
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.secrecy import cut_out, keep
from orchestrator.controller.turn import Turn
from orchestrator.domain.errors import Conflict, StorageError
from orchestrator.lifecycle import Limits, Submitted, transition


@dataclass(frozen=True, slots=True)
class Submission:
    """Answer to a submit: `created`, `unchanged` (the same job is active) or `replayed` (the same idempotency key)."""

    record: JobRecord
    result: str


@dataclass(slots=True)
class Submit:
    """A document that somebody asks to run, with every default filled in."""

    document: Mapping[str, Any]
    digest: str
    key: str | None
    rerun: bool
    answer: Future[Submission]


def accept(turn: Turn, item: Submit, home: Home, committed: Callable[[str], JobRecord]) -> None:
    """Put the job into the turn, or answer why not. `committed`: the record of a job after the commit."""
    metadata = item.document["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    if item.key is not None and (known := turn.by_key(namespace, item.key)) is not None:
        if known.digest != item.digest or known.name != name:
            what = f"the idempotency key {item.key!r} was used for another job, {known.namespace}/{known.name}"
            turn.replies.append(lambda: item.answer.set_exception(Conflict(what, hint="use a new key")))
        else:
            turn.replies.append(lambda: item.answer.set_result(Submission(known, "replayed")))
        return
    before = turn.by_name(namespace, name)
    if before is not None and not before.state.phase.ended:
        if before.digest == item.digest:
            turn.replies.append(lambda: item.answer.set_result(Submission(before, "unchanged")))
            return
        what = f"the job {namespace}/{name} is {before.state.phase} and was submitted with another spec"
        hint = f"wait for it, cancel it (`orchestrate cancel {name}`), or choose another metadata.name"
        turn.replies.append(lambda: item.answer.set_exception(Conflict(what, hint=hint)))
        return
    if before is not None and not item.rerun:
        what = f"the job {namespace}/{name} has ended ({before.state.phase})"
        hint = "submit with --rerun to run it again from the start, or choose another metadata.name"
        turn.replies.append(lambda: item.answer.set_exception(Conflict(what, hint=hint)))
        return
    spec = item.document["spec"]
    workers, elastic = terms.sizes(item.document)[-1], terms.elastic(item.document)
    event = Submitted(turn.now_ns, workers, suspended=spec.get("suspend", False), elastic=elastic)
    decision = transition(None, event, Limits())
    uid = str(uuid.uuid4())
    shown, secrets = cut_out(item.document)
    if secrets:
        try:
            keep(home.secrets_file(uid), secrets)
        except StorageError as error:
            turn.replies.append(partial(item.answer.set_exception, error))
            return
    record = JobRecord(
        uid=uid,
        namespace=namespace,
        name=name,
        digest=item.digest,
        document=shown,
        working_dir=spec.get("runtime", {}).get("workingDir", ""),
        state=decision.state,
        created_ns=turn.now_ns,
        idempotency_key=item.key,
    )
    if before is not None:
        turn.put(replace(before, current=False))
    turn.put(record)
    if decision.entry is not None:
        turn.tell(record.uid, decision.entry)
    turn.replies.append(lambda: item.answer.set_result(Submission(committed(record.uid), "created")))
