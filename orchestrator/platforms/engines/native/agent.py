"""The agent: one process (or one actor) a node, which owns the node's worker processes and its state memory.

    python -m orchestrator.platforms.engines.native.agent < configuration.json

It does what the coordinator says (see `messages`), tells it at once what changes and every tenth of a second how all is, and
decides nothing itself, with two exceptions: without a coordinator its workers go on, and it ends everything when none has
come back after `orphan_seconds`; and when the end of its node was announced (SIGTERM), it ends everything when the time
given is over.

One thread does all of it; the state memory has threads of its own. Nothing here imports torch or ray. Whatever happens to
the agent, SIGKILL included, its workers and its memory do not outlive it (`lifeline`, `segments`).

Limits: Linux. `run` must be called in a thread that lives as long as the workers shall. What a worker starts is ended with
it unless it left the worker's session.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock, SystemClock
from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.platforms import notices
from orchestrator.platforms.engines.native import lifeline
from orchestrator.platforms.engines.native.births import LEAVE_SECONDS, Births, Process, Upbringing
from orchestrator.platforms.engines.native.messages import FORMING, READY, RUNNING, Address
from orchestrator.platforms.engines.native.shards import ShardStore
from orchestrator.platforms.engines.native.uplink import Uplink
from orchestrator.platforms.engines.native.workers import Dump, Line, Worker

BEAT_SECONDS = 0.1
ORPHAN_SECONDS = 600.0
TERM_GRACE_SECONDS = 25.0
"""From SIGTERM to the end of everything: below the 30 s after which Kubernetes and systemd kill."""
DUMP_SECONDS = 2.0
"""For the stacks of a worker to be written. The handler runs in whatever thread takes the signal; it needs no Python."""
STATUS_SECONDS = 1.0
"""From the end of a worker's line to the word of how its process ended, before it is killed."""
CUT_SECONDS = 1.0, 4.0
"""For a member that was cut off from its peers to leave its world: twice the time of a step, for a rank that computes does
not look, but within these. It hears of the cut in milliseconds where it waits for others."""
RETURN_SECONDS = 10.0
"""From the end of a member's world until it is ready for another."""
MEMORY_LOOK_SECONDS = 1.0
KERNEL_LOOK_SECONDS = 0.5
"""Between two looks at what the kernel tells of workers: whether they are stopped, or wait for a processor; far below the
shortest time after which one hangs."""
SETTLE_SECONDS = 0.01
"""From SIGKILL to the inventory, when the kernel is slower to take a large process down (tens of milliseconds). A thread with
that signal executes nothing any more once it is interrupted, which takes microseconds; and to spoil what the inventory tells,
a rank would have to publish twice more, for a shard goes into the place of the oldest of three."""
MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Events stay in their outbox while so much waits to be sent."""
KEPT_DEPARTED = 256
"""Workers that are gone whose last words and end are told again after a connection was lost."""

OVER, ORPHANED, TERMINATED = 0, 75, 143
"""Exit status of an agent: it was said goodbye or stopped; no coordinator came back; its node was ended."""

FATAL = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}

Tell = Callable[[Mapping[str, Any]], None]


class Watching(Protocol):
    """Notices are being looked for."""

    def stop(self) -> None: ...
    def handled(self, node: str) -> None:
        """All that was worth saving has left the node."""
        ...


Watch = Callable[[Tell], Watching]
"""Begins to look for notices and hands each, as a mapping, to what it is given, from any thread."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Who an agent is. JSON on the standard input of its process."""

    agent: str
    node: str
    host: str
    """The address of this node by which the others reach it."""
    slots: int
    token: str
    coordinator: Address | None = None
    """Where the coordinator listens."""
    coordinator_file: str | None = None
    """Or: a file that holds `host port`, read before each try, for a coordinator that comes back elsewhere."""
    orphan_seconds: float = ORPHAN_SECONDS
    term_grace_seconds: float = TERM_GRACE_SECONDS
    notices: str = ""
    """Which sources of notices are watched (see orchestrator.platforms.notices)."""
    gpus: bool = False
    """Workers use GPUs: each is a fresh process, and has left only when it is gone, for its memory must be free."""


class StateMemory(Protocol):
    """What the agent needs of the state memory (see `shards`)."""

    @property
    def address(self) -> Address: ...
    def admit(
        self,
        generation: int,
        rank: int,
        world_size: int,
        *,
        replica: Address | None,
        source: Mapping[str, Any] | None,
    ) -> dict[str, Any]: ...
    def inventory(self) -> Sequence[Any]: ...
    def pair(self, generation: int, rank: int, replica: Address | None) -> None: ...

    def forget(self, generation: int, step: int) -> None: ...
    def close(self) -> None: ...


class Agent:
    """See the module. `run` once; the other public methods may be called from any thread and from signal handlers."""

    def __init__(
        self,
        config: AgentConfig,
        coordinator: Callable[[], Address | None],
        memory: StateMemory,
        *,
        environ: Mapping[str, str],
        watch: Watch | None = None,
        clock: Clock | None = None,
        chance: random.Random | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`environ` is what the workers begin with. `memory` now belongs to the agent. `say` takes lines for a log."""
        self._config = config
        self._memory = memory
        self._environ = environ
        self._watch = watch
        self._watching: Watching | None = None
        self._clock = clock or SystemClock()
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._heed_posted)
        self._uplink = Uplink(
            self._selector, coordinator, self._introduce, self._heed, self._clock, chance or random.Random()
        )
        self._births = Births(self._selector, self, environ, fork=not config.gpus, say=say)
        self._workers: dict[str, Worker] = {}
        self._departed: deque[Worker] = deque(maxlen=KEPT_DEPARTED)
        self._posted: deque[Callable[[], None]] = deque()
        self._wishes = {"checkpoint": 0, "stop": False, "checkpoint_every_seconds": None}
        self._regroup = 0
        self._aborted = 0
        self._generation = 0
        self._out_of_memory: Sequence[Sequence[int]] = ()
        self._notices: dict[str, Mapping[str, Any]] = {}
        self._tickets: list[tuple[int, int]] = []
        self._changed = False
        self._next_tick_ns = 0
        self._next_look_ns = self._next_kernel_ns = 0
        self._memory_kills = lifeline.memory_kills()
        self._kills_known = self._kills_seen = self._memory_kills()
        """Kernel's kills for want of memory that happened before the look before the last one, and at the last one: a look
        may come between a kill and the word of it."""
        self._term_by_ns: int | None = None
        self._status: int | None = None

    # --- from any thread ---

    def run(self) -> int:
        """Until the coordinator says goodbye, `stop`, or the agent is orphaned; its exit status. Nothing is left then."""
        self._watching = self._watch(self.notice) if self._watch is not None else None
        try:
            while self._status is None:
                self._turn()
            return self._status
        finally:
            try:
                self._end_all()
            finally:
                if self._watching is not None:
                    self._watching.stop()

    def stop(self) -> None:
        """End everything now."""
        self._post(lambda: self._finish(OVER))

    def terminate(self) -> None:
        """The end of this node or process was announced, as by SIGTERM; at the second time, or when nobody is there to
        answer, everything ends."""
        self._post(self._terminated)

    def notice(self, document: Mapping[str, Any]) -> None:
        """Something warned of the end of a node (see orchestrator.domain.notices), or, with `withdrawn`, no longer does."""
        self._post(lambda: self._noticed(document))

    def _post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nobody is left to hear it
            self._wake.send(b".")

    # --- the loop ---

    def _turn(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if now_ns >= self._next_tick_ns:
            self._next_tick_ns = now_ns + round(BEAT_SECONDS * NANOSECONDS_PER_SECOND)
            self._tick(now_ns)
        wait_ns = max(0, self._next_tick_ns - self._clock.monotonic_ns())
        if self._tickets:
            wait_ns = min(wait_ns, round(SETTLE_SECONDS * NANOSECONDS_PER_SECOND))
        for key, mask in self._selector.select(wait_ns / NANOSECONDS_PER_SECOND):
            key.data(mask)
        if self._tickets:
            self._answer_tickets(self._clock.monotonic_ns())
        if self._changed:
            self._beat()

    def _tick(self, now_ns: int) -> None:
        self._uplink.tick()
        self._births.tick()
        for worker in list(self._workers.values()):
            if worker.dump is not None:
                self._look_at_dump(worker, worker.dump, now_ns)
            if worker.leave_by_ns is not None and now_ns >= worker.leave_by_ns and worker.process is not None:
                if worker.late is not None:
                    worker.doom = worker.doom or worker.late
                worker.process.kill()
            self._relay(worker)
        for worker in self._departed:
            self._relay(worker)
        if now_ns >= self._next_kernel_ns:
            self._next_kernel_ns = now_ns + round(KERNEL_LOOK_SECONDS * NANOSECONDS_PER_SECOND)
            for worker in self._workers.values():
                worker.look(now_ns)
        self._beat()
        if now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + round(MEMORY_LOOK_SECONDS * NANOSECONDS_PER_SECOND)
            self._kills_known, self._kills_seen = self._kills_seen, self._memory_kills()
        alone_ns = self._uplink.alone_ns()
        if alone_ns > self._config.orphan_seconds * NANOSECONDS_PER_SECOND:
            self._say(f"no coordinator for {self._config.orphan_seconds:.0f} s: all workers are ended")
            self._finish(ORPHANED)
        if self._term_by_ns is not None and now_ns >= self._term_by_ns:
            self._finish(TERMINATED)

    def _beat(self) -> None:
        self._changed = False
        now_ns = self._clock.monotonic_ns()
        beats = [worker.beat(now_ns) for worker in self._workers.values() if worker.known]
        self._uplink.send({"kind": "beat", "workers": beats})

    def _relay(self, worker: Worker) -> None:
        """What it said, and only then how it ended."""
        while self._uplink.connected and self._uplink.waiting_bytes < MAX_WAITING_BYTES:
            message = worker.next_message()
            if message is None:
                return
            self._uplink.send(message)

    def _heed_posted(self, mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        while self._posted:
            self._posted.popleft()()

    # --- the coordinator ---

    def _introduce(self) -> None:
        """A connection is there: who we are, and what an earlier coordinator may not have heard."""
        now_ns = self._clock.monotonic_ns()
        self._uplink.send(
            {
                "kind": "hello",
                "token": self._config.token,
                "agent": self._config.agent,
                "node": self._config.node,
                "host": self._config.host,
                "address": list(self._memory.address),
                "slots": self._config.slots,
                "generation": self._generation,
                "checkpoint": self._wishes["checkpoint"],
                "out_of_memory": self._out_of_memory,
                "members": [worker.member(now_ns) for worker in self._workers.values() if worker.farewell is None],
            }
        )
        for message in self._notices.values():
            self._uplink.send(message)
        for worker in (*self._departed, *self._workers.values()):
            worker.rewind()
            self._relay(worker)

    def _heed(self, message: Mapping[str, Any]) -> None:
        match message["kind"]:
            case "spawn":
                self._spawn(message)
            case "plan":
                self._plan(message)
            case "wishes":
                self._wishes = {name: message[name] for name in self._wishes}
                self._tell_wishes(self._workers.values())
            case "regroup":
                self._regroup = max(self._regroup, message["generation"])
                self._tell_wishes(self._workers.values())
            case "abort":
                self._aborted = max(self._aborted, message["generation"])
                for member in self._workers.values():
                    if 0 < member.generation <= self._aborted and message.get("live"):
                        self._cut_off(member, message["why"])
                    elif 0 < member.generation <= self._aborted:
                        member.end(message["why"])
            case "kill":
                if (worker := self._workers.get(message["worker"])) is not None:
                    worker.end(message["why"])
            case "dump":
                self._dump(message["worker"])
            case "heard":
                for speaker in (*self._departed, *self._workers.values()):
                    if speaker.worker == message["worker"]:
                        speaker.outbox.heard(message["count"])
            case "ask_inventory":
                self._tickets.append((message["ticket"], self._clock.monotonic_ns()))
                self._answer_tickets(self._clock.monotonic_ns())
            case "pair":
                self._memory.pair(message["generation"], message["rank"], _address(message["replica"]))
            case "forget":
                self._memory.forget(message["generation"], message["step"])
            case "handed_over":
                if self._watching is not None:
                    self._watching.handled(message["node"])
            case "bye":
                self._finish(OVER)

    def _spawn(self, message: Mapping[str, Any]) -> None:
        name = message["worker"]
        if name in self._workers:
            return
        ours, theirs = socket.socketpair()
        worker = Worker(
            name,
            line=Line(self._selector, ours, lambda said: self._said(worker, said), lambda: self._line_closed(worker)),
            stacks=os.memfd_create(f"stacks-{name}", os.MFD_CLOEXEC),
            loop=message["loop"],
            heard_ns=self._clock.monotonic_ns(),
        )
        self._workers[name] = worker
        self._changed = True
        upbringing = Upbringing(message["loop"].partition(":")[0], message["threads"], dict(message["env"]))
        given = {key: message[key] for key in ("loop", "assignment", "env", "threads")}
        others_train = any(other.generation for other in self._workers.values())
        lives = message.get("lives", 1)
        worker.line.send({"kind": "begin", **given, "behind": others_train, "lives": lives})
        self._births.begin(name, upbringing, theirs.detach(), os.dup(worker.stacks))

    def _plan(self, message: Mapping[str, Any]) -> None:
        worker, generation = self._workers.get(message["worker"]), message["generation"]
        self._generation = max(self._generation, generation)  # the next coordinator must not use it again
        if worker is None or worker.farewell is not None:
            self._uplink.send(
                {
                    "kind": "left",
                    "worker": message["worker"],
                    "generation": generation,
                    "reason": "WorkerLost",
                    "message": "it is gone already",
                }
            )
            return
        if worker.generation:
            return  # a plan never changes
        worker.generation, worker.rank, worker.world_size = generation, message["rank"], message["world_size"]
        self._out_of_memory = message.get("out_of_memory", ())
        self._changed = True
        if generation <= self._aborted:
            worker.end(f"generation {generation} was given up")
            return
        try:
            grant = self._memory.admit(
                generation,
                message["rank"],
                message["world_size"],
                replica=_address(message["replica"]),
                source=message["source"],
            )
        except (OSError, ValueError) as error:
            worker.end(f"there is no state memory for it: {error}")
            return
        worker.state = FORMING
        self._tell_wishes([worker])
        worker.line.send({**message, "memory": grant})

    def _tell_wishes(self, workers: Iterable[Worker]) -> None:
        for worker in workers:
            regroup = 0 < worker.generation <= self._regroup
            worker.line.send({"kind": "wishes", **self._wishes, "regroup": regroup})

    def _answer_tickets(self, now_ns: int) -> None:
        """An inventory is taken when no member that was ended can go on writing over what is told."""
        dying = any(worker.dying for worker in self._workers.values())
        patient_ns = now_ns - round(SETTLE_SECONDS * NANOSECONDS_PER_SECOND)
        for ticket, since_ns in list(self._tickets):
            if not dying or since_ns <= patient_ns:
                self._tickets.remove((ticket, since_ns))
                shards = [shard.fields() for shard in self._memory.inventory()]
                self._uplink.send({"kind": "inventory", "ticket": ticket, "shards": shards})

    # --- the workers ---

    def _said(self, worker: Worker, message: Mapping[str, Any]) -> None:
        worker.heard_ns = self._clock.monotonic_ns()
        worker.speaks = True
        match message["kind"]:
            case "event":
                # What is heard late must not be taken for the next world's.
                world = {"generation": worker.generation} if worker.generation else {}
                worker.outbox.add({**message["event"], **world})
            case "state":
                if message["state"] == READY and not worker.generation:
                    worker.state = READY
                    worker.leave_by_ns = worker.late = None
                    self._changed = True
            case "progress":
                if message["step"] is not None:
                    if worker.step is not None:
                        worker.pace_ns = message["at_ns"] - worker.step_at_ns
                    worker.step, worker.step_at_ns = message["step"], message["at_ns"]
                    worker.advances()
                if message.get("own_ns") is not None:
                    worker.own_ns.append(message["own_ns"])
                if worker.state == FORMING:
                    worker.state = RUNNING
                    self._changed = True
            case "left":
                told = {key: message.get(key) for key in ("reason", "message", "collateral", "result")}
                self._changed = True
                if message.get("again") and worker.doom is None and worker.process is not None:
                    self._comes_back(worker, told)
                    return
                worker.leaves(told)
                self._leave_within(worker, LEAVE_SECONDS)
                if not self._config.gpus:
                    self._told_left(worker, None)

    def _cut_off(self, worker: Worker, why: str) -> None:
        """End its world for it; it is killed if it does not come out of it soon."""
        if worker.doom is None and worker.told is None and worker.late is None:
            worker.late = why
            worker.line.send({"kind": "cut", "generation": worker.generation})
            least, most = CUT_SECONDS
            self._leave_within(worker, min(most, max(least, 2 * worker.pace_ns / NANOSECONDS_PER_SECOND)))

    def _comes_back(self, worker: Worker, told: Mapping[str, Any]) -> None:
        """Its process goes on as a standby, of another name, after what it said as a member was told."""
        now_ns = self._clock.monotonic_ns()
        if worker.dump is not None:
            self._tell_stacks(worker, worker.dump, "it has left its world")
        after = worker.comes_back(told, now_ns + round(RETURN_SECONDS * NANOSECONDS_PER_SECOND))
        after.line.hand_over(lambda said: self._said(after, said), lambda: self._line_closed(after))
        del self._workers[worker.worker]
        self._workers[after.worker] = after
        self._departed.append(worker)
        self._told_left(worker, None, again=after.worker)
        self._answer_tickets(now_ns)

    def _line_closed(self, worker: Worker) -> None:
        if worker.process is not None:
            self._leave_within(worker, STATUS_SECONDS)

    def _leave_within(self, worker: Worker, seconds: float) -> None:
        if worker.leave_by_ns is None:
            worker.leave_by_ns = self._clock.monotonic_ns() + round(seconds * NANOSECONDS_PER_SECOND)

    def born(self, worker: str, process: Process) -> None:
        known = self._workers.get(worker)
        if known is None or known.doom is not None:
            process.kill()
        if known is not None:
            known.process = process
            self._changed = True

    def unborn(self, worker: str, why: str) -> None:
        known = self._workers[worker]
        known.leaves({"reason": "EngineLost", "message": why, "collateral": False, "result": None})
        self._told_left(known, None)
        self._forget(known)

    def died(self, process: Process, status: int | None) -> None:
        worker = self._workers.get(process.worker)
        if worker is None:
            return
        worker.line.read_rest()
        worker = self._workers[process.worker]  # in its last words it may have become another
        if worker.told is None:
            worker.leaves(self._unsaid(worker, process, status))
        if worker.farewell is None:
            self._told_left(worker, status)
        if worker.dump is not None:
            self._tell_stacks(worker, worker.dump, "it has ended")
        self._forget(worker)
        self._answer_tickets(self._clock.monotonic_ns())

    def _unsaid(self, worker: Worker, process: Process, status: int | None) -> Mapping[str, Any]:
        """How a worker ended that did not say so itself."""
        reason = "WorkerLost"
        if worker.doom is not None:
            message = f"ended by its agent: {worker.doom}"
        elif status is None:
            message = f"process {process.pid} ended with the process that it was copied from"
        else:
            message = f"process {process.pid} {lifeline.exit_text(status)}"
            kills = self._memory_kills()
            if status == -signal.SIGKILL and kills > self._kills_known:
                self._kills_known = self._kills_seen = kills
                reason, message = "OutOfMemory", f"{message}: the kernel ended a process because memory ran out"
            elif status in FATAL and (stacks := worker.stacks_since(worker.dumped).strip()):
                lines = [f"process {process.pid} {lifeline.exit_text(status)}; its stacks:", *stacks.splitlines()]
                rank = -1 if worker.rank is None else worker.rank
                worker.outbox.add({"kind": "log", "rank": rank, "lines": lines, "at_ns": self._clock.now_ns()})
        return {"reason": reason, "message": message, "collateral": False, "result": None}

    def _told_left(self, worker: Worker, status: int | None, again: str | None = None) -> None:
        assert worker.told is not None
        pid = None if worker.process is None else worker.process.pid
        worker.farewell = {
            "kind": "left",
            "worker": worker.worker,
            "generation": worker.generation,
            **worker.told,
            "exit": status,
            "pid": pid,
            "again": again,
        }
        self._relay(worker)

    def _forget(self, worker: Worker) -> None:
        worker.close()
        del self._workers[worker.worker]
        self._departed.append(worker)

    # --- stacks ---

    def _dump(self, name: str) -> None:
        worker = self._workers.get(name)
        if worker is None or worker.process is None or not worker.speaks:
            self._uplink.send({"kind": "stacks", "worker": name, "text": "no such worker runs here"})
            return
        if worker.dump is None:
            size = os.fstat(worker.stacks).st_size
            until_ns = self._clock.monotonic_ns() + round(DUMP_SECONDS * NANOSECONDS_PER_SECOND)
            worker.dump = Dump(size, size, until_ns)
            worker.process.signal(signal.SIGUSR1)

    def _look_at_dump(self, worker: Worker, dump: Dump, now_ns: int) -> None:
        """Told when it has grown and grows no more."""
        size = os.fstat(worker.stacks).st_size
        if (size > dump.start and size == dump.size) or now_ns >= dump.until_ns:
            assert worker.process is not None
            self._tell_stacks(worker, dump, f"it does not answer, and is {lifeline.state_of(worker.process.pid)}")
        dump.size = size

    def _tell_stacks(self, worker: Worker, dump: Dump, otherwise: str) -> None:
        worker.dump = None
        text = worker.stacks_since(dump.start) or f"no stacks of {worker.worker}: {otherwise}"
        self._uplink.send({"kind": "stacks", "worker": worker.worker, "text": text})

    # --- notices and the end ---

    def _noticed(self, document: Mapping[str, Any]) -> None:
        """Told now and, while it stands, to every later coordinator: one for a source and node."""
        message = {"kind": "notice", "notice": dict(document)}
        key = f"{document['source']} {document['node']}"
        if document.get("withdrawn"):
            self._notices.pop(key, None)
        else:
            self._notices[key] = message
        self._uplink.send(message)

    def _terminated(self) -> None:
        if self._term_by_ns is not None or not self._uplink.connected or not self._workers:
            self._finish(TERMINATED)
            return
        grace_ns = round(self._config.term_grace_seconds * NANOSECONDS_PER_SECOND)
        now_ns = self._clock.now_ns()
        self._term_by_ns = self._clock.monotonic_ns() + grace_ns
        notice = Notice("sigterm", self._config.node, NoticeKind.TERMINATION, now_ns, now_ns + grace_ns)
        self._noticed(notice.to_document())

    def _finish(self, status: int) -> None:
        if self._status is None:
            self._status = status

    def _end_all(self) -> None:
        for worker in self._workers.values():
            worker.end("its agent ends")
        self._births.close()
        for worker in list(self._workers.values()):
            if worker.farewell is None:
                worker.leaves(
                    {"reason": "WorkerLost", "message": "its agent ends", "collateral": False, "result": None}
                )
                self._told_left(worker, None)
            self._forget(worker)
        self._uplink.finish(LEAVE_SECONDS)
        self._memory.close()
        self._selector.close()
        self._woken.close()
        self._wake.close()


# --- the process ---


def encode_config(config: AgentConfig) -> bytes:
    """What goes into the standard input of an agent's process."""
    return json.dumps(asdict(config)).encode()


def _address(said: Sequence[Any] | None) -> Address | None:
    return None if said is None else (said[0], said[1])


def coordinator_of(config: AgentConfig) -> Callable[[], Address | None]:
    """Where the coordinator is, as the configuration says it."""

    def address() -> Address | None:
        if config.coordinator_file is None:
            return config.coordinator
        try:
            host, port = Path(config.coordinator_file).read_text().split()
            return host, int(port)
        except (OSError, ValueError):  # not written yet, or just being written
            return config.coordinator

    return address


def main() -> int:
    document = json.load(sys.stdin)
    config = AgentConfig(**document)
    if config.coordinator is not None:
        config = replace(config, coordinator=(config.coordinator[0], config.coordinator[1]))
    clock = SystemClock()

    def say(line: str) -> None:
        sys.stderr.write(f"agent {config.agent}: {line}\n")
        sys.stderr.flush()

    environ = dict(os.environ)  # noqa: TID251 - the edge of the agent's process
    agent = Agent(
        config,
        coordinator_of(config),
        ShardStore(config.host, config.token, clock),
        environ=environ,
        watch=notices.for_agent(config.notices, config.node, environ, clock),
        clock=clock,
        say=say,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.terminate())
    return agent.run()


if __name__ == "__main__":
    sys.exit(main())
