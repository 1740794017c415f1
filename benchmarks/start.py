"""From submit to the first step, next to bare torchrun: `make bench-start`.

Rounds of three: torchrun on benchmarks/_bare.py; `orchestrate submit` with nothing running (cold: Ray and the controller
are started); `orchestrate submit` again (warm). Each time is from the start of the command to the end of the first step.
Where our time goes is taken from the job's own story and stages.

Bars: cold at most torchrun + 40 s, warm at most torchrun + 25 s (medians).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Samples, Verdict, arguments, conclude, describe, quiet
from benchmarks.throughput import JOB, client_of, environment, run_bare, run_ours, stop_server

COLD_BAR_SECONDS, WARM_BAR_SECONDS = 40.0, 25.0


def measure_ours(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Seconds to the end of the first step, and the parts that the story and the worker's stages tell."""
    began_ns = time.time_ns()
    ends_ns = run_ours(JOB, 1, name, environ)
    client = client_of(environ)
    told = {event["event"]: _seconds(event["time"]) for event in reversed(client.events("default", name))}
    status = client.get("default", name)["status"]
    began = began_ns / 1e9
    parts = {
        "until accepted": told["Submitted"] - began,
        "until the worker started": told["Started"] - told["Submitted"],
    }
    stages = {f"worker: {stage}": seconds for stage, seconds in status["stages"].items()}
    return {"total": (ends_ns[0] - began_ns) / 1e9, **parts, **stages}


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def main() -> int:
    given = arguments(__doc__, samples=5).parse_args()
    samples = Samples("start")
    for number in samples.missing("rounds", given.samples):
        with tempfile.TemporaryDirectory(prefix="bench-start-") as folder, samples.sample("rounds") as sample:
            environ = environment(Path(folder))
            began_ns = time.time_ns()
            sample["torchrun"] = (run_bare(JOB, 1, environ)["step_ends_ns"][0] - began_ns) / 1e9
            try:
                sample["cold"] = measure_ours("cold", environ)
                sample["warm"] = measure_ours("warm", environ)
            finally:
                stop_server(environ)
        totals = f"cold {sample['cold']['total']:.1f}, warm {sample['warm']['total']:.1f}"
        print(f"round {number}: torchrun {sample['torchrun']:.1f}, {totals} s", flush=True)
    return report(samples.rows("rounds"))


def report(rows: list[dict[str, Any]]) -> int:
    taken = [row["sample"] for row in rows]
    bare = [sample["torchrun"] for sample in taken]
    print(
        f"torchrun  {describe(bare, 's')}; {sum(quiet(row) for row in rows)} of {len(rows)} rounds began on a quiet machine"
    )
    verdicts = []
    for kind, bar in (("cold", COLD_BAR_SECONDS), ("warm", WARM_BAR_SECONDS)):
        print(f"{kind}  {describe([sample[kind]['total'] for sample in taken], 's')}, of which (medians):")
        for part in taken[0][kind]:
            if part != "total":
                print(f"    {part:<26} {median(sample[kind][part] for sample in taken):6.2f} s")
        more = [sample[kind]["total"] - sample["torchrun"] for sample in taken]
        verdicts.append(Verdict(f"{kind} start, above torchrun", bar, median(more), "s", len(more)))
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
