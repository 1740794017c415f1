"""The data about DeepSpeed's keys against the DeepSpeed that is installed, read as source and not imported."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestrator.spec import deepspeed_keys

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deepspeed_folder() -> Path:
    found = find_spec("deepspeed")
    if found is None or found.origin is None:
        pytest.skip("deepspeed is not installed; its keys are not compared")
    return Path(found.origin).parent


def table_keys(source: Path, name: str) -> set[str]:
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            assert isinstance(node.value, ast.Dict)
            return {
                key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    raise AssertionError(f"{source} has no {name}")


def test_removed_keys_are_those_of_the_installed_version(deepspeed_folder: Path) -> None:
    """The keys refused as removed are exactly those that DeepSpeed itself refuses."""
    config = deepspeed_folder / "runtime" / "config.py"
    assert set(deepspeed_keys.REMOVED) == table_keys(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS")
    assert set(deepspeed_keys.REMOVED_ZERO) == table_keys(config, "_REMOVED_ZERO_CONFIG_KEYS")


def test_known_keys_stand_in_the_source(deepspeed_folder: Path) -> None:
    """Every key that may be given is one that the installed DeepSpeed reads."""
    sources = "\n".join(
        path.read_text(encoding="utf-8", errors="replace")
        for folder in ("runtime", "monitor", "profiling", "utils", "comm", "compile", "inference", "module_inject")
        for path in (deepspeed_folder / folder).rglob("*.py")
    )
    missing = {key for key in deepspeed_keys.KNOWN if f'"{key}"' not in sources and f"'{key}'" not in sources}
    assert not missing


def test_fields_of_zero_are_all_accounted_for(deepspeed_folder: Path) -> None:
    """Each field of DeepSpeed's ZeRO configuration is known, owned, renamed or harmful, and nothing else is known."""
    tree = ast.parse((deepspeed_folder / "runtime" / "zero" / "config.py").read_text(encoding="utf-8"))
    model = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DeepSpeedZeroConfig")
    names: set[str] = set()
    for node in model.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        aliases = [
            keyword.value.value
            for keyword in (node.value.keywords if isinstance(node.value, ast.Call) else [])
            if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant)
        ]
        names.add(str(aliases[0]) if aliases else node.target.id)
    ours = set(deepspeed_keys.KNOWN_ZERO) | set(deepspeed_keys.OWNED_ZERO) | set(deepspeed_keys.RENAMED_ZERO)
    assert ours == names


def test_presets_are_the_files_of_the_repository() -> None:
    """The preset names that a job may use are the reviewed files."""
    assert set(deepspeed_keys.PRESETS) == {path.stem for path in (REPOSITORY / "deepspeed_configs").glob("*.json")}
