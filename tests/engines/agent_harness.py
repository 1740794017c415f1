"""A coordinator that decides nothing: agents come to it, a test says what to tell them and waits for what they say.

It runs in the test's own thread: it reads only while the test waits, and every wait is one on a condition.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from orchestrator.platforms.engines.native.messages import Frames, encode
from orchestrator.platforms.engines.native.processes import LocalAgents, family_of

DEADLINE_SECONDS = 45.0
TOKEN = "a token of tests"
LOOPS = "tests.engines.agent_loops"

Message = Mapping[str, Any]


class Connected:
    """One agent's connection."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.frames = Frames()
        self.hello: Message = {}
        self.closed = False


class Harness:
    """See the module."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self.connections: list[Connected] = []
        self.messages: list[Message] = []
        self.events: dict[str, dict[int, Any]] = {}
        self._places: Counter[int] = Counter()
        self.hear = True
        """Whether events are acknowledged."""

    @property
    def address(self) -> tuple[str, int]:
        assert self._listener is not None
        host, port = self._listener.getsockname()
        return host, port

    def listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def go_away(self) -> None:
        """As a driver that dies: listener and connections close."""
        for connection in self.connections:
            if not connection.closed:
                self._selector.unregister(connection.line)
                connection.line.close()
                connection.closed = True
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        self.go_away()
        self._selector.close()

    # --- to an agent ---

    def say(self, message: Message, connection: int = -1) -> None:
        line = self.connections[connection].line
        line.setblocking(True)
        line.sendall(encode(message))
        line.setblocking(False)

    def spawn(self, worker: str, loop: str, **more: Any) -> None:
        loop = loop if ":" in loop else f"{LOOPS}:{loop}"
        message = {"kind": "spawn", "worker": worker, "loop": loop, "assignment": {}, "env": {}, "threads": 1}
        self.say({**message, **more})

    def plan(self, worker: str, generation: int = 1, rank: int = 0, world_size: int = 1, **more: Any) -> None:
        message = {
            "kind": "plan",
            "worker": worker,
            "generation": generation,
            "rank": rank,
            "world_size": world_size,
            "local_rank": rank,
            "local_world_size": world_size,
            "store": ["127.0.0.1", 29_500],
            "attempt": 1,
            "source": None,
            "replica": None,
        }
        self.say({**message, **more})

    def wish(self, **wishes: Any) -> None:
        base = {"kind": "wishes", "checkpoint": 0, "stop": False, "checkpoint_every_seconds": None}
        self.say({**base, **wishes})

    # --- from agents ---

    def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        """Read until it is true."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (value := condition()):
            left = deadline - time.monotonic()
            said = [m for m in self.messages if m["kind"] != "beat"]
            assert left > 0, f"{what or 'nothing came of it'}: {said[-20:]}, {self.messages[-1:]}"
            for key, _ in self._selector.select(min(left, 0.05)):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
        return value

    def until_connected(self, count: int = 1) -> None:
        self.until(lambda: len(self.alive()) == count and all(c.hello for c in self.alive()), "no agent came")

    def alive(self) -> list[Connected]:
        return [connection for connection in self.connections if not connection.closed]

    def of_kind(self, kind: str) -> list[Message]:
        return [message for message in self.messages if message["kind"] == kind]

    def worker(self, name: str) -> Message:
        """The latest that a beat said of a worker; empty when the last beat does not name it."""
        beats = self.of_kind("beat")
        return next((item for item in beats[-1]["workers"] if item["worker"] == name), {}) if beats else {}

    def until_state(self, name: str, state: str) -> Message:
        found: Message = self.until(lambda: self.worker(name).get("state") == state and self.worker(name))
        return found

    def until_left(self, name: str) -> Message:
        def left() -> Message | None:
            return next((m for m in self.of_kind("left") if m["worker"] == name), None)

        found: Message = self.until(left, f"{name} did not leave")
        return found

    def until_event(self, name: str, kind: str) -> Message:
        found: Message = self.until(
            lambda: next((e for e in self.events.get(name, {}).values() if e["kind"] == kind), None), f"no {kind} event"
        )
        return found

    def run(self, worker: str, loop: str, generation: int = 1, **more: Any) -> None:
        """Spawn, wait for READY, and give it the next place of the generation."""
        self.spawn(worker, loop, **more)
        self.until_state(worker, "READY")
        self.plan(worker, generation, self._places[generation])
        self._places[generation] += 1

    def lines(self, worker: str) -> list[str]:
        events = self.events.get(worker, {})
        return [
            line for number in sorted(events) if events[number]["kind"] == "log" for line in events[number]["lines"]
        ]

    def _accept(self) -> None:
        assert self._listener is not None
        line, _ = self._listener.accept()
        line.setblocking(False)
        connection = Connected(line)
        self.connections.append(connection)
        self._selector.register(line, selectors.EVENT_READ, connection)

    def _read(self, connection: Connected) -> None:
        try:
            data = connection.line.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(connection.line)
            connection.line.close()
            connection.closed = True
            return
        for message in connection.frames.feed(data):
            if message["kind"] == "hello":
                connection.hello = message
                connection.line.sendall(
                    encode({"kind": "wishes", "checkpoint": 0, "stop": False, "checkpoint_every_seconds": None})
                )
            if message["kind"] == "events":
                events = self.events.setdefault(message["worker"], {})
                for number, event in enumerate(message["events"], message["first"]):
                    assert events.setdefault(number, event) == event, "one number was given to two events"
                if self.hear:
                    heard = message["first"] + len(message["events"])
                    connection.line.sendall(encode({"kind": "heard", "worker": message["worker"], "count": heard}))
            self.messages.append(message)


def gone(pid: int) -> bool:
    """No such process, or one that is dead and only not yet collected by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def until(condition: Callable[[], bool], what: str) -> None:
    """For what nobody tells: look again and again."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    selector = selectors.DefaultSelector()
    while not condition():
        assert time.monotonic() < deadline, what
        selector.select(0.01)
    selector.close()


@contextmanager
def one_agent(slots: Sequence[int] = (2,), **more: Any) -> Iterator[tuple[Harness, LocalAgents]]:
    """A harness, and agents that are connected to it. Nothing of them may be left afterwards."""
    harness = Harness()
    harness.listen()
    agents = LocalAgents(dict(os.environ), slots, **more)
    families: list[psutil.Process] = []
    try:
        agents.start(harness.address, TOKEN)
        harness.until_connected(len(slots))
        yield harness, agents
        families = [process for node in agents.nodes.values() for process in family_of(node.pid)]
        for connection in range(len(harness.connections)):
            if not harness.connections[connection].closed:
                with suppress(ConnectionError):  # the agent was ended in the meantime, and nobody has read that yet
                    harness.say({"kind": "bye"}, connection)
    finally:
        for node in agents.nodes.values():
            if not families and node.alive:
                node.kill()
        agents.stop()
        harness.close()
    assert not [process for process in families if process.is_running() and not gone(process.pid)]
