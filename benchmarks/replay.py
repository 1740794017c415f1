"""A real DeepSpeed job on a recorded spot market, 24 h in 20 minutes: `make bench-replay`.

`orchestrate replay` with a piece of a 4-machine trace in which 8 to 15 machines come back: what of the machine-seconds that
the market delivered was useful in the end, warm-up left out and told apart. The traces lie beside the repository, in
`../shared/traces`; where they do not, nothing is measured.

Bar: at least 90 % (goal 95 %).
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude, must_run
from orchestrator.simulation import Trace, read_trace

JOB = REPOSITORY / "benchmarks" / "replay.yaml"
TRACES = REPOSITORY.parent / "shared" / "traces" / "preemption" / "4-node"
HOURS, SPEED = 24.0, 72.0
JOINS = range(8, 16)
BAR = 0.9


def windows(trace: Trace, hours: float) -> list[float]:
    """Hours at which a piece of this length begins that has as many joins as are wanted."""
    starts = range(int(trace.seconds / 3600 - hours))
    return [float(start) for start in starts if trace.window(start * 3600, hours * 3600).joins in JOINS]


def take(path: Path, start: float, hours: float, seed: int) -> dict[str, Any]:
    """One replay: its report, without the paths."""
    orchestrate = str(Path(sys.executable).with_name("orchestrate"))
    with tempfile.TemporaryDirectory(prefix="bench-replay-") as name:
        place = Path(name) / "out"
        command = [orchestrate, "replay", str(path), str(JOB), "--speed", str(SPEED), "--out", str(place)]
        command += ["--start", f"{start:g}h", "--length", f"{hours:g}h", "--seed", str(seed), "-o", "json"]
        done = must_run(command)
        report: dict[str, Any] = json.loads((place / "report.json").read_text())
        if not report["steps"]:
            sys.exit(f"nothing was trained:\n{done.output}")
    del report["timeline"]
    return {"start_hours": start, "seed": seed, **report}


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--hours", type=float, default=HOURS, help=f"length of the piece (default {HOURS:g})")
    given = parser.parse_args()
    files = sorted(TRACES.rglob("*.json"))
    if not files:
        print(f"there are no traces in {TRACES}: nothing is measured")
        return 0
    samples = Samples("replay")
    kind = f"{given.hours:g} h"
    for number in samples.missing(kind, given.samples):
        chance = random.Random(number)
        path = chance.choice(files)
        start = chance.choice(windows(read_trace(path), given.hours))
        with samples.sample(kind) as sample:
            sample |= take(path, start, given.hours, number)
        print(f"sample {number}: {json.dumps(sample)}", flush=True)
    taken = [row["sample"] for row in samples.rows(kind)]
    shares = [sample["usefulShare"] for sample in taken]
    for sample in taken:
        print(
            f"{sample['trace']} from {sample['start_hours']:g} h: {sample['joins']} joins, {sample['losses']} losses, "
            f"{sample['steps']} steps, {sample['stepsRedone']} redone, useful {sample['usefulShare']:.3f}, provisioning "
            f"{sample['machineSeconds']['provisioning']:.0f} of {sample['deliveredMachineSeconds']:.0f} machine-seconds"
        )
    return conclude(
        [Verdict("useful share of warm machines' time", BAR, median(shares), "", len(shares), at_most=False)]
    )


if __name__ == "__main__":
    sys.exit(main())
