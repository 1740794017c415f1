"""Hang limits over a million step times of each kind: `make bench-hangs`.

Ten kinds of jobs are replayed, seeded: steady and noisy steps, collections and stalls, drift, the day's pattern, evaluations
and saves (tests/policy/step_times.py). No step may be taken for a hang. Beside every thousandth step a hang is thought in its
place: it must be seen within the limit and one beat, and the limit be, as a rule, max(3 s, 5 x p99 of the newest steps).

Time here is replayed, so nothing depends on what else the machine does. Live hangs are measured by another script.
"""

from __future__ import annotations

import sys
from random import Random

from benchmarks.harness import Samples, Verdict, arguments, conclude, percentile
from tests.policy.step_times import KINDS, replay

SEED = 20_261_123


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--steps", type=int, default=1_000_000, metavar="N", help="of each kind (default 1,000,000)")
    options = parser.parse_args()
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
    for name, found in rows.items():
        for row in found:
            print(
                f"{name}: {row['steps']:,} steps, {row['false_alarms']} false alarms; {row['hangs']:,} hangs, {row['unseen']} "
                f"not seen in time; seen after {row['seen_over_formula_median']:.3f} x max(3 s, 5 x p99) in the median, "
                f"p95 {row['seen_over_formula_p95']:.3f}, max {row['seen_over_formula_max']:.3f}"
            )
    every = [row for found in rows.values() for row in found]
    replays, steps = len(every), sum(row["steps"] for row in every)
    hangs = sum(row["hangs"] for row in every)
    return conclude(
        [
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
