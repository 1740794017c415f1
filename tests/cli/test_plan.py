"""What `orchestrate plan` says of memory, time and money."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

LLAMA = """\
apiVersion: orchestrate.dev/v1alpha1
kind: TrainingJob
metadata: {name: llama}
spec:
  model: {source: llama, task: causal-lm, init: Scratch, config: {num_hidden_layers: 4, hidden_size: 1024, intermediate_size: 2816, num_attention_heads: 16}}
  data: {source: {uri: text.txt}, maxLength: 512}
  training: {maxSteps: 3000, globalBatchSize: 64}
  workers: {max: 1, gpus: 1}
"""
PRICES = """\
source: a price list
date: 2026-11-01
offers:
  - {instanceType: p3.2xlarge, gpus: 1, onDemandUSD: "3.06", spotUSD: "0.918"}
  - {instanceType: p4d.24xlarge, gpus: 8, onDemandUSD: "21.96"}
  - {instanceType: p9.huge, gpus: 8, onDemandUSD: "99"}
"""


@pytest.fixture
def llama(tmp_path: Path, environ: dict[str, str]) -> Path:
    """A language model from scratch, and a price file in force."""
    (tmp_path / "job.yaml").write_text(LLAMA, encoding="utf-8")
    (tmp_path / "text.txt").write_text("some words\n" * 50, encoding="utf-8")
    (tmp_path / "prices.yaml").write_text(PRICES, encoding="utf-8")
    environ["ORCHESTRATE_PRICES"] = str(tmp_path / "prices.yaml")
    return tmp_path


def test_plan_tells_memory_machines_and_a_choice(cli: Cli, llama: Path) -> None:
    """The memory adds up, machines with prices are listed, spot is forecast where its price is known, one is chosen and why."""
    run = cli("plan", "job.yaml", "-o", "json")
    assert run.code == 0, run.err
    found = json.loads(run.out)["estimates"]
    terms = {(term["when"], term["name"]): term["bytes"] for term in found["memory"]["terms"]}
    always = sum(size for (when, _), size in terms.items() if when == "always")
    most = max(sum(size for (when, _), size in terms.items() if when == phase) for phase in ("backward", "update"))
    assert found["memory"]["peakBytes"] == always + most
    kinds = {option["instanceType"] for option in found["options"]}
    assert kinds == {"p3.2xlarge", "p4d.24xlarge"}
    for option in found["options"]:
        assert (option["spot"] is None) or option["instanceType"] == "p3.2xlarge"
        assert option["microBatch"] * option["accumulation"] * option["ranks"] == 64
    (chosen,) = [option for option in found["options"] if option["chosen"]]
    assert chosen["instanceType"] == "p3.2xlarge"
    assert float(chosen["spot"]["p50USD"]) < float(chosen["onDemandUSD"])
    assert "left out: p9.huge: its GPUs are unknown to orchestrate" in found["notes"]
    assert found["choice"] == "the cheapest on spot, by the median forecast"


def test_plan_is_readable(cli: Cli, llama: Path) -> None:
    """The table has the arithmetic, the machines and the choice; an unknown spot price says unknown."""
    run = cli("plan", "job.yaml")
    assert run.code == 0
    for words in (
        "Memory of a rank (bf16, ZeRO-0",
        "2P, P = ",
        "MACHINES",
        "Choice: 1 x p3.2xlarge",
        "unknown",
        "TFLOP/s",
    ):
        assert words in run.out
    assert not [line for line in run.out.splitlines() if line.rstrip() != line]


def test_a_deadline_that_nothing_meets_is_told(cli: Cli, llama: Path) -> None:
    """No machine is chosen then, and the fastest is named."""
    run = cli("plan", "job.yaml", "--deadline", "2m")
    assert run.code == 0
    assert "Choice: none meets the deadline of" in run.out
    assert "the fastest," in run.out


def test_what_cannot_be_told_is_a_note(cli: Cli, llama: Path) -> None:
    """Another architecture, a model that is not here, and a user's own function: a reason each, and the plan all the same."""
    other = cli("plan", "job.yaml", "--set", "spec.model.source=mamba", "--set", "spec.model.config={}")
    assert other.code == 0
    assert "of the family 'mamba'" in other.out
    hub = cli("plan", "job.yaml", "--set", "spec.model.source=org/model", "--set", "spec.model.config={}")
    assert "the model org/model is not on this machine, so its sizes are unknown" in hub.out
    (llama / "own.yaml").write_text(
        "apiVersion: orchestrate.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: own}\n"
        'spec:\n  entrypoint: {function: "module:function"}\n',
        encoding="utf-8",
    )
    (llama / "module.py").write_text("def function(context): pass\n", encoding="utf-8")
    assert "your own function decides them; unknown" in cli("plan", "own.yaml").out


@pytest.mark.integration
def test_a_probe_measures_real_steps(cli: Cli, tmp_path: Path) -> None:
    """With --probe some steps run here; the time of all steps follows, and the device and its memory are told."""
    rows = "\n".join(f"{number % 2},text number {number}" for number in range(200))
    (tmp_path / "rows.csv").write_text(f"label,text\n{rows}\n", encoding="utf-8")
    (tmp_path / "job.yaml").write_text(
        "apiVersion: orchestrate.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: small}\nspec:\n"
        "  model: {source: bert, task: text-classification, init: Scratch, config: {hidden_size: 32, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 64}}\n"
        "  data: {source: {uri: rows.csv}, maxLength: 16}\n  training: {epochs: 2, globalBatchSize: 8}\n",
        encoding="utf-8",
    )
    run = cli("plan", "job.yaml", "--probe", "4", "-o", "json")
    assert run.code == 0, run.err
    found = json.loads(run.out)["estimates"]
    assert found["steps"] == 40  # 160 of 200 rows, twice, by 8
    assert len(found["probe"]["seconds"]) == 4
    assert found["probe"]["peakBytes"] > 0
    low, middle, high = (found["probeHours"][name] for name in ("p10", "p50", "p90"))
    assert 0 < low <= middle <= high
    assert float(found["probeCostUSD"]) > 0


@pytest.mark.integration
def test_a_probe_that_fails_is_a_note(cli: Cli, tmp_path: Path) -> None:
    """A job that cannot be trained here is planned all the same, with the reason."""
    (tmp_path / "rows.csv").write_text("label,text\n" + "0,same\n" * 50, encoding="utf-8")
    (tmp_path / "job.yaml").write_text(
        "apiVersion: orchestrate.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: small}\nspec:\n"
        "  model: {source: bert, task: text-classification, init: Scratch}\n  data: {source: {uri: rows.csv}}\n"
        "  training: {maxSteps: 4}\n",
        encoding="utf-8",
    )
    run = cli("plan", "job.yaml", "--probe", "2")
    assert run.code == 0
    assert "Note: the probe failed:" in run.out


def test_without_numpy_spot_is_a_note(cli: Cli, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the simulator's libraries plans all else, and says what it would need."""
    monkeypatch.setitem(sys.modules, "orchestrator.simulation.forecast", None)
    run = cli("plan", "job.yaml")
    assert run.code == 0
    assert "Note: spot: a forecast needs" in run.out
    assert "Choice: 1 x p3.2xlarge: the cheapest on demand" in run.out


def test_a_probe_that_takes_too_long_is_a_note(cli: Cli, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that outlasts its time is ended; the plan stands without it."""
    monkeypatch.setattr("orchestrator.cli.estimates.PROBE_SECONDS", 0.01)
    run = cli("plan", "job.yaml", "--probe", "2")
    assert run.code == 0
    assert "Note: the probe was ended after" in run.out


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"model_type": "bert", "hidden_size": null}'])
def test_a_broken_configuration_is_a_note(text: str, cli: Cli, llama: Path) -> None:
    """A model folder whose config.json is not one, or has no usable size: the reason, and the plan all the same."""
    (llama / "model").mkdir()
    (llama / "model" / "config.json").write_text(text, encoding="utf-8")
    run = cli("plan", "job.yaml", "--set", "spec.model.source=model", "--set", "spec.model.config={}")
    assert run.code == 0, run.err
    assert "Note: memory and time:" in run.out
