"""Step throughput next to bare torchrun and DeepSpeed, with the same model and data: `make bench-throughput`.

Pairs, one after the other: the bare script (benchmarks/_bare.py) under torchrun, then the same job through
`orchestrate submit` on a controller that is up already. One worker with one thread, so that a core stays free. A run's
throughput is that of its steps after the first ten. `--workers 2` reports the same for two workers.

Bar: median ratio of at least 0.95 over at least 12 pairs, with its confidence interval.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude, describe, median_ratio, quiet
from orchestrator.controller.client import Client

JOB = REPOSITORY / "benchmarks" / "throughput.yaml"
WARM_UP_STEPS = 10
BAR = 0.95
PROGRAMS = Path(sys.executable).parent


def environment(home: Path) -> dict[str, str]:
    """A home of our own; the programs of this interpreter first."""
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "ORCHESTRATE_HOME": str(home), "PATH": path, "PYTHONPATH": str(REPOSITORY)}


def steps_per_second(ends_ns: Sequence[int]) -> float:
    measured = ends_ns[WARM_UP_STEPS - 1 :]
    return (len(measured) - 1) / ((measured[-1] - measured[0]) / 1e9)


def run_bare(job: Path, workers: int, environ: Mapping[str, str]) -> dict[str, Any]:
    """One run of the rival; what it printed, and when it was started."""
    done = subprocess.run(
        [
            str(PROGRAMS / "torchrun"),
            "--nproc_per_node",
            str(workers),
            str(REPOSITORY / "benchmarks" / "_bare.py"),
            str(job),
        ],
        env={**environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"first_line_ns"'))
    found: dict[str, Any] = json.loads(line)
    return found


def run_ours(job: Path, workers: int, name: str, environ: Mapping[str, str]) -> list[int]:
    """One run through the controller; the end of each step."""
    command = ["-m", "orchestrator.cli.main", "submit", str(job), "--set", f"metadata.name={name}"]
    options = ["--set", f"spec.workers.max={workers}"]
    subprocess.run([sys.executable, *command, *options], env=environ, capture_output=True, text=True, check=True)
    return [int(row["at_ns"]) for row in client_of(environ).steps("default", name)]


def client_of(environ: Mapping[str, str]) -> Client:
    home = Path(environ["ORCHESTRATE_HOME"])
    server = json.loads((home / "server.json").read_text())
    return Client(server["url"], (home / "token").read_text().strip())


def stop_server(environ: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "orchestrator.cli.main", "server", "stop"]
    subprocess.run(command, env=environ, capture_output=True, check=True)


def main() -> int:
    parser = arguments(__doc__, samples=12)
    parser.add_argument("--workers", type=int, default=1, help="workers of the job (default 1)")
    given = parser.parse_args()
    samples = Samples("throughput")
    kind = f"{given.workers} workers"
    missing = samples.missing(kind, given.samples)
    if missing:
        with tempfile.TemporaryDirectory(prefix="bench-throughput-") as folder:
            environ = environment(Path(folder))
            try:
                run_ours(JOB, given.workers, "warm-up", environ)
                for number in missing:
                    with samples.sample(kind) as sample:
                        sample["bare"] = steps_per_second(run_bare(JOB, given.workers, environ)["step_ends_ns"])
                        sample["ours"] = steps_per_second(run_ours(JOB, given.workers, f"pair-{number}", environ))
                    print(f"pair {number}: bare {sample['bare']:.3f}, ours {sample['ours']:.3f} steps/s", flush=True)
            finally:
                stop_server(environ)
    return report(samples.rows(kind), given.workers)


def report(rows: list[dict[str, Any]], workers: int) -> int:
    pairs = [(row["sample"]["ours"], row["sample"]["bare"]) for row in rows]
    print(f"bare torchrun  {describe([bare for _, bare in pairs], 'steps/s')}")
    print(f"orchestrate    {describe([ours for ours, _ in pairs], 'steps/s')}")
    ratio = median_ratio(pairs, random.Random(0))
    print(f"ratio {ratio}; {sum(quiet(row) for row in rows)} of {len(rows)} pairs began on a quiet machine")
    if workers > 1:
        print("two workers are reported, not judged")
        return 0
    return conclude([Verdict("throughput ratio", BAR, ratio.estimate, "", ratio.pairs, at_most=False)])


if __name__ == "__main__":
    sys.exit(main())
