"""Verbs that need no server: init, validate, plan, submit --dry-run, schema, config explain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.spec import load_file, templates
from tests.cli.conftest import JOB, Cli


def test_init_writes_a_valid_job_and_never_overwrites(cli: Cli, tmp_path: Path) -> None:
    """`init` writes a file that loads; a second time it is a conflict, until --force."""
    assert cli("init", "mine.yaml").code == 0
    assert load_file(tmp_path / "mine.yaml").kind == "TrainingJob"
    (tmp_path / "mine.yaml").write_text("mine", encoding="utf-8")
    again = cli("init", "mine.yaml")
    assert again.code == 4
    assert "--force" in again.err
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == "mine"
    assert cli("init", "mine.yaml", "--force", "-t", "cpu-smoke").code == 0
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == templates()["cpu-smoke"]


def test_init_lists_its_templates_and_prints_one(cli: Cli) -> None:
    """`--list` names every template; `-` prints one instead of writing it."""
    assert [line.split()[0] for line in cli("init", "--list").out.splitlines()] == list(templates())
    assert cli("init", "-", "--template", "cpu-smoke").out == templates()["cpu-smoke"]


def test_init_into_a_folder_that_is_not_there(cli: Cli) -> None:
    """A place that cannot be written is one error, exit code 1."""
    run = cli("init", "no/such/folder/job.yaml")
    assert run.code == 1
    assert "cannot be written" in run.err


def test_validate_accepts_a_valid_job(cli: Cli, job_file: Path) -> None:
    """A valid file is exit code 0 and one line on stdout."""
    run = cli("validate", "job.yaml")
    assert (run.code, run.out, run.err) == (0, "job.yaml: default/sentiment is valid\n", "")


def test_validate_looks_for_files_only_where_the_workers_are(cli: Cli, tmp_path: Path, environ: dict[str, str]) -> None:
    """A data package that is not installed here is an error for the local controller, and none for one elsewhere."""
    text = JOB.replace("uri: train.csv", "uri: 'package://no_such_package/train.csv'")
    (tmp_path / "far.yaml").write_text(text, encoding="utf-8")
    here = cli("validate", "far.yaml")
    assert here.code == 2
    assert "no_such_package is not installed here" in here.err
    environ["ORCHESTRATE_URL"] = "http://controller.example"
    assert cli("validate", "far.yaml").code == 0


def test_validate_reports_every_error_of_every_file(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    """All errors of all files are told, each with file, line and column; one bad file makes exit code 2."""
    (tmp_path / "bad.yaml").write_text(JOB.replace("min: 2", "min: 6").replace("maxSteps", "maxStep"), encoding="utf-8")
    run = cli("validate", "job.yaml", "bad.yaml", "none.yaml")
    assert run.code == 2
    assert "bad.yaml:9:14: spec.training.maxStep" in run.err
    assert "spec.workers.min" in run.err
    assert "none.yaml: there is no such file" in run.err
    assert run.out.splitlines()[0] == "job.yaml: default/sentiment is valid"


def test_validate_as_json(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    """Programs get each file's verdict with its problems, and nothing on stderr."""
    (tmp_path / "bad.yaml").write_text(JOB.replace("maxSteps: 10", "maxSteps: ten"), encoding="utf-8")
    run = cli("validate", "job.yaml", "bad.yaml", "-o", "json")
    good, bad = json.loads(run.out)
    assert (run.code, run.err) == (2, "")
    assert (good["valid"], good["job"], good["problems"]) == (True, "default/sentiment", [])
    assert bad["problems"][0]["path"] == "spec.training.maxSteps"
    assert bad["problems"][0]["line"] == 9


def test_validate_names_the_line_of_a_missing_file(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    """Data that is not there is told with the line that names it and the nearest file that is."""
    (tmp_path / "train.csv").rename(tmp_path / "trains.csv")
    run = cli("validate", "job.yaml")
    assert run.code == 2
    assert run.err.startswith("job.yaml:8:13: spec.data.train.uri: there is no file")
    assert "did you mean trains.csv?" in run.err


def test_overrides_are_validated_like_the_file(cli: Cli, job_file: Path) -> None:
    """`--set` changes a field; a wrong one is refused by name."""
    assert cli("validate", "job.yaml", "--set", "spec.training.maxSteps=20").code == 0
    run = cli("validate", "job.yaml", "--set", "spec.training.maxSteps=-1")
    assert run.code == 2
    assert "--set spec.training.maxSteps=-1" in run.err


def test_plan_shows_the_gang_and_the_batch(cli: Cli, job_file: Path) -> None:
    """`plan` says workers, ranks and batch arithmetic, without a server."""
    run = cli("plan", "job.yaml")
    assert run.code == 0
    assert "2 ranks" in run.out
    assert "32 = 2 ranks x" in run.out
    assert json.loads(cli("plan", "job.yaml", "-o", "json").out)["worldSize"] == 2


def test_server_status_is_written_for_people(cli: Cli, tmp_path: Path) -> None:
    """What several facts are known of is a list of them, not a Python dictionary; the JSON keeps its structure."""
    home = tmp_path / "home"
    home.mkdir()
    ray = {"version": "2.60.0", "address": "127.0.0.1:6379", "folder": None}
    facts = {"url": "http://127.0.0.1:1", "pid": 1, "engine": "ray-train", "ray": ray}
    (home / "server.json").write_text(json.dumps(facts), encoding="utf-8")
    run = cli("server", "status")
    assert run.code == 6
    assert [line.split(maxsplit=1) for line in run.out.splitlines() if line.startswith("Ray")] == [
        ["Ray:", "version 2.60.0, address 127.0.0.1:6379, folder -"]
    ]
    assert json.loads(cli("server", "status", "-o", "json").out)["ray"] == ray


def test_plan_says_what_auto_will_do(cli: Cli, job_file: Path) -> None:
    """A cadence that is planned as the job runs is valid, and `plan` says what it goes by."""
    assert cli("validate", "job.yaml", "--set", "spec.checkpoint.every=Auto").code == 0
    run = cli("plan", "job.yaml", "--set", "spec.checkpoint.every=Auto")
    assert "a first one soon, then as often as its measured cost and the interruptions to expect ask for" in run.out


def test_dry_run_prints_the_plan_and_submits_nothing(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    """`submit --dry-run` needs no controller and makes no home."""
    run = cli("submit", "--dry-run", "job.yaml", "--name", "other", "-n", "team")
    assert run.code == 0
    assert "team/other" in run.out
    assert "nothing was submitted" in run.err
    assert not (tmp_path / "home").exists()


def test_dry_run_as_yaml_is_a_job_file(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    """What would be submitted is a valid job with an absolute working folder, so that it means the same anywhere."""
    run = cli("submit", "--dry-run", "job.yaml", "-o", "yaml", "--set", "spec.training.maxSteps=3")
    document = yaml.safe_load(run.out)
    assert document["spec"]["runtime"]["workingDir"] == str(tmp_path)
    assert document["spec"]["training"]["maxSteps"] == 3
    (tmp_path / "printed.yaml").write_text(run.out, encoding="utf-8")
    assert cli("validate", "printed.yaml").code == 0


def test_the_working_folder_is_relative_to_the_job_file(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    """`runtime.workingDir` starts at the folder of the job file, wherever the command runs."""
    folder = tmp_path / "deep" / "code"
    folder.mkdir(parents=True)
    (tmp_path / "train.csv").rename(folder / "train.csv")
    job_file.rename(tmp_path / "deep" / "job.yaml")
    run = cli("submit", "--dry-run", "deep/job.yaml", "-o", "json", "--set", "spec.runtime.workingDir=code")
    assert json.loads(run.out)["spec"]["runtime"]["workingDir"] == str(folder)


def test_a_namespace_on_the_command_line_must_not_contradict_the_file(cli: Cli, job_file: Path) -> None:
    """The file's namespace and -n may be equal or one may be absent; otherwise it is refused."""
    job_file.write_text(JOB.replace("name: sentiment", "name: sentiment\n  namespace: blue"), encoding="utf-8")
    assert "blue/sentiment" in cli("submit", "--dry-run", "job.yaml", "-n", "blue").out
    run = cli("submit", "--dry-run", "job.yaml", "-n", "red")
    assert run.code == 2
    assert "is for the namespace blue, not red" in run.err


def test_the_namespace_in_force_is_taken_when_the_file_names_none(
    cli: Cli, job_file: Path, environ: dict[str, str]
) -> None:
    """$ORCHESTRATE_NAMESPACE is the namespace of files that name none; a wrong one is refused like a field."""
    environ["ORCHESTRATE_NAMESPACE"] = "green"
    assert "green/sentiment" in cli("submit", "--dry-run", "job.yaml").out
    environ["ORCHESTRATE_NAMESPACE"] = "Not A Name"
    run = cli("submit", "--dry-run", "job.yaml")
    assert run.code == 2
    assert "metadata.namespace" in run.err


def test_schema_is_json_schema(cli: Cli) -> None:
    """`schema` prints the JSON schema of the job file."""
    assert json.loads(cli("schema").out)["$schema"].startswith("https://json-schema.org/")


def test_config_explains_fields_and_settings(cli: Cli) -> None:
    """`config explain` knows the fields of the document and the settings, and tells where a value comes from."""
    assert "spec.workers.min: whole number" in cli("config", "explain", "spec.workers.min").out
    assert "did you mean min?" in cli("config", "explain", "spec.workers.mn").err
    assert "environment variable ORCHESTRATE_HOME" in cli("config", "explain").out
    assert cli("config", "explain", "port").out.endswith("Port of the REST API and /metrics.\n")


def test_config_explain_hides_the_token(cli: Cli, environ: dict[str, str]) -> None:
    """The token is never printed."""
    environ["ORCHESTRATE_TOKEN"] = "very-secret"
    run = cli("config", "explain", "-o", "json")
    assert "very-secret" not in run.out
    assert '"(set)"' in run.out


@pytest.mark.parametrize("content", ["port: many\n", "colour: red\n", "- a\n", ":\n  :::", "port: 99999\n"])
def test_a_wrong_config_file_is_one_clear_error(content: str, cli: Cli, tmp_path: Path) -> None:
    """A broken .orchestrate.yaml is named, exit code 2."""
    (tmp_path / ".orchestrate.yaml").write_text(content, encoding="utf-8")
    run = cli("config", "explain")
    assert run.code == 2
    assert ".orchestrate.yaml" in run.err
