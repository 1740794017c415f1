"""How `make bench-node_loss` divides its samples over scenes, and what it makes of the steps it hears of."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks._node_scenes import Event, measure, programme
from benchmarks.node_loss import DEFAULT, FREEZE, JOINS, KILLS, NOTICE, TUNED, of_turn, scene_of, verdicts

SECOND = 1_000_000_000


def steps(world: int, size: int, *made: tuple[int, float]) -> list[dict[str, Any]]:
    return [
        {"step": step, "end_ns": round(end * SECOND), "world": world, "size": size, "node": "a"} for step, end in made
    ]


def test_each_missing_sample_belongs_to_one_turn() -> None:
    """Ten samples are divided over three turns in order; of a run that was cut off only what is missing is taken."""
    assert [of_turn(turn, 10, range(10)) for turn in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [of_turn(turn, 10, range(6, 10)) for turn in range(3)] == [[], [6, 7], [8, 9]]
    assert [of_turn(turn, 5, range(5)) for turn in range(3)] == [[0, 1], [2, 3], [4]]
    assert of_turn(0, 0, range(0)) == []


def test_a_scene_takes_its_kinds_in_turn_with_joins_between() -> None:
    """The victims go round but for a notice, nobody joins at the end, and the scene's text reads back as the same events."""
    events = scene_of({"kill": [4, 5], "notice": [4], "freeze": []})
    assert ",".join(map(str, events)) == "kill:1,join,notice:0,join,kill:2"
    assert programme("kill:1,join,notice:0,join,kill:2") == events
    assert scene_of({"kill": []}) == ()


@pytest.mark.parametrize("text", ["kill:0,kill:1", "join,join", "crash:0"])
def test_events_that_cannot_follow_each_other_are_refused(text: str) -> None:
    """A node is lost only of three, and joins only two."""
    with pytest.raises(ValueError, match=r"nodes|none of"):
        programme(text)
    assert programme("join,kill:2") == (Event("join"), Event("kill", 2))


def test_a_kill_is_measured_to_the_step_that_nobody_had_made() -> None:
    """A step made again is not useful, one of a world of another size is not awaited, and the dead time is between steps."""
    rows = [
        *steps(1, 3, (1, 0.8), (2, 0.9), (3, 1.0)),
        *steps(2, 1, (3, 1.2)),
        *steps(3, 2, (3, 1.5), (4, 1.625)),
    ]
    found = measure(rows, round(1.05 * SECOND), 2)
    assert found["to_step"] == pytest.approx(0.45)
    assert found["to_useful"] == pytest.approx(0.575)
    assert found["dead"] == pytest.approx(0.5)
    assert found["redone"] == 1
    assert found["step_seconds"] == pytest.approx(0.1)


def test_verdicts_judge_ours_by_their_bars_and_next_to_the_tuned_rival() -> None:
    """The slowest of each kind counts, joins of all stages count together, and Ray Train by default is not the measure."""

    def one(to_useful: float, dead: float = 0.3, redone: int = 0) -> dict[str, Any]:
        return {"to_useful": to_useful, "dead": dead, "redone": redone, "step_seconds": 0.1}

    taken = {
        **{series: [one(0.5), one(0.5, redone=1)] for series in KILLS},
        **{series: [one(9.0, dead=0.2)] for series in JOINS},
        NOTICE: [one(15.0), one(15.0, dead=3.5)],
        FREEZE: [one(3.4)],
        TUNED: [one(4.0)],
        DEFAULT: [one(80.0)],
    }
    found = {verdict.what: verdict for verdict in verdicts(taken)}
    assert found["times as fast as Ray Train tuned"].measured == 8
    assert not found["times as fast as Ray Train tuned"].met
    assert found["steps redone after a kill"].met
    assert not found["dead at a notice"].met
    assert (found["dead at a join"].measured, found["dead at a join"].samples) == (0.2, 3)
    assert found["SIGSTOP of a node to the next useful step"].bar == 3.5
    assert found["SIGSTOP of a node to the next useful step"].met
