"""Agents as processes of this machine: the one node of a local job, or several that are played on one machine.

Each agent leads a session of its own and is no child that dies with its parent: when the driver goes, the agents keep their
workers going until another comes (see `agent`). With a `folder`, the coordinator's address is kept in a file there, which
agents read before each try to connect; a driver that comes back (with the job's old token, and no `slots` of its own) writes
its address there.

Limits: all "nodes" share this machine's memory, processors and clock; only their processes are apart. `stop` sees to the end
of the agents that this object started; those of a driver before it end by the coordinator's goodbye alone.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.platforms.engines.native.agent import AgentConfig, encode_config
from orchestrator.platforms.engines.native.messages import Address

AGENT = "orchestrator.platforms.engines.native.agent"
LEAVE_SECONDS = 10.0
"""For agents that were told to end to be gone, with all of theirs, before they are killed."""


@dataclass(frozen=True, slots=True)
class Node:
    """One agent's process."""

    name: str
    slots: int
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """As the machine would go: at once, with all its workers and its memory. Returns when nothing of it is left."""
        family = family_of(self.pid)
        self.process.kill()
        self.process.wait()
        see_off(family)


class LocalAgents:
    """A launcher of agents (see `coordinator.Launcher`); safe to use from several threads."""

    def __init__(
        self,
        environ: Mapping[str, str],
        slots: Sequence[int],
        *,
        host: str = "127.0.0.1",
        gpus: bool = False,
        folder: Path | None = None,
        orphan_seconds: float = 600.0,
        term_grace_seconds: float = 25.0,
        notices: str = "",
    ) -> None:
        """`slots`: of each node. `environ`: what agents and workers begin with. `notices`: the sources that agents watch,
        as orchestrator.platforms.notices.choose takes them; `{node}` in it becomes the node's name."""
        self._environ = environ
        self._slots = slots
        self._host = host
        self._gpus = gpus
        self._file = None if folder is None else folder / "coordinator"
        self._orphan_seconds = orphan_seconds
        self._term_grace_seconds = term_grace_seconds
        self._notices = notices
        self._lock = threading.Lock()
        self._address: Address | None = None
        self._token = ""
        self._started = 0
        self._stopped = False
        self.nodes: dict[str, Node] = {}
        """By name; those that have ended stay until `stop`."""

    def start(self, address: Address, token: str) -> None:
        """Start the agents; they come to the coordinator at `address`, and know the job by its token."""
        with self._lock:
            self._address, self._token, self._stopped = address, token, False
            self._write_file(address)
        for slots in self._slots:
            self.add(slots)

    def add(self, slots: int) -> Node:
        """One more node."""
        with self._lock:
            assert self._address is not None, "not started"
            name = f"node-{self._started}"
            self._started += 1
            config = AgentConfig(
                agent=agent_name(name),
                node=name,
                host=self._host,
                slots=slots,
                token=self._token,
                coordinator=self._address,
                coordinator_file=None if self._file is None else str(self._file),
                orphan_seconds=self._orphan_seconds,
                term_grace_seconds=self._term_grace_seconds,
                notices=self._notices.replace("{node}", name),
                gpus=self._gpus,
            )
            process = subprocess.Popen(
                [sys.executable, "-m", AGENT],
                stdin=subprocess.PIPE,
                env={**self._environ, "PYTHONPATH": os.pathsep.join(own_path())},
                start_new_session=True,
            )
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(encode_config(config))  # the token is no argument: those are seen by everybody
            node = self.nodes[name] = Node(name, slots, process)
            return node

    def want(self, slots: int) -> None:
        """So many slots could be used. Nodes of the last one's size are added while living ones have fewer; none is taken
        away: which one could go is the coordinator's to say."""
        size = max(1, self._slots[-1])
        while not self._stopped and sum(node.slots for node in self.nodes.values() if node.alive) < slots:
            self.add(size)

    def dismiss(self, agent: str, why: str) -> None:
        """End an agent that does not answer, and all that is its."""
        with self._lock:
            found = [node for node in self.nodes.values() if agent == agent_name(node.name)]
        for node in found:
            node.kill()

    def stop(self) -> None:
        """Wait until the agents, which were told to end, are gone with all that is theirs; kill what does not go."""
        self._stopped = True
        with self._lock:
            nodes = list(self.nodes.values())
        families = {node.name: family_of(node.pid) for node in nodes}
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.process.wait(LEAVE_SECONDS)
            node.process.kill()
            node.process.wait()
            see_off(families[node.name])
        with self._lock:
            self.nodes.clear()
            if self._file is not None:
                self._file.unlink(missing_ok=True)

    def _write_file(self, address: Address) -> None:
        if self._file is not None:
            aside = self._file.with_suffix(".partial")
            aside.write_text(f"{address[0]} {address[1]}\n")
            aside.replace(self._file)


def own_path() -> list[str]:
    """Where this process finds modules beside the interpreter's own: the loop's may be there."""
    return [part for part in sys.path if part and not part.startswith((sys.prefix, sys.base_prefix))]


def agent_name(node: str) -> str:
    return f"agent-{node}"


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all below it, itself first; empty when it is gone."""
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def see_off(family: Sequence[psutil.Process]) -> None:
    """Wait until none of them is left; kill what does not go."""
    for process in psutil.wait_procs(family, timeout=LEAVE_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=LEAVE_SECONDS)
