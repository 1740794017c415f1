"""Files that a job names: found, missing, of the wrong kind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.domain.errors import InvalidSpec
from orchestrator.spec import check_paths, load_file, parse_text
from orchestrator.spec.paths import package_folder, resolve_uri

HEAD = "apiVersion: orchestrate.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: paths}\nspec:\n"
BODY = "  model: {source: MODEL, task: text-classification}\n  data:\n    source: {uri: DATA, format: CSV}\n  training: {epochs: 1}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts.csv").write_text("text,label\na,b\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}")
    (tmp_path / "blank").mkdir()
    (tmp_path / "mine.py").write_text("raise SystemExit('must not be imported')\n")
    (tmp_path / "ds.json").write_text('{"elasticity": {}}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    return tmp_path


def found(folder: Path, text: str) -> list[str]:
    return [str(problem) for problem in check_paths(parse_text(HEAD + text), folder)]


def job(model: str = "./encoder", data: str = "texts.csv", more: str = "") -> str:
    return BODY.replace("MODEL", model).replace("DATA", data) + more


@pytest.mark.parametrize("model", ["./encoder", "encoder", "org/name", "bert-base-uncased"])
def test_what_exists_is_no_problem(folder: Path, model: str) -> None:
    """Existing files and folders pass, and hub ids are not looked for."""
    assert found(folder, job(model)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (job(data="text.csv"), "spec.data.source.uri: there is no file {folder}/text.csv; did you mean texts.csv?"),
        (job(data="data/text.csv"), "the folder {folder}/data does not exist either"),
        (job(data="encoder"), "spec.data.source.uri: encoder is a folder; name the file in it"),
        (job(data="empty.csv"), "{folder}/empty.csv is empty"),
        (job(data="file:///nowhere/a.csv"), "there is no file /nowhere/a.csv"),
        (job(data='"package://no_such_package/a.csv"'), "the Python package no_such_package is not installed here"),
        (job(data='"package://pydantic/no_such_file.csv"'), "there is no file"),
        (job(model="./encodr"), "spec.model.source: there is no folder {folder}/encodr"),
        (job(model="./blank"), "{folder}/blank holds no config.json"),
        (job(model='"package://no_such_package/model"'), "the Python package no_such_package is not installed here"),
        (job(more="  runtime: {workingDir: code}\n"), "spec.runtime.workingDir: there is no folder {folder}/code"),
        (job(more="  deepspeed: {config: dss.json}\n"), "spec.deepspeed.config: there is no file {folder}/dss.json; did you mean ds.json?"),
        (job(more="  deepspeed: {config: ds.json}\n"), "spec.deepspeed.config: {folder}/ds.json: elasticity was removed from DeepSpeed"),
        (job(more="  deepspeed: {config: broken.json}\n"), "{folder}/broken.json is not JSON"),
        (job(more="  deepspeed: {config: list.json}\n"), "{folder}/list.json holds no JSON object"),
        ("  entrypoint: {function: 'nothing_here:main'}\n", "spec.entrypoint.function: there is no module nothing_here in {folder}, and none is installed"),
        ("  entrypoint: {function: 'mine.inner:main'}\n", "there is no module mine.inner in {folder}"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(folder: Path, text: str, message: str) -> None:
    """Each missing or unfit file gives one problem with its path and the nearest right name."""
    problems = found(folder, text)
    assert len(problems) == 1
    assert message.format(folder=folder) in problems[0]


def test_missing_files_are_reported_with_all_other_problems(folder: Path) -> None:
    """With `check_files`, missing files stand among the other problems, at the line or option that names them."""
    path = folder / "job.yaml"
    path.write_text(
        HEAD + job(model="./encodr", data="text.csv", more="  colour: red\n").replace("epochs: 1", "epochs: 0")
    )
    with pytest.raises(InvalidSpec) as caught:
        load_file(path, ["spec.data.source.uri=other.csv"], check_files=True)
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (None, "spec.data.source.uri"),
        (5, "spec.model.source"),
        (8, "spec.training.epochs"),
        (9, "spec.colour"),
    ]
    assert str(caught.value.problems[0]).startswith(
        "--set spec.data.source.uri=other.csv: spec.data.source.uri: there is no file"
    )


def test_files_of_a_wrong_field_are_not_looked_for(folder: Path) -> None:
    """A field that is wrong in itself gives one message, not a second one about a file."""
    path = folder / "job.yaml"
    path.write_text(HEAD + job(data="'s3://bucket/texts.csv'"))
    with pytest.raises(InvalidSpec) as caught:
        load_file(path, check_files=True)
    assert len(caught.value.problems) == 1
    assert load_file(_good(path), check_files=True).metadata.name == "paths"


def _good(path: Path) -> Path:
    path.write_text(HEAD + job())
    return path


def test_modules_and_packages_are_found_without_importing_them(folder: Path) -> None:
    """An entrypoint's module is looked for and not run; an installed package is found and not imported."""
    assert found(folder, "  entrypoint: {function: 'mine:main'}\n") == []
    assert found(folder, "  entrypoint: {function: 'this:main'}\n") == []
    assert "this" not in sys.modules
    assert package_folder("pydantic") is not None
    assert package_folder("this") is None


def test_resolved_addresses(folder: Path) -> None:
    """Paths start at the working folder, file:// is absolute, package:// lies in the package."""
    assert resolve_uri("a/b.csv", folder) == folder / "a" / "b.csv"
    assert resolve_uri("file:///x/y", folder) == Path("/x/y")
    inside = resolve_uri("package://pydantic/main.py", folder)
    assert inside is not None
    assert inside.is_file()
    assert resolve_uri("s3://bucket/x", folder) is None
