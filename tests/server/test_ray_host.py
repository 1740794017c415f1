"""Drivers in Ray actors: what they hear reaches the controller, they outlive it, and nothing of them is left behind."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.controller.driver import Update
from orchestrator.controller.hosts import Gone, Heard
from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import Cadence, RunRequest
from tests.engines.ray_cluster import local_ray

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
DEADLINE_SECONDS = 60.0


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with local_ray(tmp_path_factory.mktemp("ray-home"), cpus=2):
        yield


class Controller:
    """Takes what a host delivers, and acknowledges it."""

    def __init__(self) -> None:
        from orchestrator.controller.ray_host import RayHost

        self.host = RayHost(SystemClock())
        self.updates: list[Update] = []
        self.driver_id: str | None = None
        self._messages: queue.Queue[Heard | Gone] = queue.Queue()

    def begin(self) -> None:
        self.host.begin(self._messages.put)

    def until(self, condition: Callable[[], bool]) -> None:
        """Take messages until `condition` holds."""
        end = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            message = self._messages.get(timeout=max(0.1, end - time.monotonic()))
            assert isinstance(message, Heard), message
            known = self.updates[-1].seq if self.updates else 0
            self.updates += [update for update in message.updates if update.seq > known]
            self.driver_id = message.driver_id
            self.host.acknowledge(message.uid, message.driver_id, message.updates[-1].seq)

    def until_gone(self) -> Gone:
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            message = self._messages.get(timeout=max(0.1, end - time.monotonic()))
            if isinstance(message, Gone):
                return message

    def kinds(self) -> list[str]:
        return [update.event["kind"] for update in self.updates]


@pytest.fixture
def controller() -> Iterator[Controller]:
    controller = Controller()
    controller.begin()
    yield controller
    controller.host.close()


def request_of(run_dir: Path, loop: str, attempt: int = 1) -> RunRequest:
    return RunRequest(
        uid=run_dir.name,
        namespace="default",
        name="hosted",
        attempt=attempt,
        workers=2,
        cpus_per_worker=1,
        gpus_per_worker=0,
        memory_bytes_per_worker=None,
        worker_loop=f"tests.engines.loops:{loop}",
        assignment={"attempt": attempt, "run_dir": str(run_dir), "threads": 1},
    )


def wait_until_gone(pids: list[int]) -> None:
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def pids_in(folder: Path) -> list[int]:
    return [json.loads(file.read_text()) for file in folder.glob("pid-*")]


def test_an_attempt_is_heard_to_its_end_and_its_driver_released(controller: Controller, tmp_path: Path) -> None:
    """Events and the end of an attempt arrive once and in order; a second attempt runs on the same driver; after release
    no driver is left, and the job can have a new one."""
    import ray

    controller.host.start(request_of(tmp_path, "count"), tmp_path)
    controller.until(lambda: "ended" in controller.kinds())
    assert controller.kinds() == ["count"] * 20 + ["ended"]
    assert controller.updates[-1].event["reason"] == "Completed"
    first_driver = controller.driver_id
    controller.host.start(request_of(tmp_path, "count", attempt=2), tmp_path)
    controller.until(lambda: controller.kinds().count("ended") == 2)
    assert controller.driver_id == first_driver
    controller.host.release(tmp_path.name)
    controller.updates.clear()
    controller.host.start(request_of(tmp_path, "count", attempt=3), tmp_path)
    controller.until(lambda: "ended" in controller.kinds())
    assert controller.driver_id != first_driver
    controller.host.release(tmp_path.name)
    end = time.monotonic() + DEADLINE_SECONDS
    while ray.util.list_named_actors() and time.monotonic() < end:
        threading.Event().wait(0.1)
    assert ray.util.list_named_actors() == []


def test_a_driver_outlives_its_controller(tmp_path: Path) -> None:
    """Another controller adopts the driver of a running gang by name, goes on where the first left off, and can stop the
    gang."""
    first = Controller()
    first.begin()
    first.host.start(request_of(tmp_path, "keep_running"), tmp_path)
    first.until(lambda: first.kinds().count("waiting") == 2)
    first.host.close()
    second = Controller()
    assert second.host.adopt("nobody", 0) is None
    second.begin()
    assert second.host.adopt(tmp_path.name, 2) == first.driver_id
    second.host.wish_stop(tmp_path.name, 1)
    second.until(lambda: "ended" in second.kinds())
    assert [update.seq for update in second.updates] == [3]
    assert second.updates[-1].event["reason"] == "Stopped"
    second.host.release(tmp_path.name)
    second.host.close()
    wait_until_gone(pids_in(tmp_path))


def test_a_cadence_comes_with_the_start_and_from_a_later_controller(tmp_path: Path) -> None:
    """Every rank sees the plan that the attempt was started with, and the one that another controller sends when it has
    taken the driver up; what is sent again changes nothing."""
    first = Controller()
    first.begin()
    first.host.start(replace(request_of(tmp_path, "tell_wishes"), cadence=Cadence(1, 60.0)), tmp_path)
    first.until(lambda: first.kinds().count("cadence") == 2)
    first.host.close()
    second = Controller()
    second.begin()
    assert second.host.adopt(tmp_path.name, first.updates[-1].seq) == first.driver_id
    for plan in (Cadence(2, 90.0), Cadence(2, 90.0), Cadence(1, 60.0)):
        second.host.wish_cadence(tmp_path.name, 1, plan)
    second.until(lambda: second.kinds().count("cadence") == 2)
    second.host.wish_stop(tmp_path.name, 1)
    second.until(lambda: "ended" in second.kinds())
    told = [
        update.event["seconds"] for update in (*first.updates, *second.updates) if update.event["kind"] == "cadence"
    ]
    assert told == [60.0, 60.0, 90.0, 90.0]
    second.host.release(tmp_path.name)
    second.host.close()


def test_a_killed_driver_is_reported_and_takes_its_gang_along(controller: Controller, tmp_path: Path) -> None:
    """SIGKILL of a driver is delivered as Gone, its workers end with it, and the next attempt gets a new driver at once:
    nothing that the dead one held stays reserved."""
    import ray

    from orchestrator.controller.ray_host import NAMESPACE, driver_name

    controller.host.start(request_of(tmp_path, "keep_running"), tmp_path)
    controller.until(lambda: controller.kinds().count("waiting") == 2)
    handle: Any = ray.get_actor(driver_name(tmp_path.name), namespace=NAMESPACE)
    os.kill(ray.get(handle.pid.remote()), 9)
    gone = controller.until_gone()
    assert (gone.uid, gone.driver_id) == (tmp_path.name, controller.driver_id)
    wait_until_gone(pids_in(tmp_path))
    controller.updates.clear()
    controller.host.start(request_of(tmp_path, "count", attempt=2), tmp_path)
    controller.until(lambda: "ended" in controller.kinds())
    assert controller.updates[-1].event["reason"] == "Completed"
    controller.host.release(tmp_path.name)


def test_release_ends_a_gang_that_still_runs(controller: Controller, tmp_path: Path) -> None:
    """Releasing a job whose gang does not stop ends driver and workers."""
    controller.host.start(request_of(tmp_path, "keep_running"), tmp_path)
    controller.until(lambda: controller.kinds().count("waiting") == 2)
    controller.host.release(tmp_path.name)
    wait_until_gone(pids_in(tmp_path))


def test_room_is_what_the_cluster_has(controller: Controller) -> None:
    """Room counts CPUs and memory of the whole cluster."""
    room = controller.host.room()
    assert (room.cpus, room.gpus) == (2, 0)
    assert room.memory_bytes is not None
    assert room.memory_bytes > 2**28
