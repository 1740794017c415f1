"""The statistics and the book-keeping of benchmarks."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from statistics import median

import pytest

from benchmarks.harness import Code, CpuClock, Samples, Verdict, median_ratio, percentile, run

CLEAN = Code("c0ffee", dirty=False)


def take(samples: Samples, kind: str, *values: float) -> None:
    for value in values:
        with samples.sample(kind) as sample:
            sample["ms"] = value


def test_percentiles_are_values_that_were_measured() -> None:
    """The nearest rank: of a hundred values the 99th, of one value that one."""
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_ratio_comes_with_an_interval_that_holds_it_and_repeats() -> None:
    """The interval surrounds the median of the ratios, narrows with less noise, and is the same for the same seed."""
    noise = random.Random(1)
    noisy = [(noise.uniform(0.9, 1.1), 1.0) for _ in range(30)]
    wide = median_ratio(noisy, random.Random(2))
    assert wide.low <= wide.estimate <= wide.high
    assert wide.estimate == median(first for first, _ in noisy)
    assert wide == median_ratio(noisy, random.Random(2))
    still = median_ratio([(0.5, 1.0)] * 12, random.Random(2))
    assert (still.low, still.estimate, still.high) == (0.5, 0.5, 0.5)
    assert still.high - still.low < wide.high - wide.low


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Over 200 experiments whose true median ratio is 1, a 95 % interval holds it in 90 % to 100 % of them."""
    noise = random.Random(3)
    held = 0
    for _ in range(200):
        pairs = [(noise.gauss(1.0, 0.05), 1.0) for _ in range(15)]
        interval = median_ratio(pairs, noise, rounds=300)
        held += interval.low <= 1.0 <= interval.high
    assert 180 <= held <= 200


def test_a_run_that_was_cut_short_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Samples of the same clean commit and kind count; a half-written last line does not."""
    take(Samples("cli", CLEAN, tmp_path), "help", 50.0, 51.0)
    take(Samples("cli", Code("0ther", dirty=False), tmp_path), "help", 90.0)
    take(Samples("cli", CLEAN, tmp_path), "list", 120.0)
    with open(tmp_path / "cli.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "help", "comm')
    again = Samples("cli", CLEAN, tmp_path)
    assert [row["sample"]["ms"] for row in again.rows("help")] == [50.0, 51.0]
    assert list(again.missing("help", 5)) == [2, 3, 4]
    take(again, "help", 52.0)
    assert list(Samples("cli", CLEAN, tmp_path).missing("help", 5)) == [3, 4]
    assert list(again.missing("help", 1)) == []


def test_samples_of_a_changed_tree_count_in_their_own_run_only(tmp_path: Path) -> None:
    """Nobody can tell what an uncommitted tree was, so its samples are kept but not counted by the next run."""
    dirty = Code("c0ffee", dirty=True)
    first = Samples("cli", dirty, tmp_path)
    take(first, "help", 50.0)
    assert len(first.rows("help")) == 1
    assert Samples("cli", dirty, tmp_path).rows("help") == []
    assert Samples("cli", CLEAN, tmp_path).rows("help") == []


def test_a_sample_says_where_it_comes_from_and_a_failed_one_is_not_written(tmp_path: Path) -> None:
    """A line has date, commit, load before and after, Python and CPUs; a block that raises leaves no line."""
    samples = Samples("cli", CLEAN, tmp_path)
    take(samples, "help", 50.0)
    with pytest.raises(ZeroDivisionError), samples.sample("help"):
        raise ZeroDivisionError
    (line,) = (tmp_path / "cli.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert row["commit"] == "c0ffee"
    assert row["cpus"] == os.cpu_count()
    assert {"date", "dirty", "python", "load_before", "load_after"} <= row.keys()


def test_a_verdict_says_bar_value_and_outcome() -> None:
    """`met` and `missed` follow the direction of the bar, and the line carries all figures."""
    verdict = Verdict("help", 80, 52.3, "ms CPU", 15)
    assert str(verdict) == "help: bar: <= 80 ms CPU; measured median 52.3 ms CPU (n=15): met"
    assert not Verdict("help", 80, 80.1, "ms CPU", 15).met
    assert Verdict("throughput", 0.95, 0.95, "", 12, at_most=False).met
    assert not Verdict("throughput", 0.95, 0.94, "", 12, at_most=False).met


def test_cpu_time_is_charged_to_the_process_that_used_it() -> None:
    """A command that burns CPU is charged for it; one that waits is not; a process's clock shows its own use."""
    burn = "import time\nwhile time.process_time() < {}: pass\nraise SystemExit(3)"
    burned = run([sys.executable, "-c", burn.format(0.3)])
    assert burned.exit_code == 3
    assert 0.3 <= burned.cpu_seconds < 2
    waited = run([sys.executable, "-c", "import threading; threading.Event().wait(0.5); print('done')"])
    assert waited.output == "done\n"
    assert waited.cpu_seconds < 0.4
    assert waited.wall_seconds >= 0.5
    clock = CpuClock(os.getpid())
    before = clock.seconds()
    sum(range(1_000_000))
    assert clock.seconds() > before
