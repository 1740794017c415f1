"""One rig a source: the source, what stands behind it, and how a notice comes and goes there."""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, SystemClock, to_rfc3339
from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.notices.aws import aws
from orchestrator.platforms.notices.azure import ScheduledEvents
from orchestrator.platforms.notices.base import Sighting, Source, View
from orchestrator.platforms.notices.fake import FakeSource
from orchestrator.platforms.notices.file import NoticeFile
from orchestrator.platforms.notices.gcp import gcp
from orchestrator.platforms.notices.given import RayDrain
from orchestrator.platforms.notices.kubernetes import ApiServer, kubernetes
from orchestrator.platforms.notices.nearby import Nearby
from orchestrator.platforms.notices.standing import Change
from tests.notices.servers import Azure, Ec2, FakeServer, Gce, Kubernetes, azure_event

NODE = "node-1"
CLOCK = SystemClock()
QUICK = 0.02
ANSWER = 0.3
PATIENCE_SECONDS = 10.0
NODES, PODS = "/api/v1/nodes", "/api/v1/namespaces/jobs/pods"


class Recorder:
    """What a watcher told."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._more = threading.Condition()

    def __call__(self, change: Change) -> None:
        with self._more:
            self.changes.append(change)
            self._more.notify_all()

    def wait(self, count: int) -> list[Change]:
        """All changes, once there are `count`; fails when there are more or they do not come."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.changes) >= count, PATIENCE_SECONDS), self.changes
            assert len(self.changes) == count, self.changes
            return list(self.changes)


class Counted(Source):
    """A source whose looks can be waited for."""

    def __init__(self, source: Source) -> None:
        self.name, self.every_seconds = source.name, source.every_seconds
        self._source = source
        self._ended = threading.Condition()
        self._looks = self._failed = 0

    def probe(self) -> None:
        self._source.probe()

    def look(self) -> View:
        failed = True
        try:
            view = self._source.look()
            failed = False
            return view
        finally:
            with self._ended:
                self._looks += 1
                self._failed += failed
                self._ended.notify_all()

    def interrupt(self) -> None:
        self._source.interrupt()

    def handled(self, node: str) -> None:
        self._source.handled(node)

    def wait_looks(self, count: int, stir: Callable[[], None]) -> None:
        """Until `count` more looks have ended; `stir` makes one end that waits for something to happen."""
        target = self._looks + count
        self._wait(lambda: self._looks >= target, stir)

    def wait_failed(self, count: int, stir: Callable[[], None]) -> None:
        """Until `count` more looks have failed."""
        target = self._failed + count
        self._wait(lambda: self._failed >= target, stir)

    def _wait(self, until: Callable[[], bool], stir: Callable[[], None]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            stir()
            with self._ended:
                if self._ended.wait_for(until, 0.1):
                    return
            assert time.monotonic() < deadline, "it does not come"


def from_now(seconds: float) -> int:
    return CLOCK.now_ns() + round(seconds * NANOSECONDS_PER_SECOND)


def _known(seconds: float) -> float | None:
    """A window; heirs may have none."""
    return seconds


class Rig(ABC):
    """`appear` and `withdraw` concern one notice; `stir` makes a source look that waits for a change."""

    kind: NoticeKind
    name: str
    window_seconds: float | None
    """From the notice to its deadline, at most; None: it has none."""
    server: FakeServer | None = None

    def __init__(self, tmp_path: Path) -> None:
        self.closing = ExitStack()
        self.source = Counted(self.make(tmp_path))

    @abstractmethod
    def make(self, tmp_path: Path) -> Source: ...

    @abstractmethod
    def appear(self) -> None: ...

    @abstractmethod
    def withdraw(self) -> None: ...

    def stir(self) -> None:  # noqa: B027 - nothing is needed where looks end by themselves
        """Make a look end that waits for something to happen."""


class AwsRig(Rig):
    name, kind, window_seconds = "aws", NoticeKind.INTERRUPTION, _known(120.0)
    path = "spot/instance-action"
    number = 0

    def make(self, tmp_path: Path) -> Source:
        self.server: Ec2 = self.closing.enter_context(Ec2())
        every = {"every_seconds": QUICK, "maintenance_seconds": QUICK, "answer_seconds": ANSWER}
        return aws(CLOCK, self.server.address, **every)[self.number]

    def document(self) -> Any:
        return {"action": "terminate", "time": to_rfc3339(from_now(120.0))[:19] + "Z"}

    def appear(self) -> None:
        self.server.put(self.path, self.document())

    def withdraw(self) -> None:
        self.server.remove(self.path)


class RebalanceRig(AwsRig):
    name, kind, window_seconds = "aws-rebalance", NoticeKind.REBALANCE, None
    path, number = "events/recommendations/rebalance", 1

    def document(self) -> Any:
        return {"noticeTime": to_rfc3339(from_now(-1.0))[:19] + "Z"}


class AwsMaintenanceRig(AwsRig):
    name, kind, window_seconds = "aws-maintenance", NoticeKind.MAINTENANCE, 86_400.0 * 20_000
    path, number = "events/maintenance/scheduled", 2

    def document(self) -> Any:
        return [
            {
                "NotBefore": "21 Jan 2039 09:00:43 GMT",
                "Code": "system-reboot",
                "Description": "scheduled reboot",
                "EventId": "instance-event-0d59937288b749b32",
                "NotAfter": "21 Jan 2039 09:17:23 GMT",
                "State": "active",
            }
        ]

    def withdraw(self) -> None:
        self.server.put(self.path, [{**event, "State": "canceled"} for event in self.document()])


class GcpRig(Rig):
    name, kind, window_seconds = "gcp", NoticeKind.INTERRUPTION, 30.0
    number, key, quiet, loud = 0, "preempted", "FALSE", "TRUE"

    def make(self, tmp_path: Path) -> Source:
        self.server: Gce = self.closing.enter_context(Gce())
        return gcp(CLOCK, self.server.address, every_seconds=QUICK, wait_seconds=1, answer_seconds=ANSWER)[self.number]

    def appear(self) -> None:
        self.server.put(self.key, self.loud)

    def withdraw(self) -> None:
        self.server.put(self.key, self.quiet)

    def stir(self) -> None:
        self.server.put(self.key, self.server.values[self.key])  # the same value with another ETag


class GcpMaintenanceRig(GcpRig):
    name, kind, window_seconds = "gcp-maintenance", NoticeKind.MAINTENANCE, 60.0
    number, key, quiet, loud = 1, "maintenance-event", "NONE", "TERMINATE_ON_HOST_MAINTENANCE"


class AzureRig(Rig):
    name, kind, window_seconds = "azure", NoticeKind.INTERRUPTION, 30.0

    def make(self, tmp_path: Path) -> Source:
        self.server: Azure = self.closing.enter_context(Azure())
        return ScheduledEvents(CLOCK, self.server.address, every_seconds=QUICK, answer_seconds=ANSWER)

    def appear(self) -> None:
        self.server.put(azure_event("602d9444-d2cd-49c7-8624-8643e7171297", Resources=["pool_7", "POOL_0"]))

    def withdraw(self) -> None:
        self.server.put()

    def stir(self) -> None:
        self.server.put(*self.server.events)


class KubernetesRig(Rig):
    name, kind, window_seconds = "kubernetes", NoticeKind.INTERRUPTION, _known(15.0)
    path, object_name, number = NODES, "gke-pool-1", 0
    environ = {"NODE_NAME": "gke-pool-1", "POD_NAME": "tj-worker-3", "POD_NAMESPACE": "jobs"}  # noqa: RUF012 - not changed

    def make(self, tmp_path: Path) -> Source:
        self.server: Kubernetes = self.closing.enter_context(Kubernetes())
        self.withdraw()

        def connect() -> ApiServer:
            return ApiServer(Nearby(self.server.address, CLOCK, answer_seconds=ANSWER), lambda: self.server.token)

        return kubernetes(self.environ, CLOCK, NODE, connect)[self.number]

    def appear(self) -> None:
        taint = {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}
        self.server.put(self.path, self.object_name, spec={"taints": [taint]})

    def withdraw(self) -> None:
        self.server.put(self.path, self.object_name, spec={})

    def stir(self) -> None:
        found = self.server.objects[self.path][self.object_name]
        fields = {key: value for key, value in found.items() if key != "metadata"}
        version = {"metadata": {"annotations": {"touched": "again"}}}
        self.server.put(self.path, self.object_name, **fields, **version)


class PodRig(KubernetesRig):
    name, kind, window_seconds = "kubernetes-pod", NoticeKind.TERMINATION, None
    path, object_name, number = PODS, "tj-worker-3", 1

    def appear(self) -> None:
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
        self.server.put(self.path, self.object_name, status={"conditions": [{"type": "Ready"}, condition]})


class FileRig(Rig):
    name, kind, window_seconds = "file", NoticeKind.DRAIN, 60.0

    def make(self, tmp_path: Path) -> Source:
        self.path = tmp_path / "notices.json"
        return NoticeFile(self.path, QUICK)

    def appear(self) -> None:
        self.path.write_text(json.dumps({"kind": "drain", "in_seconds": 60}), encoding="utf-8")

    def withdraw(self) -> None:
        self.path.unlink()


class RayRig(Rig):
    name, kind, window_seconds = "ray", NoticeKind.DRAIN, 20.0

    def make(self, tmp_path: Path) -> Source:
        self.draining = {"f0e1": from_now(5.0) // 1_000_000}  # of another job
        return RayDrain({"a1b2": NODE}.get, lambda: self.draining, QUICK)

    def appear(self) -> None:
        self.draining = {**self.draining, "a1b2": from_now(20.0) // 1_000_000}

    def withdraw(self) -> None:
        self.draining = {key: value for key, value in self.draining.items() if key != "a1b2"}


class FakeRig(Rig):
    name, kind, window_seconds = "fake", NoticeKind.INTERRUPTION, 120.0

    def make(self, tmp_path: Path) -> Source:
        self.fake = FakeSource()
        return self.fake

    def appear(self) -> None:
        self.fake.show("one", Sighting(NoticeKind.INTERRUPTION, from_now(120.0)))

    def withdraw(self) -> None:
        self.fake.withdraw("one")

    def stir(self) -> None:
        self.fake.fail(None)


RIGS: tuple[type[Rig], ...] = (
    AwsRig,
    RebalanceRig,
    AwsMaintenanceRig,
    GcpRig,
    GcpMaintenanceRig,
    AzureRig,
    KubernetesRig,
    PodRig,
    FileRig,
    RayRig,
    FakeRig,
)
SERVED: tuple[type[Rig], ...] = (AwsRig, GcpRig, AzureRig, KubernetesRig)
"""One of each that speaks HTTP."""
