"""Step throughput of the elastic engine, replication on, next to bare torchrun and DeepSpeed: `make bench-elastic_throughput`.

Two workers of one thread each under ZeRO-1, 2 and 3. Both runs are up at once and step in turn, a window of 15 steps each
(benchmarks/_gate.py), the first three of which do not count; which begins changes from pair to pair. So a pair's windows are
seconds apart, and the sample costs no start. On the engine's side everything is on: an agent a node, replication to the
neighbour every k steps (k as the policy chose; told), a standby beside each worker, heartbeats, the store. Windows count
once the policy has chosen k, and the standbys are ready.

Bar: median ratio of at least 0.95 at each stage over at least 10 pairs, with its interval; goal 0.98. About 25 minutes.

A copy costs by the state, a step by the batch: `--batch 4` shows the ratio where a step has least to do beside it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._gate import Gate
from benchmarks._native_attempt import Run
from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude, describe, median_ratio, quiet
from orchestrator.platforms.engines.native.pace import TRYING
from orchestrator.platforms.engines.native.processes import LocalAgents

JOB = REPOSITORY / "benchmarks" / "elastic_throughput.yaml"
STAGES = (1, 2, 3)
WORKERS = 2
BATCH = 16
UNCOUNTED = 3
BAR, GOAL = 0.95, 0.98
SETTLE_SECONDS = 240.0


def steps_per_second(ends_ns: Sequence[int]) -> float:
    measured = ends_ns[UNCOUNTED - 1 :]
    return (len(measured) - 1) / ((measured[-1] - measured[0]) / 1e9)


def fields(stage: int, batch: int) -> list[str]:
    """Of the job's file, set anew on both sides."""
    return [f"spec.deepspeed.stage={stage}", f"spec.training.globalBatchSize={batch}"]


def kind(stage: int, batch: int) -> str:
    return f"ZeRO-{stage}, batch {batch}"


def begin_bare(stage: int, batch: int, folder: Path) -> subprocess.Popen[bytes]:
    script = REPOSITORY / "benchmarks" / "_bare.py"
    return subprocess.Popen(
        [
            str(Path(sys.executable).with_name("torchrun")),
            *("--nproc_per_node", str(WORKERS), str(script), str(JOB), str(folder), *fields(stage, batch)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
    )


def settle(run: Run, gate: Gate, rival: Gate) -> None:
    """Let it step until the policy has chosen k for a world of all workers, and its standbys are ready. The rival takes its
    turns here too, so that the engine knows how long a pause at the gate may last."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        gate.window()
        rival.window()
        decided = [told for told in run.told("replication") if not told["because"].startswith(TRYING)]
        if run.rows()[-1]["size"] == WORKERS and decided and run.settled(WORKERS):
            return
        if time.monotonic() > end:
            raise TimeoutError(
                f"not settled in {SETTLE_SECONDS:.0f} s: {run.standbys()}, {run.rows()[-1]}, {run.logs()}"
            )


def take(samples: Samples, stage: int, batch: int, missing: range) -> None:
    """The pairs of one stage, of one run on each side."""
    with tempfile.TemporaryDirectory(prefix="bench-elastic-throughput-", ignore_cleanup_errors=True) as name:
        theirs, mine = Path(name) / "bare", Path(name) / "ours"
        theirs.mkdir()
        mine.mkdir()
        bare, ours = Gate(theirs), Gate(mine)
        run = Run(JOB, fields(stage, batch), mine, "benchmarks._gate:run")
        rival = begin_bare(stage, batch, theirs)
        try:
            bare.window()
            run.begin(lambda request: LocalAgents(dict(os.environ), [1] * WORKERS))
            settle(run, ours, bare)
            for number in missing:
                lost = len(run.told("world_lost"))
                with samples.sample(kind(stage, batch)) as sample:
                    sides = {"bare": bare, "ours": ours}
                    for side in sides if number % 2 else reversed(sides):
                        sample[side] = steps_per_second(sides[side].window())
                    told = run.told("replication")[-1]
                    sample |= {"every": told["every"], "replicated_bytes": told["bytes"], "began": mine.parent.name}
                    if len(run.told("world_lost")) != lost:
                        sys.exit(f"the world was lost beside a window: {run.told('world_lost')[-1]}")
                print(f"{kind(stage, batch)}, pair {number}: {json.dumps(sample)}", flush=True)
        finally:
            rival.terminate()
            run.finish()
            rival.wait()


def main() -> int:
    parser = arguments(__doc__, samples=10)
    parser.add_argument("--stage", type=int, choices=STAGES, help="one ZeRO stage (default all)")
    parser.add_argument(
        "--batch", type=int, default=BATCH, help=f"samples of a step, over both workers (default {BATCH})"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    samples = Samples("elastic_throughput")
    stages = [stage for stage in STAGES if given.stage in (None, stage)]
    for stage in stages:
        if missing := samples.missing(kind(stage, given.batch), given.samples):
            take(samples, stage, given.batch, missing)
    return report({name: samples.rows(name) for name in (kind(stage, given.batch) for stage in stages)})


def report(taken: dict[str, list[dict[str, Any]]]) -> int:
    verdicts = []
    for name, rows in taken.items():
        pairs = [(row["sample"]["ours"], row["sample"]["bare"]) for row in rows]
        ratio = median_ratio(pairs, random.Random(0))
        print(f"{name}: {sum(quiet(row) for row in rows)} of {len(rows)} began on a quiet machine")
        print(f"    bare torchrun  {describe([bare for _, bare in pairs], 'steps/s')}")
        print(f"    orchestrate    {describe([ours for ours, _ in pairs], 'steps/s')}")
        print(
            f"    a copy every   {sorted({row['sample']['every'] for row in rows})} steps; goal {GOAL:g}; ratio {ratio}"
        )
        verdicts.append(Verdict(f"throughput ratio, {name}", BAR, ratio.estimate, "", ratio.pairs, at_most=False))
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
