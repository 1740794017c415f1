"""A worker process, and its line to the agent of its node.

A worker lives for one generation: it warms up, says READY, waits for its plan, takes its place in the world that the plan
names, calls the worker loop, tells how that ended, and exits. It is made by a fork of the template, or, where that cannot
be, as a fresh process:

    python -m orchestrator.platforms.engines.native.child AGENT_PID LINE_FD STACKS_FD

A loop `package.module:function` may have `package.module:warm` beside it: `warm(assignment, env)` is called before READY,
and what it returns is handed to the loop as its third argument.

A process that was given several lives does not exit when its world has ended through no fault of its own (it regrouped, or
lost its peers) if there is `package.module:recycle` too: `recycle(assignment, value)` takes down what is left of the world,
tests that nothing is, and returns the next value for the loop. Then it says READY as another worker. When it raises, or when
the loop fails in such a life before its first step, the process exits, and a fresh one takes its place.

A worker whose agent is gone is killed by the kernel, and ends itself when its line closes: nobody is left to hear it.
The process leads a session of its own, so that what the loop starts can be ended with it. Stacks of all threads are
written to the file descriptor that the agent gave, on SIGUSR1 and when a fatal signal comes; Python need not be able to
run for that, and one thread that takes signals is enough.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import itertools
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock, SystemClock
from orchestrator.platforms.engines.base import Wishes
from orchestrator.platforms.engines.native import lifeline
from orchestrator.platforms.engines.native.causes import REGROUPED, RETIRED, WORKER_LOST
from orchestrator.platforms.engines.native.memory import Memory
from orchestrator.platforms.engines.native.messages import FORMING, READY, WARMING, Frames, ProtocolError, encode
from orchestrator.platforms.engines.native.priority import behind
from orchestrator.platforms.engines.native.severing import sever, sockets
from orchestrator.platforms.engines.rank import classify, output_heard, prepare

PULSE_SECONDS = 0.5
"""Between two signs of life of a worker that has nothing else to say. They show that threads of it run, not that it
makes progress: that is what the steps are for."""
OUT_OF_MEMORY = "OutOfMemory"
CLOSE_SECONDS = 10.0
MAX_KEPT_LINES = 20_000
"""Log lines kept while they cannot be sent; beyond it the oldest are let go, and their number is told."""
MAX_SENT_LINES = 2_000
RECEIVE_BYTES = 256 * 1024
UNPLACED = -1
"""What stands for the rank in log lines of a worker that never got a place."""


class AgentLink:
    """The `Link` of one worker (see orchestrator.training.link). A thread of its own does the talking.

    Beside the link's own methods it has `rank`, `plan` and `memory`, its part of the agent's state memory; the loop finds
    all three set.
    """

    def __init__(self, line: socket.socket, frames: Frames, clock: Clock, gone: Callable[[], None]) -> None:
        """`gone` is called by the link's thread when the line closes."""
        self.rank = UNPLACED
        self.plan: Mapping[str, Any] | None = None
        self.memory: Memory | None = None
        self.moved = False
        """It has made progress in this life."""
        self.cut = False
        """The agent has cut it off from its peers."""
        self._known: frozenset[str] = frozenset()
        self._line = line
        self._frames = frames
        self._clock = clock
        self._gone = gone
        self._changed = threading.Condition()
        self._queue: deque[Mapping[str, Any]] = deque()
        self._lines: deque[str] = deque()
        self._lines_dropped = 0
        self._own_ns: int | None = None
        self._out = bytearray()
        self._wishes = Wishes()
        self._next_plan: Mapping[str, Any] | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        line.setblocking(False)
        self._thread = threading.Thread(target=self._talk, name="link", daemon=True)
        self._thread.start()

    # --- the link of the worker loop ---

    def send(self, event: Mapping[str, Any]) -> None:
        """A `step` event also says that this worker makes progress; a `running` event says only that."""
        kind = event.get("kind")
        if kind in ("step", "running"):
            self.progress(event.get("step"))
            if kind == "running":
                return
        self._tell({"kind": "event", "event": event})

    def progress(self, step: int | None) -> None:
        """This rank has finished `step`; None: it has none to tell of, but runs. The coordinator judges hangs by it."""
        self.moved = True
        own_ns, self._own_ns = self._own_ns, None
        self._tell({"kind": "progress", "step": step, "at_ns": self._clock.monotonic_ns(), "own_ns": own_ns})

    def own_work(self, seconds: float) -> None:
        """How long the step that is told next took this rank by itself, in which it waited for no other."""
        self._own_ns = round(seconds * NANOSECONDS_PER_SECOND)

    def say(self, lines: Sequence[str]) -> None:
        """Log lines; they travel together as `log` events, once the worker has its rank."""
        with self._changed:
            self._lines.extend(lines)
            while len(self._lines) > MAX_KEPT_LINES:
                self._lines.popleft()
                self._lines_dropped += 1
        self._nudge()

    def wishes(self) -> Wishes:
        return self._wishes

    def close(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not (self._queue or self._out), CLOSE_SECONDS)

    # --- the life of a worker ---

    def tell_state(self, state: str) -> None:
        generation = 0 if self.plan is None else self.plan["generation"]
        self._tell({"kind": "state", "state": state, "generation": generation})

    def await_plan(self) -> Mapping[str, Any]:
        """Wait for the plan, for as long as it takes: the agent ends this process when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._next_plan is not None)
            assert self._next_plan is not None
            return self._next_plan

    def take_place(self, plan: Mapping[str, Any], memory: Memory) -> None:
        self._known = sockets()
        self.plan, self.rank, self.memory = plan, plan["rank"], memory

    def leave_world(self, left: Mapping[str, Any]) -> None:
        """The last word as a member; what follows is another worker's. Peers that wait for this rank are not kept waiting."""
        if left["reason"] != REGROUPED:
            sever(self._known)
        if self.memory is not None:
            self.memory.close()
        with self._changed:
            self._flush_lines()
            self._queue.append({"kind": "left", **left, "again": True})
            self.plan = self.memory = self._next_plan = None
            self.rank, self.moved, self.cut = UNPLACED, False, False
        self.tell_state(WARMING)

    def leave(self, left: Mapping[str, Any]) -> None:
        """The last word."""
        with self._changed:
            self._flush_lines()
        self._tell({"kind": "left", **left})
        self.close()

    # --- the thread ---

    def _tell(self, message: Mapping[str, Any]) -> None:
        with self._changed:
            self._queue.append(message)
        self._nudge()

    def _nudge(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _talk(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        try:
            self._heed_all(b"")  # what came together with the first message
            while True:
                self._write()
                poll.register(self._line, select.POLLIN | (select.POLLOUT if self._out else 0))
                ready = dict(poll.poll(PULSE_SECONDS * 1000))
                if not ready:
                    self._out += encode({"kind": "pulse"})
                if self._wake in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                if ready.get(self._line.fileno(), 0) & ~select.POLLOUT:
                    self._read()
        except ConnectionError:
            self._gone()
        except BaseException:  # noqa: BLE001 - a worker that nobody can hear or tell anything must not go on: reported, ended
            traceback.print_exc()
            self._gone()

    def _write(self) -> None:
        with self._changed:
            if self.rank != UNPLACED:
                self._flush_lines()
            messages = list(self._queue)
            self._queue.clear()
            for message in messages:
                try:
                    self._out += encode(message)
                except (TypeError, ValueError, ProtocolError) as error:  # keys that are no text, a circle; far too long
                    lines = [f"an event could not be sent: {error}"]
                    self._out += encode({"kind": "event", "event": self._log(lines)})
            while self._out:
                try:
                    del self._out[: self._line.send(self._out)]
                except BlockingIOError:
                    break
            self._changed.notify_all()

    def _flush_lines(self) -> None:
        if self._lines_dropped:
            self._lines.appendleft(f"({self._lines_dropped} lines were dropped here: they came faster than they go)")
            self._lines_dropped = 0
        while self._lines:
            lines = [self._lines.popleft() for _ in range(min(len(self._lines), MAX_SENT_LINES))]
            self._queue.append({"kind": "event", "event": self._log(lines)})

    def _log(self, lines: Sequence[str]) -> Mapping[str, Any]:
        return {"kind": "log", "rank": self.rank, "lines": lines, "at_ns": self._clock.now_ns()}

    def _read(self) -> None:
        try:
            data = self._line.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the agent is gone")
        self._heed_all(data)

    def _heed_all(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._heed(message)

    def _heed(self, message: Mapping[str, Any]) -> None:
        match message["kind"]:
            case "wishes":
                self._wishes = Wishes(
                    message["checkpoint"], message["stop"], message["checkpoint_every_seconds"], message["regroup"]
                )
            case "cut":
                plan = self.plan
                if plan is not None and plan["generation"] <= message["generation"]:
                    self.cut = True
                    sever(self._known)
            case "plan":
                with self._changed:
                    self._next_plan = self._next_plan or message
                    self._changed.notify_all()


def main(parent: int, line_fd: int, stacks_fd: int) -> int:
    """All of a worker's life; the exit status. The process does nothing else before or after."""
    lifeline.die_with_parent(parent)
    if os.getsid(0) != os.getpid():
        os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.enable(stacks_fd, all_threads=True)
    faulthandler.register(signal.SIGUSR1, stacks_fd, all_threads=True, chain=False)
    line, frames = socket.socket(fileno=line_fd), Frames()
    begin = _first(line, frames)
    if begin is None:
        return lifeline.PARENT_GONE
    _draw_own_chance()
    link = AgentLink(line, frames, SystemClock(), _end_all)
    link.tell_state(WARMING)
    with output_heard(link.say):
        left = Worker(begin, link).live()
    link.leave(left)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return 0 if left["reason"] in ("Completed", "Stopped", "Regrouped", "EarlyStopped") else 1


class Worker:
    """What a worker's process does between its first message and its last."""

    def __init__(self, begin: Mapping[str, Any], link: AgentLink) -> None:
        self._begin = begin
        self._link = link
        self._recycle: Callable[..., Any] | None = None
        self._loop: Callable[..., Any] | None = None
        self._value: tuple[Any, ...] = ()
        self._ready = False
        """In this life it has been ready."""

    def live(self) -> Mapping[str, Any]:
        """All its lives; how the last of them ended."""
        for life in itertools.count(1):
            left = self._told(life)
            innocent = left["reason"] == REGROUPED or left["collateral"]
            if life >= self._begin["lives"] or self._recycle is None or not (self._ready and innocent):
                return left
            self._link.leave_world(left)
        raise AssertionError("unreachable: lives are counted without an end")

    def _told(self, life: int) -> Mapping[str, Any]:
        """From the warm-up, or what stands for it in later lives, to the end of the loop; how it ended."""
        link = self._link
        self._ready = False
        try:
            value = self._run(life)
        except BaseException as error:  # noqa: BLE001 - the worker's edge: told by name, whatever the user's code raises
            link.say("".join(traceback.format_exception(error)).splitlines())
            failed = classify(link.rank, error, 0)
            reason, message, collateral = failed.reason, failed.message, failed.collateral or link.cut
            if life > 1 and not self._ready:
                reason, message = RETIRED, f"not fit for another world: {message}"
            elif life > 1 and not link.moved and not collateral and reason != OUT_OF_MEMORY:
                reason, message = (
                    WORKER_LOST,
                    f"its process had been in a world before and failed in this one: {message}",
                )
            return {"reason": reason, "message": message, "collateral": collateral, "result": None}
        if not isinstance(value, Mapping):
            message = f"the worker loop {self._begin['loop']} returned {value!r}, not a mapping"
            return {"reason": "ApplicationError", "message": message, "collateral": False, "result": None}
        reason = str(value.get("reason", "Completed"))
        return {"reason": reason, "message": "", "collateral": False, "result": dict(value)}

    def _run(self, life: int) -> Any:
        link = self._link
        if life == 1:
            self._warm_up()
        elif self._recycle is not None:
            self._value = (self._recycle(self._begin["assignment"], *self._value),)
        self._ready = True
        link.tell_state(READY)
        plan = dict(link.await_plan())
        os.environ.update(place_variables(plan))  # noqa: TID251 - the edge of a worker's process
        grant = plan.pop("memory")
        link.take_place(plan, Memory(grant, SystemClock(), tell=link.send))
        link.tell_state(FORMING)
        assert self._loop is not None
        return self._loop(placed(self._begin["assignment"], plan), link, *self._value)

    def _warm_up(self) -> None:
        begin = self._begin
        assignment, env = begin["assignment"], begin["env"]
        prepare({**assignment, "threads": begin["threads"]}, env)
        module, _, function = begin["loop"].partition(":")
        loaded = importlib.import_module(module)
        self._loop, warm = getattr(loaded, function), getattr(loaded, "warm", None)
        self._recycle = getattr(loaded, "recycle", None)
        with behind(begin["behind"]):
            self._value = () if warm is None else (warm(assignment, env),)
            gc.collect()
            gc.freeze()  # what is there now stays: later collections need not look at a million library objects


def placed(assignment: Mapping[str, Any], plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """The assignment as it is in the world of this plan."""
    micro_batch = plan.get("micro_batch")
    return assignment if micro_batch is None else {**assignment, "micro_batch": micro_batch}


def place_variables(plan: Mapping[str, Any]) -> dict[str, str]:
    """What torch's `env://` rendezvous needs: the place, and a store that lives outside the gang (so that no rank starts
    one), where each generation has keys of its own."""
    host, port = plan["store"]
    return {
        "RANK": str(plan["rank"]),
        "WORLD_SIZE": str(plan["world_size"]),
        "LOCAL_RANK": str(plan["local_rank"]),
        "LOCAL_WORLD_SIZE": str(plan["local_world_size"]),
        "MASTER_ADDR": str(host),
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(plan["generation"]),
    }


def _first(line: socket.socket, frames: Frames) -> Mapping[str, Any] | None:
    """What this worker is for; None when the agent is gone before it said so."""
    while True:
        try:
            data = line.recv(RECEIVE_BYTES)
        except ConnectionError:
            return None
        if not data:
            return None
        for message in frames.feed(data):
            return message


def _draw_own_chance() -> None:
    """Copies of one template must not share its random numbers. Python's own generator sees to itself."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _end_all() -> None:
    """The agent is gone: end this process and all that it started."""
    lifeline.end_group(os.getpid())
    os._exit(lifeline.PARENT_GONE)


if __name__ == "__main__":
    os._exit(main(*map(int, sys.argv[1:4])))
