"""Verbs that look: list, status, describe, logs, events, wait."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from orchestrator.cli.progress import Milestones
from orchestrator.cli.view import JobView
from tests.cli.conftest import Cli
from tests.cli.fake_controller import FakeController, resource

STORY = [
    {
        "number": 1,
        "time": "2026-11-01T10:00:00.000Z",
        "event": "Submitted",
        "phaseBefore": "",
        "phase": "Pending",
        "reason": "Submitted",
        "message": "accepted",
    },
    {
        "number": 2,
        "time": "2026-11-01T10:00:01.000Z",
        "event": "Admitted",
        "phaseBefore": "Pending",
        "phase": "Provisioning",
        "reason": "Admitted",
        "message": "2 workers",
    },
]


def test_list_shows_one_line_a_job(cli: Cli, controller: FakeController) -> None:
    """A table with name, phase, progress and dollars; only the namespace in force unless -A."""
    controller.add(resource())
    elsewhere = resource("other", "Succeeded")
    elsewhere["metadata"]["namespace"] = "blue"
    controller.add(elsewhere)
    here = cli("list")
    assert here.code == 0
    assert [line.split()[:3] for line in here.out.splitlines()[1:]] == [["sentiment", "Running", "412/534"]]
    assert "$0.7854" in here.out
    everywhere = cli("list", "-A")
    assert {line.split()[0] for line in everywhere.out.splitlines()[1:]} == {"default", "blue"}
    assert "uid-of-other" in cli("list", "-A", "-o", "wide").out


def test_list_in_the_forms_for_programs(cli: Cli, controller: FakeController) -> None:
    """JSON and YAML are the list itself, JSON lines one resource a line, names what other verbs take."""
    job = controller.add(resource())
    assert json.loads(cli("list", "-o", "json").out)["items"] == [job]
    assert yaml.safe_load(cli("list", "-o", "yaml").out)["items"] == [job]
    assert [json.loads(line) for line in cli("list", "-o", "jsonl").out.splitlines()] == [job]
    assert cli("list", "-o", "name").out == "sentiment\n"
    controller.jobs["default", "sentiment"]["metadata"]["namespace"] = "blue"
    assert cli("list", "-A", "-o", "name").out == "blue/sentiment\n"


def test_list_by_phase(cli: Cli, controller: FakeController) -> None:
    """`--phase` keeps the jobs of that phase; when there are none, that is said on stderr."""
    controller.add(resource())
    controller.add(resource("done", "Succeeded"))
    assert cli("list", "--phase", "Succeeded", "-o", "name").out == "done\n"
    none = cli("list", "--phase", "Failed")
    assert (none.code, none.out) == (0, "")
    assert "No Failed jobs" in none.err


def test_list_in_a_home_that_was_never_used(cli: Cli) -> None:
    """Nothing was ever submitted, so there are no jobs; no controller is started to find out."""
    run = cli("list")
    assert (run.code, run.out) == (0, "")
    assert "No jobs" in run.err
    assert json.loads(cli("list", "-o", "json").out)["items"] == []


def test_status_shows_the_job_in_a_few_lines(cli: Cli, controller: FakeController) -> None:
    """Phase, step, loss, metrics, time left, dollars, and that nobody bills example prices."""
    controller.add(resource())
    run = cli("status", "sentiment")
    assert run.code == 0
    for words in (
        "Running",
        "412/534 (77 %)",
        "0.4312",
        "accuracy 0.8312",
        "2m10s",
        "$0.7854",
        "$6.12 an hour",
        "nothing was billed",
    ):
        assert words in run.out
    assert len(run.out.splitlines()) <= 16


def test_status_shows_a_planned_cadence(cli: Cli, controller: FakeController) -> None:
    """A job whose cadence is planned says what is planned; why is in the JSON and in the events."""
    plan = {"everySeconds": 250.0, "because": "a checkpoint after every 4 min 10 s of training; one stalls training"}
    controller.add(resource(checkpoint={"last": None, "cadence": plan}))
    lines = cli("status", "sentiment").out.splitlines()
    assert [line.split(maxsplit=1) for line in lines if line.startswith("Cadence")] == [
        ["Cadence:", "a checkpoint after every 4 min 10 s of training"]
    ]
    controller.add(resource(phase="Succeeded", checkpoint={"last": None, "cadence": plan}))
    assert "Cadence" not in cli("status", "sentiment").out


def test_status_of_an_elastic_job_tells_of_its_workers(cli: Cli, controller: FakeController) -> None:
    """Bounds, draining workers, resizes apart from restarts, and what last broke training off."""
    job = resource(restarts={"application": 1, "preemption": 2, "resize": 3})
    job["spec"]["workers"] = {"min": 1, "max": 4}
    job["status"]["workers"] = {"desired": 4, "ready": 3, "draining": 1}
    disruption = {
        "time": "2026-11-01T10:04:00.000Z",
        "reason": "WorkerLost",
        "attempt": 1,
        "generation": 4,
        "step": 410,
        "workersBefore": 4,
        "workersAfter": 3,
        "secondsDead": 0.84,
        "stepsRedone": 1,
    }
    open_one = {**disruption, "reason": "Notice", "workersAfter": None, "secondsDead": None, "stepsRedone": None}
    job["status"]["disruptions"] = [disruption, open_one]
    controller.add(job)
    text = cli("status", "sentiment").out
    assert "3/4 ready (1 to 4, 1 draining), attempt 1, 3 restarts, 3 resizes" in text
    assert "Notice after step 410: 4 to ? workers, not back yet" in text
    told = cli("describe", "sentiment").out
    assert "WorkerLost after step 410: 4 to 3 workers, 0.8 s dead, 1 step redone" in told
    job["status"]["disruptions"][0]["secondsDead"] = 90.0
    assert "1m30s dead" in cli("describe", "sentiment").out


def test_status_as_json_is_the_resource(cli: Cli, controller: FakeController) -> None:
    """`status -o json` prints the same resource that the controller holds."""
    job = controller.add(resource())
    assert json.loads(cli("status", "default/sentiment", "-o", "json").out) == job


def test_status_of_a_job_with_unknown_prices(cli: Cli, controller: FakeController) -> None:
    """An unknown price is shown as unknown, never as zero."""
    job = controller.add(resource())
    job["status"]["cost"].update(totalUSD=None, perHourUSD=None)
    assert "Cost:        unknown" in cli("status", "sentiment").out
    assert "unknown" in cli("list").out


def test_a_job_that_is_not_there(cli: Cli, controller: FakeController) -> None:
    """Exit code 3 and the controller's own words."""
    for verb in ("status", "describe", "events", "wait", "cost", "cancel", "suspend", "resume"):
        run = cli(verb, "nobody")
        assert (run.code, run.out) == (3, ""), verb
        assert "there is no job default/nobody" in run.err


def test_watching_ends_with_the_job(cli: Cli, controller: FakeController) -> None:
    """`status -w` follows to the end, shows changes on stderr, the last state on stdout, and never repeats itself."""
    job = controller.add(resource())

    def later(job: dict[str, Any], look: int) -> None:
        if look == 3:
            job["status"]["progress"].update(step=500, percent=93.6, metrics={"validation": {"accuracy": 0.84}})
        if look == 6:
            controller.end(job, "Succeeded", "Completed", "All steps are done.")

    controller.on_look = later
    run = cli("status", "sentiment", "-w")
    assert run.code == 0
    assert run.err.count("validation: accuracy 0.84") == 1
    assert run.err.count("step 500/534") == 1
    assert len(run.err.splitlines()) == 4
    assert "Phase:       Succeeded" in run.out
    assert job["status"]["phase"] == "Succeeded"


def test_watching_on_a_terminal_redraws_one_line(cli: Cli, controller: FakeController) -> None:
    """On a terminal there is one live line with a bar, never wider than the terminal, and it is gone at the end."""
    controller.add(resource())
    controller.on_look = lambda job, look: controller.end(job, "Succeeded", "Completed") if look == 4 else None
    run = cli("status", "sentiment", "-w", terminal=True)
    drawn = [part for part in run.err.split("\r\x1b[2K") if part.strip()]
    live = [part for part in drawn if "━" in part]
    assert live
    assert all(len(part) < 100 for part in live)
    assert "loss 0.4312" in live[0]
    assert run.err.rpartition("\r\x1b[2K")[2].split() == ["0.0s", "Succeeded"]


def test_the_name_passes_to_another_job_while_it_is_watched(cli: Cli, controller: FakeController) -> None:
    """When the job was submitted again meanwhile, watching ends with a conflict instead of showing another job."""
    controller.add(resource())
    controller.on_look = lambda job, look: job["metadata"].update(uid="another")
    run = cli("status", "sentiment", "-w")
    assert run.code == 4
    assert "submitted again" in run.err


def test_describe_shows_everything(cli: Cli, controller: FakeController) -> None:
    """Status, labels, spec, story, checkpoints and cost of a job, in one page."""
    controller.add(resource())
    controller.story = STORY
    controller.checkpoints = [
        {
            "step": 400,
            "uri": "/runs/c/step-00000400",
            "whole": True,
            "why": None,
            "bytes": 1 << 20,
            "time": None,
            "best": True,
        }
    ]
    run = cli("describe", "sentiment")
    assert run.code == 0
    for words in (
        "team=search",
        "uid-of-sentiment",
        "workers:",
        "Pending -> Provisioning",
        "1.0 MiB",
        "provisioning",
        "total",
    ):
        assert words in run.out


def test_events_are_the_story(cli: Cli, controller: FakeController) -> None:
    """One line an event with time, phases, reason and message; programs get the items."""
    controller.add(resource())
    controller.story = STORY
    table = cli("events", "sentiment").out.splitlines()
    assert table[0].startswith("TIME (UTC)")
    assert "Pending -> Provisioning" in table[2]
    assert json.loads(cli("events", "sentiment", "-o", "json").out)["items"] == STORY
    assert [json.loads(line) for line in cli("events", "sentiment", "-o", "jsonl").out.splitlines()] == STORY


def test_events_can_be_followed(cli: Cli, controller: FakeController) -> None:
    """`events -f` prints each event once, until the job has ended."""
    controller.add(resource())
    controller.story = STORY[:1]

    def later(job: dict[str, Any], look: int) -> None:
        if look == 2:
            controller.story = STORY
        if look == 4:
            controller.end(job, "Cancelled", "Cancelled")

    controller.on_look = later
    run = cli("events", "sentiment", "-f", "-o", "jsonl")
    assert run.code == 0
    assert [json.loads(line) for line in run.out.splitlines()] == STORY


def test_logs_name_the_rank_of_each_line(cli: Cli, controller: FakeController) -> None:
    """Lines of all ranks carry their rank; those of one rank stand alone."""
    controller.add(resource())
    controller.log_lines = [("0", "[1] hello"), ("driver", "[1] starting")]
    assert cli("logs", "sentiment").out == "     0 | [1] hello\ndriver | [1] starting\n"
    assert cli("logs", "sentiment", "--rank", "0", "-f", "--tail", "5").out == "[1] hello\n[1] starting\n"


@pytest.mark.parametrize(
    ("phase", "reason", "code"),
    [
        ("Succeeded", "Completed", 0),
        ("Succeeded", "EarlyStopped", 0),
        ("Failed", "NonFiniteLoss", 10),
        ("Failed", "ApplicationError", 10),
        ("Failed", "DataInvalid", 10),
        ("Failed", "CrashLoop", 10),
        ("Failed", "NoCapacity", 7),
        ("Failed", "StartDeadlineExceeded", 7),
        ("Failed", "PreemptionsExhausted", 12),
        ("Failed", "AReasonOfALaterVersion", 10),
        ("Cancelled", "Cancelled", 11),
    ],
)
def test_wait_ends_with_the_outcome(phase: str, reason: str, code: int, cli: Cli, controller: FakeController) -> None:
    """The exit code of `wait` is the outcome of the job."""
    controller.add(resource())
    controller.on_look = lambda job, look: controller.end(job, phase, reason) if look == 2 else None
    run = cli("wait", "sentiment", "-q")
    assert (run.code, run.out, run.err) == (code, "", "")


def test_wait_for_a_phase(cli: Cli, controller: FakeController) -> None:
    """`--for PHASE` is met as soon as the job is in it; when the job ends before, that is told and no success."""
    controller.add(resource(phase="Queued"))
    controller.on_look = lambda job, look: job["status"].update(phase="Running") if look == 2 else None
    assert cli("wait", "sentiment", "--for", "Running").code == 0
    controller.on_look = lambda job, look: controller.end(job, "Succeeded", "Completed")
    run = cli("wait", "sentiment", "--for", "Suspended")
    assert run.code == 10
    assert "without having been Suspended" in run.err


def test_wait_times_out(cli: Cli, controller: FakeController) -> None:
    """When the time is up, exit code 124; the job is let be."""
    controller.add(resource())
    run = cli("wait", "sentiment", "--timeout", "300ms", "-q")
    assert run.code == 124
    assert "default/sentiment is Running after 0.3 s" in run.err


def test_wait_prints_the_receipt(cli: Cli, controller: FakeController) -> None:
    """`wait -o receipt` ends with the bill."""
    controller.add(resource(phase="Succeeded"))
    assert "$0.7854" in cli("wait", "sentiment", "-o", "receipt").out


def test_a_running_job_s_new_message_is_told_once() -> None:
    """While the phase stays Running, another message is news, once; a step is not."""

    def looked_at(message: str, step: int) -> list[str]:
        status = {"phase": "Running", "attempt": 1, "message": message, "progress": {"step": step}}
        return milestones.news(JobView({"metadata": {"name": "m", "namespace": "default"}, "status": status}))

    milestones = Milestones(tenths=False, checkpoints=False)
    assert looked_at("attempt 1 trains", 1) == ["Running: attempt 1 trains"]
    assert looked_at("attempt 1 trains", 2) == []
    assert looked_at("nothing new is known", 2) == ["Running: nothing new is known"]
    assert looked_at("nothing new is known", 2) == []
    assert looked_at("attempt 1 trains", 3) == ["Running: attempt 1 trains"]
