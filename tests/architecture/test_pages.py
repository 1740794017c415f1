"""The pages a newcomer reads do not lie: links lead somewhere, commands exist, the README's job is the one that runs."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.spec import load_file, parse_text

LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
MAKE = re.compile(r"(?:^\$ |`)make (?:-k )?([a-z][a-z_-]*)", re.MULTILINE)
YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages(repository: Path) -> list[Path]:
    found = [*repository.glob("*.md")]
    for folder in ("docs", "deploy", "examples", "benchmarks", "deepspeed_configs"):
        found += (repository / folder).rglob("*.md")
    return sorted(found)


def test_relative_links_lead_somewhere(repository: Path) -> None:
    """Every relative link of every page names a file or folder of the repository."""
    dead = [
        f"{page.relative_to(repository)}: {target}"
        for page in pages(repository)
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert dead == []


def test_make_targets_on_pages_exist(repository: Path) -> None:
    """Every `make TARGET` that a page shows is a target of the Makefile."""
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    benches = {f"bench-{path.stem}" for path in (repository / "benchmarks").glob("[a-z]*.py")}
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)) | {"bench-"} | benches
    unknown = [
        f"{page.relative_to(repository)}: make {target}"
        for page in pages(repository)
        for target in MAKE.findall(page.read_text(encoding="utf-8"))
        if target not in targets
    ]
    assert unknown == []


def test_readme_job_is_the_example(repository: Path) -> None:
    """The job in the README is examples/sentiment/job.yaml, comments aside, and loads without an error."""
    (shown,) = YAML_BLOCK.findall((repository / "README.md").read_text(encoding="utf-8"))
    example = repository / "examples" / "sentiment" / "job.yaml"
    assert parse_text(shown) == load_file(example)
    assert len(shown.splitlines()) <= 25


def test_every_example_job_is_valid(repository: Path) -> None:
    """Every job file under examples/ loads without an error."""
    jobs = sorted((repository / "examples").rglob("job*.yaml"))
    assert jobs
    for path in jobs:
        assert load_file(path).kind == "TrainingJob"
