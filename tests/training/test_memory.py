"""Worlds that take over from each other through memory: kills, regroups and resizes change nothing but who computes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.training.order import SampleOrder
from tests.training.gang import ROOT, Run, environment, job, write_reviews

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).with_name("generations.py")
DROPS = {"model__config__hidden_dropout_prob": 0.2, "model__config__attention_probs_dropout_prob": 0.2}
ROWS = 140


class Life(Run):
    """A run of several worlds."""

    worlds: Sequence[dict[str, Any]] = ()

    def scenario(self) -> dict[str, Any]:
        return {"assignment": self.plan()["assignment"], "folder": str(self.folder), "worlds": list(self.worlds)}

    def ends(self) -> list[list[int]]:
        found: list[list[int]] = json.loads((self.folder / "ends.json").read_text())
        return found

    def result(self, generation: int, rank: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"result-{generation}-{rank}.json").read_text())
        return found

    def reported(self) -> list[int]:
        return [event["step"] for event in self.events("step")]

    def samples(self) -> dict[int, list[int]]:
        """Samples by step, over all ranks of the newest world that made the step."""
        found: dict[int, tuple[int, list[tuple[int, list[int]]]]] = {}
        for path in self.folder.glob("ledger-*.jsonl"):
            _, generation, rank = path.stem.split("-")
            for line in path.read_text().splitlines():
                step, samples = json.loads(line)
                if step not in found or found[step][0] < int(generation):
                    found[step] = (int(generation), [])
                if found[step][0] == int(generation):
                    found[step][1].append((int(rank), samples))
        ordered = {step: sorted(parts, key=lambda part: part[0]) for step, (_, parts) in found.items()}
        return {step: [index for _, samples in parts for index in samples] for step, parts in ordered.items()}


def world(size: int, *faults: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"world_size": size, "faults": list(faults), **more}


def life(folder: Path, data: Path, worlds: Sequence[dict[str, Any]], **more: Any) -> Life:
    found = Life(folder, job(workers__max=4, **(DROPS | more)), data, world_size=4)
    found.worlds = worlds
    return found


def play(lives: Sequence[Life]) -> None:
    plan = lives[0].folder.parent / "plan.json"
    plan.write_text(json.dumps([life.scenario() for life in lives]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(plan)],
        env=environment(PYTHONWARNINGS="ignore"),
        capture_output=True,
        text=True,
        timeout=380,
    )
    logs = "".join((life.folder / "log").read_text() for life in lives if (life.folder / "log").exists())
    assert done.returncode == 0, done.stdout + done.stderr + logs


def assert_same_curve(found: Life, reference: Life, tolerance: float) -> None:
    losses, expected = found.losses(), reference.losses()
    assert losses.keys() == expected.keys()
    gaps = {step: abs(losses[step] / expected[step] - 1) for step in expected}
    assert max(gaps.values()) <= tolerance, gaps


STEPS = 24
LONG = {"training__maxSteps": STEPS, "training__evalEvery": 8, "checkpoint__every": 50}
CHANGES = (
    world(3, {"kill": 11, "rank": 1}),  # dies in the step 11: ten are done
    world(2, {"regroup": 3}),  # leaves after step 13
    world(4, {"kill_publishing": 2, "rank": 3}),  # dies before its shard of step 15 is whole
    world(1, {"regroup": 2, "rank": 0}),  # after 16, where an evaluation is due
    world(3, {"kill_evaluating": 1, "rank": 2}),  # in that evaluation
    world(2),
)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Life]:
    """For ZeRO 1, 2 and 3 a run of three ranks that nothing happens to, and one of which the workers come and go."""
    data = tmp_path_factory.mktemp("data")
    write_reviews(data / "reviews.csv", ROWS)
    folder = tmp_path_factory.mktemp("lives")
    found: dict[str, Life] = {}
    for stage in (1, 2, 3):
        spec = LONG | {"deepspeed__stage": stage}
        found[f"undisturbed {stage}"] = life(folder / f"undisturbed {stage}", data, [world(3)], **spec)
        found[f"changing {stage}"] = life(folder / f"changing {stage}", data, CHANGES, **spec)
    play(list(found.values()))
    return found


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_changing_workers_leave_the_curve_as_it_was(lives: dict[str, Life], stage: int) -> None:
    """Over five changes of the world, with dropout and without a checkpoint, every loss agrees to 1e-6 with three ranks'."""
    changing, undisturbed = lives[f"changing {stage}"], lives[f"undisturbed {stage}"]
    assert changing.injected(1) == ["kill"]
    assert changing.injected(3) == ["kill_publishing"]
    assert changing.injected(2) == ["kill_evaluating"]
    assert changing.injected(0) == ["regroup", "regroup"]
    assert_same_curve(changing, undisturbed, 1e-6)
    assert changing.result(6)["result"]["outcome"] == "succeeded"
    mine, theirs = (life.events("evaluation")[-1] for life in (changing, undisturbed))
    assert mine["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], rel=1e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_world_goes_on_where_the_one_before_it_was(lives: dict[str, Life], stage: int) -> None:
    """No step is redone after a regroup or a kill between steps; one is, where it was lost before all had published it."""
    changing = lives[f"changing {stage}"]
    restored = changing.events("restored")
    assert [(event["source"], event["step"], event["generation"]) for event in restored] == [
        ("checkpoint", 0, 1),
        ("memory", 10, 2),
        ("memory", 13, 3),
        ("memory", 14, 4),
        ("memory", 16, 5),
        ("memory", 16, 6),
    ]
    assert [changing.result(number)["result"]["outcome"] for number in (2, 4)] == ["regrouped", "regrouped"]
    assert changing.result(2)["result"]["step"] == changing.result(2)["published"][-1] == 13
    redone = len(changing.reported()) - len(set(changing.reported()))
    assert redone <= 1
    assert all(event["covers_ns"] > 0 for event in restored[1:])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_worlds_together_read_each_sample_once(lives: dict[str, Life], stage: int) -> None:
    """The samples that the worlds gave to the model are, step by step, those of the one order: none twice, none skipped."""
    changing = lives[f"changing {stage}"]
    samples = changing.events("plan")[0]["train_samples"]
    order = SampleOrder(samples, 0, 12)
    assert changing.samples() == {step: order.batch(step).tolist() for step in range(STEPS)}


def test_a_worker_is_told_how_long_its_warm_up_took(lives: dict[str, Life]) -> None:
    """The stages that were done before there was a rank are reported with the others, and marked."""
    stages = lives["undisturbed 2"].events("stage")
    warm = [event["stage"] for event in stages if event.get("warm")]
    assert warm == ["imports", "data", "model", "rehearsal"]
    assert not lives["undisturbed 2"].events("log")
