"""Checkpoints taken up by another world size and another ZeRO stage: `make bench-reshard`.

The matrix. For every stage and every world size from 1 to 4, a run of five steps is saved and goes on for five more steps.
Each of the 16 checkpoints is then loaded by every stage at every world size, into an engine that began with other weights:
256 cells in float32. A cell holds when every parameter of every kind has the hash that it was saved with, the weights that
the forward pass uses do too, and the next five losses are those of the source within 1e-6 relative; exactly equal at the
same stage and size. The same for a sample of cells in bf16, whose losses may differ by the rounding of another order.

Times (`--times`). A GPT-2 of about 41 million parameters: taking up a checkpoint at the same size and at another, next to
DeepSpeed's own load at the same size, and next to its converter (ds_to_universal) and load. All in one run, in turn.

Cells that were judged at this commit are not judged again.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude, describe, median_ratio, quiet

STAGES = (0, 1, 2, 3)
SIZES = (1, 2, 3, 4)
BF16_SIZES = (2, 3)
STEPS = 5
SAME_SIZE_BAR = 1.5
CONVERTER_BAR = 10.0
FP32_LOSS_GAP = 1e-6
BF16_LOSS_GAP = 1e-3
"""bf16 keeps 8 bits: another order of additions moves a loss by more than in float32."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Gang:
    """Ranks that ran a plan to its end. `codes`: None for a rank that had to be killed at the deadline."""

    codes: list[int | None]
    output: str


def run_gang(script: str, plan: Path, world_size: int, timeout_seconds: float = 900) -> Gang:
    """Run benchmarks/`script` with `plan` on all ranks; every rank is over on return."""
    port = str(free_port())
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK"))},
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    with tempfile.TemporaryFile("w+") as log:
        ranks = [
            subprocess.Popen(
                [sys.executable, str(REPOSITORY / "benchmarks" / script), str(plan)],
                env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank in range(world_size)
        ]
        deadline = time.monotonic() + timeout_seconds
        codes: list[int | None] = []
        try:
            for process in ranks:
                try:
                    codes.append(process.wait(max(0.1, deadline - time.monotonic())))
                except subprocess.TimeoutExpired:
                    codes.append(None)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        log.seek(0)
        return Gang(codes, log.read())


def run_plan(runs: Sequence[Mapping[str, Any]], world_size: int, folder: Path) -> list[dict[str, Any]]:
    """What rank 0 of a gang tells of each run. Raises RuntimeError with the gang's output when a rank failed or hung."""
    plan = folder / f"plan-{world_size}-{len(list(folder.glob('plan-*')))}.json"
    plan.write_text(json.dumps(list(runs)))
    must_gang("_reshard_rank.py", plan, world_size)
    return [json.loads(Path(f"{run['result']}.0").read_text()) for run in runs]


# --- the matrix --------------------------------------------------------------------------------------------------------
def source(folder: Path, name: str, setup: Mapping[str, Any]) -> dict[str, Any]:
    """A run that is saved after five steps and goes on."""
    return {
        "setup": setup,
        "steps_before": STEPS,
        "save": str(folder / name),
        "losses": STEPS,
        "result": str(folder / f"{name}.saved"),
    }


def target(folder: Path, name: str, saved: str, setup: Mapping[str, Any]) -> dict[str, Any]:
    """A run that takes up `saved` and goes on."""
    return {
        "setup": {"seed": 99, **setup},
        "load": str(folder / saved),
        "first_step": STEPS,
        "losses": STEPS,
        "result": str(folder / f"{name}.loaded"),
    }


@dataclass(frozen=True)
class Judged:
    """What one cell showed."""

    hashes: int
    hashes_equal: bool
    weights_equal: bool
    loss_gap: float
    """Largest relative difference of the five losses."""

    def holds(self, *, exact: bool, gap: float) -> bool:
        return self.hashes_equal and self.weights_equal and (self.loss_gap == 0 if exact else self.loss_gap <= gap)


def judge(saved: Mapping[str, Any], loaded: Mapping[str, Any]) -> Judged:
    """Compare what a source told at its save with what a target told after its load."""
    gaps = [abs(a - b) / abs(a) for a, b in zip(saved["losses"], loaded["losses"], strict=True)]
    return Judged(
        len(saved["saved"]),
        saved["saved"] == loaded["loaded"],
        saved["saved_weights"] == loaded["weights"],
        max(gaps),
    )


def matrix(samples: Samples, precision: str, sizes: Sequence[int]) -> None:
    """Judge the cells that this commit lacks, a gang of ranks for each size."""
    cells = [(a, n, b, m) for n in sizes for a in STAGES for m in sizes for b in STAGES]
    known = {tuple(row["sample"]["cell"]) for row in samples.rows(precision)}
    wanted = [cell for cell in cells if cell not in known]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="reshard-") as place:
        folder = Path(place)
        sources: dict[tuple[int, int], dict[str, Any]] = {}
        for size in sizes:
            stages = [stage for stage in STAGES if any(cell[:2] == (stage, size) for cell in wanted)]
            setups = [{"stage": stage, "precision": precision, "seed": stage} for stage in stages]
            runs = [source(folder, f"{stage}-{size}", setup) for stage, setup in zip(stages, setups, strict=True)]
            told = run_plan(runs, size, folder) if runs else []
            sources |= {(stage, size): found for stage, found in zip(stages, told, strict=True)}
            print(f"{precision}: {len(stages)} checkpoints written by {size} ranks", flush=True)
        for size in sizes:
            mine = [cell for cell in wanted if cell[3] == size]
            runs = [
                target(
                    folder, "-".join(map(str, cell)), f"{cell[0]}-{cell[1]}", {"stage": cell[2], "precision": precision}
                )
                for cell in mine
            ]
            told = run_plan(runs, size, folder) if runs else []
            for cell, found in zip(mine, told, strict=True):
                judged = judge(sources[cell[:2]], found)
                with samples.sample(precision) as values:
                    values |= {
                        "cell": cell,
                        "hashes": judged.hashes,
                        "hashes_equal": judged.hashes_equal,
                        "weights_equal": judged.weights_equal,
                        "loss_gap": judged.loss_gap,
                    }
            print(f"{precision}: {len(mine)} cells loaded by {size} ranks", flush=True)


# --- times -------------------------------------------------------------------------------------------------------------
def measure(samples: Samples, stage: int, size: int, rounds: int) -> None:
    """Add the rounds that this commit lacks: `size` ranks take up what one and two ranks wrote."""
    kind = f"times-{stage}-{size}"
    missing = samples.missing(kind, rounds)
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="reshard-") as place:
        folder = Path(place)
        for writers in (1, 2):
            plan = folder / f"write-{writers}.json"
            places = {"ours": str(folder / f"ours-{writers}"), "theirs": str(folder / f"theirs-{writers}")}
            plan.write_text(json.dumps({"write": True, "stage": stage, **places}))
            must_gang("_reshard_times_rank.py", plan, writers)
        other = 3 - size
        plan = folder / "measure.json"
        document = {
            "stage": stage,
            "ours": str(folder / f"ours-{size}"),
            "theirs": str(folder / f"theirs-{size}"),
            "other_ours": str(folder / f"ours-{other}"),
            "other_theirs": str(folder / f"theirs-{other}"),
            "rounds": len(missing),
            "scratch": str(folder),
            "result": str(folder / "result"),
        }
        plan.write_text(json.dumps(document))
        must_gang("_reshard_times_rank.py", plan, size)
        told = json.loads((folder / "result").read_text())
    for row in told["rounds"]:
        with samples.sample(kind) as values:
            values |= {"parameters": told["parameters"], "attach": told["attach"], **row}


def must_gang(script: str, plan: Path, world_size: int) -> None:
    gang = run_gang(script, plan, world_size)
    if gang.codes != [0] * world_size:
        raise RuntimeError(f"ranks ended with {gang.codes}:\n{gang.output[-8000:]}")


def report_times(samples: Samples, stage: int, size: int) -> list[Verdict]:
    rows = samples.rows(f"times-{stage}-{size}")
    values = [row["sample"] for row in rows]
    print(f"ZeRO {stage}, {3 - size} -> {size} ranks, {values[0]['parameters']:,} parameters:")
    for name in ("ours_same", "deepspeed_same", "ours_other", "converter", "universal_load"):
        print(f"  {name}: {describe([1000 * value[name] for value in values], 'ms')}")
    same = median_ratio([(value["ours_other"], value["ours_same"]) for value in values], random.Random(1))
    theirs = median_ratio([(value["ours_other"], value["deepspeed_same"]) for value in values], random.Random(1))
    converted = median_ratio(
        [(value["converter"] + value["universal_load"], value["ours_other"]) for value in values], random.Random(1)
    )
    print(f"  next to our own load at the same size: {same}; next to DeepSpeed's at the same size: {theirs}")
    print(f"  converter and load next to ours: {converted}; {sum(map(quiet, rows))} of {len(rows)} on a quiet machine")
    where = f"ZeRO {stage}, {3 - size} -> {size} ranks"
    return [
        Verdict(f"{where}: load at another size next to the same size", SAME_SIZE_BAR, same.estimate, "", same.pairs),
        Verdict(
            f"{where}: DeepSpeed's converter and load next to ours",
            CONVERTER_BAR,
            converted.estimate,
            "",
            converted.pairs,
            at_most=False,
        ),
    ]


def report_matrix(samples: Samples, precision: str, sizes: Sequence[int], gap: float) -> list[Verdict]:
    judged = []
    for row in samples.rows(precision):
        values = dict(row["sample"])
        judged.append((tuple(values.pop("cell")), Judged(**values)))
    held = [cell for cell, found in judged if found.holds(exact=cell[:2] == cell[2:], gap=gap)]
    for cell, found in judged:
        if cell not in held:
            print(f"{precision}: ZeRO {cell[0]} of {cell[1]} ranks -> ZeRO {cell[2]} of {cell[3]}: {found}")
    worst = max((found.loss_gap for _, found in judged), default=math.nan)
    print(f"{precision}: {len(held)} of {len(judged)} cells hold; largest relative loss gap {worst:.1e}")
    wanted = (len(STAGES) * len(sizes)) ** 2
    return [
        Verdict(f"{precision}: cells that hold", wanted, len(held), "", len(judged), statistic="sum", at_most=False)
    ]


def main() -> int:
    parser = arguments(__doc__, samples=5)
    parser.add_argument("--times", action="store_true", help="measure times (the default is the matrix)")
    options = parser.parse_args()
    samples = Samples("reshard")
    if options.times:
        cells = [(stage, size) for stage in (2, 3) for size in (1, 2)]
        for stage, size in cells:
            measure(samples, stage, size, options.samples)
        return conclude([verdict for stage, size in cells for verdict in report_times(samples, stage, size)])
    matrix(samples, "fp32", SIZES)
    matrix(samples, "bf16", BF16_SIZES)
    return conclude(
        [
            *report_matrix(samples, "fp32", SIZES, FP32_LOSS_GAP),
            *report_matrix(samples, "bf16", BF16_SIZES, BF16_LOSS_GAP),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
