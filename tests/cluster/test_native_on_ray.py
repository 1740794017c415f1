"""The native engine on a Ray of several nodes, through the driver's actor as the controller's host holds it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.controller.hosts import Gone, Heard
from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import RunRequest
from tests.cluster.loops import MeetingPlace
from tests.cluster.ray_nodes import RayNode, RayNodes, ray_nodes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
DEADLINE_SECONDS = 90.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_nodes(os.environ) as nodes:
        yield nodes


class Job:
    """One elastic job of 1 to 3 workers, and all that the host delivered of it."""

    def __init__(self, folder: Path, place: MeetingPlace) -> None:
        from orchestrator.controller.ray_host import RayHost

        self.uid = folder.name
        self.events: list[Any] = []
        self.gone: list[str] = []
        self.drivers: list[str | None] = []
        self._known: dict[str | None, int] = {}
        self.host = RayHost(SystemClock())
        self.host.begin(self._deliver)
        self.host.start(
            RunRequest(
                uid=self.uid,
                namespace="default",
                name="ray",
                attempt=1,
                workers=3,
                cpus_per_worker=1,
                gpus_per_worker=0,
                memory_bytes_per_worker=None,
                worker_loop="tests.cluster.loops:lockstep",
                assignment={"run_dir": str(folder), "working_dir": str(folder), "threads": 1, "meet": place.address},
                min_workers=1,
                elastic=True,
            ),
            folder,
        )

    def _deliver(self, message: Heard | Gone) -> None:
        if isinstance(message, Gone):
            self.gone.append(message.why)
            return
        if message.driver_id not in self.drivers:
            self.drivers.append(message.driver_id)
        after = self._known.get(message.driver_id, 0)
        self.events += [update.event for update in message.updates if update.seq > after]
        self._known[message.driver_id] = message.updates[-1].seq
        self.host.acknowledge(message.uid, message.driver_id, message.updates[-1].seq)

    def of_kind(self, kind: str) -> list[Any]:
        return [event for event in list(self.events) if event["kind"] == kind]

    def steps(self, size: int) -> list[Any]:
        """Of rank 0 in the newest world, when that has this size."""
        begun = [event for event in self.of_kind("begun") if event["rank"] == 0]
        if not begun or begun[-1]["size"] != size:
            return []
        newest = begun[-1]["generation"]
        return [e for e in self.of_kind("step") if e["rank"] == 0 and e["generation"] == newest]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"it did not come to be: {self.gone} {self.events[-10:]}"
            assert not self.gone, self.gone
            threading.Event().wait(0.05)


@pytest.fixture
def job(cluster: RayNodes, tmp_path: Path) -> Iterator[Job]:
    import ray

    with MeetingPlace(ray.util.get_node_ip_address()) as place:
        job = Job(tmp_path, place)
        yield job
        job.host.release(job.uid)
        job.until(lambda: left_of(job) == [])
        job.host.close()


def left_of(job: Job) -> list[str]:
    """Names of what Ray still has of the job."""
    from ray.util import list_named_actors
    from ray.util.placement_group import placement_group_table

    groups = [entry for entry in placement_group_table().values() if entry["state"] != "REMOVED"]
    names = [str(entry["name"]) for entry in (*groups, *list_named_actors(all_namespaces=True))]
    return [name for name in names if job.uid in name]


def node_of_rank(job: Job, nodes: list[RayNode], rank: int) -> RayNode:
    workers = job.of_kind("world")[-1]["workers"]
    node_id = next(worker["node"] for worker in workers if worker["rank"] == rank)
    return next(node for node in nodes if node.node_id == node_id)


def test_a_node_dies_and_another_comes(cluster: RayNodes, job: Job) -> None:
    """A whole node of three is killed: the other two go on with one step redone at most; a new node is used when it is
    there, from the next step on. At the end nothing of the job is left."""
    nodes = [cluster.add_node() for _ in range(3)]
    job.until(lambda: len(job.steps(3)) >= 5)
    node_of_rank(job, nodes, 0).kill()
    job.until(lambda: len(job.steps(2)) >= 5)
    made = max(e["step"] for e in job.of_kind("step") if e["size"] == 3)
    assert made - job.steps(2)[0]["step"] + 1 <= 1
    nodes.append(cluster.add_node())
    job.until(lambda: len(job.steps(3)) >= 5)
    made = max(e["step"] for e in job.of_kind("step") if e["size"] == 2)
    assert job.steps(3)[0]["step"] == made + 1
    job.host.wish_stop(job.uid, 1)
    job.until(lambda: bool(job.of_kind("ended")))
    assert job.of_kind("ended")[0]["reason"] == "Stopped"
    job.until(lambda: [name for name in left_of(job) if not name.startswith("driver-")] == [])
    for node in nodes:
        node.kill()


def test_a_drained_node_is_left_without_a_lost_step(cluster: RayNodes, job: Job) -> None:
    """Ray drains the node of rank 0: the gang regroups without it before the deadline, and no step is made twice."""
    nodes = [cluster.add_node() for _ in range(2)]
    job.until(lambda: len(job.steps(2)) >= 5)
    node_of_rank(job, nodes, 0).drain(15)
    job.until(lambda: len(job.steps(1)) >= 5)
    made = max(e["step"] for e in job.of_kind("step") if e["size"] == 2)
    assert job.steps(1)[0]["step"] == made + 1
    assert [event["notice"]["source"] for event in job.of_kind("notice")] == ["ray"]
    job.host.wish_stop(job.uid, 1)
    job.until(lambda: bool(job.of_kind("ended")))
    for node in nodes:
        node.kill()


def test_a_killed_driver_is_replaced_and_the_workers_go_on(cluster: RayNodes, job: Job) -> None:
    """SIGKILL of the driver: the workers keep stepping in the same world, another driver takes them up, and the job can
    be stopped through it."""
    import ray

    from orchestrator.controller.ray_host import NAMESPACE, driver_name

    nodes = [cluster.add_node() for _ in range(2)]
    job.until(lambda: len(job.steps(2)) >= 5)
    driver: Any = ray.get_actor(driver_name(job.uid), namespace=NAMESPACE)
    begun = [event["pid"] for event in job.of_kind("begun")]
    before = job.of_kind("step")[-1]["step"]
    psutil.Process(ray.get(driver.pid.remote())).kill()
    job.until(lambda: len(job.drivers) == 2 and job.of_kind("step")[-1]["step"] > before + 50)
    assert all(psutil.pid_exists(pid) for pid in begun)
    assert [event["pid"] for event in job.of_kind("begun") if event["pid"] not in begun] == []
    assert job.of_kind("world_lost") == []
    job.host.wish_stop(job.uid, 1)
    job.until(lambda: bool(job.of_kind("ended")))
    assert job.of_kind("ended")[0]["reason"] == "Stopped"
    for node in nodes:
        node.kill()
