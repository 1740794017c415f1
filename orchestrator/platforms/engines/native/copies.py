"""Copies of one rank's shards, of another node: the newest whole one stays until the next is whole.

A copy that comes in is written into the room of the oldest, and counts from the moment its last byte was checked. Readers of
the copy that is overwritten notice it by the hashes, since they were told those of the content they asked for.
"""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass

from orchestrator.platforms.engines.native.wire import Refused

COPIES = 2
"""Whole ones at a time; the older gives its room to the next that comes in."""
MOST_ARRIVALS = 2
"""How many may come in at once: one over a line that broke and was not noticed yet, and one over the line after it."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A whole shard."""

    step: int
    arrival: int
    """Copies are numbered in the order in which room was made for them."""
    data: memoryview
    layout: bytes
    fixed: bytes
    document: bytes
    hashes: tuple[str, ...]


class Copies:
    """Those of one rank of one generation. Safe to use from several threads."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._lock = threading.Lock()
        self._whole: list[Copy] = []
        self._static: tuple[bytes, bytes] | None = None
        self._coming = 0
        self._arrivals = 0

    def whole(self) -> list[Copy]:
        """The newest first."""
        with self._lock:
            return list(self._whole)

    def expect(self, step: int, nbytes: int, *, again: bool) -> Arriving:
        """Room for another. `again`: layout and fixed document are as they were. Raises Refused."""
        with self._lock:
            if again and self._static is None:
                raise Refused("the layout was never sent here")
            if self._coming >= MOST_ARRIVALS:
                raise Refused("copies of this rank are coming in already")
            if len(self._whole) >= COPIES and len(self._whole[-1].data) == nbytes:
                room = self._whole.pop().data
            else:
                try:
                    room = memoryview(mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[
                        :nbytes
                    ]
                except (OSError, OverflowError, ValueError) as error:
                    raise Refused(f"no room for {nbytes} bytes: {error}") from error
            self._coming += 1
            self._arrivals += 1
            return Arriving(self, step, self._arrivals, room)

    def take(
        self, arriving: Arriving, static: tuple[bytes, bytes] | None, document: bytes, hashes: tuple[str, ...]
    ) -> None:
        """Count a copy that has come in among the whole ones."""
        with self._lock:
            self._static = static if static is not None else self._static
            assert self._static is not None
            copy = Copy(arriving.step, arriving.number, arriving.data, *self._static, document, hashes)
            self._whole.append(copy)
            self._whole.sort(key=lambda one: one.arrival, reverse=True)
            del self._whole[COPIES:]

    def leave(self) -> None:
        """One fewer is coming in."""
        with self._lock:
            self._coming -= 1


class Arriving:
    """A copy that is coming in; fill `data`, then `keep` it. `drop` at the end in any case."""

    def __init__(self, copies: Copies, step: int, number: int, data: memoryview) -> None:
        self.step, self.number, self.data = step, number, data
        self._copies = copies
        self._over = False

    def keep(self, static: tuple[bytes, bytes] | None, document: bytes, hashes: tuple[str, ...]) -> None:
        """It is whole. `static` are layout and fixed document; None: as they were."""
        self._copies.take(self, static, document, hashes)

    def drop(self) -> None:
        """Nothing more comes; what was not kept is let go."""
        if not self._over:
            self._over = True
            self._copies.leave()
