"""Reading YAML: the core schema of version 1.2, places, and files that are no text at all."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import InvalidSpec
from orchestrator.spec import load_file, parse_text
from orchestrator.spec.document import LARGEST_FILE_BYTES, Place, Unreadable, read_document, resolve

GOOD = """apiVersion: orchestrate.dev/v1alpha1
kind: TrainingJob
metadata: {name: fine}
spec:
  entrypoint: {function: "mine:train"}
"""


def value_of(text: str) -> Any:
    return read_document(f"key: {text}\n", "test.yaml").value["key"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("NULL", None), ("nil", "nil"),
        ("true", True), ("False", False), ("yes", "yes"), ("on", "on"), ("NO", "NO"), ("y", "y"),
        ("0", 0), ("-17", -17), ("+3", 3), ("0o17", 15), ("0x1F", 31), ("017", "017"), ("012.5", "012.5"), ("1_000", "1_000"),
        ("1:30", "1:30"), ("5e-5", 5e-5), ("1E3", 1000.0), (".5", 0.5), ("1.", 1.0), ("-.inf", -math.inf), ("1.0.0", "1.0.0"),
        ("2026-01-31", "2026-01-31"), ("'5'", "5"), ('"true"', "true"), ("!!str 5", "5"), ("!!float 5", 5.0), ("! 5", "5"),
        ("[1, a]", [1, "a"]), ("{a: {b: ~}}", {"a": {"b": None}}), ("|\n  two\n  lines\n", "two\nlines\n"), ("-", "-"), ("+", "+"),
        (".", "."), ("0b1", "0b1"), ("=", "="), ("9" * 45, "9" * 45),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    """Plain scalars have the values of the core schema of YAML 1.2; ambiguous spellings stay texts."""
    found = value_of(text if text != "-" else "'-'")
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read() -> None:
    """`.nan` is a number that is not one."""
    assert math.isnan(value_of(".nan"))


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_what_pyyaml_writes_is_read_back(value: Any) -> None:
    """Any JSON-like value that PyYAML dumps is read back as it was, for strings are quoted wherever 1.1 and 1.2 disagree."""
    text = yaml.safe_dump({"key": value}, default_style='"' if isinstance(value, str) else None)
    found = read_document(text, None).value["key"]
    if isinstance(value, str):
        assert found == value
    else:
        assert _without_ambiguous(found) == _without_ambiguous(value)


def _without_ambiguous(value: Any) -> Any:
    """Texts compare by their letters only: PyYAML quotes by the rules of 1.1, under which `1e3` is a text."""
    if isinstance(value, dict):
        return {key: _without_ambiguous(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_ambiguous(item) for item in value]
    return str(value) if isinstance(value, float) else str(resolve(value)) if isinstance(value, str) else value


def test_places_of_keys_and_items() -> None:
    """Every key and every item of a list knows its line and column, counted from 1."""
    document = read_document("a:\n  - x\n  - {b: 1, c: 2}\nd: e\n", "f")
    assert document.places[("a",)] == Place("f", 1, 1)
    assert document.places[("a", 0)] == Place("f", 2, 5)
    assert document.places[("a", 1, "c")] == Place("f", 3, 12)
    assert document.place(("a", 1, "missing", "deeper")) == Place("f", 3, 5)


def test_pure_python_parser_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libyaml the same text has the same value and the same places."""
    text = "a: [1, 'two', {x: \"é\"}]\nb: &k\n  c: 1e-3\nd: *k\n"
    fast = read_document(text, None)
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    slow = read_document(text, None)
    assert (fast.value, fast.places) == (slow.value, slow.places)


@given(st.text(max_size=60))
def test_any_text_is_a_document_or_unreadable(text: str) -> None:
    """No text whatever raises anything but Unreadable."""
    with suppress(Unreadable):
        read_document(text, "any")


def problem_of(path: Path) -> str:
    with pytest.raises(InvalidSpec) as caught:
        load_file(path)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    """A missing file is said to be missing, with the nearest job file of the folder."""
    (tmp_path / "job.yaml").write_text(GOOD)
    assert f"there is no such file; did you mean {tmp_path / 'job.yaml'}?" in problem_of(tmp_path / "jbo.yaml")
    assert "there is no folder" in problem_of(tmp_path / "nowhere" / "job.yaml")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    """A folder is refused with advice to name the file."""
    assert "this is a folder; name the job file in it" in problem_of(tmp_path)


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    """A byte that is not UTF-8 is named with its line and column."""
    path = tmp_path / "job.yaml"
    path.write_bytes("# ü\nname: Größe\n".encode("latin-1"))
    assert f"{path}:1:3: byte 0xfc is not UTF-8 text; save the file as UTF-8" in problem_of(path)
    path.write_bytes("kind: TrainingJob\n".encode("utf-16"))
    assert "UTF-16" in problem_of(path)


@pytest.mark.parametrize("content", ["", "\n\n", "---\n", "null\n", "# only a comment"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    """A file without a value is called empty and points to `init`."""
    path = tmp_path / "job.yaml"
    path.write_text(content)
    assert "the file is empty; write a TrainingJob; `orchestrate init`" in problem_of(path)


def test_huge_file_is_not_parsed(tmp_path: Path) -> None:
    """A file above the limit is refused before it is parsed."""
    path = tmp_path / "data.csv"
    path.write_bytes(b"x" * (LARGEST_FILE_BYTES + 1))
    assert "was this the data file?" in problem_of(path)


def test_loop_of_links_is_refused(tmp_path: Path) -> None:
    """What the system refuses to open gives one problem."""
    path = tmp_path / "job.yaml"
    path.symlink_to(path)
    assert "cannot be read" in problem_of(path)


def test_deep_nesting_costs_no_traceback() -> None:
    """Ten thousand brackets are refused like sixty-five."""
    with pytest.raises(InvalidSpec, match="levels of nesting"):
        parse_text("a: " + "[" * 10_000)
