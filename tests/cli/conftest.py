"""The command line in this process, with streams of its own, and a controller to talk to."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.cli.context import Context
from orchestrator.cli.main import main
from tests.cli.fake_controller import TOKEN, FakeController, serving

JOB = """\
apiVersion: orchestrate.dev/v1alpha1
kind: TrainingJob
metadata:
  name: sentiment
spec:
  model: {source: bert, init: Scratch, task: text-classification}
  data:
    train: {uri: train.csv}
  training: {maxSteps: 10}
  workers: {min: 2, max: 2}
"""


REPOSITORY = str(Path(__file__).resolve().parents[2])
"""On PYTHONPATH of every process that a test starts, so that it is this checkout that runs, installed or not."""


COMMAND = [sys.executable, "-c", "import sys; from orchestrator.cli.main import entry; sys.exit(entry())"]


def process(*argv: str, cwd: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One command line as a process of its own."""
    env = {**os.environ, "PYTHONPATH": REPOSITORY, **environ}
    return subprocess.run([*COMMAND, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=100, check=False)


@dataclass(frozen=True)
class Run:
    """What one command line did."""

    code: int
    out: str
    err: str


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


Cli = Callable[..., Run]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """What the command line finds in its environment: a home of its own, and no controller."""
    return {
        "ORCHESTRATE_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path),
        "COLUMNS": "100",
        "PATH": "/usr/bin:/bin",
    }


@pytest.fixture
def cli(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run one command line in a folder of its own; `terminal` makes stderr one."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, terminal: bool = False) -> Run:
        out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
        code = main(argv, Context(environ, str(tmp_path), out, err))
        said = err.getvalue()
        assert "Traceback" not in said or "--debug" in argv
        return Run(code, out.getvalue(), said)

    return run


@pytest.fixture
def controller(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    """A controller elsewhere, which the command line is told to use."""
    monkeypatch.setattr("orchestrator.cli.attach.REDRAW_SECONDS", 0.0)
    with serving(FakeController()) as fake:
        environ |= {"ORCHESTRATE_URL": fake.url, "ORCHESTRATE_TOKEN": TOKEN}
        yield fake


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A valid job file beside its data."""
    (tmp_path / "train.csv").write_text("text,label\ngood,1\nbad,0\n", encoding="utf-8")
    file = tmp_path / "job.yaml"
    file.write_text(JOB, encoding="utf-8")
    return file
