"""The machines of a soak: agents of this machine, the cable between them and the driver, and the driver itself.

Every process begins with the same mark in its environment, by which what is left of a run is found afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import REPOSITORY
from orchestrator.platforms.engines.native.processes import LocalAgents, Node

MARK = "SOAK_MARK"
LOOK_SECONDS = 0.02


class Cable:
    """Between the agents and whoever is the driver now. The cable of one agent can be cut: nothing passes any more, and
    what was sent lies in it until it is mended, or is broken off."""

    def __init__(self) -> None:
        self.target: tuple[str, int] | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._gates: dict[str, threading.Event] = {}
        self._lines: dict[str, list[socket.socket]] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, agent: str) -> bool:
        """Whether the agent had a connection."""
        self._gate(agent).clear()
        return bool(self._lines.get(agent))

    def mend(self, agent: str) -> None:
        self._gate(agent).set()

    def break_off(self, agent: str) -> bool:
        """Both sides see its connection end; the agent may connect again. Whether there was one."""
        lines = list(self._lines.get(agent, ()))
        for line in lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        return bool(lines)

    def close(self) -> None:
        self._listener.close()
        for agent in list(self._lines):
            self.mend(agent)
            self.break_off(agent)

    def _gate(self, agent: str) -> threading.Event:
        if agent not in self._gates:
            self._gates[agent] = threading.Event()
            self._gates[agent].set()
        return self._gates[agent]

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        """The hello says whose connection it is."""
        with line, contextlib.suppress(OSError, ValueError):
            line.settimeout(None)
            head = _exactly(line, 4)
            hello = _exactly(line, struct.unpack(">I", head)[0])
            agent = json.loads(hello)["agent"]
            gate = self._gate(agent)
            gate.wait()
            if self.target is None:
                return
            with socket.create_connection(self.target) as onward:
                onward.sendall(head + hello)
                ends = [line, onward]
                self._lines.setdefault(agent, []).extend(ends)
                back = threading.Thread(target=_pump, args=(onward, line, gate), daemon=True)
                back.start()
                _pump(line, onward, gate)
                back.join()
                self._lines[agent] = [end for end in self._lines[agent] if end not in ends]


def _exactly(line: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = line.recv(size - len(data))
        if not more:
            raise OSError("it ended")
        data += more
    return data


def _pump(source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
    try:
        while data := source.recv(1 << 18):
            gate.wait()
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Cluster:
    """Nodes of one slot, and a driver that can be lost. `told` has what the engine said, in order."""

    def __init__(self, job: str, folder: Path, nodes: int, size: int) -> None:
        self.mark = secrets.token_hex(8)
        self.environ = {**os.environ, MARK: self.mark, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.cable = Cable()
        self.agents = LocalAgents(self.environ, (), term_grace_seconds=30.0)
        self.told: list[dict[str, Any]] = []
        self.outcome: dict[str, Any] | None = None
        self.wanted_nodes = nodes
        self.leaving: set[str] = set()
        self.size = size
        self._job, self._folder = job, folder
        self._token = secrets.token_urlsafe(24)
        self._looks: dict[int, dict[str, Any]] = {}
        self._look_number = 0
        self.driver: subprocess.Popen[str] = self._drive(adopt=False)
        self.agents.start(self.cable.address, self._token)
        self.refill()

    # --- the driver ---

    def _drive(self, *, adopt: bool) -> subprocess.Popen[str]:
        with open(self._folder / "driver.log", "a") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "benchmarks._soak_driver"],
                cwd=REPOSITORY,
                env=self.environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.driver = driver
        threading.Thread(target=self._listen, args=(driver,), daemon=True).start()
        begin = {"job": self._job, "folder": str(self._folder), "token": self._token, "adopt": adopt, "size": self.size}
        self.command(begin)
        return driver

    def command(self, document: Mapping[str, Any]) -> None:
        assert self.driver.stdin is not None
        with contextlib.suppress(OSError):  # it was killed just now
            self.driver.stdin.write(json.dumps(document) + "\n")
            self.driver.stdin.flush()

    def _listen(self, driver: subprocess.Popen[str]) -> None:
        assert driver.stdout is not None
        for line in driver.stdout:
            if not line.endswith("\n"):
                return  # it was killed while it spoke
            said = {**json.loads(line), "heard_ns": time.monotonic_ns()}
            match said["kind"]:
                case "address":
                    self.cable.target = tuple(said["address"])
                case "look":
                    self._looks[said["number"]] = said
                case "dismiss":
                    self.told.append(said)
                    threading.Thread(target=self.agents.dismiss, args=(said["agent"], said["why"]), daemon=True).start()
                case "outcome":
                    self.outcome = said
                case _:
                    self.told.append(said)

    def kill_driver(self) -> bool:
        """The driver is killed, and another begins. Whether it lived."""
        lived = self.driver.poll() is None
        self.cable.target = None
        _end_family(self.driver.pid)
        self.driver.wait()
        self._drive(adopt=True)
        return lived

    def look(self, seconds: float = 1.0) -> dict[str, Any]:
        """What the gang is doing; empty when the driver does not answer."""
        self._look_number += 1
        number = self._look_number
        self.command({"look": number})
        end = time.monotonic() + seconds
        while number not in self._looks and time.monotonic() < end:
            time.sleep(LOOK_SECONDS / 4)
        return self._looks.pop(number, {})

    # --- nodes ---

    def refill(self) -> None:
        """Start nodes for those that are gone or about to go."""
        for node in self.nodes():
            if not node.alive:
                node.process.wait()
                self.agents.nodes.pop(node.name, None)
                self.leaving.discard(node.name)
        staying = [node for node in self.nodes() if node.name not in self.leaving]
        for _ in range(self.wanted_nodes - len(staying)):
            self.agents.add(1)

    def nodes(self) -> list[Node]:
        return list(self.agents.nodes.values())

    # --- what was told ---

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.told) if event["kind"] == kind]

    def step(self) -> int:
        """The newest step that was ever made."""
        return max((event["step"] for event in self.of_kind("step")), default=0)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true in time. Nodes that go by themselves meanwhile are replaced."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.outcome is not None:
                return False
            if self.driver.poll() is not None:
                return False
            self.refill()
            time.sleep(LOOK_SECONDS)
        return True

    # --- the end ---

    def stop(self, seconds: float) -> None:
        """Ask for the end, and wait for all of it."""
        for node in self.nodes():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
                    process.send_signal(signal.SIGCONT)
        self.command({"stop": True})
        try:
            self.driver.wait(seconds)
        except subprocess.TimeoutExpired:
            self.told.append({"kind": "overdue", "look": self.look()})

    def close(self) -> None:
        """End whatever is left."""
        if self.driver.poll() is None:
            _end_family(self.driver.pid)
        self.driver.wait()
        for node in self.nodes():
            if node.alive:
                node.kill()
        self.agents.stop()
        self.cable.close()

    def left(self) -> Iterator[psutil.Process]:
        """Processes that carry the mark."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                    yield process


def _end_family(pid: int) -> None:
    """The process alone, by SIGKILL: what it started must see to its own end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
