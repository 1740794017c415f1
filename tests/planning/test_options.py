"""Layouts of a job on machines: what fits, with which stage and micro-batch, for how long."""

from __future__ import annotations

from typing import Any

from orchestrator.planning.hardware import GPUS, MACHINES, gpus_of
from orchestrator.planning.options import layouts, work
from orchestrator.planning.shapes import read_shape
from orchestrator.spec.models import TrainingJob

LLAMA_1B = {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632}  # fmt: skip


def job(**spec: Any) -> TrainingJob:
    document = {
        "apiVersion": "orchestrate.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "job"},
        "spec": {
            "model": {"source": "llama", "task": "causal-lm", "init": "Scratch", "config": LLAMA_1B},
            "data": {"source": {"uri": "text.txt"}, "maxLength": 2048},
            "training": {"maxSteps": 1000, "globalBatchSize": 256},
            "workers": {"max": 1, "gpus": 8},
            **spec,
        },
    }
    return TrainingJob.model_validate(document)


SHAPE = read_shape({"model_type": "llama", **LLAMA_1B}, language_model=True)


def test_every_machine_has_a_known_gpu() -> None:
    """The table of machines names no GPU that the table of GPUs lacks."""
    assert all(gpus_of(name) is not None for name in MACHINES)
    assert all(0 < gpu.high < 1 for gpu in GPUS.values())


def test_layouts_fit_and_keep_the_global_batch() -> None:
    """Each layout fits its GPU, and micro-batch x accumulation x ranks is the global batch; more ranks are never slower."""
    found, left = layouts(job(), SHAPE, ["p5.48xlarge", "p3.2xlarge"])
    assert left == []
    todo = work(job(), SHAPE, 1000)
    for layout in found:
        assert layout.fits
        assert layout.batch.micro_batch * layout.batch.accumulation * layout.ranks == 256
        fast, slow = layout.seconds(todo.flops, SHAPE)
        assert fast < slow
    hours = [layout.seconds(todo.flops, SHAPE)[1] for layout in found if layout.instance_type == "p5.48xlarge"]
    assert hours == sorted(hours, reverse=True)


def test_time_by_hand() -> None:
    """1,000 steps of 256 samples of 2,048 tokens on eight H100 at 18 % of 989 TFLOP/s."""
    found, _ = layouts(job(), SHAPE, ["p5.48xlarge"])
    todo = work(job(), SHAPE, 1000)
    assert todo.flops == 1000 * 256 * 2048 * SHAPE.flops_per_token(2048)
    _, slow = found[0].seconds(todo.flops, SHAPE)
    assert abs(slow / (todo.flops / (8 * 989e12 * 0.18)) - 1) < 1e-9


def test_a_small_model_is_held_to_what_small_models_reach() -> None:
    """BERT on an H100 is no faster than was measured, 25 TFLOP/s, whatever the peak."""
    small = read_shape({"model_type": "bert"}, language_model=False)
    classify = job(model={"source": "bert", "task": "text-classification"}, workers={"max": 1, "gpus": 1})
    found, _ = layouts(classify, small, ["p5.4xlarge"])
    assert found[0].seconds(25e12, small)[1] == 1.0


def test_what_cannot_be_used_is_left_out_with_the_reason() -> None:
    """An unknown machine, a precision that a GPU lacks, a batch that does not divide, a model that is too large."""
    _, left = layouts(job(), SHAPE, ["m5.large"])
    assert left == ["m5.large: its GPUs are unknown to orchestrate"]
    wide = job(model={"source": "llama", "task": "causal-lm", "init": "Scratch", "precision": "BF16"})
    assert layouts(wide, SHAPE, ["p3.2xlarge"])[1] == ["p3.2xlarge: V100-16GB has no bf16"]
    odd = job(training={"maxSteps": 1, "globalBatchSize": 7}, workers={"max": 1})
    assert layouts(odd, SHAPE, ["p5.48xlarge"])[1] == [
        "p5.48xlarge: a global batch of 7 does not divide among its 8 GPUs"
    ]
    huge = read_shape({"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}, language_model=True)  # fmt: skip
    (reason,) = layouts(job(), huge, ["p3.2xlarge"])[1]
    assert "GiB even with 64 ranks, ZeRO-3 and a micro-batch of 1; V100-16GB has 15.7 GiB" in reason


def test_a_larger_stage_is_taken_when_memory_asks_for_it() -> None:
    """13 billion parameters on eight 40 GB GPUs do not fit in ZeRO-2; ZeRO-3 is taken and says why. A stage in the job stays."""
    config = {"hidden_size": 5120, "num_hidden_layers": 40, "intermediate_size": 13824, "num_attention_heads": 40}
    large = read_shape({"model_type": "llama", **config}, language_model=True)
    small_batch = {
        "training": {"maxSteps": 1, "globalBatchSize": 64},
        "data": {"source": {"uri": "t.txt"}, "maxLength": 512},
    }
    found, _ = layouts(job(**small_batch), large, ["p4d.24xlarge"])
    assert (found[0].ranks, found[0].stage, found[0].because) == (8, 3, "ZeRO-2 needs more memory")
    told, _ = layouts(job(**small_batch, deepspeed={"stage": 2}), large, ["p4d.24xlarge"])
    assert all(layout.stage == 2 for layout in told)
