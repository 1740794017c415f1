"""Where drivers live, as the controller sees it: a port, and the host that keeps them in its own process.

The in-process host serves engines that need no cluster (the fake one) and tests. Its drivers die with the controller;
the Ray host (`orchestrator.controller.ray_host`) keeps each driver in a detached actor, so that they do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.controller.driver import Driver, Update
from orchestrator.domain.clock import Clock
from orchestrator.platforms.engines.base import Cadence, Engine, RunRequest


@dataclass(frozen=True, slots=True)
class Room:
    """What a cluster can hold at most, over all its machines. `memory_bytes` None: not limited by us."""

    cpus: int
    gpus: int
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """Updates of one driver incarnation, in order."""

    uid: str
    driver_id: str
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """A driver is no more (`driver_id` None: it could not be started)."""

    uid: str
    driver_id: str | None
    why: str


Deliver = Callable[[Heard | Gone], None]


class DriverHost(Protocol):
    """Makes drivers, passes on what they heard. No call blocks for long or raises for what happens to a driver: that
    comes as `Gone`. What was delivered is delivered again until acknowledged, so receivers drop what they have seen."""

    def begin(self, deliver: Deliver) -> None:
        """Start delivering, from any thread, to `deliver`."""
        ...

    def adopt(self, uid: str, after: int) -> str | None:
        """Take up again a driver that outlived an earlier controller; its id, or None when there is none."""
        ...

    def outlived(self, uid: str) -> bool:
        """Whether workers of the job go on without a driver, which one that is started will take over."""
        ...

    def start(self, request: RunRequest, run_dir: Path) -> None:
        """Start an attempt, making the job's driver first if there is none. Twice is harmless."""
        ...

    def wish_checkpoint(self, uid: str, attempt: int) -> None: ...

    def wish_stop(self, uid: str, attempt: int) -> None: ...

    def wish_cadence(self, uid: str, attempt: int, cadence: Cadence) -> None:
        """From now on the gang saves so often. Twice, or late, is harmless."""
        ...

    def wish_size(self, uid: str, attempt: int, workers: int) -> None:
        """From now on the gang is to have so many workers, when there is room. Twice is harmless."""
        ...

    def kill(self, uid: str, attempt: int) -> None: ...

    def acknowledge(self, uid: str, driver_id: str, seq: int) -> None:
        """Everything up to `seq` is in the journal."""
        ...

    def release(self, uid: str) -> None:
        """The job holds no machines any more: end its driver and whatever is left of its gang."""
        ...

    def room(self) -> Room: ...

    def close(self) -> None:
        """Stop delivering. Drivers that can outlive the controller go on."""
        ...


class LocalHost:
    """Drivers in this process, one engine each from `make_engine`."""

    def __init__(self, make_engine: Callable[[], Engine], clock: Clock, room: Room) -> None:
        self._make_engine = make_engine
        self._clock = clock
        self._room = room
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._drivers: dict[str, Driver] = {}
        self._delivered: dict[str, int] = {}
        self._acknowledged: dict[str, int] = {}
        self._thread: threading.Thread | None = None

    def begin(self, deliver: Deliver) -> None:
        self._thread = threading.Thread(target=self._pump, args=(deliver,), name="local-host", daemon=True)
        self._thread.start()

    def adopt(self, uid: str, after: int) -> str | None:
        return None

    def outlived(self, uid: str) -> bool:
        return False

    def start(self, request: RunRequest, run_dir: Path) -> None:
        with self._lock:
            driver = self._drivers.get(request.uid)
            if driver is None:
                driver = self._drivers[request.uid] = Driver(self._make_engine(), self._clock, run_dir, self._wake.set)
                self._delivered[request.uid] = self._acknowledged[request.uid] = 0
        driver.start(request)

    def wish_checkpoint(self, uid: str, attempt: int) -> None:
        if (driver := self._driver(uid)) is not None:
            driver.wish_checkpoint(attempt)

    def wish_stop(self, uid: str, attempt: int) -> None:
        if (driver := self._driver(uid)) is not None:
            driver.wish_stop(attempt)

    def wish_cadence(self, uid: str, attempt: int, cadence: Cadence) -> None:
        if (driver := self._driver(uid)) is not None:
            driver.wish_cadence(attempt, cadence)

    def wish_size(self, uid: str, attempt: int, workers: int) -> None:
        if (driver := self._driver(uid)) is not None:
            driver.wish_size(attempt, workers)

    def kill(self, uid: str, attempt: int) -> None:
        if (driver := self._driver(uid)) is not None:
            driver.kill(attempt)

    def acknowledge(self, uid: str, driver_id: str, seq: int) -> None:
        """Only now is this driver asked for more, so that one that talks fast cannot flood the inbox."""
        with self._lock:
            if uid in self._acknowledged:
                self._acknowledged[uid] = seq
        self._wake.set()

    def release(self, uid: str) -> None:
        with self._lock:
            self._drivers.pop(uid, None)
            self._delivered.pop(uid, None)
            self._acknowledged.pop(uid, None)

    def room(self) -> Room:
        return self._room

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            drivers = list(self._drivers.values())
        for driver in drivers:
            driver.close()

    def _driver(self, uid: str) -> Driver | None:
        with self._lock:
            return self._drivers.get(uid)

    def _pump(self, deliver: Deliver) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            for uid, driver, after in self._snapshot():
                updates: Sequence[Update] = driver.updates(after)
                if updates:
                    with self._lock:
                        if uid in self._delivered:
                            self._delivered[uid] = updates[-1].seq
                    deliver(Heard(uid, driver.driver_id, tuple(updates)))

    def _snapshot(self) -> list[tuple[str, Driver, int]]:
        with self._lock:
            return [
                (uid, driver, self._delivered[uid])
                for uid, driver in self._drivers.items()
                if self._acknowledged[uid] == self._delivered[uid]
            ]
