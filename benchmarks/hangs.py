"""Hang limits over a million step times of each kind: `make bench-hangs`.

Ten kinds of jobs are replayed, seeded: steady and noisy steps, collections and stalls, drift, the day's pattern, evaluations
and saves (tests/policy/step_times.py). No step may be taken for a hang. Beside every thousandth step a hang is thought in its
place: it must be seen within the limit and one beat, and the limit be, as a rule, max(3 s, 5 x p99 of the newest steps).

Time here is replayed, so nothing depends on what else the machine does.

Beside that 20,000 live steps of a tiny job on the elastic engine (benchmarks/hangs.yaml; two workers, evaluations and saves
among the steps), with a neighbour that burns a CPU in spells (benchmarks/_noise.py): no alarm either. Live hangs, which must be
seen, are measured by `node_loss` (SIGSTOP). `--live 0` leaves it out. About 8 minutes, nearly all of it live.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks._native_attempt import Run
from benchmarks.harness import MILLISECONDS, REPOSITORY, Samples, Verdict, arguments, conclude, percentile
from tests.policy.step_times import KINDS, replay

SEED = 20_261_123
JOB = REPOSITORY / "benchmarks" / "hangs.yaml"
WORKERS = 2
LIVE_STEPS = 20_000
PATIENCE_SECONDS = 900.0
ALARMS = ("hung",)


def live(steps: int, seed: int) -> dict[str, Any]:
    """So many steps of a real job with noise beside it, and what was taken for a fault."""
    from orchestrator.platforms.engines.native.processes import LocalAgents

    noise = subprocess.Popen(
        [sys.executable, "-m", "benchmarks._noise", str(seed)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    with tempfile.TemporaryDirectory(prefix="bench-hangs-", ignore_cleanup_errors=True) as folder:
        run = Run(JOB, ["spec.deepspeed.stage=1"], Path(folder))
        try:
            run.begin(lambda request: LocalAgents(dict(os.environ), [1] * WORKERS))
            end = time.monotonic() + PATIENCE_SECONDS
            while len(run.rows()) < steps and time.monotonic() < end:
                time.sleep(1.0)
            rows = run.rows()[:steps]
        finally:
            run.finish()
            noise.terminate()
            noise.wait()
    return {"seed": seed, **found(rows, run.told("world_lost", *ALARMS))}


def found(rows: list[dict[str, Any]], told: list[Any]) -> dict[str, Any]:
    """Steps and how long they took, in ms, and what the engine took for a fault. A gang that was stopped for another reason
    was no false alarm, but is told."""
    ends = [row["end_ns"] for row in rows]
    times = [MILLISECONDS * (later - earlier) / 1e9 for earlier, later in pairwise(ends)]
    lost = [event["reason"] for event in told if event["kind"] == "world_lost"]
    alarms = [event["kind"] for event in told if event["kind"] in ALARMS]
    return {
        "steps": len(rows),
        "workers": sorted({row["size"] for row in rows}),
        "seconds": (ends[-1] - ends[0]) / 1e9 if ends else 0.0,
        "step_ms_median": median(times) if times else None,
        "step_ms_p99": percentile(times, 99) if times else None,
        "step_ms_max": max(times, default=None),
        "alarms": alarms,
        "false_alarms": max(len(alarms), lost.count("Hung")),
        "worlds_lost": lost,
    }


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--steps", type=int, default=1_000_000, metavar="N", help="of each kind (default 1,000,000)")
    parser.add_argument(
        "--live", type=int, default=LIVE_STEPS, metavar="N", help=f"real steps beside that (default {LIVE_STEPS:,})"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    samples = Samples("hangs")
    for name, kind in KINDS.items():
        key = f"{name}-{options.steps}"
        for number in samples.missing(key, options.samples):
            with samples.sample(key) as sample:
                replayed = replay(kind, options.steps, Random(SEED + number))
                sample["steps"] = options.steps
                sample["seed"] = SEED + number
                sample["false_alarms"] = replayed.false_alarms
                sample["hangs"] = replayed.hangs
                sample["unseen"] = replayed.unseen
                sample["seen_over_formula_median"] = round(percentile(replayed.beyond_formula, 50), 4)
                sample["seen_over_formula_p95"] = round(percentile(replayed.beyond_formula, 95), 4)
                sample["seen_over_formula_max"] = round(max(replayed.beyond_formula), 4)
    rows = {name: [row["sample"] for row in samples.rows(f"{name}-{options.steps}")] for name in KINDS}
    for name, found_of_kind in rows.items():
        for row in found_of_kind:
            print(
                f"{name}: {row['steps']:,} steps, {row['false_alarms']} false alarms; {row['hangs']:,} hangs, {row['unseen']} "
                f"not seen in time; seen after {row['seen_over_formula_median']:.3f} x max(3 s, 5 x p99) in the median, "
                f"p95 {row['seen_over_formula_p95']:.3f}, max {row['seen_over_formula_max']:.3f}"
            )
    alive = f"live-{options.live}"
    for number in samples.missing(alive, options.samples if options.live else 0):
        with samples.sample(alive) as sample:
            sample |= live(options.live, SEED + number)
    lived = [row["sample"] for row in samples.rows(alive)]
    for row in lived:
        print(
            f"live: {row['steps']:,} steps of {row['workers']} workers in {row['seconds']:.0f} s, {row['false_alarms']} false "
            f"alarms; a step took {row['step_ms_median']:.1f} ms in the median, p99 {row['step_ms_p99']:.1f}, max "
            f"{row['step_ms_max']:.0f}; worlds lost: {row['worlds_lost']}"
        )
    every = [row for each in rows.values() for row in each]
    replays, steps = len(every), sum(row["steps"] for row in every)
    hangs = sum(row["hangs"] for row in every)
    real = (
        [
            Verdict("live: false alarms", 0, sum(row["false_alarms"] for row in lived), "", len(lived), "total"),
            Verdict(
                "live: steps", options.live, min(row["steps"] for row in lived), "", len(lived), "least", at_most=False
            ),
        ]
        if lived
        else []
    )
    return conclude(
        [
            *real,
            Verdict("false alarms", 0, sum(row["false_alarms"] for row in every), "", steps, "total"),
            Verdict(
                "hangs not seen within the limit and a beat", 0, sum(row["unseen"] for row in every), "", hangs, "total"
            ),
            Verdict(
                "seen after, over max(3 s, 5 x p99)",
                1.05,
                max(row["seen_over_formula_median"] for row in every),
                "",
                replays,
                "worst median of a kind",
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
