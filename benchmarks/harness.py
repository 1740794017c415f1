"""What every benchmark shares: samples that can be traced, statistics that admit their doubt, verdicts against a bar.

One sample is one JSON line in `benchmarks/results/NAME.jsonl`, with the date, the commit, whether the tree differed from
it, the load average before and after, the Python and the number of CPUs. A benchmark that was cut short goes on where it
stopped: samples of the present commit count, if the tree is clean. Samples of a changed tree are kept but never counted
again, since nobody can tell what they measured.

CPU time is what the kernel charged (own and children's), to the nanosecond; it holds on a busy machine, where wall time
does not. Limits: Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
QUIET_LOAD = 0.5
"""Wall times count when the load average beside them was below this (design, section 7)."""
MILLISECONDS = 1_000.0


# --- samples ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Code:
    """What is being measured. `commit` is None outside a git checkout; `dirty`: the tree differs from the commit, results
    and pages aside."""

    commit: str | None
    dirty: bool

    @property
    def traceable(self) -> bool:
        return self.commit is not None and not self.dirty


def present_code(repository: Path = REPOSITORY) -> Code:
    """The code of this checkout."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results", ":(exclude)*.md")
    except FileNotFoundError:  # no git on this machine
        return Code(None, dirty=True)
    return Code(commit, dirty=changed is None or changed != "")


def load_average() -> float:
    """Processes that wanted a CPU, over the last minute."""
    return round(os.getloadavg()[0], 2)


class Samples:
    """The samples of one benchmark. `kind` tells apart several series in one file."""

    def __init__(self, name: str, code: Code | None = None, folder: Path = RESULTS) -> None:
        self.name = name
        self.code = code or present_code()
        self.file = folder / f"{name}.jsonl"
        self._taken: list[dict[str, Any]] = []

    @contextmanager
    def sample(self, kind: str) -> Iterator[dict[str, Any]]:
        """Fill in the mapping; it is appended when the block ends without an error."""
        values: dict[str, Any] = {}
        row: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "benchmark": self.name,
            "kind": kind,
            "commit": self.code.commit,
            "dirty": self.code.dirty,
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "load_before": load_average(),
        }
        yield values
        row |= {"load_after": load_average(), "sample": values}
        self._append(json.dumps(row, separators=(",", ":"), allow_nan=False))
        self._taken.append(row)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Samples that count: those of the present commit, when the tree is clean; otherwise those of this run."""
        if not self.code.traceable:
            return [row for row in self._taken if row["kind"] == kind]
        return [
            row
            for row in self._read()
            if row["kind"] == kind and row["commit"] == self.code.commit and not row["dirty"]
        ]

    def missing(self, kind: str, wanted: int) -> range:
        """Numbers of the samples still to be taken."""
        return range(min(wanted, len(self.rows(kind))), wanted)

    def _append(self, line: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torn = self.file.exists() and self.file.read_bytes()[-1:] not in (b"", b"\n")  # a run was cut off
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + line + "\n")

    def _read(self) -> list[dict[str, Any]]:
        try:
            text = self.file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        rows = []
        for line in text.splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # a run was cut off while it wrote this line
                continue
        return rows


def quiet(row: Mapping[str, Any]) -> bool:
    """Whether the machine had nothing else to do when the sample began."""
    return float(row["load_before"]) < QUIET_LOAD


def arguments(description: str | None, samples: int) -> argparse.ArgumentParser:
    """The parser of a benchmark, with `--samples`; add what else it takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samples", type=int, default=samples, metavar="N", help=f"samples of this commit to have (default {samples})"
    )
    return parser


# --- statistics ------------------------------------------------------------------------------------------------------
def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed (nearest rank). Raises on no values."""
    if not values:
        raise ValueError("no values have no percentile")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bootstrap percentile interval."""

    estimate: float
    low: float
    high: float
    pairs: int
    confidence: float

    def __str__(self) -> str:
        span = f"{self.confidence:.0%} interval {self.low:.3f} to {self.high:.3f}"
        return f"{self.estimate:.3f} ({span}, n={self.pairs})"


def median_ratio(
    pairs: Sequence[tuple[float, float]], rng: random.Random, confidence: float = 0.95, rounds: int = 10_000
) -> Interval:
    """Median of the ratios first/second of pairs taken side by side, with the interval that resampling whole pairs
    gives. Pairs, because neighbours in time share the machine's mood."""
    if not pairs:
        raise ValueError("no pairs have no ratio")
    ratios = [first / second for first, second in pairs]
    resampled = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(rounds))
    tail = (1 - confidence) / 2
    low, high = resampled[int(tail * rounds)], resampled[min(rounds - 1, int((1 - tail) * rounds))]
    return Interval(median(ratios), low, high, len(ratios), confidence)


def describe(values: Sequence[float], unit: str) -> str:
    """`median 52.1, p95 60.2, p99 61.0 ms (n=15)`"""
    numbers = f"median {median(values):.1f}, p95 {percentile(values, 95):.1f}, p99 {percentile(values, 99):.1f}"
    return f"{numbers} {unit} (n={len(values)})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A measured value against its bar. `at_most` False: the value must reach the bar."""

    what: str
    bar: float
    measured: float
    unit: str
    samples: int
    statistic: str = "median"
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.measured <= self.bar if self.at_most else self.measured >= self.bar

    def __str__(self) -> str:
        sign, unit = "<=" if self.at_most else ">=", f" {self.unit}" if self.unit else ""
        word = "met" if self.met else "missed"
        figures = f"measured {self.statistic} {self.measured:.4g}{unit} (n={self.samples})"
        return f"{self.what}: bar: {sign} {self.bar:g}{unit}; {figures}: {word}"


def conclude(verdicts: Sequence[Verdict]) -> int:
    """Print the verdicts; the exit code: 0 when every bar was met."""
    for verdict in verdicts:
        print(verdict)
    return 0 if all(verdict.met for verdict in verdicts) else 1


# --- processes -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Run:
    """A command that has ended. CPU is user and system time, with that of the children it waited for."""

    cpu_seconds: float
    wall_seconds: float
    exit_code: int
    output: str
    """stdout, then stderr"""


def run(command: Sequence[str], *, cwd: Path = REPOSITORY, environ: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end, and ask the kernel what it used."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)  # wait4 took what Popen would wait for
        text = ""
        for stream in (out, err):
            stream.seek(0)
            text += stream.read().decode("utf-8", "replace")
    return Run(usage.ru_utime + usage.ru_stime, wall, process.returncode, text)


def must_run(command: Sequence[str], *, cwd: Path = REPOSITORY, environ: Mapping[str, str] | None = None) -> Run:
    """As `run`, but ends the benchmark with the command's own words when it fails: the time of a failure is no figure."""
    done = run(command, cwd=cwd, environ=environ)
    if done.exit_code != 0:
        sys.exit(f"{' '.join(command)} ended with {done.exit_code}:\n{done.output}")
    return done


class CpuClock:
    """CPU seconds that a process on this machine has used, all threads, living and ended; to the nanosecond."""

    def __init__(self, pid: int) -> None:
        clock = ctypes.c_int()
        error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
        if error:
            raise OSError(error, os.strerror(error), f"process {pid}")
        self._clock = clock.value

    def seconds(self) -> float:
        return time.clock_gettime(self._clock)
