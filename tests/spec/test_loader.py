"""From text to job: defaults, what a server wrote, `--set`, and the digest."""

from __future__ import annotations

import json

import pytest

from orchestrator.domain.errors import InvalidSpec
from orchestrator.spec import TrainingJob, parse_document, parse_text, spec_digest
from orchestrator.spec.overrides import complete, parse_path

JOB = """apiVersion: orchestrate.dev/v1alpha1
kind: TrainingJob
metadata: {name: fine}
spec:
  model: {source: bert, task: text-classification}
  data:
    source: {uri: texts.csv}
  training: {epochs: 1}
  runtime:
    env: [{name: A, value: b}]
"""


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InvalidSpec) as caught:
        parse_text(text, file="job.yaml", overrides=overrides)
    return [str(problem) for problem in caught.value.problems]


def test_defaults() -> None:
    """What the file leaves away has the documented default."""
    spec = parse_text(JOB).spec
    assert spec.data is not None
    assert spec.data.source is not None
    assert spec.data.splits is not None
    assert (spec.workers.min, spec.workers.max, spec.workers.cpus, spec.workers.gpus, spec.workers.memory) == (
        1,
        1,
        1,
        0,
        None,
    )
    assert (spec.data.source.format, spec.data.splits.train, spec.data.splits.stratify) == ("CSV", 0.8, True)
    assert (spec.training.global_batch_size, spec.training.learning_rate, spec.training.schedule) == (
        32,
        5e-5,
        "linear",
    )
    assert (spec.checkpoint.every, spec.checkpoint.keep, spec.checkpoint.verify) == (100, 2, True)
    assert (spec.failure.max_restarts, spec.failure.max_preemptions, spec.capacity.mode) == (0, None, "OnDemand")


@pytest.mark.parametrize(("given", "expected"), [("{min: 3}", (3, 3)), ("{max: 2}", (2, 2)), ("{gpus: 0}", (1, 1))])
def test_one_bound_of_workers_gives_the_other(given: str, expected: tuple[int, int]) -> None:
    """A file that gives only `min` or only `max` means exactly so many workers."""
    workers = parse_text(f"{JOB}  workers: {given}\n", overrides=["spec.training.globalBatchSize=6"]).spec.workers
    assert (workers.min, workers.max) == expected


def test_quantities_beside_their_texts() -> None:
    """Durations and sizes stay as written, and the models give them as numbers."""
    text = JOB + "  workers: {memory: 1.5Gi}\n  checkpoint: {every: 1h30m}\n  startDeadline: 90s\n"
    spec = parse_text(text).spec
    assert spec.workers.memory == "1.5Gi"
    assert spec.workers.memory_bytes == 1_610_612_736
    assert (spec.checkpoint.every_steps, spec.checkpoint.every_ns) == (None, 5_400 * 10**9)
    assert spec.start_deadline_ns == 90 * 10**9
    automatic = parse_text(JOB + "  checkpoint: {every: Auto}\n").spec.checkpoint
    assert (automatic.automatic, automatic.every_steps, automatic.every_ns) == (True, None, None)
    assert not spec.checkpoint.automatic
    assert parse_text(JOB).spec.checkpoint.every_steps == 100


def test_steps_between_copies_are_a_number_or_auto() -> None:
    """`Auto` leaves the number to what is measured; what is no whole number from 1 on is refused, with what to write."""
    assert parse_text(JOB).spec.checkpoint.replicate_every_steps is None
    assert parse_text(JOB + "  checkpoint: {replicateEvery: 4}\n").spec.checkpoint.replicate_every_steps == 4
    for wrong in ("0", "2.5", "true", "auto"):
        (told,) = problems(JOB + f"  checkpoint: {{replicateEvery: {wrong}}}\n")
        assert "spec.checkpoint.replicateEvery" in told
        assert "write" in told


def test_world_size_counts_ranks() -> None:
    """A worker has one rank for each GPU, or one without GPUs."""
    assert parse_text(JOB + "  workers: {min: 2}\n").spec.workers.world_size == 2
    assert parse_text(JOB + "  workers: {min: 2, gpus: 4}\n").spec.workers.world_size == 8


def test_dumped_document_is_read_back() -> None:
    """The JSON document of a job, with every default written out, is the same job again."""
    job = parse_text(JOB)
    document = json.loads(json.dumps(job.model_dump(mode="json", by_alias=True, exclude_none=True)))
    assert parse_document(document) == job
    assert TrainingJob.model_validate(document) == job
    assert parse_text(json.dumps(document, indent="\t")) == job


def test_status_and_server_metadata_are_ignored() -> None:
    """What `status -o json` prints can be submitted again."""
    document = parse_text(JOB).model_dump(mode="json", by_alias=True, exclude_none=True)
    document["status"] = {"phase": "Succeeded"}
    document["metadata"] |= {"uid": "x", "creationTimestamp": "2026-01-31T00:00:00Z"}
    assert parse_document(document) == parse_text(JOB)
    assert TrainingJob.model_validate(document) == parse_text(JOB)


def test_problems_of_a_document_without_text_have_no_lines() -> None:
    """A request's body is checked like a file; its problems name paths only."""
    with pytest.raises(InvalidSpec) as caught:
        parse_document(
            {"apiVersion": "orchestrate.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "A"}, "spec": {}}
        )
    assert [problem.path for problem in caught.value.problems] == [
        "metadata.name",
        "spec.model",
        "spec.data",
        "spec.training",
    ]
    assert all(problem.line is None and problem.file is None for problem in caught.value.problems)


def test_values_are_frozen() -> None:
    """A job does not change after it was read."""
    job = parse_text(JOB)
    with pytest.raises(ValueError, match="frozen"):
        job.spec.priority = 3  # type: ignore[misc]


# --- digest ------------------------------------------------------------------------------------------------------------


def test_digest_sees_spec_and_labels_only() -> None:
    """Writing a default out, reordering and annotating change nothing; a value or a label does."""
    digest = spec_digest(parse_text(JOB))
    assert len(digest) == 64
    assert spec_digest(parse_text(JOB + "  priority: 0\n")) == digest
    assert spec_digest(parse_text(JOB.replace("fine", "other"))) == digest
    assert spec_digest(parse_text(JOB.replace("{name: fine}", "{name: fine, annotations: {a: b}}"))) == digest
    assert spec_digest(parse_text(JOB + "  priority: 1\n")) != digest
    assert spec_digest(parse_text(JOB.replace("{name: fine}", "{name: fine, labels: {a: b}}"))) != digest


def test_digest_is_stable() -> None:
    """The digest of a minimal job is fixed: journals of earlier versions hold it, and new fields do not change it."""
    text = "apiVersion: orchestrate.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: a}\nspec:\n  entrypoint: {function: 'a:b'}\n"
    assert spec_digest(parse_text(text)) == "cb890d580763a2cb9c1eff427ff4af532e784f562f4a96d3a513b78eb0d0ae0a"


# --- --set -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("spec.training.epochs=3", ("spec", "training", "epochs"), 3),
        ("spec.training.learningRate=1e-3", ("spec", "training", "learningRate"), 1e-3),
        ("spec.workers.memory=2Gi", ("spec", "workers", "memory"), "2Gi"),
        ("spec.suspend=true", ("spec", "suspend"), True),
        ("metadata.name=other", ("metadata", "name"), "other"),
        ('metadata.labels["example.com/team"]=ads', ("metadata", "labels", "example.com/team"), "ads"),
        ("spec.runtime.env[0].value=c", ("spec", "runtime", "env", 0, "value"), "c"),
        ("spec.runtime.env[1]={name: B, value: d}", ("spec", "runtime", "env", 1, "name"), "B"),
        ("spec.data.labels=[good, bad]", ("spec", "data", "labels", 1), "bad"),
        ("spec.failure.maxPreemptions=3", ("spec", "failure", "maxPreemptions"), 3),
        ("spec.runtime.env[0].value='a=b'", ("spec", "runtime", "env", 0, "value"), "a=b"),
    ],
)
def test_override_replaces_a_value(override: str, path: tuple[str | int, ...], value: object) -> None:
    """`--set path=value` puts a YAML value over that of the file."""
    found = parse_text(JOB, overrides=[override]).model_dump(mode="json", by_alias=True)
    for part in path:
        found = found[part]  # type: ignore[index]
    assert found == value


def test_later_override_wins() -> None:
    """Of two values for one path the later one counts."""
    assert parse_text(JOB, overrides=["spec.priority=1", "spec.priority=2"]).spec.priority == 2


def test_override_mends_a_broken_value() -> None:
    """A value that was wrong in the file may be set right on the command line."""
    broken = JOB.replace("{epochs: 1}", "{epochs: none}")
    assert parse_text(broken, overrides=["spec.training.epochs=2"]).spec.training.epochs == 2
    twice = JOB + "  priority: 1\n  priority: 2\n"
    assert parse_text(twice, overrides=["spec.priority=3"]).spec.priority == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("spec.training.maxstep=3", '--set spec.training.maxstep=3: spec.training.maxstep: spec.training has no field "maxstep"; did you mean spec.training.maxSteps?'),
        ("training.epochs=3", "did you mean spec.training.epochs?"),
        ("workers.min=2", "did you mean spec.workers.min?"),
        ("spec.training.epochs", "there is no '='; write --set path=value"),
        ("=3", '"" is not a path'),
        ("spec..epochs=3", '"spec..epochs" is not a path'),
        ("spec.training.epochs=three", '--set spec.training.epochs=three: spec.training.epochs: a whole number is expected, got the text "three"'),
        ("spec.training.epochs=", "a whole number is expected, got the text \"\""),
        ("spec.training.epochs=[1", "is not a value"),
        ("spec.runtime.env[3].value=x", "there is no item 3 (the list has 1); use an index up to 0, or 1 to append"),
        ("spec.training.epochs.more=1", "is 1, not fields"),
        ("status.phase=Running", 'a TrainingJob has no field "status"'),
        ("spec.workers.min=3", "job.yaml:8:3: spec.training.globalBatchSize: 32 does not divide among 3 ranks"),
    ],
)  # fmt: skip
def test_override_that_cannot_be(override: str, message: str) -> None:
    """A wrong `--set` gives one problem that names the option and the nearest right path."""
    found = problems(JOB, override)
    assert len(found) == 1
    assert message in found[0]


def test_problems_of_options_and_file_come_together() -> None:
    """Wrong options are reported first, then the file's problems in the order of its lines."""
    found = problems(JOB + "  colour: red\n", "spec.workers.min=0", "spec.nothing=1")
    assert [line.split(": ")[1] for line in found] == ["spec.nothing", "spec.workers.min", "spec.colour"]


def test_paths_are_parsed() -> None:
    """Dots part names, brackets hold indices or quoted names."""
    assert parse_path('a.b[0][1].c["d.e"]') == ("a", "b", 0, 1, "c", "d.e")
    assert parse_path("a.") is None or parse_path("a.") == ("a",)
    assert parse_path(".a") is None


def test_completion_of_paths() -> None:
    """Completion offers the fields that hold values, not sections."""
    assert complete("spec.workers.m") == ["spec.workers.min", "spec.workers.max", "spec.workers.memory"]
    assert "spec.workers" not in complete("spec.")
