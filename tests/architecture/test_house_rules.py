"""House rules that no linter knows: names, package sizes, test claims, and what the configuration files agree on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOMELESS_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MINIMUM_FILES_PER_PACKAGE = 3


def python_files(repository: Path, *folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((repository / folder).rglob("*.py"))


def read_toml(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return tomllib.load(stream)


def test_no_file_is_a_drawer_for_odds_and_ends(repository: Path) -> None:
    """No module or package is called utils, helpers or common: the missing noun belongs in the domain."""
    named = [
        str(path.relative_to(repository))
        for path in python_files(repository, "orchestrator", "tests", "benchmarks")
        if HOMELESS_NAMES & {path.stem, path.parent.name}
    ]
    assert named == []


def test_a_package_has_three_files_or_is_a_module(repository: Path) -> None:
    """A package with fewer than three files, its own and those below it, is one module instead."""
    small = [
        str(init.parent.relative_to(repository))
        for init in python_files(repository, "orchestrator")
        if init.name == "__init__.py"
        and sum(path.is_file() and path.suffix != ".pyc" for path in init.parent.rglob("*")) < MINIMUM_FILES_PER_PACKAGE
    ]
    assert small == []


def test_every_module_says_what_it_is_for(repository: Path) -> None:
    """Every module of the package opens with a docstring."""
    silent = [
        str(path.relative_to(repository))
        for path in python_files(repository, "orchestrator")
        if path.stat().st_size and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert silent == []


def test_every_test_states_its_claim(repository: Path) -> None:
    """Every test function has a docstring whose first line is a sentence."""
    silent = []
    for path in python_files(repository, "tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                claim = (ast.get_docstring(node) or "").strip()
                if len(claim.split()) < 4:
                    silent.append(f"{path.relative_to(repository)}:{node.lineno} {node.name}")
    assert silent == []


def test_only_the_monotonic_clock_and_the_environment_are_freed_for_tests(repository: Path) -> None:
    """The ban list of tests differs from the project's only by the monotonic clock and the environment."""
    ours = read_toml(repository / "pyproject.toml")["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    tests = read_toml(repository / "tests" / "ruff.toml")["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(tests) <= set(ours)
    assert set(ours) - set(tests) == {"time.monotonic", "time.monotonic_ns", "os.environ", "os.getenv", "os.putenv"}


def requirement_name(line: str) -> str:
    return re.split(r"[\s\[=<>~!;]", line, maxsplit=1)[0].lower().replace("_", "-")


def test_every_direct_dependency_is_pinned(repository: Path) -> None:
    """Each dependency that pyproject.toml names has one exact version in constraints.txt, and no local build."""
    project = read_toml(repository / "pyproject.toml")["project"]
    wanted = {requirement_name(line) for line in project["dependencies"]}
    for extra in project["optional-dependencies"].values():
        wanted |= {requirement_name(line) for line in extra}
    wanted.discard("orchestrate")
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert wanted - {requirement_name(line) for line in pins} == set()
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


@pytest.mark.integration
def test_wheel_ships_the_presets(repository: Path, tmp_path: Path) -> None:
    """A built wheel holds the typing marker and every DeepSpeed preset, and the code in it finds them there."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=repository, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(installed)
    assert {name.partition("/")[0] for name in shipped} == {"orchestrator"}
    assert "orchestrator/py.typed" in shipped

    script = (
        "from orchestrator.training import presets; print(presets.presets_folder()); print(*presets.preset_names())"
    )
    run = [sys.executable, "-c", script]
    found = subprocess.run(
        run, cwd=installed, check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert Path(found[0]) == installed / "orchestrator" / "training" / "deepspeed_configs"
    assert found[1].split() == sorted(path.stem for path in (repository / "deepspeed_configs").glob("*.json"))
