"""One worker as its agent keeps it: the line to its process, how it is, and what it said that the driver has not heard.

What a worker sends is numbered here, kept until the coordinator says that it heard it, and sent again after a connection
was lost; so nothing is lost or told twice over a lost driver. Kept without a limit it would fill the memory of a node whose
driver stays away: beyond a number the oldest are let go, and a line of the log says how many.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median_low
from typing import Any

from orchestrator.platforms.engines.native import lifeline
from orchestrator.platforms.engines.native.births import Process
from orchestrator.platforms.engines.native.messages import LEFT, WARMING, Frames, ProtocolError, encode
from orchestrator.policy.stragglers import SMOOTHED_STEPS

RECEIVE_BYTES = 256 * 1024
MAX_KEPT_EVENTS = 50_000
MAX_SENT_BYTES = 1024 * 1024
"""Of events in one message; one that is larger goes alone."""


class Line:
    """A socket that is read and written without blocking, by the thread that runs the selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        end: socket.socket,
        on_message: Callable[[Mapping[str, Any]], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._selector = selector
        self._socket: socket.socket | None = end
        self._frames = Frames()
        self._out = bytearray()
        self._on_message = on_message
        self._on_closed = on_closed
        end.setblocking(False)
        selector.register(end, selectors.EVENT_READ, self._ready)

    def send(self, message: Mapping[str, Any]) -> None:
        self._out += encode(message)
        self._flush()

    def hand_over(self, on_message: Callable[[Mapping[str, Any]], None], on_closed: Callable[[], None]) -> None:
        """From the next message on these hear what comes."""
        self._on_message, self._on_closed = on_message, on_closed

    def read_rest(self) -> None:
        """All that the other side wrote before it ended."""
        while self._socket is not None and self._read():
            pass

    def close(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _ready(self, mask: int) -> None:
        if self._socket is None:
            return  # closed by what was ready in the same turn
        if mask & selectors.EVENT_READ:
            self._read()
        self._flush()

    def _read(self) -> bool:
        assert self._socket is not None
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            try:
                for message in self._frames.feed(data):
                    self._on_message(message)
            except ProtocolError:  # somebody wrote into a descriptor that is not theirs: such a worker cannot be heard
                data = b""
        if not data and self._socket is not None:
            self.close()
            self._on_closed()
        return self._socket is not None

    def _flush(self) -> None:
        if self._socket is None:
            return
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()  # it is gone: reading says so
        self._selector.modify(
            self._socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0), self._ready
        )


class Outbox:
    """Events of one worker, numbered from 0."""

    def __init__(self, most: int = MAX_KEPT_EVENTS) -> None:
        self._most = most
        self._events: deque[Mapping[str, Any]] = deque()
        self._sizes: deque[int] = deque()
        self._first = 0
        self._sent = 0

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Mapping[str, Any]) -> None:
        self._events.append(event)
        self._sizes.append(len(encode(event)))
        if len(self._events) > self._most:
            self._let_go(max(2, self._most // 10), event)

    def heard(self, count: int) -> None:
        """The coordinator has the first `count` of all."""
        while self._first < count and self._events:
            self._events.popleft()
            self._sizes.popleft()
            self._first += 1
        self._sent = max(self._sent, self._first)

    def rewind(self) -> None:
        """The connection is another: what was not heard is to be sent again."""
        self._sent = self._first

    def batch(self) -> tuple[int, list[Mapping[str, Any]]] | None:
        """The next events to send with the number of the first; None when all are on their way."""
        start = self._sent - self._first
        count = size = 0
        for each in islice(self._sizes, start, None):
            size += each
            if count and size > MAX_SENT_BYTES:
                break
            count += 1
        if not count:
            return None
        first, self._sent = self._sent, self._sent + count
        return first, list(islice(self._events, start, start + count))

    def _let_go(self, count: int, latest: Mapping[str, Any]) -> None:
        """The oldest `count` make room for one that says so; the numbers of the others stay."""
        gone = sum(event.get("let_go", 1) for event in islice(self._events, count))
        for _ in range(count):
            self._events.popleft()
            self._sizes.popleft()
        lines = [f"({gone} events were dropped here: nobody took them for too long)"]
        rank, at_ns = latest.get("rank"), latest.get("at_ns")
        told = {"kind": "log", "rank": rank, "lines": lines, "at_ns": at_ns, "let_go": gone}
        self._events.appendleft(told)
        self._sizes.appendleft(len(encode(told)))
        self._first += count - 1
        self._sent = max(self._sent, self._first)


@dataclass(slots=True, eq=False)
class Dump:
    """A stack dump that was asked for."""

    start: int
    """Bytes of the stacks file before."""
    size: int
    """Bytes at the last look."""
    until_ns: int


@dataclass(slots=True, eq=False)
class Worker:
    """See the module. Times are of the monotonic clock."""

    worker: str
    line: Line
    stacks: int
    """An anonymous file where the process writes its stacks."""
    loop: str
    heard_ns: int
    """When it last said anything."""
    process: Process | None = None
    state: str = WARMING
    generation: int = 0
    rank: int | None = None
    world_size: int | None = None
    step: int | None = None
    step_at_ns: int = 0
    starved_ns: int = 0
    """For a processor, as `look` found it; from `starved_from_ns` on, which is None until it has looked."""
    starved_from_ns: int | None = None
    stopped_from_ns: int | None = None
    """Since when every `look` has found it stopped."""
    own_ns: deque[int] = field(default_factory=lambda: deque(maxlen=SMOOTHED_STEPS))
    """Its own work in its newest steps."""
    outbox: Outbox = field(default_factory=Outbox)
    speaks: bool = False
    """Its process has said something: from then on it also heeds the signal for a dump."""
    told: Mapping[str, Any] | None = None
    """How it ended, in its own words."""
    farewell: Mapping[str, Any] | None = None
    """The `left` message, once there is one; it follows the last event."""
    farewell_sent: bool = False
    doom: str | None = None
    """Why we ended it."""
    leave_by_ns: int | None = None
    """A process that should be gone by then is killed."""
    late: str | None = None
    """What to say of it when it is killed for not having left in time."""
    pace_ns: int = 0
    """From its last step but one to its last."""
    before: Worker | None = None
    """The member that its process was until its world ended; nothing is told of this one before that was."""
    dump: Dump | None = None
    dumped: int = 0
    """Bytes of the stacks file that were told."""

    @property
    def known(self) -> bool:
        """The coordinator may hear of it."""
        if self.before is not None and self.before.farewell_sent:
            self.before = None
        return self.farewell is None and self.before is None

    @property
    def dying(self) -> bool:
        """A member that was told to end, and may not have yet."""
        return self.generation > 0 and self.told is None and (self.doom is not None or self.late is not None)

    def comes_back(self, told: Mapping[str, Any], leave_by_ns: int) -> Worker:
        """It has left its world and its process goes on: as the worker that is returned."""
        self.leaves(told)
        root, _, lives = self.worker.partition("+")
        after = replace(
            self,
            worker=f"{root}+{int(lives or 0) + 1}",
            state=WARMING,
            generation=0,
            rank=None,
            world_size=None,
            step=None,
            step_at_ns=0,
            outbox=Outbox(),
            told=None,
            leave_by_ns=leave_by_ns,
            late="it did not become fit for another world in time",
            pace_ns=0,
            stopped_from_ns=None,
            own_ns=deque(maxlen=SMOOTHED_STEPS),
            before=self,
            dump=None,
        )
        if self.process is not None:
            self.process.worker = after.worker
        return after

    def beat(self, now_ns: int) -> dict[str, Any]:
        return {
            "worker": self.worker,
            "state": self.state,
            "generation": self.generation,
            "step": self.step,
            "step_ns": now_ns - self.step_at_ns if self.step is not None else 0,
            "quiet_ns": now_ns - self.heard_ns,
            "starved_ns": self.starved_ns,
            "stopped_ns": 0 if self.stopped_from_ns is None else now_ns - self.stopped_from_ns,
            "own_ns": median_low(self.own_ns) if len(self.own_ns) == SMOOTHED_STEPS else None,
            "pid": None if self.process is None else self.process.pid,
        }

    def advances(self) -> None:
        """It made a step, or has a place: it is counted anew how long it waits for a processor."""
        self.starved_ns, self.starved_from_ns = 0, None

    def look(self, now_ns: int) -> None:
        """Called now and then. What was waited before the first look after a step is not counted."""
        if self.process is None or not self.generation:
            return
        if not lifeline.is_stopped(self.process.pid):
            self.stopped_from_ns = None
        elif self.stopped_from_ns is None:
            self.stopped_from_ns = now_ns
        waited_ns = lifeline.waited_ns(self.process.pid)
        if self.starved_from_ns is None:
            self.starved_from_ns = waited_ns
        self.starved_ns = max(0, waited_ns - self.starved_from_ns)

    def member(self, now_ns: int) -> dict[str, Any]:
        return {**self.beat(now_ns), "rank": self.rank, "world_size": self.world_size}

    def next_message(self) -> Mapping[str, Any] | None:
        """What is to be sent to the coordinator next: what the worker said, and only then how it ended."""
        if (batch := self.outbox.batch()) is not None:
            return {"kind": "events", "worker": self.worker, "first": batch[0], "events": batch[1]}
        if self.farewell is not None and not self.farewell_sent:
            self.farewell_sent = True
            return self.farewell
        return None

    def rewind(self) -> None:
        """The connection is another: what was not heard is to be sent again."""
        self.outbox.rewind()
        self.farewell_sent = False

    def end(self, why: str) -> None:
        """Kill it, with all that it started; at its birth if it has no process yet."""
        self.doom = self.doom or why
        if self.process is not None:
            self.process.kill()

    def leaves(self, told: Mapping[str, Any]) -> None:
        self.told, self.state = told, LEFT

    def stacks_since(self, start: int) -> str:
        """What was written to the stacks file from byte `start` on."""
        size = os.fstat(self.stacks).st_size
        self.dumped = size
        return os.pread(self.stacks, size - start, start).decode("utf-8", errors="replace")

    def close(self) -> None:
        self.line.close()
        os.close(self.stacks)
