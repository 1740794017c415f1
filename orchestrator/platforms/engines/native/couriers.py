"""Brings each new shard of one local rank to the neighbour's agent. A thread of the agent's, so the rank never does it.

The rank rings when it has published; the courier takes the newest shard that is whole, sends it, and rings back when the
neighbour has it. While the neighbour cannot be had it says so in the segment, at which the rank stops waiting for it, and
tries again with the next shard, or after a while. A shard that the rank overwrites while it is sent (which only happens
when nobody waits for the neighbour) is taken back at the end, and never seen by a reader.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from dataclasses import dataclass, replace

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock
from orchestrator.platforms.engines.native.priority import stand_back
from orchestrator.platforms.engines.native.segments import NotASegment, Published, Segment, path_of
from orchestrator.platforms.engines.native.wire import Address, Description, Line, Name, Refused

RETRY_SECONDS = 0.5
_NO_NEIGHBOUR = "the job has no other node"


class Bells:
    """Two pipes of one segment: by the one the rank wakes the agent, by the other the agent wakes the rank."""

    def __init__(self) -> None:
        self._up = os.pipe()
        try:
            self._down = os.pipe()
        except OSError:
            for handle in self._up:
                os.close(handle)
            raise
        for handle in (*self._up, *self._down):
            os.set_blocking(handle, False)
        self.agent = self._up[0]
        """To be polled by the agent."""
        self._lock = threading.Lock()
        self._closed = False

    @property
    def paths(self) -> tuple[str, str]:
        """What the rank opens: one to write to, one to read from."""
        return path_of(self._up[1]), path_of(self._down[0])

    def ring_agent(self) -> None:
        self._ring(self._up[1])

    def ring_rank(self) -> None:
        self._ring(self._down[1])

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for handle in (*self._up, *self._down):
                os.close(handle)

    def _ring(self, handle: int) -> None:
        with self._lock:
            if not self._closed:
                ring(handle)


def ring(handle: int) -> None:
    """Wake whoever polls the other end. A full pipe has woken them already; one without a reader has nobody to wake."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(handle, b"!")


def quiet(handle: int) -> None:
    """Take all that was rung, so that only what is rung from now on is heard."""
    with contextlib.suppress(BlockingIOError):
        while len(os.read(handle, 4096)) == 4096:
            pass


@dataclass(frozen=True, slots=True)
class Numbers:
    """What replication of one rank has cost by now; seconds and bytes are sums over `published` or `shipped` shards."""

    generation: int
    rank: int
    nbytes: int
    """Of one shard."""
    published: int = 0
    """Shards that the agent saw; when the rank is faster than the agent looks, fewer than it published."""
    shipped: int = 0
    newest_step: int | None = None
    acknowledged_step: int | None = None
    """The newest step that the neighbour holds."""
    copy_seconds: float = 0.0
    """The rank's own time to fill its memory: on the path of the step."""
    wait_seconds: float = 0.0
    """The rank's own time in waiting for its neighbour: on the path of the step."""
    ship_seconds: float = 0.0
    """From the ring until the neighbour's answer: beside the step."""
    alone_because: str | None = None
    """Why there is no copy at present; None while there is a neighbour and it answers."""


class Courier:
    """For one rank of one generation. Starts at once; owns the segment and the bells, and closes them when it ends."""

    def __init__(
        self,
        generation: int,
        rank: int,
        world_size: int,
        segment: Segment,
        bells: Bells,
        neighbour: Address | None,
        token: str,
        patience_seconds: float,
        clock: Clock,
    ) -> None:
        """`neighbour`: the memory server of the agent that takes the copies. `patience_seconds`: how long it may be silent."""
        self._generation, self._rank, self._world_size = generation, rank, world_size
        self._segment, self._bells = segment, bells
        self._neighbour, self._token, self._patience = neighbour, token, patience_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = Numbers(generation, rank, 0)
        self._line: Line | None = None
        self._seen = 0
        self._hashes: dict[int, tuple[str, ...]] = {}
        self._closing = False
        self._next: tuple[Address | None] | None = None
        """Another neighbour, which the thread has not turned to yet."""
        if neighbour is None:
            self._say_alone(_NO_NEIGHBOUR)
        self._thread = threading.Thread(target=self._run, name=f"courier-{rank}", daemon=True)
        self._thread.start()

    def numbers(self) -> Numbers:
        with self._lock:
            return self._numbers

    def hashes(self, shard: Published) -> tuple[str, ...] | None:
        """Those of a shard that has been shipped, if they are still known."""
        with self._lock:
            return self._hashes.get(shard.check)

    def pair(self, neighbour: Address | None) -> None:
        """Take the copies to this memory server from the next shard on; None: to none."""
        with self._lock:
            self._next = (neighbour,)
        self._cut()
        self._bells.ring_agent()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ask the thread to end; does not wait for it."""
        self._closing = True
        self._cut()
        self._bells.ring_agent()

    def _cut(self) -> None:
        line = self._line
        if line is not None:
            line.cut()

    def join(self) -> None:
        """Wait until it has ended: after `stop` at most as long as it takes to give up a connection that is being made."""
        self._thread.join()

    def _run(self) -> None:
        stand_back()
        bell = select.poll()
        bell.register(self._bells.agent, select.POLLIN)
        wait_ms: float | None = None
        try:
            while True:
                bell.poll(wait_ms)
                quiet(self._bells.agent)
                if self._closing:
                    return
                wait_ms = None if self._carry() else RETRY_SECONDS * 1000
        finally:
            self._hang_up()
            self._bells.close()
            self._segment.close()

    def _carry(self) -> bool:
        """Ship the newest shard unless the neighbour has it. False when that has to be tried again."""
        began_ns = self._clock.monotonic_ns()
        self._turn()
        try:
            newest = next(iter(self._segment.published()), None)
        except NotASegment as error:
            self._say_alone(str(error))
            return True
        if newest is None or newest.sequence <= self._segment.acknowledged:
            return True
        self._note(newest)
        if self._neighbour is None:
            return True
        try:
            if not self._ship(newest):
                return False
        except (OSError, Refused) as error:
            self._hang_up()
            if not self._closing:
                host, port = self._neighbour
                self._say_alone(f"the neighbour at {host}:{port} does not take copies: {error}")
            return False
        self._say_shipped(newest, self._clock.monotonic_ns() - began_ns)
        return True

    def _ship(self, shard: Published) -> bool:
        assert self._neighbour is not None
        if self._line is None:
            self._line = Line(self._neighbour, self._token, self._patience)
        segment = self._segment
        hashes = self._line.put(
            Name(self._generation, self._rank, shard.step),
            Description(segment.nbytes, self._world_size, segment.layout, segment.fixed, shard.document, ()),
            segment.data(shard.slot),
            lambda: segment.still(shard),
            segment.advance,
        )
        if hashes is None:
            return False
        with self._lock:
            self._hashes[shard.check] = hashes
            while len(self._hashes) > segment.slots:
                del self._hashes[next(iter(self._hashes))]
        return True

    def _turn(self) -> None:
        """To another neighbour, if there is to be one. What the one before has stays acknowledged; it is told with the next
        shard whether this one takes copies."""
        with self._lock:
            turned, self._next = self._next, None
        if turned is not None and turned[0] != self._neighbour:
            self._hang_up()
            (self._neighbour,) = turned
            if self._neighbour is None:
                self._say_alone(_NO_NEIGHBOUR)

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    # ---- what is told

    def _note(self, shard: Published) -> None:
        if shard.sequence == self._seen:
            return
        self._seen = shard.sequence
        with self._lock:
            self._numbers = replace(
                self._numbers,
                nbytes=self._segment.nbytes,
                published=self._numbers.published + 1,
                newest_step=shard.step,
                copy_seconds=self._numbers.copy_seconds + shard.copy_ns / NANOSECONDS_PER_SECOND,
                wait_seconds=self._numbers.wait_seconds + shard.wait_ns / NANOSECONDS_PER_SECOND,
            )

    def _say_shipped(self, shard: Published, took_ns: int) -> None:
        with self._lock:
            self._numbers = replace(
                self._numbers,
                shipped=self._numbers.shipped + 1,
                acknowledged_step=shard.step,
                ship_seconds=self._numbers.ship_seconds + took_ns / NANOSECONDS_PER_SECOND,
                alone_because=None,
            )
        self._segment.ship_ns = took_ns
        self._segment.acknowledged = shard.sequence
        self._segment.alone = False
        self._bells.ring_rank()

    def _say_alone(self, why: str) -> None:
        with self._lock:
            self._numbers = replace(self._numbers, alone_because=why)
        self._segment.alone = True
        self._bells.ring_rank()
