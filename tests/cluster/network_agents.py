"""The native engine's agents on the nodes of a `Network`: one agent a node, the coordinator outside."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from orchestrator.platforms.engines.native.agent import AgentConfig, encode_config
from orchestrator.platforms.engines.native.messages import Address
from orchestrator.platforms.engines.native.processes import AGENT
from tests.cluster.network import Network, Node

LEAVE_SECONDS = 10.0


class NetworkAgents:
    """A launcher (see coordinator). Nodes come and go by the test's hand, not by what is wanted."""

    def __init__(self, network: Network, environ: Mapping[str, str], nodes: int, orphan_seconds: float = 60.0) -> None:
        self._network = network
        # gloo takes the address of the machine's name otherwise, which is no node's.
        self._environ = {**environ, "GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "eth0"}
        self._count = nodes
        self._orphan_seconds = orphan_seconds
        self._lock = threading.Lock()
        self._to: tuple[Address, str] | None = None
        self._agents: list[subprocess.Popen[bytes]] = []
        self.nodes: dict[str, Node] = {}
        """By the name that the engine knows them by."""
        self.wanted: list[int] = []

    def start(self, address: Address, token: str) -> None:
        self._to = (address, token)
        for _ in range(self._count):
            self.add()

    def add(self) -> str:
        """One more node with one slot; its name."""
        with self._lock:
            assert self._to is not None, "not started"
            address, token = self._to
            node = self._network.add_node()
            self.nodes[node.name] = node
            config = AgentConfig(
                agent=f"agent-{node.name}",
                node=node.name,
                host=node.address,
                slots=1,
                token=token,
                coordinator=address,
                orphan_seconds=self._orphan_seconds,
            )
            process: subprocess.Popen[bytes] = node.start(
                [sys.executable, "-m", AGENT], environ=self._environ, stdin=subprocess.PIPE
            )
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(encode_config(config))
            self._agents.append(process)
            return node.name

    def want(self, slots: int) -> None:
        self.wanted.append(slots)

    def dismiss(self, agent: str, why: str) -> None:
        """A node that is cut off cannot be reached, and this one may be."""

    def stop(self) -> None:
        """Agents were told to end; what does not is killed, with its node."""
        for process, node in zip(self._agents, self.nodes.values(), strict=True):
            node.thaw()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_SECONDS)
            node.kill()
            process.wait()


def pids_left(nodes: Sequence[Node]) -> list[int]:
    return [pid for node in nodes for pid in node.pids()]
