"""Gangs of threads, for the fake engine: one world that lives and dies together, and an elastic gang of such worlds.

The elastic gang tells what the native engine tells: slots that are held, ready and released, worlds that form, are lost or
left, notices. State is kept in memory after every step; a world that is left goes on from the newest step, one that is lost
from the step before it, as if that of its last step had not been copied yet.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.clock import Clock
from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.platforms.engines.base import Listener, Outcome, RunRequest, WishBoard, Wishes

LOOK_SECONDS = 0.02
Loop = Callable[..., Mapping[str, Any]]


class Taken(BaseException):
    """Raised in a rank's thread when its worker is taken away or its world ends; nothing a worker loop catches."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a world goes on from: the step, and what was published with it."""

    step: int
    document: Mapping[str, Any]


class Memory:
    """What outlives the worlds of an elastic gang. Written by rank 0 of one world at a time."""

    def __init__(self) -> None:
        self.source: Source | None = None
        """What the present world was given."""
        self._kept: list[Source] = []

    def publish(self, step: int, document: Mapping[str, Any]) -> None:
        self._kept = [*self._kept, Source(step, document)][-2:]

    def give(self, *, newest: bool) -> None:
        """Choose what the next world goes on from, and forget what was published after it."""
        self._kept = self._kept if newest else self._kept[:1]
        self.source = self._kept[-1] if self._kept else None

    def forget(self) -> None:
        """All copies are gone."""
        self._kept = []


class Link:
    """What a rank talks through."""

    def __init__(self, gang: Gang, rank: int) -> None:
        self.rank = rank
        self.memory = gang.memory
        self._gang = gang

    def send(self, event: Mapping[str, Any]) -> None:
        self._gang.check(self.rank)
        self._gang.listener([{**event, "generation": self._gang.generation}])

    def wishes(self) -> Wishes:
        self._gang.check(self.rank)
        return self._gang.wishes.read()

    def close(self) -> None:
        """Nothing is buffered."""


class Gang:
    """One world: ranks that are threads, and end together."""

    def __init__(
        self,
        request: RunRequest,
        listener: Listener,
        wishes: WishBoard,
        ranks: int,
        generation: int = 1,
        memory: Memory | None = None,
    ) -> None:
        self.request = request
        self.listener = listener
        self.wishes = wishes
        self.ranks = ranks
        self.generation = generation
        self.memory = memory
        self.lost: set[int] = set()
        self.killed = False
        self.left: Callable[[], bool] = lambda: False
        """Whether the world is to be left for another."""
        self.results: dict[int, Mapping[str, Any]] = {}
        self.errors: dict[int, Exception] = {}

    def check(self, rank: int) -> None:
        """A world lives and dies together: one lost or failed rank takes the others with it."""
        if self.killed or self.lost or self.errors or self.left():
            raise Taken(rank)

    def run(self, loop: Loop) -> None:
        """Run rank 0 here and the others in threads of their own, until all have ended."""
        others = [
            threading.Thread(target=self._run_rank, args=(loop, rank), name=f"rank-{rank}", daemon=True)
            for rank in range(1, self.ranks)
        ]
        for thread in others:
            thread.start()
        self._run_rank(loop, 0)
        for thread in others:
            thread.join()

    def _run_rank(self, loop: Loop, rank: int) -> None:
        try:
            self.results[rank] = loop(self.request.assignment, Link(self, rank))
        except Taken:
            return
        except Exception as error:  # noqa: BLE001 - the edge of a worker: its error becomes the attempt's outcome
            self.errors[rank] = error
            lines = traceback.format_exception(error)
            self.listener([{"kind": "log", "rank": rank, "lines": "".join(lines).splitlines()}])

    def outcome(self) -> Outcome | None:
        """How the world ended, unless it was left for another."""
        if self.errors:
            rank, error = min(self.errors.items())
            reason = getattr(error, "reason", "ApplicationError")
            return Outcome(str(reason), f"rank {rank}: {type(error).__name__}: {error}")
        if self.lost:
            return Outcome("WorkerLost", f"rank {min(self.lost)} is gone")
        if self.killed:
            return Outcome("WorkerLost", "the gang was killed")
        result = self.results.get(0)
        return None if result is None else Outcome(str(result["reason"]), "", result)


class Elastic:
    """An elastic attempt: slots that come and go, and one world after the other on those there are."""

    def __init__(self, request: RunRequest, listener: Listener, wishes: WishBoard, clock: Clock) -> None:
        self._request = request
        self._listener = listener
        self._wishes = wishes
        self._clock = clock
        self._changed = threading.Condition()
        self._slots: dict[str, bool] = {}
        """Every slot that is held; False when its node was announced to go."""
        self._told = 0
        self._world: list[str] = []
        self._gang: Gang | None = None
        self._why: tuple[str, str] | None = None
        """Why the present world is to be left."""
        self._memory = Memory()
        self._killed = False
        self._asked = 0
        """The size that the slots were asked for."""

    def run(self, loop: Loop) -> Outcome:
        self._asked = self._target()
        for _ in range(self._asked):
            self.join()
        outcome, generation = self._room(), 0
        while outcome is None:
            generation += 1
            gang = self._form(generation)
            gang.run(loop)
            outcome = self._after(gang)
        for slot in list(self._slots):
            self._release(slot)
        return outcome

    # --- what a test lets happen, from its own thread

    def join(self) -> str:
        """A slot comes; the gang takes it in when it may grow. Its name."""
        with self._changed:
            slot, self._told = f"slot-{self._told}", self._told + 1
            self._slots[slot] = True
            self._tell("slot", slot=slot, node=f"node-{slot}", host=f"host-{slot}", state="held")
            if self._gang is not None:
                self._tell("slot", slot=slot, node=f"node-{slot}", host=f"host-{slot}", state="ready")
            self._leave_if_size_changes("Joined", f"{slot} joined")
            self._changed.notify_all()
        return slot

    def notice(self, rank: int) -> None:
        """The node of a rank's slot will go; the gang leaves it."""
        with self._changed:
            slot = self._slot_of(rank)
            self._slots[slot] = False
            now_ns = self._clock.now_ns()
            notice = Notice("fake", f"node-{slot}", NoticeKind.INTERRUPTION, now_ns, None)
            self._tell("notice", notice=notice.to_document())
            self._why = ("Notice", f"node-{slot} goes")

    def lose(self, rank: int, *, memory: bool = True) -> bool:
        """Take a rank's slot away; without `memory` all copies of the state go with it. False when no world stands."""
        with self._changed:
            if self._gang is None:
                return False
            if not memory:
                self._memory.forget()
            self._gang.lost.add(rank)
            return True

    def kill(self) -> None:
        with self._changed:
            self._killed = True
            if self._gang is not None:
                self._gang.killed = True
            self._changed.notify_all()

    # --- worlds

    def _target(self) -> int:
        return self._wishes.size or self._request.workers

    def _fit(self) -> int | None:
        """The size of the next world; None when there are too few slots."""
        usable = sum(self._slots.values())
        within = min(usable, max(self._target(), self._request.sizes[0]))
        return max((size for size in self._request.sizes if size <= within), default=None)

    def _room(self) -> Outcome | None:
        """Wait until a world has room; the outcome when it is not waited for any longer."""
        with self._changed:
            while self._fit() is None:
                if self._killed:
                    return Outcome("WorkerLost", "the gang was killed")
                if self._wishes.read().stop:
                    return Outcome("Stopped", "it was asked to stop while it waited for workers")
                self._changed.wait(LOOK_SECONDS)
        return None

    def _form(self, generation: int) -> Gang:
        with self._changed:
            size, per = self._fit(), self._request.ranks_per_worker
            assert size is not None
            self._world = [slot for slot, stays in self._slots.items() if stays][:size]
            workers = [
                {"worker": f"w{rank}", "rank": rank, "slot": slot, "host": f"host-{slot}", "node": f"node-{slot}"}
                for rank, slot in enumerate(slot for slot in self._world for _ in range(per))
            ]
            gang = Gang(self._request, self._listener, self._wishes, size * per, generation, self._memory)
            gang.killed, gang.left = self._killed, self._to_leave
            self._gang, self._why = gang, None
            self._tell("world", generation=generation, world_size=size * per, workers=workers)
            for slot in [slot for slot, stays in self._slots.items() if not stays]:
                self._release(slot)  # nobody trains there any more
        return gang

    def _after(self, gang: Gang) -> Outcome | None:
        """What became of a world; None when another follows."""
        with self._changed:
            self._gang = None
            outcome, now_ns = gang.outcome(), self._clock.now_ns()
            if outcome is not None and not gang.lost:
                return outcome
            reason, message = "WorkerLost", f"rank {min(gang.lost)} is gone" if gang.lost else ""
            for slot in {self._slot_of(rank) for rank in gang.lost}:
                self._release(slot)
            if not gang.lost:
                assert self._why is not None
                reason, message = self._why
            self._memory.give(newest=not gang.lost)
            target = self._fit() or 0
            lost = {"generation": gang.generation, "reason": reason, "message": message, "target": target}
            self._tell("world_lost", **lost, began_ns=now_ns)
        return self._room()

    def _to_leave(self) -> bool:
        """Asked by every rank that uses its link."""
        with self._changed:
            if self._why is None and self._asked != (asked := self._target()):
                self._asked = asked
                self._leave_if_size_changes("Resized", f"{asked} workers are wished for")
                while len(self._slots) < asked:
                    self.join()
                self._leave_if_size_changes("Resized", f"{asked} workers are wished for")
            return self._why is not None

    def _leave_if_size_changes(self, reason: str, message: str) -> None:
        if self._gang is not None and self._why is None and self._fit() not in (None, len(self._world)):
            self._why = (reason, message)

    def _slot_of(self, rank: int) -> str:
        return self._world[rank // self._request.ranks_per_worker]

    def _release(self, slot: str) -> None:
        del self._slots[slot]
        self._tell("slot", slot=slot, node=f"node-{slot}", host=f"host-{slot}", state="released")

    def _tell(self, kind: str, **fields: Any) -> None:
        self._listener([{"kind": kind, **fields, "at_ns": self._clock.now_ns()}])
