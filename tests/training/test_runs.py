"""Real gangs: DeepSpeed, gloo, transformers, two processes. Tiny models, so that each launch is mostly imports."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import storage
from tests.training.gang import NO_DROPOUT, Run, job, launch, write_reviews

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STAGES = ["0", "1", "2", "3"]
STEPS = 24


def _job(**overrides: Any) -> dict[str, Any]:
    return job(training__maxSteps=STEPS, **overrides)


VARIANTS = {
    **{stage: _job(deepspeed__stage=int(stage)) for stage in ("0", "1", "2")},
    "2-offload": _job(deepspeed__offload="CPU"),
    "2-bf16": _job(model__precision="BF16"),
    "0-bf16": _job(model__precision="BF16", deepspeed__stage=0),
    # ZeRO-3 last: it replaces torch's linear function for the rest of the process, which moves the last bit of what follows.
    "3": _job(deepspeed__stage=3),
    "3-offload": _job(deepspeed__stage=3, deepspeed__offload="CPU"),
    "3-bf16": _job(model__precision="BF16", deepspeed__stage=3),
}


def model_digest(run: Run) -> str:
    return hashlib.sha256((run.folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_reviews(folder / "reviews.csv")
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Every variant, run from beginning to end by two ranks; dropout is on."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {name: Run(folder / name, document, data) for name, document in VARIANTS.items()}
    launched = launch(list(runs.values()))
    assert launched.codes == [0, 0], launched.output
    yield runs
    shutil.rmtree(folder)


def test_every_stage_trains_the_same_curve(undisturbed: dict[str, Run]) -> None:
    """ZeRO 0 to 3, with and without CPU offload, give one loss curve to 1e-5, and it falls."""
    reference = undisturbed["0"].losses()
    assert len(reference) == STEPS
    for name in ("1", "2", "3", "2-offload", "3-offload"):
        losses = undisturbed[name].losses()
        assert losses.keys() == reference.keys()
        assert max(abs(losses[step] - reference[step]) for step in reference) < 1e-5, name


def test_a_run_tells_the_whole_story(undisturbed: dict[str, Run]) -> None:
    """Events of the contract come in order: started, stages, data, restored, plan, steps, evaluations, checkpoints."""
    run = undisturbed["2"]
    assert [event["rank"] for event in run.events("started")] == [0]
    assert [event["rank"] for event in run.events("started", rank=1)] == [1]
    assert run.events("step", rank=1) == []
    stages = [event["stage"] for event in run.events("stage")]
    assert stages == ["imports", "process_group", "data", "model", "engine", "restore", "first_step"]
    (plan,) = run.events("plan")
    assert (plan["total_steps"], plan["train_samples"], plan["micro_batch"], plan["accumulation"]) == (STEPS, 144, 6, 1)
    (restored,) = run.events("restored")
    assert (restored["step"], restored["uri"], restored["covers_ns"], restored["refused"]) == (0, None, None, [])
    (counts,) = run.events("data")
    assert (counts["read"], counts["train"], counts["validation"], counts["test"]) == (180, 144, 18, 18)
    assert [event["samples_seen"] for event in run.events("step")] == [12 * n for n in range(1, STEPS + 1)]
    assert [event["step"] for event in run.events("checkpoint")] == list(range(3, STEPS + 1, 3))
    assert all(event["at_ns"] >= event["covers_ns"] for event in run.events("checkpoint"))
    store = storage.open_store(str(run.folder / "checkpoints"))
    assert all(store.verify(event["uri"]).whole for event in run.events("checkpoint")[-2:])
    assert [(event["step"], event["split"]) for event in run.events("evaluation")] == [
        (STEPS, "validation"),
        (STEPS, "test"),
    ]
    assert run.checkpoints() == [f"step-{STEPS - 3:08d}", f"step-{STEPS:08d}"]
    outcome = run.outcome()["result"]
    assert (outcome["outcome"], outcome["reason"], outcome["step"]) == ("succeeded", "Completed", STEPS)
    assert set(outcome["metrics"]) >= {"test_accuracy", "test_macro-f1", "validation_loss"}


def test_the_exported_model_opens_elsewhere(undisturbed: dict[str, Run]) -> None:
    """The model folder of ZeRO 2 and 3 opens with transformers alone and holds the same weights to 1e-6."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    models = {}
    for name in ("2", "3"):
        folder = undisturbed[name].folder / "model"
        models[name] = AutoModelForSequenceClassification.from_pretrained(folder)
        assert models[name].config.id2label == {0: "neg", 1: "pos"}
        assert len(AutoTokenizer.from_pretrained(folder)("a fine film")["input_ids"]) == 5
    pairs = zip(models["2"].parameters(), models["3"].parameters(), strict=True)
    assert all(torch.allclose(left, right, atol=1e-5) for left, right in pairs)


@pytest.fixture(scope="module")
def resumed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Every variant killed with SIGKILL in step 20 (stages 0 to 3) or stopped there (the others), then run to its end."""
    folder = tmp_path_factory.mktemp("resumed")
    runs = {name: Run(folder / name, document, data) for name, document in VARIANTS.items()}
    for number, stage in enumerate(STAGES):
        runs[stage].faults = [{"kill": 20, "rank": number % 2}]
        launched = launch([runs[stage]], dies=True)
        assert -9 in launched.codes, launched.output
        assert runs[stage].injected(number % 2) == ["kill"]
    others = [run for name, run in runs.items() if name not in STAGES]
    for run in others:
        run.faults = [{"stop": 5}]
    launched = launch(others)
    assert launched.codes == [0, 0], launched.output
    assert all(run.outcome()["result"]["outcome"] == "stopped" for run in others)
    for run in runs.values():
        run.faults, run.attempt = [], 2
    launched = launch(list(runs.values()))
    assert launched.codes == [0, 0], launched.output
    yield runs
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(
    undisturbed: dict[str, Run], resumed: dict[str, Run], name: str
) -> None:
    """After a kill or a stop, losses from the checkpoint on and the final weights are bit-equal, dropout included."""
    before, after = undisturbed[name], resumed[name]
    (restored,) = [event for event in after.events("restored") if event["uri"] is not None]
    acknowledged = [event["step"] for event in after.events("checkpoint") if event["at_ns"] < restored["at_ns"]]
    assert restored["step"] == 5 if name not in STAGES else 0 < acknowledged[-1] <= restored["step"] < 20
    assert 0 < restored["covers_ns"] < restored["at_ns"]
    assert after.losses() == before.losses()
    assert model_digest(after) == model_digest(before)
    assert after.outcome()["result"]["metrics"] == before.outcome()["result"]["metrics"]


def flip(path: Path, offset: int = 1000) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def damaged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs of every stage stopped at step 10 whose newest checkpoint is damaged, and one with no good one, resumed."""
    folder = tmp_path_factory.mktemp("damaged")
    runs = {
        stage: Run(folder / stage, VARIANTS[stage], data, faults=[{"stop": 10}]) for stage in ("0", "2", "2-bf16", "3")
    }
    runs["none whole"] = Run(folder / "none whole", VARIANTS["2"], data, faults=[{"stop": 10}])
    order = [runs[name] for name in ("0", "2", "2-bf16", "none whole", "3")]
    launched = launch(order)
    assert launched.codes == [0, 0], launched.output
    for name, run in runs.items():
        assert run.checkpoints() == ["step-00000009", "step-00000010"]
        flip(run.folder / "checkpoints" / "step-00000010" / "rank-00001.bin")
        if name == "none whole":
            flip(run.folder / "checkpoints" / "step-00000009" / "rank-00000.bin")
        run.faults, run.attempt = [], 2
    launched = launch(order)
    assert launched.codes == [0, 0], launched.output
    return runs


@pytest.mark.parametrize("name", ["0", "2", "2-bf16", "3"])
def test_a_damaged_checkpoint_makes_way_for_the_one_before(
    undisturbed: dict[str, Run], damaged: dict[str, Run], name: str
) -> None:
    """A flipped bit is found by the rank that reads it; all ranks take the older checkpoint and end as if undisturbed."""
    run = damaged[name]
    restored = run.events("restored")[-1]
    assert restored["step"] == 9
    (refused,) = restored["refused"]
    assert refused["uri"].endswith("step-00000010")
    assert "rank-00001.bin" in refused["why"]
    assert run.losses() == undisturbed[name].losses()
    assert model_digest(run) == model_digest(undisturbed[name])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_with_no_whole_checkpoint_does_not_begin_anew(damaged: dict[str, Run], rank: int) -> None:
    """When every checkpoint is damaged, all ranks end as StorageFailed and say what is wrong with the newest; none is deleted."""
    run = damaged["none whole"]
    outcome = run.outcome(rank)
    assert outcome["reason"] == "StorageFailed"
    assert "none of the 2 checkpoints" in outcome["message"]
    assert "rank-00001.bin" in outcome["message"]
    assert run.checkpoints() == ["step-00000009", "step-00000010"]


@pytest.fixture(scope="module")
def sizes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """Loss curves of one job by world size and micro-batch, for both tasks, without dropout."""
    folder = tmp_path_factory.mktemp("sizes")
    text = {
        "model__source": "gpt2",
        "model__task": "causal-lm",
        "model__config": {
            "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0
        },
        # One short block at the end of 19 makes the numbers of tokens on the ranks unequal.
        "data__maxLength": 23,
        "training__epochs": 2,
        "training__maxSteps": None,
        "training__globalBatchSize": 4,
        "training__evalEvery": "epoch",
    }  # fmt: skip
    found = {}
    for world_size in (1, 2):
        runs = {}
        for micro in (2, 6):
            runs[f"bert {micro}"] = job(training__microBatchSize=micro, workers__max=world_size, **NO_DROPOUT)
        for micro in (1, 2):
            runs[f"gpt2 {micro}"] = job(**text, training__microBatchSize=micro, workers__max=world_size)
        wanted = [
            Run(folder / f"{world_size} {n}", document, data, world_size=world_size) for n, document in runs.items()
        ]
        launched = launch(wanted)
        assert launched.codes == [0] * world_size, launched.output
        for run in wanted:
            found[run.folder.name] = run.losses()
            evaluation = run.events("evaluation")[-1]["metrics"]
            found[run.folder.name][-1] = evaluation["loss"]
            if "gpt2" in run.folder.name:
                assert evaluation["perplexity"] == pytest.approx(math.exp(evaluation["loss"]))
    return found


@pytest.mark.parametrize("task", ["bert", "gpt2"])
def test_the_curve_does_not_depend_on_ranks_or_micro_batches(sizes: dict[str, dict[int, float]], task: str) -> None:
    """Losses of every step, and of the evaluation at the end, agree to 1e-5 for world sizes 1 and 2 and all micro-batches."""
    curves = {name: curve for name, curve in sizes.items() if task in name}
    assert len(curves) == 4
    reference = next(iter(curves.values()))
    assert len(reference) >= 9
    for name, curve in curves.items():
        assert curve.keys() == reference.keys(), name
        assert max(abs(curve[step] - reference[step]) for step in reference) < 1e-5, name


@pytest.fixture(scope="module")
def faulty(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs that meet trouble or wishes on the way, in one launch: every rank must leave each of them alive."""
    folder = tmp_path_factory.mktemp("faulty")
    broken = tmp_path_factory.mktemp("broken")
    (broken / "reviews.csv").write_text("text,label\nfine,pos\ndull,\n")
    runs = {
        "diverging": Run(
            folder / "diverging", job(training__learningRate=1e30, training__warmup=0, checkpoint__every=1), data
        ),
        "full disk": Run(folder / "full disk", job(), data, faults=[{"full_disk": 6, "rank": 1}]),
        "wishes": Run(
            folder / "wishes",
            job(checkpoint__every=100),
            data,
            faults=[{"checkpoint": 2, "rank": 1}, {"stop": 4, "rank": 1}],
        ),
        "early": Run(
            folder / "early",
            job(
                training__evalEvery=2,
                training__learningRate=1e-12,
                training__maxSteps=50,
                training__earlyStopping={"metric": "accuracy", "patience": 2},
                checkpoint__every=100,
                checkpoint__keep=1,
            ),
            data,
        ),
        "no gpu": Run(folder / "no gpu", job(workers={"max": 1, "gpus": 2}), data),
        "bad data": Run(folder / "bad data", job(), broken),
        "timed": Run(folder / "timed", job(checkpoint__every="1ms", checkpoint__keep=1), data),
    }
    # The disk stays full for the runs behind it in the same process, so that one comes last.
    last = runs.pop("full disk")
    runs["full disk"] = last
    launched = launch(list(runs.values()))
    assert launched.codes == [0, 0], launched.output
    return runs


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_not_finite_stops_every_rank(faulty: dict[str, Run], rank: int) -> None:
    """All ranks raise NonFiniteLoss, name the step and the last good checkpoint, and save nothing after it."""
    run = faulty["diverging"]
    outcome = run.outcome(rank)
    assert outcome["reason"] == "NonFiniteLoss"
    steps = [event["step"] for event in run.events("step")]
    assert f"step {steps[-1] + 1} " in outcome["message"]
    saved = run.events("checkpoint")[-1]
    assert saved["uri"] in outcome["message"]
    assert run.checkpoints()[-1] == f"step-{saved['step']:08d}"
    assert saved["step"] <= steps[-1]
    assert storage.open_store(str(run.folder / "checkpoints")).verify(saved["uri"]).whole


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_one_rank_is_told_by_all(faulty: dict[str, Run], rank: int) -> None:
    """When one rank's disk is full during a save, all ranks raise StorageFull and the earlier checkpoint stays whole."""
    run = faulty["full disk"]
    assert run.injected(1) == ["full_disk"]
    outcome = run.outcome(rank)
    assert outcome["reason"] == "StorageFull"
    assert "No space left" in outcome["message"]
    assert "free space" in outcome["hint"]
    found, refused = storage.open_store(str(run.folder / "checkpoints")).newest_whole()
    assert found is not None
    assert found.step == 3
    assert refused == []
    assert [event["step"] for event in run.events("checkpoint")] == [3]


def test_wishes_of_any_rank_are_met_by_all_at_one_step(faulty: dict[str, Run]) -> None:
    """Save-now and stop, heard by rank 1 only, make both ranks save at that step and return stopped."""
    run = faulty["wishes"]
    assert run.injected(1) == ["checkpoint", "stop"]
    assert [(event["step"], event["wish"]) for event in run.events("checkpoint")] == [(2, 1), (4, 1)]
    for rank in (0, 1):
        result = run.outcome(rank)["result"]
        assert (result["outcome"], result["reason"], result["step"]) == ("stopped", "Stopped", 4)


def test_early_stopping_takes_the_best_weights(faulty: dict[str, Run]) -> None:
    """A run that does not get better stops after its patience, keeps the best checkpoint, and exports from it."""
    run = faulty["early"]
    result = run.outcome()["result"]
    assert (result["outcome"], result["reason"], result["step"]) == ("succeeded", "EarlyStopped", 6)
    assert [(event["step"], event["best"]) for event in run.events("checkpoint")] == [(2, True), (6, False)]
    assert run.checkpoints() == ["step-00000002", "step-00000006"]
    facts = json.loads((run.folder / "model" / "orchestrate.json").read_text())
    assert facts["metrics"] == result["metrics"]
    best = run.events("evaluation")[0]["metrics"]
    assert result["metrics"]["validation_loss"] == best["loss"]


@pytest.mark.parametrize("rank", [0, 1])
def test_bad_data_is_told_with_its_line_by_all_ranks(faulty: dict[str, Run], rank: int) -> None:
    """A missing label ends the job as DataInvalid, naming the line, before a model is loaded."""
    run = faulty["bad data"]
    outcome = run.outcome(rank)
    assert outcome["reason"] == "DataInvalid"
    assert "line 3" in outcome["message"]
    assert run.events("plan") == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_gpu_that_is_not_there_is_told(faulty: dict[str, Run], rank: int) -> None:
    """A job that asks for GPUs where torch sees none ends as ConfigInvalid and does not train on the CPU in silence."""
    outcome = faulty["no gpu"].outcome(rank)
    assert outcome["reason"] == "ConfigInvalid"
    assert "spec.workers.gpus" in outcome["message"]


def test_a_cadence_in_time_is_decided_by_rank_0_for_all(faulty: dict[str, Run]) -> None:
    """With a millisecond between checkpoints every step is saved, by both ranks, and only the newest is kept."""
    run = faulty["timed"]
    assert [event["step"] for event in run.events("checkpoint")] == list(range(1, 9))
    assert run.checkpoints() == ["step-00000008"]
