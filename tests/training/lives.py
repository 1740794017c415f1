"""Runs of several worlds: starts `generations.py` and reads what its ranks told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.training.gang import Run, environment, job

SCRIPT = Path(__file__).with_name("generations.py")
DROPS = {"model__config__hidden_dropout_prob": 0.2, "model__config__attention_probs_dropout_prob": 0.2}
LONG = {"training__maxSteps": 24, "training__evalEvery": 8, "checkpoint__every": 50}


class Life(Run):
    """A run of several worlds."""

    worlds: Sequence[dict[str, Any]] = ()

    def scenario(self) -> dict[str, Any]:
        return {"assignment": self.plan()["assignment"], "folder": str(self.folder), "worlds": list(self.worlds)}

    def ends(self) -> list[list[int]]:
        found: list[list[int]] = json.loads((self.folder / "ends.json").read_text())
        return found

    def result(self, generation: int, rank: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"result-{generation}-{rank}.json").read_text())
        return found

    def reported(self) -> list[int]:
        return [event["step"] for event in self.events("step")]

    def samples(self) -> dict[int, list[int]]:
        """Samples by step, over all ranks of the newest world that made the step."""
        found: dict[int, tuple[int, list[tuple[int, list[int]]]]] = {}
        for path in self.folder.glob("ledger-*.jsonl"):
            _, generation, rank = path.stem.split("-")
            for line in path.read_text().splitlines():
                step, samples = json.loads(line)
                if step not in found or found[step][0] < int(generation):
                    found[step] = (int(generation), [])
                if found[step][0] == int(generation):
                    found[step][1].append((int(rank), samples))
        ordered = {step: sorted(parts, key=lambda part: part[0]) for step, (_, parts) in found.items()}
        return {step: [index for _, samples in parts for index in samples] for step, parts in ordered.items()}


def world(size: int, *faults: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"world_size": size, "faults": list(faults), **more}


def life(folder: Path, working_dir: Path, worlds: Sequence[dict[str, Any]], **more: Any) -> Life:
    """Keys of `more` are paths below spec, as in `gang.job`."""
    drops = {} if "entrypoint" in more else DROPS
    found = Life(folder, job(workers__max=4, **(drops | more)), working_dir, world_size=4)
    found.worlds = worlds
    return found


def play(lives: Sequence[Life]) -> None:
    plan = lives[0].folder.parent / "plan.json"
    plan.write_text(json.dumps([life.scenario() for life in lives]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(plan)],
        env=environment(PYTHONWARNINGS="ignore"),
        capture_output=True,
        text=True,
        timeout=380,
    )
    logs = "".join((life.folder / "log").read_text() for life in lives if (life.folder / "log").exists())
    assert done.returncode == 0, done.stdout + done.stderr + logs


def assert_same_curve(found: Life, reference: Life, tolerance: float) -> None:
    losses, expected = found.losses(), reference.losses()
    assert losses.keys() == expected.keys()
    gaps = {step: abs(losses[step] / expected[step] - 1) for step in expected}
    assert max(gaps.values()) <= tolerance, gaps
