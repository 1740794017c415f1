"""The notice drill: 1,000 notices from fake AWS, GCP, Azure and Kubernetes servers at random times.

    python benchmarks/notices.py [--samples N] [--nodes N] [--notices N] [--seed N]

Each of 100 nodes has a server of its own that speaks the real paths, headers and payloads (tests/notices/servers.py) and a
watcher of its own, as an agent has, with the intervals it has in service. Notices come and are taken back ten times a node, at
random moments within their own rhythm, so that they fall anywhere between two questions. Nothing is sped up: many servers
side by side take the place of waiting.

Measured for each notice: how long after the server first showed it the agent was told; how much of its window (AWS 120 s, GCP
and Azure 30 s, Kubernetes on GKE 15 s) was left then; and how far the told deadline lies behind the true one. A notice that is
told twice, late, or not at all is counted, and so is a withdrawal.
"""

from __future__ import annotations

import heapq
import random
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.harness import MILLISECONDS, Samples, Verdict, arguments, conclude, describe, percentile
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, SystemClock, seconds_between, to_rfc3339
from orchestrator.platforms.notices import Change, Source, Watcher
from orchestrator.platforms.notices.aws import aws
from orchestrator.platforms.notices.azure import ScheduledEvents
from orchestrator.platforms.notices.gcp import gcp
from orchestrator.platforms.notices.kubernetes import ApiServer, kubernetes
from orchestrator.platforms.notices.nearby import Nearby
from tests.notices.servers import Azure, Ec2, FakeServer, Gce, Kubernetes, azure_event

SEEN_SECONDS = 2.0
STANDS_SECONDS = 4.0
"""At least, before it is taken back: longer than it may take to be seen."""
SPREAD_SECONDS = 4.0
SETTLE_SECONDS = 5.0
CLOCK = SystemClock()


class Node(ABC):
    """A machine of one cloud: its server, its watcher, and what was told. Times are of the monotonic clock, in ns."""

    family: str
    window_seconds: float

    def __init__(self, number: int, closing: ExitStack) -> None:
        self.name = f"{self.family}-{number}"
        self.server = closing.enter_context(self.serve())
        self.shown: list[tuple[int, int]] = []
        """When each notice was shown, and its true deadline (wall clock)."""
        self.told: list[tuple[int, Change]] = []
        self.watcher = Watcher(self.sources(), self._hear, CLOCK, self.name)
        closing.callback(self.watcher.stop)

    def _hear(self, change: Change) -> None:
        self.told.append((CLOCK.monotonic_ns(), change))

    def begin(self) -> None:
        deadline_ns = CLOCK.now_ns() + round(self.window_seconds * NANOSECONDS_PER_SECOND)
        self.shown.append((CLOCK.monotonic_ns(), deadline_ns))
        self.show(deadline_ns)

    @abstractmethod
    def serve(self) -> FakeServer: ...

    @abstractmethod
    def sources(self) -> Sequence[Source]: ...

    @abstractmethod
    def show(self, deadline_ns: int) -> None: ...

    @abstractmethod
    def end(self) -> None: ...


class AwsNode(Node):
    family, window_seconds = "aws", 120.0
    server: Ec2

    def serve(self) -> Ec2:
        return Ec2()

    def sources(self) -> Sequence[Source]:
        return aws(CLOCK, self.server.address)

    def show(self, deadline_ns: int) -> None:
        self.server.put("spot/instance-action", {"action": "terminate", "time": to_rfc3339(deadline_ns)[:19] + "Z"})

    def end(self) -> None:
        self.server.remove("spot/instance-action")


class GcpNode(Node):
    family, window_seconds = "gcp", 30.0
    server: Gce

    def serve(self) -> Gce:
        return Gce()

    def sources(self) -> Sequence[Source]:
        return gcp(CLOCK, self.server.address)

    def show(self, deadline_ns: int) -> None:
        self.server.put("preempted", "TRUE")

    def end(self) -> None:
        self.server.put("preempted", "FALSE")


class AzureNode(Node):
    family, window_seconds = "azure", 30.0
    server: Azure

    def serve(self) -> Azure:
        return Azure()

    def sources(self) -> Sequence[Source]:
        return [ScheduledEvents(CLOCK, self.server.address)]

    def show(self, deadline_ns: int) -> None:
        self.server.put(azure_event(f"event-{len(self.shown)}", in_seconds=self.window_seconds))

    def end(self) -> None:
        self.server.put()


class GkeNode(Node):
    family, window_seconds = "kubernetes", 15.0
    server: Kubernetes

    def serve(self) -> Kubernetes:
        server = Kubernetes()
        server.put("/api/v1/nodes", "n", spec={})
        server.put("/api/v1/namespaces/jobs/pods", "p")
        return server

    def sources(self) -> Sequence[Source]:
        environ = {"NODE_NAME": "n", "POD_NAME": "p", "POD_NAMESPACE": "jobs"}
        return kubernetes(environ, CLOCK, self.name, self._connect)

    def _connect(self) -> ApiServer:
        return ApiServer(Nearby(self.server.address, CLOCK), lambda: self.server.token)

    def show(self, deadline_ns: int) -> None:
        taint = {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}
        self.server.put("/api/v1/nodes", "n", spec={"taints": [taint]})

    def end(self) -> None:
        self.server.put("/api/v1/nodes", "n", spec={})


KINDS: tuple[type[Node], ...] = (AwsNode, GcpNode, AzureNode, GkeNode)


def drill(nodes: Sequence[Node], notices: int, rng: random.Random) -> None:
    """Show and take back `notices` on every node, each at its moment."""
    plan: list[tuple[float, int, Callable[[], None]]] = []
    for node in nodes:
        at = rng.uniform(1.0, 1.0 + SPREAD_SECONDS)
        for _ in range(notices):
            heapq.heappush(plan, (at, len(plan), node.begin))
            at += STANDS_SECONDS + rng.uniform(0.0, 1.0)
            heapq.heappush(plan, (at, len(plan), node.end))
            at += SEEN_SECONDS + rng.uniform(0.0, SPREAD_SECONDS)
    begun_ns, never = CLOCK.monotonic_ns(), threading.Event()
    while plan:
        at, _, act = heapq.heappop(plan)
        never.wait(max(0.0, at - seconds_between(begun_ns, CLOCK.monotonic_ns())))
        act()
    never.wait(SETTLE_SECONDS)


def figures(nodes: Sequence[Node]) -> dict[str, Any]:
    """Of one family: what was shown, told and withdrawn, and of each told notice latency, what was left, and the error."""
    seen_ms, left_seconds, late_seconds, wrong = [], [], [], 0
    for node in nodes:
        told = [(at, change.notice) for at, change in node.told if not change.withdrawn]
        order = [change.withdrawn for _, change in node.told]
        if order != [False, True] * len(node.shown):
            wrong += 1
            print(f"{node.name}: shown {len(node.shown)}, told {order}")
            continue
        for (shown_ns, true_ns), (told_ns, notice) in zip(node.shown, told, strict=True):
            latency = seconds_between(shown_ns, told_ns)
            assert notice.deadline_ns is not None
            seen_ms.append(round(latency * MILLISECONDS, 1))
            left_seconds.append(round(node.window_seconds - latency, 3))
            late_seconds.append(round(seconds_between(true_ns, notice.deadline_ns), 3))
    return {
        "window_seconds": nodes[0].window_seconds,
        "shown": sum(len(node.shown) for node in nodes),
        "nodes_with_wrong_tale": wrong,
        "seen_ms": seen_ms,
        "left_seconds_min": min(left_seconds, default=None),
        "deadline_late_seconds_max": max(late_seconds, default=None),
    }


def take(samples: Samples, kind_of_sample: str, nodes: int, notices: int, seed: int) -> None:
    with samples.sample(kind_of_sample) as sample, ExitStack() as closing:
        made = [kind(number, closing) for kind in KINDS for number in range(nodes)]
        begun_ns = CLOCK.monotonic_ns()
        drill(made, notices, random.Random(seed))
        sample["seed"] = seed
        sample["wall_seconds"] = round(seconds_between(begun_ns, CLOCK.monotonic_ns()), 1)
        for kind in KINDS:
            sample[kind.family] = figures([node for node in made if isinstance(node, kind)])


def report(samples: Samples, kind_of_sample: str, wanted: int) -> int:
    rows = [row["sample"] for row in samples.rows(kind_of_sample)]
    every, shown, inside = [], 0, 0
    for kind in KINDS:
        mine = [row[kind.family] for row in rows]
        seen = [value for each in mine for value in each["seen_ms"]]
        every += seen
        shown += sum(each["shown"] for each in mine)
        inside += sum(value <= SEEN_SECONDS * MILLISECONDS for value in seen)
        if seen:
            print(
                f"{kind.family}, window {kind.window_seconds:g} s: seen after {describe(seen, 'ms')}, {max(seen):.0f} at most"
            )
            left = min(each["left_seconds_min"] for each in mine if each["seen_ms"])
            late = max(each["deadline_late_seconds_max"] for each in mine if each["seen_ms"])
            print(f"  {left:.2f} s of it left at least; the told deadline behind the true one by {late:.2f} s at most")
    verdicts = [
        Verdict("told once, and taken back once", 1.0, len(every) / max(shown, 1), "", shown, "share", at_most=False),
        Verdict("notices in all", wanted, shown, "", shown, "sum", at_most=False),
        Verdict("seen", SEEN_SECONDS, max(every, default=float("inf")) / MILLISECONDS, "s", len(every), "maximum"),
        Verdict("windows less two seconds left", 1.0, inside / max(shown, 1), "", shown, "share", at_most=False),
    ]
    if every:
        print(f"all: seen after {describe(every, 'ms')}; p99.9 {percentile(every, 99.9):.0f} ms")
    return conclude(verdicts)


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--nodes", type=int, default=25, help="nodes of each of the four kinds (default 25)")
    parser.add_argument("--notices", type=int, default=10, help="notices a node (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    given = parser.parse_args()
    samples = Samples("notices")
    wanted = given.nodes * given.notices * len(KINDS)
    kind = f"{wanted} notices"
    for number in samples.missing(kind, given.samples):
        take(samples, kind, given.nodes, given.notices, given.seed + number)
    return report(samples, kind, given.samples * wanted)


if __name__ == "__main__":
    sys.exit(main())
