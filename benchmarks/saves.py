"""Saving next to DeepSpeed's `save_checkpoint`, on two ranks and 41 million parameters, ZeRO-2 and 3: `make bench-saves`.

In each round both save the same state in turn (`_saves_rank.py`): ours until it is durable and committed (fsync of files
and folders), theirs until the call returns, which syncs nothing. The stall is what our save costs the training loop before
it goes on. Then ten steps that begin a save are timed next to ten that do not.

Bars: durable in less time than theirs returns (goal: half of it); a stall of at most 15 % of theirs (goal 5 %); at least
95 % of the throughput with a save every ten steps (goal 97 %).
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY, Interval, Samples, Verdict, arguments, conclude, median_ratio, must_run

STAGES = (2, 3)
ROUNDS, SEGMENTS = 8, 6


def take(stage: int) -> dict[str, Any]:
    """One gang: rounds of saves, then pairs of segments."""
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    script = str(REPOSITORY / "benchmarks" / "_saves_rank.py")
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryDirectory(prefix="bench-saves-") as folder:
        command = [torchrun, "--nproc_per_node", "2", script, str(stage), folder, str(ROUNDS), str(SEGMENTS)]
        done = must_run(command, environ=environ)
    line = next(line for line in done.output.splitlines() if line.startswith('{"parameters"'))
    found: dict[str, Any] = json.loads(line)
    return found


def ratio(rows: list[dict[str, Any]], series: str, first: str, second: str) -> Interval:
    pairs = [(pair[first], pair[second]) for row in rows for pair in row["sample"][series]]
    return median_ratio(pairs, random.Random(0))


def main() -> int:
    given = arguments(__doc__, samples=2).parse_args()
    samples = Samples("saves")
    verdicts = []
    for stage in STAGES:
        kind = f"zero{stage}"
        for number in samples.missing(kind, given.samples):
            with samples.sample(kind) as sample:
                sample.update(take(stage))
            print(f"{kind}, gang {number + 1} done", flush=True)
        rows = samples.rows(kind)
        whole = rows[0]["sample"]
        print(f"{kind}: {whole['parameters']:,} parameters, {whole['bytes']:,} bytes a checkpoint of ours")
        durable = ratio(rows, "saves", "ours", "deepspeed")
        synced = ratio(rows, "saves", "ours", "deepspeed_synced")
        stall = ratio(rows, "saves", "stall", "deepspeed")
        speed = ratio(rows, "segments", "without", "with")
        print(f"  durable/theirs {durable}; next to theirs with fsync {synced}")
        print(f"  stall/theirs {stall}")
        print(f"  throughput with a save every ten steps {speed}")
        verdicts += [
            Verdict(f"{kind} save", 1.0, durable.estimate, "of theirs", durable.pairs),
            Verdict(f"{kind} stall", 0.15, stall.estimate, "of theirs", stall.pairs),
            Verdict(f"{kind} throughput", 0.95, speed.estimate, "", speed.pairs, at_most=False),
        ]
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
