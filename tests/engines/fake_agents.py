"""Agents that speak the protocol over real sockets and run no process: what a coordinator's tests drive.

Each is a thread. A worker that it is told to spawn is ready at once, one that is told its place runs at once; what it does
then is the test's to say.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.platforms.engines.native.messages import FORMING, READY, RUNNING, Address, Frames, encode

BEAT_SECONDS = 0.05
PATIENCE_SECONDS = 20.0

Message = Mapping[str, Any]


class FakeAgent:
    """`obedient=False` leaves plans lying: members stay FORMING."""

    def __init__(
        self,
        address: Address,
        token: str,
        name: str,
        slots: int = 1,
        *,
        members: tuple[Message, ...] = (),
        checkpoint: int = 0,
    ) -> None:
        self.name = name
        self.slots = slots
        self.token = token
        self.checkpoint = checkpoint
        self.workers: dict[str, dict[str, Any]] = {str(m["worker"]): dict(m) for m in members}
        self.shards: list[Message] = []
        self.got: list[Message] = []
        self.wishes: list[Message] = []
        self.heard: dict[str, int] = {}
        self.closed = threading.Event()
        self.obedient = True
        self._aborted = 0
        self._changed = threading.Condition()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._connect(address)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _connect(self, address: Address) -> None:
        self._socket = socket.create_connection(address)
        self._socket.settimeout(BEAT_SECONDS)
        self._frames = Frames()
        self._send(
            {
                "kind": "hello",
                "token": self.token,
                "agent": self.name,
                "node": f"node-{self.name}",
                "host": "127.0.0.1",
                "address": [self.name, 1],
                "slots": self.slots,
                "checkpoint": self.checkpoint,
                "members": list(self.workers.values()),
            }
        )

    # --- what a test says ---

    def say(self, message: Message) -> None:
        self._orders.put(lambda: self._send(message))

    def reconnect(self, address: Address) -> None:
        """The connection breaks; another is made."""

        def again() -> None:
            self._socket.close()
            try:
                self._connect(address)
            except OSError:  # the coordinator has ended meanwhile
                self.closed.set()

        self._orders.put(again)

    def leave(self, worker: str, reason: str = "Completed", **more: Any) -> None:
        """A worker ends."""

        def left() -> None:
            gone = self.workers.pop(worker)
            self._send({"kind": "left", "worker": worker, "generation": gone["generation"], "reason": reason, **more})

        self._orders.put(left)

    def vanish(self) -> None:
        """As a node that is lost."""
        self._orders.put(self.close)

    def close(self) -> None:
        self.closed.set()
        self._socket.close()

    def join(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    def until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_SECONDS), f"{self.name} got {self.got}"

    def running(self, generation: int | None = None) -> list[str]:
        """Its members that run."""
        return [
            name
            for name, worker in list(self.workers.items())
            if worker["state"] == RUNNING and generation in (None, worker["generation"])
        ]

    def plans(self) -> list[Message]:
        return [message for message in self.got if message["kind"] == "plan"]

    # --- the thread ---

    def _run(self) -> None:
        while not self.closed.is_set():
            while not self._orders.empty():
                self._orders.get()()
            if self.closed.is_set():
                return
            try:
                data = self._socket.recv(65_536)
            except TimeoutError:
                self._beat()
                continue
            except OSError:
                data = b""
            if not data:
                self.close()
                with self._changed:
                    self._changed.notify_all()
                return
            for message in self._frames.feed(data):
                self._obey(message)
            self._beat()
            with self._changed:
                self._changed.notify_all()

    def _obey(self, message: Message) -> None:
        self.got.append(message)
        match message["kind"]:
            case "spawn":
                spawned = str(message["worker"])
                self.workers[spawned] = {"worker": spawned, "state": READY, "generation": 0}
            case "plan" if str(message["worker"]) not in self.workers:
                gone = {"kind": "left", "worker": message["worker"], "generation": message["generation"]}
                self._send({**gone, "reason": "WorkerLost", "message": "it is gone already"})
            case "plan":
                place: dict[str, Any] = {name: message[name] for name in ("generation", "rank", "world_size")}
                state = RUNNING if self.obedient else FORMING
                self.workers[str(message["worker"])].update(place, state=state, step=0, step_ns=0)
                if message["generation"] <= self._aborted:
                    self._end(str(message["worker"]))
            case "abort":
                self._aborted = max(self._aborted, message["generation"])
                for name, worker in list(self.workers.items()):
                    if 0 < worker["generation"] <= message["generation"]:
                        self._end(name)
            case "kill":
                self._end(str(message["worker"]))
            case "wishes":
                self.wishes.append(message)
            case "heard":
                self.heard[str(message["worker"])] = int(message["count"])
            case "ask_inventory":
                self._send({"kind": "inventory", "ticket": message["ticket"], "shards": self.shards})
            case "bye":
                self.close()

    def _end(self, name: str) -> None:
        worker = self.workers.pop(name, None)
        if worker is not None:
            left = {"kind": "left", "worker": name, "generation": worker["generation"], "reason": "WorkerLost"}
            self._send({**left, "message": "ended"})

    def _beat(self) -> None:
        if not self.closed.is_set():
            self._send({"kind": "beat", "workers": list(self.workers.values())})

    def _send(self, message: Message) -> None:
        try:
            self._socket.sendall(encode(message))
        except OSError:
            self.closed.set()
