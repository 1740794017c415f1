"""What the loss of a node costs, next to Ray Train's elastic mode: `make bench-node_loss`.

Three small Ray nodes and a head on this machine, a tiny encoder under DeepSpeed ZeRO (benchmarks/node_loss.yaml), and one
event a sample: SIGKILL of every process of a node; a notice of 30 s for the node of rank 0; a node that joins two; SIGSTOP
of a whole node. On our side the real worker loop on the native engine (benchmarks/_native_scene.py). On the other Ray
Train 2.60 with `num_workers=(1, 3)`, by its defaults and tuned (start timeout 20 s), losing a node the same way
(benchmarks/_ray_train_elastic.py); its data is drawn from a seed, and its checkpoint is the model alone. Samples of all
sides are taken in turn, so that they share the machine's mood.

Bars: kill to the next step that nobody had made, p95 <= 3 s and a tenth of the tuned rival's median; one step redone at
most, none after a notice or a join; dead at most 3 s at a notice and at a join; SIGSTOP at most max(3 s, 5 x step) and the
median of a kill. `--only` takes one kind of sample, `--rivals 0` leaves Ray Train out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.harness import (
    MILLISECONDS,
    REPOSITORY,
    Samples,
    Verdict,
    arguments,
    conclude,
    describe,
    percentile,
    quiet,
)

JOB = "benchmarks/node_loss.yaml"
STAGES = (1, 2, 3)
TUNED_SECONDS = 20
RIVAL_STAGE = 2
PATIENCE_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Series:
    """One kind of sample: the module that takes it and its arguments."""

    kind: str
    module: str
    options: tuple[str, ...]
    rival: bool = False

    def take(self, number: int) -> dict[str, Any]:
        """One sample, in a process of its own. The victims go round, rank 0 among them, but for a notice, which is for it."""
        victim = 0 if "notice" in self.options else number % 3
        command = [sys.executable, "-m", self.module, JOB, *self.options, "--victim", str(victim)]
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
        line = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), None)
        if done.returncode != 0 or line is None:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        taken: dict[str, Any] = json.loads(line)
        return taken


def _ours(event: str, stage: int) -> Series:
    return Series(f"{event}, ZeRO-{stage}", "benchmarks._native_scene", ("--event", event, "--stage", str(stage)))


def _theirs(event: str, tuned: bool) -> Series:
    options = ("--event", event, "--stage", str(RIVAL_STAGE))
    more = ("--start-timeout", str(TUNED_SECONDS)) if tuned else ()
    name = f"Ray Train {'tuned' if tuned else 'default'}, {event}"
    return Series(name, "benchmarks._ray_train_elastic", (*options, *more), rival=True)


KILLS = tuple(_ours("kill", stage) for stage in STAGES)
NOTICE, JOIN, FREEZE = (_ours(event, RIVAL_STAGE) for event in ("notice", "join", "freeze"))
TUNED, DEFAULT = _theirs("kill", tuned=True), _theirs("kill", tuned=False)
ALL = (*KILLS, NOTICE, JOIN, FREEZE, TUNED, DEFAULT)


def main() -> int:
    parser = arguments(__doc__, samples=10)
    parser.add_argument("--rivals", type=int, default=5, metavar="N", help="samples of each rival (default 5)")
    parser.add_argument("--only", choices=[series.kind for series in ALL], help="one kind of sample")
    given = parser.parse_args()
    samples = Samples("node_loss")
    wanted = {series: given.rivals if series.rival else given.samples for series in ALL}
    series = [one for one in ALL if given.only in (None, one.kind)]
    for number in range(max(given.samples, given.rivals)):
        for one in series:
            if number in samples.missing(one.kind, wanted[one]):
                with samples.sample(one.kind) as sample:
                    sample |= one.take(number)
                print(f"{one.kind} {number}: {json.dumps(sample)}", flush=True)
    return report(samples, series)


def report(samples: Samples, series: Sequence[Series]) -> int:
    taken = {one: [row["sample"] for row in samples.rows(one.kind)] for one in series}
    for one, found in taken.items():
        if found:
            rows = samples.rows(one.kind)
            print(f"{one.kind}: {sum(quiet(row) for row in rows)} of {len(rows)} began on a quiet machine")
            for name in ("to_useful", "dead"):
                print(f"    {name:<10} {describe([MILLISECONDS * sample[name] for sample in found], 'ms')}")
            print(f"    redone     {sorted(sample['redone'] for sample in found)}")
    return conclude([verdict for verdicts in _verdicts(taken) for verdict in verdicts])


def _verdicts(taken: dict[Series, list[dict[str, Any]]]) -> list[list[Verdict]]:
    verdicts = []
    kills = [sample for one in KILLS for sample in taken.get(one, [])]
    for one in KILLS:
        if found := taken.get(one):
            times = [sample["to_useful"] for sample in found]
            verdicts.append(
                [Verdict(f"{one.kind}: to the next useful step", 3.0, percentile(times, 95), "s", len(times), "p95")]
            )
    if kills:
        redone = max(sample["redone"] for sample in kills)
        verdicts.append([Verdict("steps redone after a kill", 1, redone, "", len(kills), "most")])
    if kills and (rival := taken.get(TUNED)):
        ratio = median(sample["to_useful"] for sample in rival) / median(sample["to_useful"] for sample in kills)
        verdicts.append([Verdict("times as fast as Ray Train tuned", 10, ratio, "", len(kills), at_most=False)])
    for one, words in ((NOTICE, "at a notice"), (JOIN, "at a join")):
        if found := taken.get(one):
            dead = percentile([sample["dead"] for sample in found], 95)
            redone = max(sample["redone"] for sample in found)
            verdicts.append([Verdict(f"dead {words}", 3.0, dead, "s", len(found), "p95")])
            verdicts.append([Verdict(f"steps redone {words}", 0, redone, "", len(found), "most")])
    if kills and (found := taken.get(FREEZE)):
        step = median(sample["step_seconds"] for sample in found)
        bar = max(3.0, 5 * step) + median(sample["to_useful"] for sample in kills)
        worst = percentile([sample["to_useful"] for sample in found], 95)
        verdicts.append([Verdict("SIGSTOP of a node to the next useful step", bar, worst, "s", len(found), "p95")])
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
