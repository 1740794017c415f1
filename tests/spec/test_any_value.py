"""Any value in any field: accepted or explained, never a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import InvalidSpec
from orchestrator.planning.plan import plan
from orchestrator.spec import load_file, parse_document, parse_text, spec_digest
from orchestrator.spec.document import Path as FieldPath
from orchestrator.spec.document import dotted
from orchestrator.spec.fields import all_paths

EVERY_FIELD: dict[str, Any] = load_file(Path(__file__).parent / "good" / "every-field.yaml").model_dump(
    mode="json", by_alias=True
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["Auto", "1h", "2Gi", "a:b", "s3://x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "uri", "min", "x"]) | st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def put(document: Any, path: FieldPath, value: Any) -> None:
    """Set `path` in a document, through the first item of lists; sections that are absent are made."""
    for part in path[:-1]:
        following = document.get(part)
        if isinstance(following, list):
            following = following[0] if following else {}
        if not isinstance(following, dict):
            following = document[part] = {}
        document = following
    document[path[-1]] = value


def judged(document: dict[str, Any]) -> None:
    """Accept or refuse with hints; what is accepted can be planned, hashed and read back."""
    try:
        job = parse_document(document)
    except InvalidSpec as error:
        assert error.problems  # noqa: PT017 - either outcome is right; each is looked at
        assert all(problem.hint and "\n" not in str(problem) for problem in error.problems)  # noqa: PT017
    else:
        assert plan(job).lines()
        assert len(spec_digest(job)) == 64
        assert parse_text(json.dumps(job.model_dump(mode="json", by_alias=True))) == job


@settings(max_examples=50)
@given(path=st.sampled_from(all_paths()), value=VALUES)
def test_any_value_in_any_field(path: FieldPath, value: Any) -> None:
    """Whatever stands in a field, the document is accepted or its problems are told with hints."""
    document = copy.deepcopy(EVERY_FIELD)
    put(document, path, value)
    judged(document)


@settings(max_examples=30)
@given(first=st.sampled_from(all_paths()), second=st.sampled_from(all_paths()), one=VALUES, two=VALUES)
def test_any_two_values(first: FieldPath, second: FieldPath, one: Any, two: Any) -> None:
    """Two strange values at once are judged as well."""
    document = copy.deepcopy(EVERY_FIELD)
    put(document, first, one)
    put(document, second, two)
    judged(document)


@pytest.mark.parametrize("path", all_paths(), ids=dotted)
def test_removing_any_field(path: FieldPath) -> None:
    """A document without any one of its fields is accepted or explained."""
    document = copy.deepcopy(EVERY_FIELD)
    holder: Any = document
    for part in path[:-1]:
        holder = holder[part][0] if isinstance(holder.get(part), list) and holder[part] else holder.get(part)
        if not isinstance(holder, dict):
            return
    holder.pop(path[-1], None)
    judged(document)


@settings(max_examples=30)
@given(st.sampled_from(all_paths()), st.text(max_size=12))
def test_any_override(path: FieldPath, text: str) -> None:
    """Any text behind `--set path=` is a value or a problem."""
    source = json.dumps(EVERY_FIELD)
    try:
        parse_text(source, overrides=[f"{dotted(path)}={text}"])
    except InvalidSpec as error:
        assert error.problems  # noqa: PT017 - either outcome is right
