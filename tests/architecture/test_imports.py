"""The layers hold, and the command line starts light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "ray", "kubernetes", "deepspeed", "transformers", "fastapi", "numpy", "pandas", "pyarrow", "psycopg")
"""What no command may load before it knows that it needs it."""

PROBE = """
import sys
sys.argv = ["orchestrate", *sys.argv[1:]]
try:
    from orchestrator.cli.main import entry
    code = entry() or 0
except SystemExit as end:
    code = end.code or 0
print("loaded:" + ",".join(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
sys.exit(code)
"""


def heavy_modules_after(arguments: list[str], cwd: Path) -> list[str]:
    """Heavy top-level modules loaded by one run of the command line, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    loaded = run.stderr.rpartition("loaded:")[2].strip().split(",")
    assert "orchestrator" in loaded
    return [name for name in loaded if name in HEAVY]


def test_import_contracts_are_kept(repository: Path) -> None:
    """Every import-linter contract in pyproject.toml is kept. (In a process of its own: it switches off all loggers.)"""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["version"], ["submit", "--help"], ["validate", "examples/sentiment/job.yaml"]],
    ids=" ".join,
)
def test_command_line_loads_nothing_heavy(arguments: list[str], repository: Path) -> None:
    """Commands that need no engine load no engine, no server and no numerics library."""
    assert heavy_modules_after(arguments, repository) == []


def test_probe_notices_a_heavy_module(tmp_path: Path) -> None:
    """The check above would notice: a stand-in command line that imports numpy is reported."""
    package = tmp_path / "orchestrator" / "cli"
    package.mkdir(parents=True)
    (tmp_path / "orchestrator" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "main.py").write_text("import numpy\n\ndef entry() -> None: ...\n")
    assert heavy_modules_after([], tmp_path) == ["numpy"]
