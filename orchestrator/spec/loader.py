"""From a job file to a TrainingJob, or to all that is wrong with it at once.

Reading goes on past the first mistake: the structure is validated, wrong values are taken out or replaced by examples,
and the checks across fields then run on what is left, except those that would look at a value that was wrong. The
result is one list in the order of the file's lines, each with a place, the value and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from orchestrator.domain.errors import InvalidSpec, Problem
from orchestrator.spec.checks import cross_check
from orchestrator.spec.document import LARGEST_FILE_BYTES, Document, Path, Place, Unreadable, decode, read_document
from orchestrator.spec.models import TrainingJob, without_server_fields
from orchestrator.spec.overrides import apply_overrides, parse_path
from orchestrator.spec.paths import check_paths
from orchestrator.spec.validation import Finding, planned_findings, repaired, structural_findings, touches


def load_file(path: str | FilePath, overrides: Sequence[str] = (), *, check_files: bool = False) -> TrainingJob:
    """The job in a file, after `overrides` such as `spec.training.maxSteps=10`.

    With `check_files` the files and folders that the job names must be there as well (`check_paths`). Raises
    InvalidSpec with every problem of the file, in the order of its lines.
    """
    file = str(path)
    try:
        text = decode(_read(FilePath(path)), file)
    except OSError as error:
        raise InvalidSpec([_cannot_open(FilePath(path), error)]) from error
    except Unreadable as error:
        raise InvalidSpec([error.problem]) from error
    return parse_text(text, file=file, overrides=overrides, base_dir=FilePath(path).parent if check_files else None)


def parse_text(
    text: str, *, file: str | None = None, overrides: Sequence[str] = (), base_dir: FilePath | None = None
) -> TrainingJob:
    """The job in a YAML or JSON text; `file` is the name shown in messages. Raises InvalidSpec.

    With `base_dir` the files that the job names are looked for from there.
    """
    try:
        document = read_document(text, file)
    except Unreadable as error:
        raise InvalidSpec([error.problem]) from error
    return _validated(document, overrides, base_dir)


def parse_document(value: Mapping[str, Any]) -> TrainingJob:
    """The job in a document that has no text, such as a request's body. Raises InvalidSpec; its problems have no lines."""
    document = Document(dict(value), None)
    document.places[()] = Place(None)
    return _validated(document, (), None)


def _read(path: FilePath) -> bytes:
    with path.open("rb") as stream:
        return stream.read(LARGEST_FILE_BYTES + 1)


def _cannot_open(path: FilePath, error: OSError) -> Problem:
    if isinstance(error, FileNotFoundError):
        from difflib import get_close_matches

        folder = path.parent
        names = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
        jobs = [name for name in names if name.endswith((".yaml", ".yml", ".json"))]
        near = get_close_matches(path.name, jobs, n=1)
        if not folder.is_dir():
            return Problem("", f"there is no folder {folder}", "check the path", str(path))
        hint = f"did you mean {folder / near[0]}?" if near else "`orchestrate init` makes a job file to start from"
        return Problem("", "there is no such file", hint, str(path))
    if isinstance(error, IsADirectoryError):
        return Problem("", "this is a folder", "name the job file in it, such as job.yaml", str(path))
    if isinstance(error, PermissionError):
        return Problem("", "the file may not be read", "give yourself the right to read it", str(path))
    return Problem("", f"the file cannot be read ({error.strerror or error})", "check the path", str(path))


def _validated(document: Document, overrides: Sequence[str], base_dir: FilePath | None) -> TrainingJob:
    problems = apply_overrides(document, overrides)
    problems += [problem for _, problem in document.problems]
    spoilt: list[Path] = [path for path, _ in document.problems]
    value = without_server_fields(document.value)
    findings, job = structural_findings(value)
    if job is None:
        spoilt += [path for finding in findings for path in (finding.path, finding.meant) if path is not None]
        job = repaired(value)
    findings = [finding for finding in findings if not _repeats(finding, document)]
    if job is not None:
        findings += planned_findings(job, spoilt)
        findings += cross_check(job, spoilt)
        if base_dir is not None:
            findings += _file_findings(job, base_dir, [*spoilt, *(finding.path for finding in findings)])
    problems += [document.problem(finding.path, finding.what, finding.hint) for finding in findings]
    if problems or job is None:
        raise InvalidSpec(_in_order(problems))
    return job


def _file_findings(job: TrainingJob, base_dir: FilePath, spoilt: Sequence[Path]) -> Iterator[Finding]:
    if touches(("spec", "runtime", "workingDir"), spoilt):
        return
    for problem in check_paths(job, base_dir):
        path = parse_path(problem.path) or ()
        if not touches(path, spoilt):
            yield Finding(path, problem.what, problem.hint or "")


def _repeats(finding: Finding, document: Document) -> bool:
    """Whether the value is only missing or null because the reader has already complained about it."""
    return any(path == finding.path for path, _ in document.problems)


def _in_order(problems: Sequence[Problem]) -> list[Problem]:
    unique = list(dict.fromkeys(problems))
    return sorted(unique, key=lambda problem: (problem.line or 0, problem.column or 0))
