"""The command line against a real controller with the fake engine: processes, journal, token and all, but no Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import COMMAND, JOB, REPOSITORY, process
from tests.cli.test_start_cost import TRIES, cpu_seconds

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PACED = (
    "--set",
    "spec.runtime.env=[{name: PRETEND_SECONDS_PER_STEP, value: '0.01'}]",
    "--set",
    "spec.checkpoint.every=20",
)
"""The fake engine at a hundred steps a second."""
LONG = ("--set", "spec.training.maxSteps=100000", *PACED)
"""Longer than any test looks."""
DEADLINE_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home of its own and a free port; whatever was started there is stopped in the end."""
    (tmp_path / "train.csv").write_text("text,label\ngood,1\nbad,0\n", encoding="utf-8")
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    variables = {
        "ORCHESTRATE_HOME": str(tmp_path / "home"),
        "ORCHESTRATE_ENGINE": "fake",
        "ORCHESTRATE_PORT": str(free_port()),
        "ORCHESTRATE_CPUS": "4",
    }
    yield variables
    process("server", "stop", cwd=tmp_path, environ=variables)


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def one(*argv: str) -> subprocess.CompletedProcess[str]:
        done = process(*argv, cwd=tmp_path, environ=environ)
        assert "Traceback" not in done.stderr
        return done

    return one


Run = Callable[..., subprocess.CompletedProcess[str]]


def attached(environ: dict[str, str], tmp_path: Path, *argv: str) -> subprocess.Popen[str]:
    """A submit that follows its job, in the background."""
    env = {**os.environ, "PYTHONPATH": REPOSITORY, **environ}
    command = [*COMMAND, "submit", "job.yaml", *argv]
    return subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until_it_says(running: subprocess.Popen[str], word: str) -> str:
    """What stderr said until `word`, which must come before the deadline."""
    assert running.stderr is not None
    said = ""
    deadline = time.monotonic() + DEADLINE_SECONDS
    for line in running.stderr:
        said += line
        if word in line:
            return said
        assert time.monotonic() < deadline, said
    raise AssertionError(f"it ended without saying {word!r}: {said}")


def server_pid(environ: dict[str, str]) -> int:
    facts: dict[str, Any] = json.loads((Path(environ["ORCHESTRATE_HOME"]) / "server.json").read_text(encoding="utf-8"))
    return int(facts["pid"])


def test_from_nothing_to_the_receipt_and_back(run: Run, tmp_path: Path) -> None:
    """The first submit starts a controller and ends with a receipt; every reading verb then works; stop ends it all."""
    submitted = run("submit", "job.yaml")
    assert submitted.returncode == 0, submitted.stderr
    assert "The controller is up" in submitted.stderr
    assert "default/sentiment" in submitted.stdout
    assert "nothing was billed" in submitted.stdout
    assert run("list", "-o", "name").stdout == "sentiment\n"
    status = json.loads(run("status", "sentiment", "-o", "json").stdout)
    assert status["status"]["phase"] == "Succeeded"
    assert status["spec"]["runtime"]["workingDir"] == str(tmp_path)
    for argv in (
        ["describe", "sentiment"],
        ["events", "sentiment"],
        ["cost", "sentiment"],
        ["prices"],
        ["wait", "sentiment"],
    ):
        assert run(*argv).returncode == 0, argv
    for argv in (
        ["logs", "sentiment"],
        ["logs", "sentiment", "-f"],
        ["checkpoint", "list", "sentiment"],
        ["server", "status"],
    ):
        assert run(*argv).returncode == 0, argv
    cost = json.loads(run("cost", "sentiment", "--segments", "-o", "json").stdout)
    assert sum(segment["cost_nanodollars"] for segment in cost["segments"]) == round(float(cost["totalUSD"]) * 1e9)
    assert run("cancel", "sentiment").returncode == 4
    assert run("status", "nobody").returncode == 3
    assert run("server", "stop").returncode == 0
    assert run("server", "status").returncode == 6
    assert run("server", "stop").returncode == 0


def test_submitting_again(run: Run) -> None:
    """The same active job is unchanged, another spec is a conflict, an ended one wants --rerun, one key makes one job."""
    assert run("submit", "job.yaml", "-d", *LONG, "--idempotency-key", "k").stdout == "sentiment\n"
    again = run("submit", "job.yaml", "-d", *LONG)
    assert again.returncode == 0
    assert "Unchanged: default/sentiment" in again.stderr
    assert run("submit", "job.yaml", "-d").returncode == 4
    assert "Submitted before with this key" in run("submit", "job.yaml", "-d", *LONG, "--idempotency-key", "k").stderr
    assert run("cancel", "sentiment", "-w").returncode == 0
    assert run("submit", "job.yaml", "-d", *LONG).returncode == 4
    uid = json.loads(run("status", "sentiment", "-o", "json").stdout)["metadata"]["uid"]
    rerun = run("submit", "job.yaml", "--rerun", "-o", "json")
    assert rerun.returncode == 0
    assert json.loads(rerun.stdout)["metadata"]["uid"] != uid


def test_suspend_and_resume(run: Run) -> None:
    """A suspended job gives its machines back and goes on where it was; `submit` reports it as resting, not as failed."""
    assert run("submit", "job.yaml", "-d", *LONG).returncode == 0
    assert run("wait", "sentiment", "--for", "Running", "-q").returncode == 0
    assert run("checkpoint", "now", "sentiment").returncode == 0
    assert run("suspend", "sentiment", "-w").returncode == 0
    before = json.loads(run("status", "sentiment", "-o", "json").stdout)["status"]
    assert before["phase"] == "Suspended"
    assert run("resume", "sentiment", "-w").returncode == 0
    after = json.loads(run("status", "sentiment", "-o", "json").stdout)["status"]
    assert after["progress"]["step"] >= before["progress"]["step"] > 0
    assert run("cancel", "sentiment", "-w").returncode == 0
    assert run("wait", "sentiment").returncode == 11


def test_scale(run: Run) -> None:
    """An elastic job goes on with the wished number of workers, told as a resize; `status` shows its bounds."""
    elastic = ("--set", "spec.workers={min: 1, max: 2}")
    assert run("submit", "job.yaml", "-d", *LONG, *elastic).returncode == 0
    assert run("wait", "sentiment", "--for", "Running", "-q").returncode == 0
    assert run("scale", "sentiment", "1", "-w").returncode == 0
    status = json.loads(run("status", "sentiment", "-o", "json").stdout)["status"]
    assert (status["workers"]["ready"], status["generation"], status["restarts"]["resize"]) == (1, 2, 1)
    assert "1/1 ready (1 to 2), attempt 1, 0 restarts, 1 resize" in run("status", "sentiment").stdout
    assert "Resized after step" in run("describe", "sentiment").stdout
    refused = run("scale", "sentiment", "3")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "its sizes are 1, 2" in refused.stderr
    assert run("cancel", "sentiment", "-w").returncode == 0


def test_ctrl_c_leaves_the_job_running(run: Run, environ: dict[str, str], tmp_path: Path) -> None:
    """SIGINT on an attached submit ends the command only: exit code 130, and the job trains on."""
    with attached(environ, tmp_path, *LONG) as running:
        until_it_says(running, "Running")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert "orchestrate status sentiment -w" in err
    assert "Traceback" not in err
    assert json.loads(run("status", "sentiment", "-o", "json").stdout)["status"]["phase"] == "Running"
    assert run("cancel", "sentiment", "-w").returncode == 0


def test_an_attached_submit_outlives_the_controller(run: Run, environ: dict[str, str], tmp_path: Path) -> None:
    """SIGKILL of the controller under an attached submit: it is started again, and the job ends once, Succeeded."""
    with attached(environ, tmp_path, "--set", "spec.training.maxSteps=300", *PACED) as running:
        until_it_says(running, "checkpoint: step")
        first = server_pid(environ)
        os.kill(first, signal.SIGKILL)
        out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert err.count("The controller is gone") == 1
    assert "Succeeded" in out
    assert server_pid(environ) != first
    status = json.loads(run("status", "sentiment", "-o", "json").stdout)["status"]
    assert (status["phase"], status["progress"]["step"]) == ("Succeeded", 300)
    assert status["restarts"]["preemption"] == 1


def test_the_next_verb_brings_a_dead_controller_back(run: Run, environ: dict[str, str]) -> None:
    """After SIGKILL of the controller, `list` starts it again and shows the jobs of the journal."""
    assert run("submit", "job.yaml").returncode == 0
    os.kill(server_pid(environ), signal.SIGKILL)
    listed = run("list", "-o", "name")
    assert (listed.returncode, listed.stdout) == (0, "sentiment\n")
    assert "Starting the controller" in listed.stderr


def test_a_port_in_use(run: Run, environ: dict[str, str]) -> None:
    """Another program at the port: exit code 6 for submit, a failed check with its fix from doctor, and no job."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(environ["ORCHESTRATE_PORT"])))
        other.listen()
        submitted = run("submit", "job.yaml")
        assert (submitted.returncode, submitted.stdout) == (6, "")
        assert "in use" in submitted.stderr
        checked = run("doctor")
        assert checked.returncode == 1
        assert "FAIL  controller" in checked.stdout
        assert f"sport = :{environ['ORCHESTRATE_PORT']}" in checked.stdout


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/home", "train.csv"])
def test_a_home_that_cannot_be_written(home: str, run: Run, environ: dict[str, str], tmp_path: Path) -> None:
    """Exit code 1 and what to do for submit; doctor names the same; nothing is left behind."""
    environ["ORCHESTRATE_HOME"] = str(tmp_path / home)
    submitted = run("submit", "job.yaml")
    assert (submitted.returncode, submitted.stdout) == (1, "")
    assert "ORCHESTRATE_HOME" in submitted.stderr
    checked = run("doctor", "-o", "json")
    assert checked.returncode == 1
    failed = [item for item in json.loads(checked.stdout) if item["verdict"] == "FAIL"]
    assert failed[0]["check"] == "home"
    assert all(item["fix"] for item in failed)
    environ["ORCHESTRATE_HOME"] = str(tmp_path / "home")


def test_doctor_of_a_machine_in_order(run: Run, tmp_path: Path) -> None:
    """With nothing wrong, doctor ends with exit code 0, and makes no home."""
    checked = run("doctor")
    assert checked.returncode == 0, checked.stdout
    assert "Jobs can run here" in checked.stderr
    assert not (tmp_path / "home").exists()


def test_doctor_is_quick(environ: dict[str, str], tmp_path: Path) -> None:
    """Doctor takes at most two seconds, also for Ray, whose packages it looks up without importing them."""
    environ["ORCHESTRATE_ENGINE"] = "ray-train"
    took = []
    for _ in range(3):
        start = time.monotonic()
        process("doctor", cwd=tmp_path, environ=environ)
        took.append(time.monotonic() - start)
    environ["ORCHESTRATE_ENGINE"] = "fake"
    assert min(took) <= 2.0


@pytest.mark.parametrize("argv", [("list",), ("status", "sentiment")], ids=" ".join)
def test_looking_is_cheap_on_this_machine(
    argv: tuple[str, ...], run: Run, environ: dict[str, str], tmp_path: Path
) -> None:
    """`list` and `status` of this machine's own controller take at most 150 ms of processor time, finding it included."""
    assert run("submit", "job.yaml").returncode == 0
    variables = {**os.environ, "PYTHONPATH": REPOSITORY, **environ}
    assert min(cpu_seconds(list(argv), tmp_path, variables) for _ in range(TRIES)) <= 0.150
