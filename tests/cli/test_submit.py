"""Submit: what is sent, what is said, and what becomes of it when controllers die or people leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.context import Context
from orchestrator.controller.client import Client
from orchestrator.domain.errors import Conflict, ControllerUnreachable
from tests.cli.conftest import Cli
from tests.cli.fake_controller import TOKEN, FakeController


def life(
    controller: FakeController, phase: str = "Succeeded", reason: str = "Completed"
) -> Callable[[dict[str, Any], int], None]:
    """A job that provisions, trains and ends, one look after another."""

    def look(job: dict[str, Any], number: int) -> None:
        status = job["status"]
        if number == 1:
            status.update(phase="Provisioning", message="2 workers start")
        elif number == 2:
            status.update(
                phase="Running", message="attempt 1 trains", progress={"step": 5, "totalSteps": 10, "percent": 50.0}
            )
        elif number == 3:
            status["checkpoint"] = {"last": {"step": 5, "time": "2026-11-01T10:05:00.000Z", "uri": "/runs/c/step-5"}}
        elif number == 4:
            status["cost"] = {
                "totalUSD": "1.50",
                "usefulUSD": "1.50",
                "wastedUSD": {},
                "priceSources": ["a test"],
                "billed": True,
            }
            controller.end(
                job, phase, reason, "All steps are done." if phase == "Succeeded" else "The job's own code failed."
            )

    return look


def test_submit_follows_the_job_to_its_receipt(cli: Cli, controller: FakeController, job_file: Path) -> None:
    """Talk and progress are on stderr, the receipt is on stdout, and the exit code is the outcome."""
    controller.on_look = life(controller)
    run = cli("submit", "job.yaml")
    assert run.code == 0
    assert run.err.startswith("Submitted default/sentiment (uid uid-of-sentiment)\n")
    for words in ("Provisioning: 2 workers start", "Running: attempt 1 trains", "checkpoint: step 5 is durable"):
        assert run.err.count(words) == 1
    assert "Succeeded in" in run.out
    assert "$1.50" in run.out
    document, key, rerun = controller.submitted[0]
    assert (key, rerun) == (None, False)
    assert document["spec"]["runtime"]["workingDir"] == str(job_file.parent)
    assert document["metadata"]["namespace"] == "default"


@pytest.mark.parametrize(
    ("phase", "reason", "code"), [("Failed", "ApplicationError", 10), ("Cancelled", "Cancelled", 11)]
)
def test_submit_ends_with_the_outcome(
    phase: str, reason: str, code: int, cli: Cli, controller: FakeController, job_file: Path
) -> None:
    """A job that fails or is cancelled has a receipt, too, and its own exit code."""
    controller.on_look = life(controller, phase, reason)
    run = cli("submit", "job.yaml")
    assert run.code == code
    assert phase in run.out


def test_detached_submit_prints_the_name(cli: Cli, controller: FakeController, job_file: Path) -> None:
    """`--detach` returns once the job is durable, with its name alone on stdout."""
    run = cli("submit", "job.yaml", "--detach", "--idempotency-key", "k1", "--rerun", "--name", "mine")
    assert (run.code, run.out) == (0, "mine\n")
    document, key, rerun = controller.submitted[0]
    assert (document["metadata"]["name"], key, rerun) == ("mine", "k1", True)
    assert json.loads(cli("submit", "job.yaml", "-d", "-o", "json").out)["metadata"]["name"] == "sentiment"


def test_attached_submit_with_the_name_as_output(cli: Cli, controller: FakeController, job_file: Path) -> None:
    """`-o name` prints the name and no receipt; the job is followed all the same."""
    controller.on_look = life(controller, "Failed", "ApplicationError")
    run = cli("submit", "job.yaml", "-o", "name")
    assert (run.code, run.out) == (10, "sentiment\n")


def test_submitting_an_active_job_again_follows_it(cli: Cli, controller: FakeController, job_file: Path) -> None:
    """The same spec again is no error: it says unchanged and follows the job that is there."""
    controller.on_submit = lambda document: "unchanged"
    controller.on_look = life(controller)
    run = cli("submit", "job.yaml")
    assert run.code == 0
    assert "Unchanged: default/sentiment" in run.err


def test_submitting_another_spec_under_the_name_is_a_conflict(
    cli: Cli, controller: FakeController, job_file: Path
) -> None:
    """The controller's refusal is shown as it is, with exit code 4."""

    def refuse(document: dict[str, Any]) -> str:
        raise Conflict("default/sentiment is active with another spec", hint="cancel it, or take another name")

    controller.on_submit = refuse
    run = cli("submit", "job.yaml")
    assert (run.code, run.out) == (4, "")
    assert (
        run.err
        == "orchestrate: error: default/sentiment is active with another spec; cancel it, or take another name\n"
    )


def test_an_invalid_job_is_refused_before_anything_is_started(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    """A job file with errors is told before a controller is looked for."""
    job_file.write_text(job_file.read_text(encoding="utf-8").replace("maxSteps", "maxStep"), encoding="utf-8")
    run = cli("submit", "job.yaml")
    assert run.code == 2
    assert "did you mean maxSteps?" in run.err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("moment", [1, 2, 4])
def test_ctrl_c_detaches_and_tells_how_to_come_back(
    moment: int, cli: Cli, controller: FakeController, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a job is followed leaves it running: exit code 130, and the ways back on the screen."""
    real_get = Client.get
    looks = 0

    def get(self: Client, *args: Any, **options: Any) -> dict[str, Any]:
        nonlocal looks
        looks += 1
        if looks == moment:
            raise KeyboardInterrupt
        return real_get(self, *args, **options)

    monkeypatch.setattr(Client, "get", get)
    run = cli("submit", "job.yaml", terminal=moment == 4)
    assert (run.code, run.out) == (130, "")
    for words in (
        "goes on",
        "orchestrate status sentiment -w",
        "orchestrate logs sentiment -f",
        "orchestrate cancel sentiment",
    ):
        assert words in run.err
    assert ("POST", "/v1/namespaces/default/trainingjobs/sentiment/cancel") not in controller.asked


def test_a_remote_controller_may_stay_away_for_a_while(cli: Cli, controller: FakeController, job_file: Path) -> None:
    """A controller elsewhere that hangs up is asked again; its absence is told once."""
    looks = 0

    def broken(path: str) -> bool:
        nonlocal looks
        looks += path.endswith("/sentiment")
        return path.endswith("/sentiment") and looks == 2

    controller.broken = broken
    controller.on_look = life(controller)
    run = cli("submit", "job.yaml")
    assert run.code == 0
    assert run.err.count("The controller is gone") == 1


def test_a_remote_controller_that_stays_away_is_given_up(
    cli: Cli, controller: FakeController, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded time a controller elsewhere is given up: exit code 6, and the job is not blamed."""
    monkeypatch.setattr("orchestrator.cli.attach.PATIENCE_SECONDS", 0.2)
    controller.broken = lambda path: path.endswith("/sentiment")
    run = cli("submit", "job.yaml")
    assert (run.code, run.out) == (6, "")
    assert "cannot be reached" in run.err


def test_a_local_controller_is_brought_back(
    cli: Cli, controller: FakeController, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this machine's controller dies under a followed job, it is started again and following goes on."""
    starts: list[bool] = []

    def client(self: Context, *, start: bool = False) -> Client:
        starts.append(start)
        if len(starts) == 2:
            raise ControllerUnreachable("it did not come up")
        return Client(controller.url, TOKEN)

    monkeypatch.setattr(Context, "client", client)
    monkeypatch.setattr(Context, "remote", False)
    hung_up = False

    def broken(path: str) -> bool:
        nonlocal hung_up
        if path.endswith("/sentiment") and len(starts) == 1 and controller.asked[-1][0] == "GET":
            hung_up = True
            return True
        return False

    controller.broken = broken
    controller.on_look = life(controller)
    run = cli("submit", "job.yaml")
    assert hung_up
    assert (run.code, starts) == (0, [True, True, True])
    assert run.err.count("The controller is gone") == 1
