"""Verbs that change a job: cancel, suspend, resume, checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.cli.fake_controller import FakeController, resource


@pytest.mark.parametrize(("verb", "phase"), [("cancel", "Cancelled"), ("suspend", "Suspended"), ("resume", "Running")])
def test_a_request_is_sent_and_told(verb: str, phase: str, cli: Cli, controller: FakeController) -> None:
    """Each verb asks the controller once and says what follows, on stderr; -o json gives the resource."""
    controller.add(resource())
    run = cli(verb, "sentiment")
    assert (run.code, run.out) == (0, "")
    assert controller.asked == [("POST", f"/v1/namespaces/default/trainingjobs/sentiment/{verb}")]
    assert run.err == f"default/sentiment: {phase}\n"
    assert json.loads(cli(verb, "sentiment", "-o", "json").out)["status"]["phase"] == phase


def test_a_refused_request_is_a_conflict(cli: Cli, controller: FakeController) -> None:
    """Suspending an ended job is exit code 4 with the reason."""
    controller.add(resource(phase="Succeeded"))
    run = cli("suspend", "sentiment")
    assert run.code == 4
    assert "the job has ended; it is Succeeded" in run.err


def test_several_jobs_are_steered_past_one_that_is_not_there(cli: Cli, controller: FakeController) -> None:
    """One bad name does not keep the others from being cancelled; the exit code tells of it."""
    controller.add(resource("a"))
    controller.add(resource("b"))
    run = cli("cancel", "a", "nobody", "b", "-o", "name")
    assert (run.code, run.out) == (3, "a\nb\n")
    assert "there is no job default/nobody" in run.err


def test_scale_asks_for_a_number_of_workers(cli: Cli, controller: FakeController) -> None:
    """`scale` sends the number, says so on stderr, and with -w returns when the job trains with so many."""
    controller.add(resource())
    run = cli("scale", "sentiment", "1")
    assert (run.code, run.out, run.err) == (0, "", "default/sentiment: 1 worker is asked for\n")
    assert controller.asked == [("POST", "/v1/namespaces/default/trainingjobs/sentiment/scale")]
    assert json.loads(cli("scale", "sentiment", "2", "-w", "-o", "json").out)["status"]["workers"]["desired"] == 2


def test_scale_refuses_what_cannot_be(cli: Cli, controller: FakeController) -> None:
    """A size that the job may not have is exit code 4 with the reason; what is no number of workers is exit code 2."""
    controller.add(resource())
    run = cli("scale", "sentiment", "9")
    assert run.code == 4
    assert "9 workers is not a size that it may have" in run.err
    assert cli("scale", "sentiment", "0").code == 2
    assert cli("scale", "nobody", "2").code == 3


def test_waiting_for_the_change(cli: Cli, controller: FakeController) -> None:
    """`resume -w` returns when the job trains again."""
    controller.add(resource(phase="Suspended"))
    assert cli("resume", "sentiment", "-w").code == 0


CHECKPOINTS = [
    {
        "step": 400,
        "uri": "/runs/c/step-00000400",
        "whole": True,
        "why": None,
        "bytes": 3 << 20,
        "time": "2026-11-01T10:05:00.000Z",
        "metrics": {"accuracy": 0.8},
        "best": True,
    },
    {
        "step": 300,
        "uri": "/runs/c/step-00000300",
        "whole": False,
        "why": "rank-1.pt is missing",
        "bytes": None,
        "time": None,
        "metrics": {},
        "best": False,
    },
]


def test_checkpoints_are_listed_with_what_is_wrong(cli: Cli, controller: FakeController) -> None:
    """Whole and refused checkpoints are both there, the latter with the reason; only `verify` fails because of it."""
    controller.add(resource())
    controller.checkpoints = CHECKPOINTS
    listed = cli("checkpoint", "list", "sentiment")
    assert listed.code == 0
    assert "3.0 MiB" in listed.out
    assert "no: rank-1.pt is missing" in listed.out
    assert cli("checkpoint", "verify", "sentiment").code == 1
    assert json.loads(cli("checkpoint", "list", "sentiment", "-o", "json").out)["items"] == CHECKPOINTS
    assert cli("checkpoint", "list", "sentiment", "-o", "name").out.splitlines()[0] == "/runs/c/step-00000400"


def test_a_job_without_a_checkpoint(cli: Cli, controller: FakeController) -> None:
    """That there is none yet is told on stderr, and is no error."""
    controller.add(resource())
    run = cli("checkpoint", "list", "sentiment")
    assert (run.code, run.out) == (0, "")
    assert "no checkpoint yet" in run.err


def test_checkpoint_now_waits_until_it_is_durable(cli: Cli, controller: FakeController) -> None:
    """`checkpoint now` prints the place of the new checkpoint once it is durable."""
    controller.add(resource())

    def later(job: dict[str, Any], look: int) -> None:
        if look == 2:
            job["status"]["checkpoint"]["last"] = {
                "step": 420,
                "time": "2026-11-01T10:06:00.000Z",
                "uri": "/runs/c/420",
            }

    controller.on_look = later
    run = cli("checkpoint", "now", "sentiment")
    assert (run.code, run.out) == (0, "/runs/c/420\n")
    assert "Step 420 is durable." in run.err
    assert cli("checkpoint", "now", "sentiment", "--no-wait").code == 0


def test_checkpoint_now_of_a_job_that_fails_meanwhile(cli: Cli, controller: FakeController) -> None:
    """When the job ends before it could save, that is told and is no success."""
    controller.add(resource())
    controller.on_look = lambda job, look: controller.end(job, "Failed", "ApplicationError")
    run = cli("checkpoint", "now", "sentiment")
    assert run.code == 10
    assert "no checkpoint was saved" in run.err


def test_resume_with_a_larger_budget(cli: Cli, controller: FakeController) -> None:
    """`--budget` is sent with the request."""
    controller.add(resource(phase="Suspended"))
    assert cli("resume", "sentiment", "--budget", "12.50").code == 0
    assert controller.limits == ["12.50"]
