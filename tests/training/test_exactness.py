"""A resize changes nothing but the order of additions: which samples a step reads, what is dropped, and so the loss."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.batch import Batch, allowed_world_sizes, divide
from orchestrator.training.order import SampleOrder, micro_batches, share
from orchestrator.training.randomness import sample_keys
from orchestrator.training.schedule import learning_rate, warmup_steps
from tests.training import gang
from tests.training.gang import Run, job, launch, write_reviews


# --- the ledger, without processes -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Segment:
    """One attempt: its size, how far it gets, and how many of the steps it made are lost with it."""

    batch: Batch
    steps: int
    lost: int


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[Segment]]:
    """(samples of the data, epochs, attempts), with one global batch over all attempts."""
    global_batch = draw(st.integers(1, 36))
    sizes = allowed_world_sizes(global_batch, range(1, 9))
    segments = []
    for _ in range(draw(st.integers(1, 12))):
        world_size = draw(st.sampled_from(sizes))
        each = global_batch // world_size
        micro = draw(st.sampled_from([None, *(size for size in range(1, each + 1) if each % size == 0)]))
        steps = draw(st.integers(0, 9))
        segments.append(Segment(divide(global_batch, world_size, micro), steps, draw(st.integers(0, steps))))
    return draw(st.integers(1, 90)), draw(st.integers(1, 3)), segments


@dataclass
class Ledger:
    """Which samples each step was computed from: what every rank of the attempt that counts has read."""

    read: dict[int, list[int]] = field(default_factory=dict)

    def attempt(self, order: SampleOrder, first: int, last: int, batch: Batch) -> None:
        """The steps that one attempt makes, rank by rank and micro-batch by micro-batch, as `Trainer._step` does."""
        for step in range(first, last):
            whole = order.batch(step)
            parts = [
                micro_batches(share(whole, rank, batch.world_size), batch.micro_batch, batch.accumulation)
                for rank in range(batch.world_size)
            ]
            assert all(len(part) == batch.accumulation for part in parts)  # ranks make equally many passes
            self.read[step] = [int(index) for part in parts for micro in part for index in micro]


@settings(max_examples=80, deadline=None)
@given(histories())
def test_no_history_of_resizes_reads_a_sample_twice_or_never(history: tuple[int, int, list[Segment]]) -> None:
    """Any sizes, micro-batches and losses of work: each epoch's samples are each read once, in the same steps as ever."""
    samples, epochs, segments = history
    global_batch = segments[0].batch.global_batch
    total = math.ceil(samples * epochs / global_batch)
    ledger, at = Ledger(), 0
    finish = Segment(segments[-1].batch, total, 0)
    for segment in [*segments, finish]:
        fresh = SampleOrder(samples, 11, global_batch, samples * epochs)  # a new process knows nothing of the last one
        last = min(total, at + segment.steps)
        ledger.attempt(fresh, at, last, segment.batch)
        at = max(0, last - segment.lost)
    undisturbed = Ledger()
    undisturbed.attempt(SampleOrder(samples, 11, global_batch, samples * epochs), 0, total, divide(global_batch, 1))
    assert ledger.read == undisturbed.read
    stream = [index for step in range(total) for index in ledger.read[step]]
    assert len(stream) == samples * epochs
    for epoch in range(epochs):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))
    assert all(len(ledger.read[step]) == global_batch for step in range(total - 1))


@settings(max_examples=50, deadline=None)
@given(histories(), st.integers(0, 40))
def test_the_keys_of_dropout_follow_the_sample(history: tuple[int, int, list[Segment]], step: int) -> None:
    """Over all ranks and micro-batches of any size a step's samples have the keys that they have on one rank."""
    samples, _, segments = history
    whole = SampleOrder(samples, 11, segments[0].batch.global_batch).batch(step)
    expected = sample_keys(7, step, whole).tolist()
    for segment in segments:
        batch = segment.batch
        found = [
            key
            for rank in range(batch.world_size)
            for micro in micro_batches(share(whole, rank, batch.world_size), batch.micro_batch, batch.accumulation)
            for key in sample_keys(7, step, micro).tolist()
        ]
        assert found == expected


@given(
    st.integers(1, 300),
    st.sampled_from(["linear", "cosine", "constant"]),
    st.sampled_from([0.0, 0.1, 5.0]),
    st.lists(st.integers(0, 299), min_size=1, max_size=20),
)
def test_the_learning_rate_is_a_function_of_the_step(
    total: int, schedule: str, warmup: float, steps: list[int]
) -> None:
    """Whatever steps were asked for before, as in a run that goes back and on, a step has one rate."""
    first = [learning_rate(1e-3, schedule, step, total, warmup_steps(warmup, total)) for step in range(300)]
    again = [learning_rate(1e-3, schedule, step, total, warmup_steps(warmup, total)) for step in steps]
    assert again == [first[step] for step in steps]
    assert np.all(np.asarray(first) >= 0)


# --- real gangs --------------------------------------------------------------------------------------------------------
DROPS = {"model__config__hidden_dropout_prob": 0.2, "model__config__attention_probs_dropout_prob": 0.2}
SIZES = (1, 2, 1, 3)
STOPS = (5, 7, 4)
"""Steps that each attempt but the last makes before it is stopped."""


def document(world_size: int, **more: object) -> dict[str, object]:
    """Two epochs and a bit more, with a short batch at the end; dropout is on."""
    epochs = {"training__epochs": 2, "training__maxSteps": None, "training__schedule": "cosine"}
    return job(workers__max=world_size, checkpoint__every=3, **(DROPS | epochs | more))


def ledger(run: Run) -> dict[int, list[int]]:
    """Samples by step (from 0), over all ranks, of the newest attempt that made the step."""
    found: dict[int, tuple[int, list[tuple[int, list[int]]]]] = {}
    for path in run.folder.glob("ledger-*.jsonl"):
        _, attempt, rank = path.stem.split("-")
        for line in path.read_text().splitlines():
            step, samples = json.loads(line)
            if step not in found or found[step][0] < int(attempt):
                found[step] = (int(attempt), [])
            if found[step][0] == int(attempt):
                found[step][1].append((int(rank), samples))
    ordered = {step: sorted(parts, key=lambda part: part[0]) for step, (_, parts) in found.items()}
    return {step: [index for _, samples in parts for index in samples] for step, parts in ordered.items()}


def assert_same_curve(run: Run, reference: Run, tolerance: float) -> None:
    losses, expected = run.losses(), reference.losses()
    assert losses.keys() == expected.keys()
    gaps = {step: abs(losses[step] / expected[step] - 1) for step in expected}
    assert max(gaps.values()) <= tolerance, gaps


@pytest.fixture(scope="module")
def gangs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Undisturbed runs of one job at three sizes; one that is resized on its way; one that goes back on the way."""
    data = tmp_path_factory.mktemp("data")
    write_reviews(data / "reviews.csv", 140)
    folder = tmp_path_factory.mktemp("gangs")
    patch = pytest.MonkeyPatch()
    patch.setattr(gang, "SCRIPT", Path(__file__).with_name("ledger_rank.py"))

    def run(name: str, world_size: int, **more: object) -> Run:
        return Run(folder / name, document(world_size, **more), data, world_size=world_size)

    def attempt(name: str, number: int) -> Run:
        """One attempt of the run that is resized: all but the last are stopped on their way."""
        found = run(name, SIZES[number])
        found.attempt = number + 1
        found.faults = [{"stop": STOPS[number]}] if number < len(STOPS) else []
        return found

    found = {f"undisturbed {size}": run(f"undisturbed {size}", size) for size in (1, 2, 3)}
    found["micro-batches"] = run("micro-batches", 1, training__microBatchSize=4)
    found["stage 3"] = run("stage 3", 2, deepspeed__stage=3, training__microBatchSize=3)
    launches = [
        [found["undisturbed 1"], found["micro-batches"], attempt("resized", 0)],
        [found["undisturbed 2"], attempt("resized", 1), found["stage 3"]],
        [attempt("resized", 2)],
        [found["undisturbed 3"], attempt("resized", 3)],
    ]
    for number, runs in enumerate(launches):
        if number == 2:
            lose_newest_checkpoint(found["resized"])
        launched = launch(runs)
        assert launched.codes == [0] * runs[0].world_size, launched.output
        found["resized"] = next(run for run in runs if run.folder.name == "resized")
        assert "reason" not in found["resized"].outcome(), found["resized"].outcome()
    patch.undo()
    return found


def lose_newest_checkpoint(run: Run) -> None:
    shutil.rmtree(run.folder / "checkpoints" / run.checkpoints()[-1])


@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["undisturbed 2", "undisturbed 3", "micro-batches", "stage 3"])
def test_the_size_of_a_gang_does_not_change_the_loss(gangs: dict[str, Run], name: str) -> None:
    """With dropout, every step's loss agrees with one rank's to 1e-5, at any world size, micro-batch and stage."""
    assert_same_curve(gangs[name], gangs["undisturbed 1"], 1e-5)


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_a_run_that_is_resized_on_its_way_keeps_its_curve(gangs: dict[str, Run]) -> None:
    """1, 2, 1 and 3 ranks one after another, once going on from an older checkpoint: every loss agrees to 1e-5."""
    run = gangs["resized"]
    assert [event["world_size"] for event in run.events("plan")] == list(SIZES)
    assert [event["step"] for event in run.events("restored")] == [0, 5, 9, 13]
    assert_same_curve(run, gangs["undisturbed 1"], 1e-5)
    rates = {event["step"]: event["lr"] for event in run.events("step")}
    assert rates == {event["step"]: event["lr"] for event in gangs["undisturbed 1"].events("step")}


@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["undisturbed 1", "undisturbed 3", "micro-batches", "stage 3", "resized"])
def test_the_ranks_really_read_each_sample_once(gangs: dict[str, Run], name: str) -> None:
    """What the ranks give to the model covers each global batch exactly once, across epochs, to the short batch at the end."""
    run = gangs[name]
    plan = run.events("plan")[-1]
    samples, steps = plan["train_samples"], plan["total_steps"]
    read = ledger(run)
    assert read.keys() == set(range(steps))
    order = SampleOrder(samples, 0, 12, 2 * samples)
    assert [read[step] for step in range(steps)] == [order.batch(step).tolist() for step in range(steps)]
    assert set(Counter(index for step in read.values() for index in step).values()) == {2}
    assert 0 < len(read[steps - 1]) < 12
