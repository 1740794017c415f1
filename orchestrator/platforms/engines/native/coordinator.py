"""The gang's shell: connections in, messages out, and the clock. One thread; everything it decides is `Gang`'s.

What it adds to the state machine: worker events reach the listener once and in their order (numbers and acknowledgements,
so that a connection that broke loses and repeats nothing), wishes reach the agents, plans wait for the store, and at the
end nothing is left: agents are said goodbye to and waited for, then the launcher ends what did not go.

Limits: the calls to the launcher and to the listener must return soon, the launcher's are made by a thread of their own.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock
from orchestrator.domain.notices import Notice
from orchestrator.platforms.engines.base import Listener, Outcome, RunRequest, WishBoard, Wishes
from orchestrator.platforms.engines.native import messages as m
from orchestrator.platforms.engines.native.commands import Command, Dismiss, End, Report, SaveNow, Tell, Want
from orchestrator.platforms.engines.native.errands import Errands
from orchestrator.platforms.engines.native.gang import Gang
from orchestrator.platforms.engines.native.lines import AgentLines
from orchestrator.platforms.engines.native.store_process import StoreProcess
from orchestrator.platforms.engines.native.terms import Judgements

TURN_SECONDS = 0.05
"""Between two looks at the time and at the wishes."""
COME_BACK_SECONDS = 10.0
"""For an agent whose connection broke to come back, before the launcher is asked to end it."""
GOODBYE_SECONDS = 10.0
"""For agents that were said goodbye to, to be gone."""
STANDBY_LOG = "standby"
"""Stands for the rank in log lines of workers that have none yet."""


class Launcher(Protocol):
    """Brings agents. Each method may be called from any thread."""

    def start(self, address: m.Address, token: str) -> None:
        """Agents are to come to this address, and to know the job by its token."""
        ...

    def want(self, slots: int) -> None:
        """So many slots could be used from now on."""
        ...

    def dismiss(self, agent: str, why: str) -> None:
        """End an agent that does not answer, and its workers, where it can be reached. One that is gone or unknown is let be."""
        ...

    def stop(self) -> None:
        """The agents were told to end: wait for them, and end what is left."""
        ...


class Coordinator:
    """One attempt. `run` does all of it; `kill` may be called from any thread."""

    def __init__(
        self,
        request: RunRequest,
        listener: Listener,
        wishes: WishBoard,
        launcher: Launcher,
        clock: Clock,
        gang: Gang,
        judgements: Judgements,
        *,
        host: str,
        port: int,
        token: str,
        environ: Mapping[str, str],
        store_command: Sequence[str],
        on_address: Callable[[m.Address | None], None],
    ) -> None:
        self._request = request
        self._listener = listener
        self._board = wishes
        self._clock = clock
        self._gang = gang
        self._judgements = judgements
        self._token = token
        self._on_address = on_address
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain)
        self._lines = AgentLines(self._selector, clock, host, port, token, on_message=self._heard, on_lost=self._lost)
        self._store = StoreProcess(
            self._selector, clock, environ, command=(*store_command, host), on_port=self._store_is_there
        )
        self._store_host = host
        self._launcher = launcher
        self._errands = Errands()
        self._killed: str | None = None
        self._plans: list[Tell] = []
        """Told to nobody yet: the store is not there."""
        self._counts: dict[str, int] = {}
        """Events heard, by worker."""
        self._wishes = Wishes()
        self._saves = 0
        self._wished_before = 0
        """Wishes for a checkpoint that agents had been told of by an earlier driver: one that takes over counts on."""
        self._met: set[str] = set()
        """Agents that this coordinator has told of wishes."""
        self._notices: set[Notice] = set()
        self._away: dict[str, tuple[int, str]] = {}
        """Agents whose connection broke: until when they may come back, and why it broke."""
        self._outcome: Outcome | None = None

    # --- from any thread ---

    def kill(self, why: str) -> None:
        self._killed = why
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: it is over
            self._wake.send(b".")

    # --- the attempt ---

    def run(self) -> Outcome:
        """Until the gang has ended and nothing of it is left."""
        address = self._lines.address
        self._on_address(address)
        try:
            self._store.tick()
            self._errands.run(lambda: self._launcher.start(address, self._token))
            self._obey(self._gang.tick(self._clock.monotonic_ns()))
            while self._outcome is None:
                self._turn()
                self._look_around()
            return self._outcome
        finally:
            self._on_address(None)
            self._say_goodbye()
            self._errands.run(self._launcher.stop)
            self._errands.close()
            self._store.close()
            self._lines.close_all()
            self._selector.close()
            self._woken.close()
            self._wake.close()

    def _turn(self) -> None:
        for key, mask in self._selector.select(TURN_SECONDS):
            key.data(mask)

    def _look_around(self) -> None:
        self._lines.tick()
        self._store.tick()
        now_ns = self._clock.monotonic_ns()
        if self._killed is not None:
            why, self._killed = self._killed, None
            self._obey(self._gang.end(Outcome("WorkerLost", why), now_ns))
        if (failure := self._errands.failure) is not None:
            self._obey(self._gang.end(Outcome("EngineLost", failure), now_ns))
        if self._store.hopeless:
            text = "the store in which ranks meet does not start; its own words are in the driver's log"
            self._obey(self._gang.end(Outcome("EngineLost", text), now_ns))
        self._pass_wishes_on(now_ns)
        for agent, (until_ns, why) in list(self._away.items()):
            if now_ns >= until_ns:
                del self._away[agent]
                self._dismiss(agent, why)
        self._obey(self._gang.tick(now_ns))

    def _drain(self, mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    # --- agents ---

    def _heard(self, agent: str, message: m.FromAgent) -> None:
        now_ns = self._clock.monotonic_ns()
        match message:
            case m.Hello():
                self._away.pop(agent, None)
                if self._outcome is not None:
                    self._lines.send(agent, {"kind": "bye"})
                    return
                if agent not in self._met:
                    self._met.add(agent)
                    self._wished_before = max(self._wished_before, message.checkpoint)
                self._pass_wishes_on(now_ns)
                self._lines.send(agent, self._wishes_document())
                self._obey(self._gang.joined(message, now_ns))
            case m.WorkerEvents():
                self._events(agent, message)
            case m.NoticeSeen():
                self._notice(message.notice, now_ns)
            case _:
                self._obey(self._gang.heard(agent, message, now_ns))

    def _lost(self, agent: str, why: str) -> None:
        self._obey(self._gang.lost(agent, why, self._clock.monotonic_ns()))

    def _events(self, agent: str, message: m.WorkerEvents) -> None:
        known = self._counts.setdefault(message.worker, message.first)
        fresh = message.events[max(0, known - message.first) :]
        self._counts[message.worker] = count = max(known, message.first + len(message.events))
        self._tell_listener(fresh)
        self._lines.send(agent, {"kind": "heard", "worker": message.worker, "count": count})

    def _notice(self, document: Mapping[str, Any], now_ns: int) -> None:
        try:
            notice = Notice.from_document(document)
        except ValueError:
            return  # an agent of another version knows a kind that we do not; nothing can be made of it
        withdrawn = bool(document.get("withdrawn"))
        standing = {one for one in self._notices if (one.source, one.node) != (notice.source, notice.node)}
        if standing == self._notices if withdrawn else notice in self._notices:
            return  # told again after a connection was lost
        self._notices = standing if withdrawn else standing | {notice}
        told = notice.to_document()
        event = {**told, "kind": "notice", "notice": told, "withdrawn": withdrawn, "at_ns": self._clock.now_ns()}
        self._tell_listener([event])
        if withdrawn:
            self._obey(self._gang.withdrawn(notice.source, notice.node, now_ns))
            return
        remaining = notice.remaining_seconds(self._clock.now_ns())
        deadline_ns = None if remaining is None else now_ns + round(remaining * NANOSECONDS_PER_SECOND)
        self._obey(self._gang.noticed(notice.source, notice.node, notice.kind, deadline_ns, now_ns))

    # --- what the gang commands ---

    def _obey(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Tell():
                    self._tell(command)
                case Report():
                    self._report(command)
                case Dismiss():
                    self._lines.close(command.agent)
                    until_ns = self._clock.monotonic_ns() + round(COME_BACK_SECONDS * NANOSECONDS_PER_SECOND)
                    self._away[command.agent] = (until_ns, command.why)
                case SaveNow():
                    self._saves += 1
                case Want():
                    slots = command.slots
                    self._errands.run(lambda slots=slots: self._launcher.want(slots))  # type: ignore[misc]
                case End():
                    self._outcome = command.outcome

    def _tell(self, tell: Tell) -> None:
        message = tell.message
        if isinstance(message, m.Plan):
            if self._store.port is None:
                self._plans.append(tell)
                return
            store = [self._store_host, self._store.port]
            self._lines.send(tell.agent, m.write(message, store=store, attempt=self._request.attempt))
        elif isinstance(message, m.Spawn):
            request = self._request
            assignment = dict(request.assignment)
            shared = {
                "loop": request.worker_loop,
                "assignment": assignment,
                "env": dict(request.env),
                "threads": assignment.get("threads", 1),
            }
            self._lines.send(tell.agent, m.write(message, **shared))
        else:
            self._lines.send(tell.agent, m.write(message))
        if isinstance(message, m.Abort):
            self._give_up_plans(tell.agent, message)

    def _give_up_plans(self, agent: str, abort: m.Abort) -> None:
        """Members that wait for the store's sake know nothing of the world that is given up: they are ended by name, since
        the gang waits for the end of all."""
        waiting, self._plans = self._plans, []
        for tell in waiting:
            plan = tell.message
            if tell.agent == agent and isinstance(plan, m.Plan) and plan.generation <= abort.generation:
                self._lines.send(agent, m.write(m.Kill(plan.worker, abort.why)))
            else:
                self._plans.append(tell)

    def _store_is_there(self, port: int) -> None:
        waiting, self._plans = self._plans, []
        for tell in waiting:
            if isinstance(tell.message, m.Plan) and tell.message.generation == self._gang.generation:
                self._tell(tell)

    def _report(self, report: Report) -> None:
        now_ns, here_ns = self._clock.now_ns(), self._clock.monotonic_ns()
        moments = {name: now_ns - (here_ns - moment_ns) for name, moment_ns in report.moments.items()}
        self._tell_listener([{**report.event, **moments, "at_ns": now_ns}])

    def _tell_listener(self, events: Sequence[Mapping[str, Any]]) -> None:
        if not events:
            return
        now_ns = self._clock.monotonic_ns()
        told = []
        for event in events:
            if event.get("rank", 0) in (0, None) or event["kind"] == "hung":
                self._judgements.hear(now_ns, event)
            unplaced = event["kind"] == "log" and event.get("rank") in (None, -1)
            told.append({**event, "rank": STANDBY_LOG} if unplaced else event)
        self._listener(told)

    # --- wishes ---

    def _pass_wishes_on(self, now_ns: int) -> None:
        wished = self._board.read()
        wished = wished._replace(checkpoint=wished.checkpoint + self._saves + self._wished_before)
        if wished.stop and not self._wishes.stop:
            self._obey(self._gang.stopping(now_ns))
        if self._board.size and self._board.size != self._gang.sizing.target:
            self._obey(self._gang.resize(self._board.size, now_ns))
        if wished != self._wishes:
            self._wishes = wished
            for agent in self._lines.agents:
                self._lines.send(agent, self._wishes_document())

    def _wishes_document(self) -> dict[str, Any]:
        wishes = self._wishes
        return {
            "kind": "wishes",
            "checkpoint": wishes.checkpoint,
            "stop": wishes.stop,
            "checkpoint_every_seconds": wishes.checkpoint_every_seconds,
        }

    # --- the end ---

    def _dismiss(self, agent: str, why: str) -> None:
        self._errands.run(lambda: self._launcher.dismiss(agent, why))

    def _say_goodbye(self) -> None:
        """Agents end their workers, tell what was not told yet, and close."""
        for agent in self._lines.agents:
            self._lines.send(agent, {"kind": "bye"})
        end_ns = self._clock.monotonic_ns() + round(GOODBYE_SECONDS * NANOSECONDS_PER_SECOND)
        while self._lines.agents and self._clock.monotonic_ns() < end_ns:
            self._turn()
