"""What a command costs before it does anything: processor time, and what it loads."""

from __future__ import annotations

import os
import resource as limits
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import JOB, REPOSITORY
from tests.cli.fake_controller import TOKEN, FakeController, resource, serving

pytestmark = pytest.mark.integration

ENTRY = "import sys; from orchestrator.cli.main import entry; code = entry(); "
HEAVY = ("torch", "ray", "kubernetes", "transformers", "deepspeed", "fastapi", "numpy", "pandas", "psycopg")
TRIES = 5


@pytest.fixture
def controller() -> Iterator[FakeController]:
    with serving(FakeController()) as fake:
        for number in range(20):
            fake.add(resource(f"job-{number}"))
        yield fake


@pytest.fixture
def environ(controller: FakeController, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "train.csv").write_text("text,label\na,b\n", encoding="utf-8")
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": REPOSITORY, "ORCHESTRATE_URL": controller.url, "ORCHESTRATE_TOKEN": TOKEN}


def cpu_seconds(argv: list[str], cwd: Path, environ: dict[str, str]) -> float:
    """User and system time of one process."""
    before = limits.getrusage(limits.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", ENTRY + "sys.exit(code)", *argv],
        cwd=cwd,
        env=environ,
        capture_output=True,
        check=True,
        timeout=60,
    )
    after = limits.getrusage(limits.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("argv", "bar_seconds"),
    [
        (["--help"], 0.080),
        (["version"], 0.080),
        (["list"], 0.150),
        (["status", "job-1"], 0.150),
        (["status", "job-1", "-o", "json"], 0.150),
        (["validate", "job.yaml"], 0.300),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_processor_time(argv: list[str], bar_seconds: float, environ: dict[str, str], tmp_path: Path) -> None:
    """The best of five runs stays below the bar; the first of them writes the byte code."""
    assert min(cpu_seconds(argv, tmp_path, environ) for _ in range(TRIES)) <= bar_seconds


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["submit", "--help"],
        ["validate", "job.yaml"],
        ["plan", "job.yaml"],
        ["submit", "--dry-run", "job.yaml"],
        ["list"],
        ["status", "job-1", "-o", "json"],
        ["describe", "job-1"],
        ["cost", "job-1"],
        ["prices"],
        ["events", "job-1"],
        ["cancel", "job-2"],
        ["submit", "job.yaml", "--detach"],
        ["completion", "bash"],
        ["schema"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_loaded(argv: list[str], environ: dict[str, str], tmp_path: Path) -> None:
    """No engine, no server and no numerics library is loaded on the way of a verb."""
    probe = ENTRY + f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    run = subprocess.run(
        [sys.executable, "-c", probe, *argv],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("argv", [["--help"], ["version"], ["list"], ["status", "job-1"]], ids=" ".join)
def test_verbs_that_read_no_job_file_load_no_models(argv: list[str], environ: dict[str, str], tmp_path: Path) -> None:
    """pydantic and YAML are loaded only by verbs that read a job file."""
    probe = ENTRY + "print([name for name in ('pydantic', 'yaml') if name in sys.modules], file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", probe, *argv],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stderr.splitlines()[-1] == "[]"
