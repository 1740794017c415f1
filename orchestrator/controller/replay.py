"""A job that runs for real while its machines come and go as a recorded spot market says.

Everything is the real thing: controller, journal, ledger, lifecycle, the native engine, DeepSpeed. Only the machines are
played: each is an agent with its workers, in a session of processes of its own, and when the trace has one machine fewer,
one of them is told (SIGTERM, as a cloud would) and, when the notice is over, killed with all its processes and its memory.
Trace time runs `speed` times as fast as real time; warm-up, steps and transitions take the time that they take.

Which machine is taken away is drawn from a seed. The job ends with its steps, or is suspended, with its state saved, when
the piece of the trace is over.

Limits: machines of one kind, in one zone. A lost machine frees its memory at once, which real ones do as well.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.accounting import Billing, Category, Statement
from orchestrator.controller.core import Controller
from orchestrator.controller.home import Home
from orchestrator.controller.hosts import LocalHost, Room
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.journal.sqlite import SqliteJournal
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock
from orchestrator.domain.offerings import CapacityType
from orchestrator.lifecycle import Phase
from orchestrator.platforms.engines.base import WORKER_LOOP, Engine, Events, Listener, Outcome, RunRequest, WishBoard
from orchestrator.platforms.engines.native import NativeEngine
from orchestrator.platforms.engines.native.messages import Address
from orchestrator.platforms.engines.native.processes import LocalAgents, Node
from orchestrator.platforms.prices import load_prices
from orchestrator.simulation import Trace

SUSPEND_SECONDS = 180.0
LOOK_SECONDS = 1.0
KEPT_KINDS = frozenset(
    {
        "world",
        "world_lost",
        "step",
        "notice",
        "restored",
        "checkpoint",
        "hung",
        "straggler",
        "replication",
        "decision",
        "ended",
    }
)


@dataclass(frozen=True, slots=True)
class Replay:
    """What is played. `notice_seconds` is trace time; 0 takes machines away unannounced."""

    trace: Trace
    speed: float
    notice_seconds: float
    seed: int


@dataclass(slots=True)
class Machine:
    """One machine of the market, in seconds of real time since the replay began."""

    name: str
    came: float
    noticed: float | None = None
    gone: float | None = None


@dataclass(frozen=True)
class Replayed:
    """What came of it. Times are seconds of real time since the replay began."""

    replay: Replay
    machines: Sequence[Machine]
    events: Sequence[Mapping[str, Any]]
    """The engine's events that the picture shows, with `at` for their time."""
    seconds: float
    record: JobRecord
    statement: Statement

    @property
    def delivered_seconds(self) -> float:
        """Machine-seconds that the market gave."""
        return sum((self.seconds if m.gone is None else m.gone) - m.came for m in self.machines)

    @property
    def joins(self) -> int:
        return sum(machine.came > self.machines[0].came + LOOK_SECONDS for machine in self.machines)

    @property
    def losses(self) -> int:
        return sum(machine.gone is not None for machine in self.machines)

    def seconds_of(self, category: Category) -> float:
        return self.statement.machine_seconds(category)

    @property
    def useful_share(self) -> float | None:
        """Useful over delivered machine-seconds, warm-up (provisioning) left out of both; None when nothing else was
        delivered."""
        given = self.delivered_seconds - self.seconds_of(Category.PROVISIONING)
        return self.seconds_of(Category.USEFUL) / given if given > 0 else None


@dataclass
class _Told:
    """What the engine told, as it came."""

    events: list[Mapping[str, Any]] = field(default_factory=list)
    began_ns: int = 0


class _Heard:
    """An engine that keeps what it tells."""

    def __init__(self, engine: Engine, told: _Told) -> None:
        self.name = engine.name
        self._engine = engine
        self._told = told

    def run(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> Outcome:
        def heard(events: Events) -> None:
            self._told.events.extend(event for event in events if event["kind"] in KEPT_KINDS)
            listener(events)

        return self._engine.run(request, heard, wishes)

    def kill(self) -> None:
        self._engine.kill()


class Market(LocalAgents):
    """A launcher whose machines nobody can ask for: they come and go as the trace says, from its first `start` on."""

    def __init__(self, replay: Replay, environ: Mapping[str, str], folder: Path, clock: Clock) -> None:
        self._notice_seconds = replay.notice_seconds / replay.speed
        super().__init__(environ, (), folder=folder, term_grace_seconds=self._notice_seconds)
        self._replay = replay
        self._clock = clock
        self._chance = random.Random(replay.seed)
        self._count = 0
        self._held: dict[str, tuple[Node, Machine]] = {}
        self._changing = threading.Lock()
        self._open = False
        self._over = threading.Event()
        self._played = threading.Event()
        self._thread = threading.Thread(target=self._play, name="market", daemon=True)
        self.began_ns: int | None = None
        self.machines: list[Machine] = []

    @property
    def speed(self) -> float:
        """Trace seconds in a real one."""
        return self._replay.speed

    @property
    def over(self) -> bool:
        """The trace has been played to its end."""
        return self._played.is_set()

    def start(self, address: Address, token: str) -> None:
        super().start(address, token)
        with self._changing:
            self._open = True
            first = self.began_ns is None
            if first:
                self.began_ns = self._clock.monotonic_ns()
                self._count = self._replay.trace.available[0]
            self._meet()
        if first:
            self._thread.start()

    def want(self, slots: int) -> None:
        """The market gives what it has."""

    def stop(self) -> None:
        with self._changing:
            self._open = False
        super().stop()
        with self._changing:
            self._held.clear()

    def close(self) -> None:
        """Play no further."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        now = self.elapsed()
        for machine in self.machines:
            machine.gone = now if machine.gone is not None and machine.gone > now else machine.gone

    def elapsed(self) -> float:
        """Seconds of real time since the market opened."""
        assert self.began_ns is not None
        return (self._clock.monotonic_ns() - self.began_ns) / NANOSECONDS_PER_SECOND

    def _play(self) -> None:
        for at_seconds, count in self._replay.trace.changes():
            if self._over.wait(max(0.0, at_seconds / self._replay.speed - self.elapsed())):
                return
            with self._changing:
                self._count = count
                self._meet()
        self._over.wait(max(0.0, self._replay.trace.seconds / self._replay.speed - self.elapsed()))
        self._played.set()

    def _meet(self) -> None:
        """Let machines come or go until there are as many as the market has."""
        if not self._open:
            return
        staying = [(node, machine) for node, machine in self._held.values() if machine.noticed is None]
        for _ in range(self._count - len(staying)):
            node = self.add(1)
            machine = Machine(node.name, self.elapsed())
            self.machines.append(machine)
            self._held[node.name] = (node, machine)
        for node, machine in self._chance.sample(staying, max(0, len(staying) - self._count)):
            machine.noticed = self.elapsed()
            if self._notice_seconds:
                node.process.terminate()
            threading.Thread(target=self._take, args=(node, machine), daemon=True).start()

    def _take(self, node: Node, machine: Machine) -> None:
        assert machine.noticed is not None
        self._over.wait(max(0.0, machine.noticed + self._notice_seconds - self.elapsed()))
        machine.gone = self.elapsed()
        node.kill()
        with self._changing:
            self._held.pop(node.name, None)


def play(
    document: Mapping[str, Any],
    replay: Replay,
    folder: Path,
    environ: Mapping[str, str],
    clock: Clock,
    say: Callable[[str], None],
    worker_loop: str = WORKER_LOOP,
) -> Replayed:
    """Run the job of `document` on the market of `replay`, with a home of its own in `folder`, until it or the trace ends.

    Raises InvalidSpec, and StorageError for a folder that cannot be used.
    """
    home = Home(folder / "home")
    home.prepare()
    told = _Told()
    market = Market(replay, environ, folder, clock)
    machines = replay.trace.most
    room = Room(machines * int(document["spec"].get("workers", {}).get("cpus", 1)) + 64, 0)

    def engine() -> Engine:
        return _Heard(NativeEngine(lambda request: market, clock, environ=environ), told)

    host = LocalHost(engine, clock, room)
    journal = SqliteJournal(home.journal_file)
    prices = replace(
        load_prices(None),
        billing=Billing(granularity_seconds=1, minimum_seconds=0),
        local_capacity_type=CapacityType.SPOT,
    )
    controller = Controller(journal, host, clock, prices, home, engine="native", worker_loop=worker_loop)
    controller.start()
    with closing(controller):
        record = controller.submit(document).record
        try:
            record = _follow(controller, record, market, say)
        finally:
            market.close()
        seconds = market.elapsed()
        statement = controller.statement(record.uid)
    began_ns = clock.now_ns() - round(market.elapsed() * NANOSECONDS_PER_SECOND)
    events = [_placed(event, began_ns) for event in told.events]
    return Replayed(replay, tuple(market.machines), tuple(events), seconds, record, statement)


def _placed(event: Mapping[str, Any], began_ns: int) -> dict[str, Any]:
    placed = {**event, "at": (event["at_ns"] - began_ns) / NANOSECONDS_PER_SECOND}
    if event.get("began_ns") is not None:
        placed["began"] = (event["began_ns"] - began_ns) / NANOSECONDS_PER_SECOND
    return placed


def _follow(controller: Controller, record: JobRecord, market: Market, say: Callable[[str], None]) -> JobRecord:
    """Wait until the job has ended; suspend it when the trace has."""
    version, told, asked_ns = -1, 0, None
    while True:
        version = controller.wait_for_change(version, LOOK_SECONDS)
        record = controller.job(record.namespace, record.name)
        for number, entry in controller.journal.story(record.uid, after=told):
            told = number
            if entry.event != "CheckpointCommitted":
                say(f"{_hours(market)}  {entry.phase_after}: {entry.message}")
        if record.state.phase.ended or record.state.phase is Phase.SUSPENDED:
            return record
        if market.over and asked_ns is None:
            say(f"{_hours(market)}  the trace is over; the job is suspended")
            controller.request(record.namespace, record.name, "suspend")
            asked_ns = market.elapsed()
        if asked_ns is not None and market.elapsed() > asked_ns + SUSPEND_SECONDS:
            controller.request(record.namespace, record.name, "cancel")
            asked_ns = market.elapsed()


def _hours(market: Market) -> str:
    """Trace time."""
    if market.began_ns is None:
        return " 0:00"
    minutes = int(market.elapsed() * market.speed / 60)
    return f"{minutes // 60:2}:{minutes % 60:02}"
