"""Lists of jobs: whole, in order, and never older than what was acknowledged, although texts and order are kept."""

from __future__ import annotations

import json
import threading
from typing import Any

from orchestrator.controller.api import Texts
from orchestrator.lifecycle import Phase
from tests.controller.world import GATES, Gate, World, document


def test_a_list_shows_each_submit_at_once(world: World) -> None:
    """What was acknowledged is in the next list, newest first, whoever listed before."""
    for number in range(5):
        before = [record.name for record in world.controller.jobs()]
        world.submit(f"job-{number}", steps=1)
        assert {record.name for record in world.controller.jobs()} == {*before, f"job-{number}"}
    created = [record.created_ns for record in world.controller.jobs("default")]
    assert created == sorted(created, reverse=True)
    assert world.controller.jobs("elsewhere") == []


def test_a_list_of_a_restarted_controller_is_whole(world: World) -> None:
    """A list asked for before the journal was read does not hide what the journal holds."""
    world.submit("job", steps=1, allowed=1)
    world.until_phase("job", Phase.SUCCEEDED)
    world.restart()
    assert [record.name for record in world.controller.jobs()] == ["job"]


def test_the_text_of_a_job_is_its_resource(world: World) -> None:
    """A running job's text and an ended one's, written anew or kept, are the resource at the version asked for."""
    texts = Texts(world.controller)

    def read(version: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(texts.of(world.job("job"), version))
        return found

    def resource(version: int) -> dict[str, Any]:
        shown = world.controller.view(world.job("job"))
        return {**shown, "metadata": {**shown["metadata"], "resourceVersion": str(version)}}

    world.submit("job", steps=2, allowed=1)
    world.until("job", lambda record: record.state.step == 1)
    assert read(7)["status"]["phase"] == "Running"
    GATES["job"].open(1)
    world.until_phase("job", Phase.SUCCEEDED)
    assert read(8) == resource(8)
    assert read(9) == resource(9)


def test_a_job_that_runs_again_under_its_name_has_a_text_of_its_own(world: World) -> None:
    """The kept text of an ended job is never shown for the newer job of that name."""
    texts = Texts(world.controller)
    world.submit("job", steps=1, allowed=1)
    first = world.until_phase("job", Phase.SUCCEEDED)
    assert json.loads(texts.of(first, 1))["status"]["phase"] == "Succeeded"
    GATES["job"] = Gate()
    second = world.controller.submit(document("job", 1), rerun=True).record
    shown = json.loads(texts.of(world.job("job"), 2))
    assert shown["metadata"]["uid"] == second.uid != first.uid
    GATES["job"].open(1)
    world.until_phase("job", Phase.SUCCEEDED)


def test_lists_may_be_asked_for_from_many_threads(world: World) -> None:
    """Many readers at once get whole texts, also when more jobs are listed than texts are kept."""
    for number in range(8):
        world.submit(f"job-{number}", steps=1, allowed=1)
    for number in range(8):
        world.until_phase(f"job-{number}", Phase.SUCCEEDED)
    texts = Texts(world.controller, most=3)
    wrong: list[str] = []

    def read() -> None:
        records = world.controller.jobs() * 5
        wrong.extend(r.name for r in records if json.loads(texts.of(r, 1))["metadata"]["name"] != r.name)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
