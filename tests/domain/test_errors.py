"""The error tree: text, codes, and the way through a pickle."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator

import pytest

from orchestrator.domain import errors
from orchestrator.domain.errors import ExitCode, InvalidSpec, NotFound, OrchestrateError, Problem


def tree(kind: type[OrchestrateError]) -> Iterator[type[OrchestrateError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


KINDS = [kind for kind in tree(OrchestrateError) if kind.__module__ == errors.__name__]
PROBLEMS = (Problem("spec.a", "is wrong", "mend it", "job.yaml", 3, 4), Problem("", "is empty"))


def make(kind: type[OrchestrateError]) -> OrchestrateError:
    return InvalidSpec(PROBLEMS) if kind is InvalidSpec else kind("the disk is full: 3 bytes left", hint="make room")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_a_pickle(kind: type[OrchestrateError]) -> None:
    """Class, text, fields and codes come back from a pickle as they were."""
    error = make(kind)
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(back) is kind
    assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))
    assert (back.code, back.exit_code, back.http_status) == (kind.__name__, error.exit_code, error.http_status)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    """Every leaf of the module's drawing exists with the exit code it shows, and none is left out."""
    drawn = {name: int(code) for name, code in re.findall(r"(\w+) \((\d+)\)", errors.__doc__ or "")}
    leaves = {kind.__name__: int(kind.exit_code) for kind in KINDS if not kind.__subclasses__()}
    assert drawn == leaves


def test_exit_codes_are_those_that_programs_depend_on() -> None:
    """The numbers never change."""
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "PLATFORM": 1,
        "USAGE": 2,
        "NOT_FOUND": 3,
        "CONFLICT": 4,
        "AUTH": 5,
        "UNREACHABLE": 6,
        "NO_CAPACITY": 7,
        "BUDGET": 8,
        "JOB_FAILED": 10,
        "CANCELLED": 11,
        "PREEMPTED_OUT": 12,
        "INTERNAL": 70,
        "WAIT_TIMEOUT": 124,
        "INTERRUPTED": 130,
    }


def test_an_error_says_what_and_what_to_do() -> None:
    """The text is what happened, then the hint if there is one."""
    assert (
        str(NotFound("there is no job a/b", hint="see `orchestrate list`"))
        == "there is no job a/b; see `orchestrate list`"
    )
    assert str(NotFound("there is no job a/b")) == "there is no job a/b"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (PROBLEMS[0], "job.yaml:3:4: spec.a: is wrong; mend it"),
        (PROBLEMS[1], "is empty"),
        (Problem("spec.a", "is wrong"), "spec.a: is wrong"),
        (Problem("", "is wrong", file="job.yaml"), "job.yaml: is wrong"),
    ],
)
def test_a_problem_says_where(problem: Problem, text: str) -> None:
    """File, line, column and path stand in front, as far as they are known."""
    assert str(problem) == text


def test_an_invalid_spec_lists_every_problem() -> None:
    """One line for each problem, in their order."""
    assert str(InvalidSpec(PROBLEMS)).splitlines() == [str(problem) for problem in PROBLEMS]
