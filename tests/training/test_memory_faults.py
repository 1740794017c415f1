"""State in memory beside checkpoints: what is taken when, and what happens when one of the two fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import storage
from tests.training.gang import write_reviews
from tests.training.lives import LONG, Life, assert_same_curve, life, play, world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

FUNCTION = """
def train(context, steps):
    state = context.load() or {"step": 0}
    for step in range(state["step"] + 1, steps + 1):
        context.report(step=step, loss=1.0 / step, samples=1)
        if context.should_checkpoint():
            context.save({"step": step})
        if context.should_stop:
            return
"""


def hold(at: int, ranks: int) -> list[dict[str, int]]:
    return [{"hold_saves": at, "rank": rank} for rank in range(ranks)]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Life]:
    """All scenarios, one after another in one launch."""
    place = tmp_path_factory.mktemp("data")
    write_reviews(place / "reviews.csv", 140)
    (place / "mine.py").write_text(FUNCTION)
    folder = tmp_path_factory.mktemp("lives")
    found: dict[str, Life] = {}

    def add(name: str, worlds: list[dict[str, Any]], **more: Any) -> None:
        found[name] = life(folder / name, place, worlds, **more)

    add("undisturbed", [world(3)], **LONG)
    add("undisturbed 3", [world(3)], **(LONG | {"deepspeed__stage": 3}))
    add(
        "killed while saving",
        [
            world(2, *hold(5, 2), {"kill": 7, "rank": 1}),  # the save of step 6 is begun and never ended
            world(3, {"kill_saved": 3}),
            world(2, {"regroup": 3}, forget_memory=True),
            world(1),
        ],
        **(LONG | {"checkpoint__every": 6}),
    )
    add(
        "broken source",
        [
            world(2, {"kill": 5, "rank": 1}),
            world(2, {"break_source": 1, "rank": 1}, {"kill_saved": 8}),
            world(3, {"break_source": 1, "rank": 2}),
        ],
        **(LONG | {"deepspeed__stage": 3, "checkpoint__every": 6}),
    )
    add(
        "newer checkpoint",
        [world(2, {"regroup": 3}), world(2, {"kill_saved": 4}, every=50), world(2)],
        **(LONG | {"checkpoint__every": 6}),
    )
    often = LONG | {"training__evalEvery": 4}
    add("best is lost", [world(2, *hold(3, 2), {"kill": 7}), world(2)], **often)
    add("wish", [world(2, *hold(2, 2), {"checkpoint": 3}, {"regroup": 5}), world(2, {"stop": 3})], **LONG)
    add(
        "some are cold",
        [world(2, {"regroup": 3}, cold=[1]), world(3, {"break_rehearsal": 1, "rank": 2}, cold=[0])],
        **(LONG | {"deepspeed__stage": 3}),
    )
    add(
        "own function",
        [world(2, {"regroup": 3}), world(2)],
        entrypoint={"function": "mine:train", "args": {"steps": 6}},
        model=None,
        data=None,
        training=None,
        deepspeed=None,
    )
    play(list(found.values()))
    return found


def restored(of: Life) -> list[tuple[str, int]]:
    return [(event["source"], event["step"]) for event in of.events("restored")]


def test_a_step_whose_save_was_cut_is_saved_again_by_the_next_world(lives: dict[str, Life]) -> None:
    """Killed in the middle of a save: the next world takes the step from memory and makes a whole checkpoint of that step."""
    found = lives["killed while saving"]
    assert restored(found)[:2] == [("checkpoint", 0), ("memory", 6)]
    saved = found.events("checkpoint")
    assert saved[0]["step"] == 6
    store = storage.open_store(str(found.folder / "checkpoints"))
    assert all(store.verify(listed.uri).whole for listed in store.list())
    assert not [name for name in found.checkpoints() if "partial" in name]
    assert_same_curve(found, lives["undisturbed"], 1e-6)


def test_checkpoints_carry_the_reports_of_worlds_before(lives: dict[str, Life]) -> None:
    """A world that has to begin from a checkpoint tells all steps since the one before, though another world made them."""
    found = lives["killed while saving"]
    source, step = restored(found)[2]
    assert source == "checkpoint"
    assert step >= 6
    told = [event["steps"] for event in found.events("steps_again")]
    third = next(steps for steps in told if steps[-1]["step"] == step and len(steps) >= 6)
    assert [report["step"] for report in third][-6:] == list(range(step - 5, step + 1))
    assert restored(found)[3] == ("memory", step + 3)


def test_all_ranks_take_the_checkpoint_when_one_cannot_read_memory(lives: dict[str, Life]) -> None:
    """A neighbour's memory fails for one rank: without a checkpoint all begin anew, with one all take it; the log says so."""
    found = lives["broken source"]
    assert restored(found)[:2] == [("checkpoint", 0), ("checkpoint", 0)]
    source, step = restored(found)[2]
    assert source == "checkpoint"
    assert step in (6, 12, 18)
    lines = [line for event in found.events("log") for line in event["lines"]]
    assert len([line for line in lines if "in memory cannot be used" in line]) == 2
    assert_same_curve(found, lives["undisturbed 3"], 1e-6)


def test_a_checkpoint_that_is_newer_than_memory_is_taken(lives: dict[str, Life]) -> None:
    """Memory holds step 3 and a checkpoint a later one: the later one counts, and fewer steps are done again."""
    found = lives["newer checkpoint"]
    assert restored(found)[:2] == [("checkpoint", 0), ("memory", 3)]
    source, step = restored(found)[2]
    assert source == "checkpoint"
    assert step >= 6
    assert_same_curve(found, lives["undisturbed"], 1e-6)


def test_a_best_checkpoint_that_was_lost_is_made_up_for(lives: dict[str, Life]) -> None:
    """The save of the best step was cut by a kill: the step that memory has is evaluated and saved in its place."""
    found = lives["best is lost"]
    assert restored(found) == [("checkpoint", 0), ("memory", 6)]
    assert any("of step 4, was lost" in line for event in found.events("log") for line in event["lines"])
    assert 6 in [event["step"] for event in found.events("evaluation") if event["split"] == "validation"]
    assert next(event["step"] for event in found.events("checkpoint") if event["best"]) == 6
    assert found.result(2)["result"]["outcome"] == "succeeded"


def test_a_regroup_does_not_wait_for_a_save_and_the_next_world_owes_it(lives: dict[str, Life]) -> None:
    """Ranks leave although a save hangs; the next world saves at once, and grants the wish that the save was for."""
    found = lives["wish"]
    assert found.ends() == [[0, 0], [0, 0]]
    assert found.result(1)["result"] | {"metrics": {}} == {
        "outcome": "regrouped",
        "reason": "Regrouped",
        "step": 5,
        "metrics": {},
        "model_uri": None,
    }
    assert next((event["step"], event["wish"]) for event in found.events("checkpoint")) == (5, 1)
    assert found.result(2)["result"]["outcome"] == "stopped"
    assert found.result(2)["result"]["step"] == 8


def test_workers_that_rehearsed_and_others_make_one_world(lives: dict[str, Life]) -> None:
    """With ZeRO-3, whose counters belong to the process, ranks that are cold or failed to rehearse train with the others."""
    found = lives["some are cold"]
    assert found.ends() == [[0, 0], [0, 0, 0]]
    assert restored(found) == [("checkpoint", 0), ("memory", 3)]
    assert any("not rehearsed" in line for event in found.events("log", rank=2) for line in event["lines"])
    assert_same_curve(found, lives["undisturbed 3"], 1e-6)


def test_a_function_of_the_user_s_own_is_called_again_after_a_regroup(lives: dict[str, Life]) -> None:
    """A regroup is a stop for it: it saves and returns, and the next world loads what it saved. Each step is made once."""
    found = lives["own function"]
    assert found.result(1)["result"]["outcome"] == "regrouped"
    assert found.result(2)["result"]["outcome"] == "succeeded"
    assert restored(found) == [("checkpoint", 0), ("checkpoint", 3)]
    assert found.reported() == [1, 2, 3, 4, 5, 6]


def test_what_a_rank_publishes_is_bounded_and_plain(lives: dict[str, Life]) -> None:
    """A document in memory is JSON of some kilobytes, whatever the number of steps since the last checkpoint."""
    found = lives["undisturbed"]
    documents = sorted(Path(found.folder).glob("memory/*/*/*.json"))
    assert documents
    for path in documents:
        document = json.loads(path.read_text())["document"]
        assert len(json.dumps(document)) < 64 * 1024
