"""A worker before it has a rank: imported once, forked, warmed up, and with nothing left of its rehearsal."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.training.gang import Run, environment, job, write_reviews

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CODE = """
import gc, json, os, sys
from orchestrator.training import worker
worker.preload()
threads = len(os.listdir("/proc/self/task"))
before = dict(os.environ)

def look(assignment, most):
    from orchestrator.training import warming
    warming.REHEARSED_PARAMETERS = most
    known = set(sys.modules)
    warm = worker.warm(assignment, {"MINE": "1"})
    import deepspeed, torch
    from deepspeed.runtime.zero import partition_parameters
    from deepspeed.utils import groups
    changed = {name for name in os.environ if os.environ[name] != before.get(name)}
    return {
        "group": torch.distributed.is_initialized(),
        "backend": deepspeed.comm.comm.cdb is not None,
        "world": groups._WORLD_GROUP is not None,
        "parameters": partition_parameters.Init.param_id,
        "changed": sorted(changed),
        "gradients": [n for n, p in warm.ready.model.named_parameters() if p.grad is not None] if warm.ready else [],
        "stages": sorted(warm.seconds),
        "notes": warm.notes,
        "frozen": gc.get_freeze_count() > 0,
        "modules": [name for name in sys.modules if name.startswith(("torch", "deepspeed")) and name not in known],
    }

found = []
for assignment, most in json.loads(sys.stdin.read()):
    out, to = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(to, json.dumps(look(assignment, most)).encode())
        finally:
            os._exit(0)
    os.close(to)
    with os.fdopen(out) as file:
        found.append(json.loads(file.read()))
    os.waitpid(pid, 0)
print(json.dumps({"threads": threads, "found": found}))
"""
LARGE = 64_000_000
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "stage 0": ({"deepspeed__stage": 0}, LARGE),
    "stage 1": ({"deepspeed__stage": 1}, LARGE),
    "stage 2": ({"deepspeed__stage": 2}, LARGE),
    "stage 3": ({"deepspeed__stage": 3}, LARGE),
    "bf16": ({"model__precision": "BF16"}, LARGE),
    "its first layer": ({}, 25_000),
    "too large": ({}, 1_000),
    "own": ({"entrypoint": {"function": "mine:train"}, "model": None, "data": None, "training": None}, LARGE),
    "needs a rank": (
        {"entrypoint": {"function": "ranked:train"}, "model": None, "data": None, "training": None},
        LARGE,
    ),
}


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each case finds after its warm-up, and the threads of the process that was forked."""
    place = tmp_path_factory.mktemp("data")
    write_reviews(place / "reviews.csv", 60)
    (place / "mine.py").write_text("def train(context): ...\n")
    (place / "ranked.py").write_text("import os\nRANK = int(os.environ['RANK'])\ndef train(context): ...\n")
    plans = []
    for name, (more, most) in CASES.items():
        more = dict(more)
        if "entrypoint" in more:
            more["deepspeed"] = None
        run = Run(tmp_path_factory.mktemp("run") / name.replace(" ", "-"), job(**more), place)
        plans.append((run.plan()["assignment"], most))
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(plans),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return {"threads": answer["threads"], **dict(zip(CASES, answer["found"], strict=True))}


def test_the_process_that_is_copied_has_one_thread(looks: dict[str, Any]) -> None:
    """After `preload` no thread runs beside the first, so that a fork is sound."""
    assert looks["threads"] == 1


@pytest.mark.parametrize("name", ["stage 0", "stage 1", "stage 2", "stage 3", "bf16"])
def test_nothing_is_left_of_a_rehearsal(looks: dict[str, Any], name: str) -> None:
    """No process group, no counter of DeepSpeed's, no gradient on the model, no rank in the environment."""
    found = looks[name]
    assert found["stages"] == ["data", "imports", "model", "rehearsal"]
    assert found["notes"] == []
    assert not found["group"]
    assert not found["backend"]
    assert not found["world"]
    assert found["parameters"] == 0
    assert found["gradients"] == []
    assert "MINE" in found["changed"]
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} & set(found["changed"])
    assert found["frozen"]


@pytest.mark.parametrize("name", ["stage 1", "stage 2", "bf16"])
def test_nearly_all_is_imported_before_the_fork(looks: dict[str, Any], name: str) -> None:
    """What a worker still imports of torch and DeepSpeed after the fork is a handful of small modules."""
    assert len(looks[name]["modules"]) <= 8, looks[name]["modules"]


def test_a_large_model_is_rehearsed_by_its_first_layer_or_not_at_all(looks: dict[str, Any]) -> None:
    """One layer stands for the model; where that is too large as well, the log says that there was no rehearsal."""
    assert "rehearsal" in looks["its first layer"]["stages"]
    assert looks["its first layer"]["notes"] == []
    assert "rehearsal" not in looks["too large"]["stages"]
    assert "not rehearsed" in looks["too large"]["notes"][0]
    assert not looks["too large"]["group"]


def test_a_function_of_the_user_s_own_is_imported(looks: dict[str, Any]) -> None:
    """Imports alone; a module that needs a rank is noted and left to the run."""
    assert looks["own"]["stages"] == ["imports"]
    assert looks["own"]["notes"] == []
    assert "RANK" in looks["needs a rank"]["notes"][0]
