"""The plan of a job: gang, batch, ZeRO stage with its reason, and what would be created."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.domain.errors import InvalidSpec
from orchestrator.planning.plan import DECIDED_BY_HARDWARE, plan
from orchestrator.planning.stage import choose_stage
from orchestrator.spec import parse_text, templates
from orchestrator.spec.models import DeepSpeed

REPOSITORY = Path(__file__).parents[2]
JOB = """apiVersion: orchestrate.dev/v1alpha1
kind: TrainingJob
metadata: {name: fine, namespace: research}
spec:
  model: {source: bert, task: text-classification}
  data:
    source: {uri: texts.csv}
  training: {maxSteps: 1000, globalBatchSize: 64}
  workers: {min: 2, gpus: 2, cpus: 4, memory: 16Gi}
"""


@pytest.mark.parametrize(
    ("deepspeed", "world_size", "stage", "words", "preset"),
    [
        ({}, 1, 0, "nobody to share", "zero0"),
        ({}, 4, 2, "4 ranks can share", "zero2"),
        ({"offload": "CPU"}, 1, 2, "offloaded", "zero2-offload"),
        ({"stage": 3}, 1, 3, "the job says so", "zero3"),
        ({"stage": 1, "offload": "CPU"}, 8, 1, "the job says so", "zero1-offload"),
        ({"config": "zero3"}, 2, 3, "the preset zero3 says so", "zero3"),
        ({"config": "zero1-offload"}, 2, 1, "the preset zero1-offload says so", "zero1-offload"),
        ({"config": {"steps_per_print": 5}}, 2, 2, "2 ranks can share", "zero2"),
        ({"config": "configs/mine.json"}, 1, 0, "nobody to share", "zero0"),
    ],
)
def test_stage_has_a_reason(deepspeed: dict[str, object], world_size: int, stage: int, words: str, preset: str) -> None:
    """The stage is the user's, the preset's or chosen; it always comes with its reason and preset."""
    choice = choose_stage(DeepSpeed.model_validate(deepspeed), world_size)
    assert choice.stage == stage
    assert words in choice.because
    assert choice.preset == preset


def test_every_preset_that_can_be_chosen_exists() -> None:
    """Whatever is chosen, a reviewed preset of that name is in the repository."""
    for stage in ("Auto", 0, 1, 2, 3):
        for offload in ("None", "CPU"):
            if (stage, offload) == (0, "CPU"):
                continue
            for world_size in (1, 2):
                name = choose_stage(DeepSpeed.model_validate({"stage": stage, "offload": offload}), world_size).preset
                assert (REPOSITORY / "deepspeed_configs" / f"{name}.json").is_file(), name


def test_lines_of_a_plan() -> None:
    """The plan reads as one table and a list of what would be created."""
    assert plan(parse_text(JOB)).lines() == [
        "Job         research/fine",
        "Workers     2 x (2 GPUs, 4 CPU cores, 16.0 GiB)",
        "World size  4 ranks",
        "Batch       64 = 4 ranks x micro-batch 16 x accumulation 1",
        "Resumes on  1, 2, 8 ranks as well, with the same global batch",
        "ZeRO stage  2, because 4 ranks can share optimizer state and gradients at the traffic of plain data parallelism",
        "Offload     none",
        "Steps       1,000",
        "Precision   decided by the worker's hardware",
        "Capacity    OnDemand",
        "",
        "Submitting would create:",
        "  driver     fine-driver  (starts the gang and relays its progress)",
        "  worker     fine-worker-0  (2 ranks)",
        "  worker     fine-worker-1  (2 ranks)",
        "  folder     $ORCHESTRATE_HOME/jobs/<uid>  (run folder: logs, result)",
        "  checkpoint $ORCHESTRATE_HOME/jobs/<uid>/checkpoints  (every 100 steps, the newest 2 and the best are kept)",
    ]


def test_document_of_a_plan_is_json() -> None:
    """The JSON form says the same with camelCase names."""
    document = json.loads(json.dumps(plan(parse_text(JOB)).to_dict()))
    assert document["worldSize"] == 4
    assert document["batch"] == {"global": 64, "micro": 16, "accumulation": 1}
    assert document["otherWorldSizes"] == [
        {"worldSize": 1, "micro": 32, "accumulation": 2},
        {"worldSize": 2, "micro": 32, "accumulation": 1},
        {"worldSize": 8, "micro": 8, "accumulation": 1},
    ]
    assert document["deepspeed"]["stage"] == 2
    assert document["workers"]["memoryBytes"] == 16 * 2**30
    assert document["totalSteps"] == 1000
    assert [item["kind"] for item in document["creates"]] == ["driver", "worker", "worker", "folder", "checkpoint"]


def test_sizes_that_do_not_divide_the_batch_are_left_out() -> None:
    """With 60 samples in micro-batches of 5, sizes 7 and 8 are no place to resume; with 61 samples on one rank none is."""
    some = plan(parse_text(JOB, overrides=["spec.training.globalBatchSize=60", "spec.training.microBatchSize=5"]))
    assert [(other.world_size, other.accumulation) for other in some.other_batches] == [(1, 12), (2, 6), (3, 4), (6, 2)]
    lone = ["spec.training.globalBatchSize=61", "spec.workers.min=1", "spec.workers.max=1", "spec.workers.gpus=0"]
    assert "Resumes on  this size only" in plan(parse_text(JOB, overrides=lone)).lines()


def test_epochs_leave_the_steps_to_the_data() -> None:
    """Steps that depend on the number of samples are not guessed."""
    result = plan(parse_text(JOB, overrides=["spec.training.maxSteps=null", "spec.training.epochs=3"]))
    assert result.total_steps is None
    assert "Steps       3 epochs; the number of samples decides the steps" in result.lines()


def test_precision_of_the_user_is_shown() -> None:
    """A precision that the job names is planned; Auto waits for the worker's hardware."""
    assert plan(parse_text(JOB)).precision == DECIDED_BY_HARDWARE
    assert plan(parse_text(JOB, overrides=["spec.model.precision=BF16"])).precision == "BF16"


def test_entrypoint_decides_for_itself() -> None:
    """With the user's own function neither batch nor stage is planned."""
    result = plan(parse_text(templates()["custom-entrypoint"]))
    assert (result.batch, result.stage, result.total_steps) == (None, None, None)
    assert "Batch       decided by your own function" in result.lines()


def test_many_workers_are_listed_shortly() -> None:
    """A large gang takes nine lines, not a thousand."""
    result = plan(parse_text(JOB, overrides=["spec.workers.min=32", "spec.suspend=true", "spec.workers.gpus=1"]))
    assert [item.name for item in result.creations if item.kind == "worker"][-1] == "fine-worker-8 to fine-worker-31"
    assert result.lines()[0].endswith("(suspended until it is resumed)")


@pytest.mark.parametrize("name", sorted(templates()))
def test_templates_can_be_planned(name: str) -> None:
    """Each template of `init` has a plan."""
    assert plan(parse_text(templates()[name])).lines()


def test_planning_loads_nothing_heavy() -> None:
    """Planning a job imports no torch, ray, transformers or deepspeed."""
    code = (
        "import sys; from orchestrator.planning.plan import plan; from orchestrator.spec import parse_text, templates;"
        "plan(parse_text(templates()['cpu-smoke']));"
        "print([n for n in ('torch', 'ray', 'transformers', 'deepspeed', 'kubernetes') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def elastic(workers: str, more: str = "") -> str:
    return JOB.replace("{min: 2, gpus: 2, cpus: 4, memory: 16Gi}", workers) + more


def test_an_elastic_job_shows_each_size_with_its_batch() -> None:
    """Every allowed number of workers has a line with its micro-batch and accumulation; those that the batch does not
    divide over are not there, and the largest that is allowed stands for the job."""
    made = plan(parse_text(elastic("{min: 1, max: 6, gpus: 2}")))
    assert [row for row in made.lines() if "worker:" in row or "workers:" in row] == [
        "Sizes       1 worker: 64 = 2 ranks x micro-batch 32 x accumulation 1",
        "            2 workers: 64 = 4 ranks x micro-batch 16 x accumulation 1",
        "            4 workers: 64 = 8 ranks x micro-batch 8 x accumulation 1",
    ]
    assert (made.workers, made.world_size) == (4, 8)
    document = made.to_dict()
    assert document["workers"]["min"] == 1
    assert document["workers"]["count"] == 4
    assert document["allowedSizes"][0] == {"workers": 1, "worldSize": 2, "micro": 32, "accumulation": 1}
    assert sum("while there is room" in line for line in made.lines()) == 3


@pytest.mark.parametrize(
    ("workers", "sizes"),
    [
        ("{min: 1, max: 8}", [1, 2, 4, 8]),
        ("{min: 3, max: 40}", [4, 8, 16, 32]),
        ("{min: 1, max: 40, allowedSizes: [2, 32]}", [2, 32]),
        ("{min: 2, max: 2, allowedSizes: [2]}", [2]),
        ("{min: 2, max: 8, gpus: 3, allowedSizes: Auto}", None),
    ],
)
def test_allowed_sizes_are_those_that_divide_the_batch(workers: str, sizes: list[int] | None) -> None:
    """Auto takes every size that divides the batch of 64, a list those it names; where none is left the file is refused."""
    if sizes is None:
        with pytest.raises(InvalidSpec, match="write 63 or 66"):
            parse_text(elastic(workers))
        return
    assert [size.workers for size in plan(parse_text(elastic(workers))).sizes] == sizes


@pytest.mark.parametrize(
    ("workers", "line"),
    [
        ("{min: 2, max: 6}", "Sizes       every number from 2 to 6"),
        ("{min: 2, max: 6, allowedSizes: PowerOfTwo}", "Sizes       2, 4"),
    ],
)
def test_a_function_of_the_users_takes_any_size(workers: str, line: str) -> None:
    """Where the user's own function trains, its batch is its own, and sizes are not left out for it."""
    text = f"""apiVersion: orchestrate.dev/v1alpha1
kind: TrainingJob
metadata: {{name: mine}}
spec:
  entrypoint: {{function: "mine:train"}}
  workers: {workers}
"""
    made = plan(parse_text(text))
    assert line in made.lines()
    assert made.to_dict()["allowedSizes"][0]["micro"] is None
    assert made.batch is None


def test_many_sizes_are_cut_short() -> None:
    """Of very many sizes a terminal shows the first ones and the largest; the JSON document has them all."""
    made = plan(parse_text(elastic("{min: 1, max: 10000}").replace("globalBatchSize: 64", "globalBatchSize: 55440")))
    shown = [line for line in made.lines() if "micro-batch" in line]
    assert len(shown) == 16
    assert len(made.to_dict()["allowedSizes"]) == len(made.sizes) > 50
