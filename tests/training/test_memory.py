"""Worlds that take over from each other through memory: kills, regroups and resizes change nothing but who computes."""

from __future__ import annotations

import pytest

from orchestrator.training.order import SampleOrder
from tests.training.gang import write_reviews
from tests.training.lives import LONG, Life, assert_same_curve, life, play, world

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

STEPS = 24
ROWS = 140
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
