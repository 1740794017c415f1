"""The examples run as they stand, under torchrun and without an engine; and a user's function resumes exactly."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec import load_file
from orchestrator.training import gpu_smoke
from tests.training.gang import ROOT, Run, environment, free_port, launch

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
EXAMPLES = ROOT / "examples"


def torchrun(job: Path, run_dir: Path, *overrides: str, ranks: int = 2) -> dict[str, Any]:
    """Run a job file by `torchrun -m orchestrator.training`; the result that rank 0 prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += [
        "--master_port",
        str(free_port()),
        "-m",
        "orchestrator.training",
        "--job",
        str(job),
        "--run-dir",
        str(run_dir),
    ]
    command += [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=150)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_entrypoint_example_learns_under_torchrun(tmp_path: Path) -> None:
    """Two ranks run the user's function to its end, save on their way, and return its metrics."""
    result = torchrun(EXAMPLES / "entrypoint" / "job.yaml", tmp_path)
    assert (result["outcome"], result["reason"], result["step"]) == ("succeeded", "Completed", 200)
    assert result["metrics"]["accuracy"] > 0.9
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*")) == ["step-00000150", "step-00000200"]


def test_a_user_s_function_resumes_exactly(tmp_path: Path) -> None:
    """Stopped at step 70 and killed at step 130, the function ends with the losses of an undisturbed run."""
    document = load_file(EXAMPLES / "entrypoint" / "job.yaml").model_dump(mode="json", by_alias=True, exclude_none=True)
    whole, cut = (Run(tmp_path / name, document, EXAMPLES / "entrypoint") for name in ("whole", "cut"))
    cut.faults = [{"stop": 70, "rank": 1}]
    launched = launch([whole, cut])
    assert launched.codes == [0, 0], launched.output
    assert cut.outcome()["result"]["outcome"] == "stopped"
    cut.attempt, cut.faults = 2, [{"kill": 60, "rank": 1}]
    launch([cut], dies=False, timeout_seconds=60)
    assert cut.injected(1) == ["stop", "kill"]
    cut.attempt, cut.faults = 3, []
    launched = launch([cut])
    assert launched.codes == [0, 0], launched.output
    assert [event["step"] for event in cut.events("restored")] == [0, 70, 100]
    assert [event["covers_ns"] is None for event in cut.events("restored")] == [True, False, False]
    assert cut.losses() == whole.losses()
    assert cut.outcome()["result"]["metrics"] == whole.outcome()["result"]["metrics"]


def test_the_causal_lm_example_learns(tmp_path: Path) -> None:
    """A GPT-2 from scratch, with a tokenizer made from its text, gets below a perplexity of 20 in two epochs."""
    result = torchrun(
        EXAMPLES / "causal-lm" / "job.yaml", tmp_path, "spec.training.epochs=2", "spec.model.precision=FP32"
    )
    assert result["metrics"]["test_perplexity"] < 20
    assert (tmp_path / "model" / "tokenizer.json").is_file()


def test_the_sentiment_example_is_valid() -> None:
    """The demo's job file loads; it asks for two workers of one core and ZeRO-2. The demo itself is `make demo`."""
    job = load_file(EXAMPLES / "sentiment" / "job.yaml")
    assert (job.spec.workers.max, job.spec.workers.cpus, job.spec.deepspeed.stage) == (2, 1, 2)


def test_gpu_smoke_says_that_there_is_no_gpu() -> None:
    """Without a GPU the smoke test exits 0 and says why nothing was run."""
    command = [sys.executable, "-m", "orchestrator.training.gpu_smoke"]
    env = environment(CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stdout) == (0, "gpu-smoke: no GPU here, nothing was run\n")


def test_the_loop_of_gpu_smoke_runs_anywhere(tmp_path: Path) -> None:
    """What gpu-smoke runs on a GPU is the ordinary worker loop: in small, it trains on this machine's CPU too."""
    code = f"""
import os, sys
from pathlib import Path
from orchestrator.training import environment, gpu_smoke
environment.lone_process_defaults(os.environ, {free_port()})
small = dict(n_embd=16, n_layer=1, n_head=2, n_positions=32)
events = gpu_smoke.one_run(Path({str(tmp_path)!r}), 2, "CPU", model=small, steps=4, batch=4, block=32, gpus=0)
print(gpu_smoke.throughput(events, 1, 32) > 0, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=100)
    assert re.search("^True$", done.stdout, re.MULTILINE), done.stderr
    assert gpu_smoke.STEPS > gpu_smoke.WARM_UP_STEPS
