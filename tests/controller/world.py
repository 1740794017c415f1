"""A controller with the fake engine and gates: a test lets a job's steps through and waits for what it expects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.accounting import Category
from orchestrator.controller.core import Controller
from orchestrator.controller.home import Home
from orchestrator.controller.hosts import LocalHost, Room
from orchestrator.controller.journal.base import Commit, JobRecord
from orchestrator.controller.journal.sqlite import SqliteJournal
from orchestrator.domain.clock import SystemClock
from orchestrator.domain.errors import StorageError
from orchestrator.lifecycle import Phase, check_invariants
from orchestrator.platforms.engines.fake import FakeEngine, pretend
from orchestrator.platforms.prices import load_prices

PATIENCE_SECONDS = 20.0


class Gate:
    """Steps that a job may still make; its ranks wait at the gate, and notice there when they are taken away."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.allowed = 0

    def open(self, steps: int) -> None:
        with self.changed:
            self.allowed += steps
            self.changed.notify_all()


GATES: dict[str, Gate] = {}


class _GatedLink:
    def __init__(self, link: Any, gate: Gate) -> None:
        self._link, self._gate, self.rank = link, gate, link.rank
        self.memory = getattr(link, "memory", None)

    def send(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "step":
            with self._gate.changed:
                while self._gate.allowed < 1:
                    self._link.wishes()  # raises when the worker is taken away
                    if self._link.wishes().stop:
                        break
                    self._gate.changed.wait(0.01)
                self._gate.allowed = max(0, self._gate.allowed - 1)
        self._link.send(event)

    def wishes(self) -> Any:
        return self._link.wishes()


def gated(assignment: Mapping[str, Any], link: Any) -> Mapping[str, Any]:
    """The pretended worker loop, whose every step waits for the job's gate."""
    return pretend(assignment, _GatedLink(link, GATES[assignment["job"]["name"]]))  # type: ignore[arg-type]


def unheard(assignment: Mapping[str, Any], link: Any) -> Mapping[str, Any]:
    """As `gated`, but what the first attempt tells of its checkpoints never arrives."""
    return gated(assignment, _WithoutCheckpoints(link) if assignment["attempt"] == 1 else link)


class _WithoutCheckpoints:
    def __init__(self, link: Any) -> None:
        self._link, self.rank, self.wishes = link, link.rank, link.wishes

    def send(self, event: Mapping[str, Any]) -> None:
        if event["kind"] != "checkpoint":
            self._link.send(event)


def telling_all(assignment: Mapping[str, Any], link: Any) -> Mapping[str, Any]:
    """As `gated`, with what an elastic engine tells beside its worlds before the first step of the first one."""
    if link.rank == 0 and link.memory is not None and link.memory.source is None:
        node, now_ns = "node-slot-0", SystemClock().now_ns()
        for kind, withdrawn in (("rebalance", False), ("interruption", False), ("interruption", True)):
            deadline_ns = now_ns + 120_000_000_000
            told = {"source": "aws", "node": node, "kind": kind, "received_ns": now_ns, "deadline_ns": deadline_ns}
            link.send({"kind": "notice", "notice": told, "withdrawn": withdrawn, "at_ns": now_ns})
        link.send({"kind": "notice", "notice": {"kind": "of the future"}, "at_ns": now_ns})
        link.send({"kind": "replication", "every": 1, "bytes": 4096, "seconds": 0.01, "because": "so", "at_ns": now_ns})
        hung = {"kind": "hung", "worker": "w1", "rank": 1, "stack": "File a.py\n  line 3", "at_ns": now_ns}
        link.send(hung)
    return gated(assignment, link)


def broken(assignment: Mapping[str, Any], link: Any) -> Mapping[str, Any]:
    """A worker loop that fails at once."""
    raise ValueError("the user's code divides by zero")


def telling(assignment: Mapping[str, Any], link: Any) -> Mapping[str, Any]:
    """A worker loop that prints its token and fails with it."""
    env = {variable["name"]: variable["value"] for variable in assignment["spec"]["spec"]["runtime"]["env"]}
    link.send({"kind": "log", "rank": link.rank, "lines": [f"logging in with {env['HUB_TOKEN']}"]})
    raise ValueError(f"{env['HUB_TOKEN']} was refused")


def document(name: str, steps: int = 10, **spec: Any) -> dict[str, Any]:
    """A job file's document; `spec` overrides top-level fields of the spec."""
    return {
        "apiVersion": "orchestrate.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": {"function": "module:function"},
            "training": {"maxSteps": steps},
            "checkpoint": {"every": 5},
            "workers": {"min": 2, "max": 2},
            **spec,
        },
    }


class FailingJournal(SqliteJournal):
    """A journal whose disk can be full."""

    full = False

    def commit(self, commit: Commit) -> None:
        if self.full:
            raise StorageError("the disk is full", hint="make room")
        super().commit(commit)


class _Host(LocalHost):
    """Drivers in this process. They die with their controller; what their workers do is made up."""

    workers_outlive = False

    def outlived(self, uid: str) -> bool:
        return self.workers_outlive


class World:
    """One home, and a controller that can be ended and started again over it."""

    def __init__(self, home: Path, cpus: int = 64, worker_loop: str = f"{__name__}:gated") -> None:
        self.home = Home(home)
        self.home.prepare()
        self.cpus = cpus
        self.worker_loop = worker_loop
        self.engines: list[FakeEngine] = []
        self.fatal: list[Exception] = []
        self.workers_outlive = False
        """Whether workers of a job whose driver and controller are gone count as alive."""
        self.controller = self._start()

    def _make_engine(self) -> FakeEngine:
        self.engines.append(FakeEngine())
        return self.engines[-1]

    def _start(self) -> Controller:
        clock = SystemClock()
        self.journal = FailingJournal(self.home.journal_file)
        host = _Host(self._make_engine, clock, Room(self.cpus, 0))
        host.workers_outlive = self.workers_outlive
        controller = Controller(
            self.journal,
            host,
            clock,
            load_prices(None),
            self.home,
            engine="fake",
            worker_loop=self.worker_loop,
            on_fatal=self.fatal.append,
            retry_seconds=0.05,
        )
        controller.start()
        return controller

    def restart(self) -> None:
        """End the controller (its drivers die with it) and start another over the same home."""
        self.controller.close()
        self.controller = self._start()

    def submit(self, name: str, steps: int = 10, allowed: int = 0, **spec: Any) -> JobRecord:
        GATES[name] = Gate()
        GATES[name].open(allowed)
        return self.controller.submit(document(name, steps, **spec)).record

    def job(self, name: str) -> JobRecord:
        return self.controller.job("default", name)

    def until(self, name: str, holds: Callable[[JobRecord], bool]) -> JobRecord:
        """Wait until the job's record is as wanted; fails with its story when it never is."""
        deadline, version = time.monotonic() + PATIENCE_SECONDS, -1
        while time.monotonic() < deadline:
            record = self.job(name)
            if holds(record):
                return record
            version = self.controller.wait_for_change(version, 0.5)
        raise AssertionError(f"not within {PATIENCE_SECONDS} s: {self.job(name).state}\n{self.told(name)}")

    def until_phase(self, name: str, *phases: Phase) -> JobRecord:
        return self.until(name, lambda record: record.state.phase in phases)

    def told(self, name: str) -> str:
        return "\n".join(str(entry) for _, entry in self.journal.story(self.job(name).uid))

    def events(self, name: str) -> list[str]:
        return [entry.event for _, entry in self.journal.story(self.job(name).uid)]

    def close(self) -> None:
        """Check what must hold for every job, then end."""
        for record in self.controller.jobs():
            check_invariants(record.state)
            statement = self.controller.statement(record.uid)
            amounts = [amount for amount in statement.by_category().values() if amount is not None]
            assert sum(amounts) == statement.total, "the categories do not add up to the total"
            if record.state.phase.ended:
                assert Category.AT_RISK not in statement.by_category(), "work is at risk after the end"
                assert statement.per_hour_nanodollars == 0, "an ended job still holds machines"
        self.controller.close()
