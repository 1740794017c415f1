"""What is generated from the parsers: the reference page and the completion scripts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.main import MODULES
from orchestrator.cli.reference import markdown
from tests.cli.conftest import Cli
from tests.cli.fake_controller import FakeController, resource


def test_the_reference_page_is_up_to_date(repository: Path) -> None:
    """docs/cli.md is what `python -m orchestrator.cli.reference` prints."""
    assert markdown() == (repository / "docs" / "cli.md").read_text(encoding="utf-8")


def complete(script: str, line: str, tmp_path: Path) -> list[str]:
    """What bash offers for the last word of `line`."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    file = tmp_path / "completion.bash"
    file.write_text(script, encoding="utf-8")
    program = f"""
        orchestrate() {{ [ "$*" = "completion jobs" ] && printf 'sentiment\\nother\\n'; }}
        source {file}
        COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
        _orchestrate; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    run = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert run.stderr == ""
    return run.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("orchestrate su", {"submit", "suspend"}),
        ("orchestrate status ", {"sentiment", "other"}),
        ("orchestrate status sen", {"sentiment"}),
        ("orchestrate checkpoint ", {"list", "verify", "now", "export", "prune"}),
        ("orchestrate checkpoint list oth", {"other"}),
        ("orchestrate list --phase Su", {"Suspended", "Succeeded"}),
        ("orchestrate submit --dr", {"--dry-run"}),
        ("orchestrate submit job", {"job.yaml"}),
        ("orchestrate wait x -o j", {"json"}),
    ],
)
def test_bash_completes(line: str, offered: set[str], cli: Cli, tmp_path: Path) -> None:
    """Verbs, second words, flags, values, files and names of jobs are completed by a real bash."""
    (tmp_path / "job.yaml").touch()
    assert set(complete(cli("completion", "bash").out, line, tmp_path)) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_every_verb_and_parse(shell: str, cli: Cli, tmp_path: Path) -> None:
    """Each script knows all verbs; the shell itself finds no fault with it, where it is installed."""
    script = cli("completion", shell).out
    assert all(verb in script for verb in MODULES)
    program = shutil.which(shell)
    if program is not None:
        file = tmp_path / "script"
        file.write_text(script, encoding="utf-8")
        subprocess.run([program, "-n", str(file)], check=True, capture_output=True, timeout=30)


def test_names_of_jobs_are_offered_without_starting_anything(cli: Cli, tmp_path: Path) -> None:
    """Without a controller there are no names, no error and no home."""
    run = cli("completion", "jobs")
    assert (run.code, run.out, run.err) == (0, "", "")
    assert not (tmp_path / "home").exists()


def test_names_of_jobs_come_from_the_controller(cli: Cli, controller: FakeController) -> None:
    """A controller that runs is asked for its jobs."""
    controller.add(resource())
    assert cli("completion", "jobs").out == "sentiment\n"


def test_the_module_prints_the_page(repository: Path) -> None:
    """The command that the page names prints it, whatever the terminal."""
    run = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.reference"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout == markdown()
