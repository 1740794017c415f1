"""The pure parts of benchmarks that measure live runs: the gate between windows, the noise, what counts as a false alarm."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks._gate import WINDOW_STEPS, Gate, _GatedLink
from benchmarks._noise import spells
from benchmarks.elastic_throughput import UNCOUNTED, steps_per_second
from benchmarks.hangs import found


def test_a_gated_run_makes_one_window_at_a_time(tmp_path: Path) -> None:
    """Who measures gets the steps of each window; between windows the run stands, and has told the engine so."""
    sent: list[dict[str, Any]] = []

    class Link:
        def send(self, event: dict[str, Any]) -> None:
            sent.append(event)

    link = _GatedLink(Link(), Gate(tmp_path))

    def train() -> None:
        for step in range(1, 2 * WINDOW_STEPS):
            link.send({"kind": "step", "step": step, "at_ns": step})

    run = threading.Thread(target=train, daemon=True)
    run.start()
    measuring = Gate(tmp_path)
    assert measuring.window() == list(range(1, WINDOW_STEPS + 1))
    assert [event["kind"] for event in sent] == ["step"] * WINDOW_STEPS + ["pause"]
    with pytest.raises(TimeoutError, match="makes no step"):
        measuring.window(patience_seconds=0.1)
    run.join(10)
    assert sent[-1]["step"] == 2 * WINDOW_STEPS - 1


def test_throughput_leaves_out_the_first_steps_of_a_window() -> None:
    """Slow first steps do not count; the others are counted from end to end."""
    ends = [0, 10**9, 5 * 10**9, *(5 * 10**9 + number * 10**8 for number in range(1, 13))]
    assert UNCOUNTED == 3
    assert steps_per_second(ends) == pytest.approx(10)


def test_noise_repeats_with_its_seed_and_leaves_half_of_a_cpu() -> None:
    """The same spells for the same seed; none burns longer than two seconds, nor longer than it rests."""
    some = list(islice(spells(3), 500))
    assert some == list(islice(spells(3), 500))
    assert some != list(islice(spells(4), 500))
    assert all(0.1 <= burn <= 2.0 and rest >= burn for burn, rest in some)


def test_an_alarm_of_a_live_run_counts_once_and_other_losses_are_told() -> None:
    """A hung rank and the world that is given up for it are one alarm; a lost worker is none."""
    rows = [{"end_ns": end * 10**7, "size": 2} for end in range(5)]
    told = [{"kind": "hung"}, {"kind": "world_lost", "reason": "Hung"}, {"kind": "world_lost", "reason": "WorkerLost"}]
    result = found(rows, told)
    assert (result["false_alarms"], result["worlds_lost"]) == (1, ["Hung", "WorkerLost"])
    assert (result["steps"], result["step_ms_max"]) == (5, pytest.approx(10))
    assert found([], [])["false_alarms"] == 0
