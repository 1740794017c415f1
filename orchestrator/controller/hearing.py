"""From what a driver heard to what the lifecycle and the journal are told. One function a kind of update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.accounting import CheckpointStalled, Entry
from orchestrator.controller import cadence, slots, terms
from orchestrator.controller.driver import Update
from orchestrator.controller.journal.base import JobRecord, StepRow
from orchestrator.domain.notices import Notice
from orchestrator.lifecycle import (
    AttemptEnded,
    CaughtUp,
    CheckpointCommitted,
    CheckpointRestored,
    Event,
    FirstStepDone,
    MemoryTakenUp,
    Phase,
    StoryEntry,
    TerminationReason,
    WorldFormed,
    WorldLost,
)

Fields = Mapping[str, Any]


@dataclass(slots=True)
class Findings:
    """What follows from one update: the record with newer progress, then events, story lines, ledger entries, steps, and
    what became of the gang's slots."""

    record: JobRecord
    events: list[Event] = field(default_factory=list)
    story: list[StoryEntry] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    """Booked after the events."""
    steps: list[StepRow] = field(default_factory=list)
    slots: list[slots.Change] = field(default_factory=list)
    """Booked last."""


def hear(record: JobRecord, update: Update, now_ns: int) -> Findings:
    """The findings of one update. An update of an attempt that is not the present one has none.

    A worker whose clock runs ahead cannot make time pass here: its times are bounded by `now_ns`.
    """
    if update.attempt != record.state.attempt or not record.state.phase.holds_machines:
        return Findings(record)
    at_ns = min(int(update.event.get("at_ns", now_ns)), now_ns)
    heard = {"heard_ns": max(at_ns, record.progress.get("heard_ns", 0))}
    seen = replace(record.state, attempt_seen=True)
    found = Findings(replace(record, state=seen, progress={**record.progress, **heard}))
    handler = _HANDLERS.get(update.event["kind"])
    if handler is not None:
        event = update.event
        if event.get("covers_ns") is not None:
            event = {**event, "covers_ns": min(int(event["covers_ns"]), now_ns)}
        handler(found, update.attempt, event, at_ns)
    return found


def _progress(found: Findings, **values: Any) -> None:
    found.record = replace(found.record, progress={**found.record.progress, **values})


def _say(found: Findings, at_ns: int, event: str, reason: str, message: str) -> None:
    phase = found.record.state.phase
    found.story.append(StoryEntry(at_ns, event, phase, phase, reason, message))


def _generation(found: Findings, event: Fields) -> int:
    """The world that an event is of; the newest one where the engine does not say."""
    return int(event.get("generation") or max(1, found.record.state.generation))


def _started(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    if _generation(found, event) <= found.record.state.lost_generation:
        return
    ready = {**found.record.progress.get("ready", {})} if found.record.progress.get("ready_attempt") == attempt else {}
    ready[str(event["rank"])] = {"pid": event["pid"], "host": event["host"]}
    _progress(found, ready=ready, ready_attempt=attempt)
    if event["rank"] == 0 and found.record.state.lost_generation == 0:  # later worlds are of the same kind
        _progress(found, device=event["device"], precision=event["precision"])
        message = f"{event['device']}, {event['precision']}: {event['precision_reason']}"
        _say(found, at_ns, "Started", "PrecisionChosen", message)


def _plan(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    names = (
        "total_steps",
        "steps_per_epoch",
        "train_samples",
        "micro_batch",
        "accumulation",
        "parameters",
        "trainable_parameters",
    )
    _progress(found, **{name: event[name] for name in names if name in event})


def _data(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    _progress(found, data={name: value for name, value in event.items() if name not in ("kind", "at_ns", "generation")})


def _stage(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    stages = (
        dict(found.record.progress.get("stages", {})) if found.record.progress.get("stages_attempt") == attempt else {}
    )
    stages[event["stage"]] = event["seconds"]
    _progress(found, stages=stages, stages_attempt=attempt)


def _restored(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    for refused in event.get("refused", ()):
        _say(found, at_ns, "CheckpointRefused", "CheckpointRefused", f"{refused['uri']}: {refused['why']}")
    step, covers_ns, generation = int(event["step"]), event.get("covers_ns"), _generation(found, event)
    if generation <= found.record.state.lost_generation:
        return
    source = event.get("source", "checkpoint")
    _progress(found, step=step, source=source)
    if source == "memory":
        found.events.append(MemoryTakenUp(at_ns, attempt, step, covers_ns, generation=generation))
    else:
        taken_up = CheckpointRestored(at_ns, attempt, step, event.get("uri"), covers_ns, generation=generation)
        found.events.append(taken_up)


def _step(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    record, state, step = found.record, found.record.state, int(event["step"])
    generation = _generation(found, event)
    late = generation <= state.lost_generation
    """Of a world that is lost: the step was done, but where the gang stands is told by what the next world takes up."""
    if state.phase is not Phase.RUNNING and not late:
        began_ns = at_ns - round(event["seconds"] * 1e9)
        found.events.append(FirstStepDone(began_ns, attempt, step, generation=generation))
        if record.progress.get("source") != "memory":
            record = replace(record, progress=cadence.with_start(record, began_ns))
    if cadence.is_automatic(record):
        record = replace(record, progress=cadence.with_step(record, at_ns, event["seconds"]))
    samples = int(event.get("samples", 0))
    first_time = step > record.progress.get("heard_step", 0)
    kept = record.samples_kept + (samples if first_time else 0)
    redone = record.progress.get("steps_redone", 0) + (0 if first_time else 1)
    caught_up = (state.restored_step or 0) < state.settled_step and state.attempt_step < state.settled_step <= step
    if caught_up and not late:
        found.events.append(CaughtUp(at_ns, attempt, generation=generation))
    values = {name: value for name, value in event.items() if name not in ("kind", "step", "generation")}
    found.steps.append(StepRow(record.uid, attempt, step, values))
    found.record = replace(record, samples_kept=kept)
    if late:
        _progress(found, steps_redone=redone, heard_step=max(step, record.progress.get("heard_step", 0)))
        return
    if state.phase is Phase.RUNNING:
        found.record = replace(found.record, state=state.at_step(step))
    rate = _rate(record.progress, attempt, samples, at_ns)
    if "metrics" in event:
        _progress(found, metrics={**record.progress.get("metrics", {}), "train": event["metrics"]})
    _progress(
        found,
        steps_redone=redone,
        heard_step=max(step, record.progress.get("heard_step", 0)),
        step=step,
        epoch=event.get("epoch"),
        loss=event["loss"],
        lr=event.get("lr"),
        **rate,
    )


def _steps_again(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    """What the checkpoint tells of the steps before it. Those that were never heard of, since their attempt was lost with
    them, are taken in now, as steps of that attempt."""
    for told in event["steps"]:
        record = found.record
        if told["step"] <= record.progress.get("heard_step", 0):
            continue
        values = {name: value for name, value in told.items() if name not in ("step", "attempt")}
        found.steps.append(StepRow(record.uid, int(told["attempt"]), int(told["step"]), values))
        found.record = replace(record, samples_kept=record.samples_kept + int(told["samples"]))
        _progress(found, heard_step=int(told["step"]))


def _rate(progress: Fields, attempt: int, samples: int, at_ns: int) -> dict[str, Any]:
    """Samples per second and seconds per step, smoothed over about twenty steps of the present attempt."""
    before = progress.get("step_ns") if progress.get("rate_attempt") == attempt else None
    fresh = {"step_ns": at_ns, "rate_attempt": attempt}
    if before is None or at_ns <= before:
        return fresh
    seconds = (at_ns - before) / 1e9
    known = progress.get("seconds_per_step") if progress.get("rate_attempt") == attempt else None
    smooth = seconds if known is None else known + (seconds - known) / 20
    return {**fresh, "seconds_per_step": smooth, "samples_per_second": samples / smooth}


def _evaluation(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    metrics = {**found.record.progress.get("metrics", {}), event["split"]: event["metrics"]}
    _progress(found, metrics=metrics)
    shown = ", ".join(
        f"{name} {value:.4g}" for name, value in event["metrics"].items() if isinstance(value, int | float)
    )
    _say(found, at_ns, "Evaluated", "Evaluated", f"step {event['step']}, {event['split']}: {shown}")


def _checkpoint(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    covers_ns, step = min(int(event["covers_ns"]), at_ns), int(event["step"])
    found.events.append(CheckpointCommitted(at_ns, attempt, step, event["uri"], covers_ns))
    stalled_ns = round(event.get("stall_seconds", 0.0) * 1e9)
    if stalled_ns > 0:
        found.entries.append(CheckpointStalled(min(covers_ns + stalled_ns, at_ns), covers_ns))
    if cadence.is_automatic(found.record):
        write_seconds = event.get("seconds", 0.0)
        begun_ns = at_ns - round(write_seconds * 1e9)
        progress = cadence.with_save(found.record, begun_ns, write_seconds, event.get("stall_seconds", 0.0))
        found.record = replace(found.record, progress=progress)
    count = found.record.progress.get("checkpoints", 0) + 1
    _progress(found, checkpoints=count, checkpoint_bytes=event.get("bytes"), checkpoint_seconds=event.get("seconds"))


def _slot(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    found.record, changes = slots.hear(found.record, event, at_ns)
    found.slots += changes


def _world(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    state, generation = found.record.state, int(event["generation"])
    if generation <= max(state.generation, state.lost_generation) and state.world_workers is not None:
        return
    ranks_per_worker = terms.ranks_per_worker(found.record.document)
    workers = max(1, int(event["world_size"]) // ranks_per_worker)
    found.events.append(WorldFormed(at_ns, attempt, workers, generation=generation))
    _progress(found, ready={}, ready_attempt=attempt)
    named = {str(worker["slot"]) for worker in event["workers"] if worker.get("slot") is not None}
    if named:
        found.record, changes = slots.seat(found.record, named, at_ns)
        found.slots += changes


def _world_lost(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    began_ns, target = int(event.get("began_ns", at_ns)), int(event.get("target") or 0)
    reason, message = str(event["reason"]), str(event.get("message", ""))
    generation = int(event["generation"])
    if "out_of_memory" in event:
        _progress(found, out_of_memory=[list(each) for each in event["out_of_memory"]])
    found.events.append(WorldLost(at_ns, attempt, reason, message, began_ns, target, generation=generation))
    if generation > found.record.state.lost_generation:
        _progress(found, ready={}, ready_attempt=attempt)


def _notice(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    try:
        notice = Notice.from_document(event["notice"])
    except ValueError:  # of a kind that a newer engine knows
        return
    notices = dict(found.record.progress.get("notices", {}))
    if event.get("withdrawn"):
        notices.pop(notice.node, None)
        _say(found, at_ns, "Notice", "NoticeWithdrawn", f"node {notice.node} stays, as {notice.source} says")
    else:
        if notice.kind.certain:
            notices[notice.node] = {"source": notice.source, "kind": notice.kind.value}
        remaining = notice.remaining_seconds(at_ns)
        goes = "may go" if not notice.kind.certain else "goes" if remaining is None else f"goes in {remaining:.0f} s"
        _say(found, at_ns, "Notice", "Notice", f"node {notice.node} {goes}, as {notice.source} says ({notice.kind})")
    _progress(found, notices=notices)


_REPLICATION = ("every", "bytes", "seconds", "because")


def _replication(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    _progress(found, replication={name: event[name] for name in _REPLICATION if name in event})


def _hung(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    message = f"rank {event['rank']} ({event['worker']}) stands still; its stack is in its log"
    _say(found, at_ns, "Hung", TerminationReason.HUNG.value, message)


def _decision(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    _say(found, at_ns, "Decision", str(event["decision"]), str(event["message"]))


def _straggler(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    """A rank that is slow by itself, or is so no more, with its figures; a world without its node is told as `world_lost`."""
    more = "; its stack is in its log" if event.get("slow") else ""
    _say(found, at_ns, "Straggler", "Slow" if event.get("slow") else "SlowNoMore", f"{event['message']}{more}")


def _ended(found: Findings, attempt: int, event: Fields, at_ns: int) -> None:
    known = set(TerminationReason)
    reason = event["reason"] if event["reason"] in known else TerminationReason.APPLICATION_ERROR.value
    step = found.record.state.attempt_step
    result = event.get("result")
    if result is not None and TerminationReason(reason).consequence.phase is Phase.SUCCEEDED:
        found.record = replace(found.record, result={k: result.get(k) for k in ("metrics", "model_uri", "step")})
    found.events.append(AttemptEnded(at_ns, attempt, reason, event.get("message", ""), step))


_HANDLERS: dict[str, Callable[[Findings, int, Fields, int], None]] = {
    "started": _started,
    "plan": _plan,
    "data": _data,
    "stage": _stage,
    "restored": _restored,
    "step": _step,
    "steps_again": _steps_again,
    "evaluation": _evaluation,
    "checkpoint": _checkpoint,
    "slot": _slot,
    "world": _world,
    "world_lost": _world_lost,
    "notice": _notice,
    "replication": _replication,
    "hung": _hung,
    "decision": _decision,
    "straggler": _straggler,
    "ended": _ended,
}


def fresh(updates: tuple[Update, ...], after: int) -> Iterator[Update]:
    """The updates that are not in the journal yet."""
    return (update for update in updates if update.seq > after)
