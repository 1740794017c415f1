"""Hang limits learned from step times."""

from __future__ import annotations

from random import Random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.hangs import (
    EARLY_SECONDS,
    FLOOR_SECONDS,
    PAUSE_FLOOR_SECONDS,
    UNMEASURED,
    WINDOW,
    HangLimit,
    Pause,
)
from tests.policy.step_times import KINDS, replay


def after(*steps: float) -> HangLimit:
    """A limit that has seen a first step of no length, and these."""
    limit = HangLimit()
    for step in (0.0, *steps):
        limit.observe(step)
    return limit


@pytest.mark.parametrize("name", KINDS)
def test_no_false_alarm_and_every_hang_seen(name: str) -> None:
    """Over 10,000 seeded steps of each kind (100,000 in all; a million of each in benchmarks/hangs.py) nothing is taken for a
    hang, every hang is seen within the limit and one beat, and that is as a rule max(3 s, 5 x p99)."""
    replayed = replay(KINDS[name], 10_000, Random(5), hang_every=400)
    assert (replayed.false_alarms, replayed.unseen) == (0, 0), "seed 5"
    assert replayed.hangs >= 20
    assert median(replayed.beyond_formula) <= 1.04


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e4), max_size=60), st.floats(0, 10))
def test_the_limit_is_never_below_the_floor_and_rises_with_slower_steps(steps: list[float], factor: float) -> None:
    """Never under 3 s; the same steps, each slower, never lower it; and it is finite memory that it comes from."""
    limit, slower = after(*steps), after(*(step * (1 + factor) for step in steps))
    assert FLOOR_SECONDS <= limit.limit_seconds() <= slower.limit_seconds() + 1e-9


def test_five_times_the_p99_of_the_newest_steps() -> None:
    """With 512 steps of 1 to 512 ms, p99 is 507 ms; short steps are held to the floor; old steps are forgotten."""
    limit = after(*(10 * number / 1000 for number in range(1, WINDOW + 1)))
    assert limit.limit_seconds() == pytest.approx(5 * 5.07)
    for _ in range(WINDOW):
        limit.observe(0.1)
    assert limit.limit_seconds() == FLOOR_SECONDS


def test_single_outliers_do_not_make_it_deaf() -> None:
    """Five steps of a minute among five hundred of a second raise nothing but what a survivor does."""
    limit = after(*([1.0] * 500))
    assert limit.limit_seconds() == pytest.approx(5.0)
    for _ in range(5):
        limit.observe(3.0)
    assert limit.limit_seconds() == pytest.approx(5.0)


def test_what_was_survived_is_no_hang_the_next_time() -> None:
    """A step of four fifths of the limit makes twice its length the limit, for some time; the sentence says so."""
    limit = after(*([0.1] * 100))
    limit.observe(2.5)
    assert limit.limit_seconds() == pytest.approx(5.0)
    assert "one took 2.5 s and came after all" in limit.because
    for _ in range(3_000):
        limit.observe(0.1)
    assert limit.limit_seconds() == FLOOR_SECONDS


def test_while_few_steps_are_known_it_is_lenient() -> None:
    """Minutes before the first step and until an ordinary one was seen, then ten times the longest, then the rule."""
    limit = HangLimit()
    assert limit.limit_seconds() >= UNMEASURED[Pause.FIRST_STEP]
    limit.observe(25.0)
    assert limit.limit_seconds() == EARLY_SECONDS
    for number in range(19):
        limit.observe(2.0)
        assert limit.limit_seconds() == pytest.approx(20.0), number
    limit.observe(2.0)
    assert limit.limit_seconds() == pytest.approx(10.0)


def test_an_announced_pause_is_allowed_and_learned() -> None:
    """Before one was measured minutes are allowed; then five times the longest; its step teaches nothing else."""
    limit = after(*([0.2] * 100))
    limit.expect(Pause.EVALUATION)
    assert limit.limit_seconds() == FLOOR_SECONDS + UNMEASURED[Pause.EVALUATION]
    limit.observe(8.2)
    assert limit.limit_seconds() == FLOOR_SECONDS, "the pause is over"
    limit.expect(Pause.EVALUATION)
    assert limit.limit_seconds() == pytest.approx(FLOOR_SECONDS + 5 * 8.0)
    limit.observe(0.2)
    limit.expect(Pause.CHECKPOINT)
    limit.observe(0.2)
    limit.expect(Pause.CHECKPOINT)
    assert limit.limit_seconds() == FLOOR_SECONDS + PAUSE_FLOOR_SECONDS


def test_a_smaller_gang_is_given_longer_steps() -> None:
    """From 4 workers to 2, steps may take twice as long from the first on; from 2 to 4, nothing is taken back unseen."""
    limit = after(*([1.0] * 100))
    limit.new_world(4, 2)
    limit.observe(5.0)
    assert limit.limit_seconds() == pytest.approx(10.0)
    limit.new_world(2, 4)
    limit.observe(5.0)
    assert limit.limit_seconds() == pytest.approx(10.0)


def test_the_sentence_has_the_numbers() -> None:
    """Who reads of a hang sees how old the newest step is, what the limit is, and from what it follows."""
    limit = after(*([1.0] * 100))
    assert limit.suspect(5.0) is None
    assert limit.suspect(5.2) == "no step for 5.2 s; the limit is 5 s: 99 of 100 steps take at most 1 s"
    limit.expect(Pause.DATA)
    assert limit.because == "the limit is 5 min 5 s: 99 of 100 steps take at most 1 s, 5 min are allowed for: data"


def test_how_long_a_world_may_form_is_learned_with_room_for_doubt() -> None:
    """Unknown before the first; then five times the longest, at least 30 s; four times that after each world that was given
    up before its first step, until one made it."""
    hangs = HangLimit()
    assert hangs.forming_seconds() is None
    hangs.formed(1.0)
    assert hangs.forming_seconds() == 30.0
    hangs.formed(20.0)
    assert hangs.forming_seconds() == 100.0
    hangs.new_world(2, 2)
    hangs.gave_up()
    assert hangs.forming_seconds() == 400.0
    hangs.formed(1.0)
    hangs.observe(1.0)
    assert hangs.forming_seconds() == 100.0
    hangs.gave_up()  # in the middle of its steps: that says nothing of the first
    assert hangs.forming_seconds() == 100.0
