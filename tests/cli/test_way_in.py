"""The way in: help, unknown words, options before the verb, and what is said when something goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.main import GROUPS, MODULES, parser_of
from tests.cli.conftest import Cli

VERBS = sorted(MODULES)


def test_top_level_help_is_the_golden_one(cli: Cli, repository: Path) -> None:
    """`orchestrate --help` prints what tests/golden/cli-help.txt holds; change both on purpose."""
    run = cli("--help")
    assert (run.code, run.err) == (0, "")
    assert run.out == (repository / "tests" / "golden" / "cli-help.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, cli: Cli) -> None:
    """`VERB --help`, `--help VERB` and `help VERB` print the same, on stdout, with exit code 0."""
    runs = [cli(verb, "--help"), cli("--help", verb), cli("help", verb)]
    assert {run.code for run in runs} == {0}
    assert len({run.out for run in runs}) == 1
    assert runs[0].out.startswith(f"Usage: orchestrate {verb}")
    assert all(run.err == "" for run in runs)


def test_every_flag_has_a_sentence() -> None:
    """No flag and no argument of any verb goes without help."""
    for verb in VERBS:
        parser, _ = parser_of(verb)
        for leaf in (parser, *parser.choices().values()):
            silent = [
                action.dest for action in leaf._actions if not action.help and action.dest not in ("what", "name")
            ]
            assert silent == [], verb


def test_a_second_word_explains_itself(cli: Cli) -> None:
    """`checkpoint list --help` is about that word."""
    assert cli("checkpoint", "list", "--help").out.startswith("Usage: orchestrate checkpoint list")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("sumbit", "submit"),  # codespell:ignore
        ("statsu", "status"),
        ("chekpoint", "checkpoint"),  # codespell:ignore
        ("lst", "list"),
        ("log", "logs"),
    ],
)
def test_a_mistyped_verb_is_told_the_right_one(wrong: str, right: str, cli: Cli) -> None:
    """A verb that does not exist ends with exit code 2 and the nearest one that does."""
    run = cli(wrong)
    assert (run.code, run.out) == (2, "")
    assert f"did you mean `orchestrate {right}`?" in run.err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["submit", "--detatch", "job.yaml"], "did you mean --detach?"),
        (["submit", "--dry-rn"], "did you mean --dry-run?"),
        (["status", "x", "--wach"], "did you mean --watch?"),
        (["list", "-o", "jsno"], "did you mean json?"),
        (["list", "--phase", "running"], "did you mean Running?"),
        (["checkpoint", "verfy", "x"], "did you mean verify?"),  # codespell:ignore
        (["checkpoint", "list", "x", "--outptu=json"], "did you mean --output?"),
        (["server", "sart"], "did you mean start?"),  # codespell:ignore
    ],
    ids=" ".join,
)
def test_a_mistyped_flag_or_value_is_told_the_right_one(argv: list[str], hint: str, cli: Cli) -> None:
    """A flag or value that does not exist ends with exit code 2 and the nearest one that does."""
    run = cli(*argv)
    assert (run.code, run.out) == (2, "")
    assert hint in run.err
    assert len(run.err.splitlines()) == 1


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["status"],
        ["status", "a", "b"],
        ["status", "a/b/c"],
        ["status", "/"],
        ["logs", "x", "--rank", "first"],
        ["logs", "x", "--tail", "-3"],
        ["wait", "x", "--timeout", "soon"],
        ["list", "-n", "a", "-A"],
        ["submit"],
        ["checkpoint"],
        ["completion", "tcsh"],
        ["config", "explain", "spec.nonsense"],
        ["init", "--template", "nonsense"],
        ["--home"],
        ["--port", "1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(argv: list[str], cli: Cli) -> None:
    """Wrong usage says in one line what is wrong and what to do."""
    run = cli(*argv)
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("orchestrate: error: ")
    assert len(run.err.splitlines()) == 1


def test_flags_may_stand_before_the_verb(cli: Cli) -> None:
    """`--home`, `--url` and `--debug` mean the same before the verb; what stands after it wins."""
    before = cli("--home", "/nowhere", "config", "explain", "home", "-o", "json")
    assert '"value": "/nowhere"' in before.out
    assert '"origin": "flag --home"' in before.out
    between = cli("config", "--home", "/between", "explain", "home", "-o", "json")
    assert '"value": "/between"' in between.out
    assert (
        '"value": "/there"' in cli("--home=/nowhere", "config", "explain", "home", "-o", "json", "--home", "/there").out
    )


@pytest.mark.parametrize("argv", [["version"], ["--version"]])
def test_version(argv: list[str], cli: Cli) -> None:
    """The version is on stdout, alone."""
    from orchestrator import __version__

    run = cli(*argv)
    assert (run.code, run.out, run.err) == (0, f"orchestrate {__version__}\n", "")


def test_a_defect_of_ours_says_so_and_shows_the_traceback_only_on_request(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is exit code 70 and one message; `--debug` adds the traceback."""
    monkeypatch.setattr("orchestrator.cli.verbs.version.run", lambda args, context: 1 // 0)
    run = cli("version")
    assert run.code == 70
    assert "a defect of orchestrate itself: ZeroDivisionError" in run.err
    assert "Traceback" in cli("version", "--debug").err


def test_every_verb_of_the_table_has_a_module_and_every_module_a_verb(repository: Path) -> None:
    """The table in main.py and the files under verbs/ are the same list."""
    files = {path.stem for path in (repository / "orchestrator" / "cli" / "verbs").glob("*.py")} - {"__init__"}
    assert files == {verb for verbs in GROUPS.values() for verb in verbs}
