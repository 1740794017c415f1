"""From a real controller's journal to the exported text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.controller import metrics
from orchestrator.controller.metrics import Sampler
from orchestrator.lifecycle import Phase
from orchestrator.telemetry import render
from tests.controller.world import GATES, World, document
from tests.telemetry.test_metrics import of, samples_of

pytestmark = pytest.mark.integration


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "home")
    yield made
    made.close()


def run(world: World, name: str) -> None:
    world.submit(name, steps=10, allowed=10)
    world.until_phase(name, Phase.SUCCEEDED)


def counters(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {key: value for key, value in samples_of(text).items() if key[0].endswith("_total")}


def test_a_loss_is_counted_by_reason(world: World) -> None:
    """1. A job makes seven steps with a checkpoint at five. 2. A worker is lost. 3. It ends after redoing two steps."""
    world.submit("a", steps=10, allowed=7)
    world.until("a", lambda record: record.state.step == 7)
    sampler = Sampler(world.controller)
    before = render(sampler.snapshot())
    assert of(before, "job_preemptions_total", training_job="a") is None
    assert world.engines[-1].lose_worker(1)
    GATES["a"].open(20)
    world.until_phase("a", Phase.SUCCEEDED)
    text = render(sampler.snapshot())
    assert of(text, "job_preemptions_total", training_job="a", reason="WorkerLost") == 1
    assert of(text, "job_restarts_total", training_job="a", reason="WorkerLost") == 1
    assert of(text, "job_steps_total", training_job="a", result="kept") == 10
    assert of(text, "job_steps_total", training_job="a", result="lost") == 2
    assert of(text, "job_checkpoints_total", training_job="a", result="committed") == 2
    assert of(text, "job_phase", training_job="a", phase="Succeeded") == 1
    assert of(text, "jobs", namespace="default", phase="Succeeded") == 1
    fell = {
        key: (value, after) for key, value in counters(before).items() if (after := counters(text).get(key, 0)) < value
    }
    assert fell == {}


def test_series_of_ended_jobs_leave_and_rollups_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time an ended job has no series; its money, and that of a job whose name was taken over, stay summed."""
    run(world, "a")
    sampler = Sampler(world.controller)
    first = render(sampler.snapshot())
    once = of(first, "cost_dollars_total", capacity_type="on-demand")
    assert once is not None
    assert once > 0
    GATES["a"].open(10)
    world.controller.submit(document("a"), rerun=True)
    world.until_phase("a", Phase.SUCCEEDED)
    monkeypatch.setattr(metrics, "SHOWN_AFTER_END_NS", -1)
    text = render(sampler.snapshot())
    assert not [key for key in samples_of(text) if key[0].startswith("orchestrate_job_")]
    twice = of(text, "cost_dollars_total", capacity_type="on-demand")
    assert twice == pytest.approx(2 * once, rel=0.5)
    assert of(text, "jobs", namespace="default", phase="Succeeded") == 1
    assert render(Sampler(world.controller).snapshot()) == text, "a fresh sampler reads the same from the journal"


def test_a_restart_of_the_controller_lowers_no_rollup(world: World) -> None:
    """The counters of money after a restart are at least those before it."""
    run(world, "a")
    world.submit("b", steps=10, allowed=6)
    world.until("b", lambda record: record.state.step == 6)
    before = counters(render(Sampler(world.controller).snapshot()))
    world.restart()
    after = counters(render(Sampler(world.controller).snapshot()))
    money = {key: value for key, value in before.items() if "dollars" in key[0] or "seconds" in key[0]}
    assert {key: (value, after.get(key)) for key, value in money.items() if after.get(key, 0) < value} == {}
    GATES["b"].open(10)
    world.until_phase("b", Phase.SUCCEEDED)
