"""The corpus of broken job files: every problem of each, at its exact place, and nothing else.

A file's expectations stand in its leading comments, `# expect: LINE:COLUMN PATH | FRAGMENT` (PATH `-` is the whole
document), one for each problem in the order in which they must be reported; those of a JSON file stand beside it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.domain.errors import ExitCode, InvalidSpec, Problem
from orchestrator.spec import load_file, parse_text

CORPUS = Path(__file__).parent / "corpus"
GOOD = Path(__file__).parent / "good"
BROKEN_FILES = sorted(path for path in CORPUS.iterdir() if path.suffix in (".yaml", ".json"))
EXPECTATION = re.compile(r'^(?:# )?expect: (\d+):(\d+) (-|[^| ]\S*(?: [^|]*"\])?) \| (.+)$', re.MULTILINE)
FOREIGN_WORDS = re.compile(
    r"pydantic|Input should|valid (?:integer|string|number|boolean)|Traceback|<class|NoneType|Field required"
)


def expectations(path: Path) -> list[tuple[int, int, str, str]]:
    source = path.with_name(path.name + ".expect") if path.suffix == ".json" else path
    found = EXPECTATION.findall(source.read_text(encoding="utf-8"))
    return [
        (int(line), int(column), "" if where == "-" else where, fragment) for line, column, where, fragment in found
    ]


def assert_in_our_own_words(problem: Problem, path: Path) -> None:
    """No message carries a validation library's wording or a link that is not the user's; each says what to do."""
    assert problem.hint, f"no hint: {problem}"
    sentence = f"{problem.what}; {problem.hint}"
    assert not FOREIGN_WORDS.search(sentence), sentence
    assert "http" not in sentence or "http" in path.read_text(encoding="utf-8")
    assert "\n" not in sentence


@pytest.mark.parametrize("path", BROKEN_FILES, ids=lambda path: path.stem)
def test_broken_file_gives_exactly_the_expected_problems(path: Path) -> None:
    """Each broken file gives exactly its expected problems, in order, each at its place and in our own words."""
    expected = expectations(path)
    assert expected, "the file says nothing of what is expected"
    with pytest.raises(InvalidSpec) as caught:
        load_file(path)
    problems = caught.value.problems
    assert [(p.line, p.column, p.path) for p in problems] == [
        (line, column, where) for line, column, where, _ in expected
    ]
    for problem, (*_, fragment) in zip(problems, expected, strict=True):
        assert fragment in str(problem)
        assert str(problem).startswith(f"{path}:{problem.line}:{problem.column}: ")
        assert_in_our_own_words(problem, path)


def test_corpus_is_large_enough() -> None:
    """The corpus holds at least 150 broken files, and no two of them have the same content."""
    assert len(BROKEN_FILES) >= 150
    bodies = {
        re.sub(r"^# expect: .*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE) for path in BROKEN_FILES
    }
    assert len(bodies) == len(BROKEN_FILES)


def test_invalid_file_ends_in_the_usage_exit_code() -> None:
    """A broken file is a usage error for the shell."""
    with pytest.raises(InvalidSpec) as caught:
        load_file(BROKEN_FILES[0])
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("path", sorted(GOOD.iterdir()), ids=lambda path: path.name)
def test_good_file_is_accepted(path: Path) -> None:
    """Each good file is accepted, whatever its style of YAML."""
    assert load_file(path).metadata.name


def test_any_beginning_of_a_broken_file_gives_problems_and_no_traceback() -> None:
    """A file cut off anywhere is accepted or refused with problems; it never raises anything else."""
    for path in BROKEN_FILES:
        text = path.read_text(encoding="utf-8")
        for length in range(0, len(text), max(1, len(text) // 4)):
            with suppress(InvalidSpec):
                parse_text(text[:length], file="cut.yaml")
