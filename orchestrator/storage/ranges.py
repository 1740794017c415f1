"""Slices of parameters out of files with fragments, whatever world wrote them; every block that is touched is verified.

The files are those of a checkpoint, or the shards of a world that is gone, in the memory of its nodes: where bytes come
from is the `Source`'s business.

Blocks that lie wholly inside a slice are read straight to where they belong and hashed there. The block at either end is
read whole, verified, and kept for a while, since the next slice often begins where this one ended. Nothing else of a file is
read. Larger slices are read by a few threads at once.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from orchestrator.domain.errors import CorruptCheckpoint
from orchestrator.storage.hashing import BLOCK_BYTES, is_block
from orchestrator.storage.manifest import ITEM_BYTES, FileEntry, Fragment
from orchestrator.storage.verification import Source, damaged

_KEPT_BLOCKS = 16
_BLOCKS_A_READ = 4
_OLDER = "restore from an older checkpoint"


class RangeReader:
    """Reads elements of parameters. Safe to use from several threads; close it, or use it as a context."""

    def __init__(
        self,
        uri: str,
        files: Iterable[FileEntry],
        fragments: Iterable[Fragment],
        places: Mapping[str, str],
        source: Source,
        *,
        hint: str = _OLDER,
    ) -> None:
        """`uri` names the whole in messages, and `hint` says what to do; `places`: where `source` has the files, by path."""
        self._uri = uri
        self._hint = hint
        self._places = places
        self._source = source
        self._entries = {entry.path: entry for entry in files}
        self._fragments: dict[tuple[str, str], list[Fragment]] = {}
        for fragment in fragments:
            self._fragments.setdefault((fragment.name, fragment.kind), []).append(fragment)
        for held in self._fragments.values():
            held.sort(key=lambda fragment: fragment.start)
        self._kinds: dict[str, set[str]] = {}
        for name, kind in self._fragments:
            self._kinds.setdefault(name, set()).add(kind)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of threads and blocks."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._kept.clear()
        if pool is not None:
            pool.shutdown(wait=True)

    def kinds(self, name: str) -> frozenset[str]:
        """Kinds of state that there are of a parameter; empty for a parameter that is not known."""
        return frozenset(self._kinds.get(name, ()))

    def dtype(self, name: str, kind: str) -> str:
        """The stored type of a parameter's state, such as `float32`. Raises CorruptCheckpoint when there is none."""
        return self._of(name, kind)[0].dtype

    def read_into(self, name: str, kind: str, start: int, end: int, out: memoryview) -> None:
        """Read elements [start, end) of the flattened parameter, in their stored type, into `out` (as many bytes).

        Raises CorruptCheckpoint with file and block for damage, with the elements for a gap; `out` is undefined then.
        """
        fragments = self._of(name, kind)
        item = ITEM_BYTES[fragments[0].dtype]
        out = out.cast("B")
        if len(out) != (end - start) * item:
            raise ValueError(f"{name} ({kind}) [{start}, {end}) takes {(end - start) * item} bytes, not {len(out)}")
        steps: list[Callable[[], None]] = []
        reached = start
        place = max(0, bisect_right(fragments, start, key=lambda fragment: fragment.start) - 1)
        while reached < end:
            while place < len(fragments) and fragments[place].end <= reached:
                place += 1
            if place == len(fragments) or fragments[place].start > reached:
                stop = end if place == len(fragments) else min(end, fragments[place].start)
                raise self._refuse(f"{name} ({kind}) lacks its elements {reached} to {stop - 1}")
            fragment = fragments[place]
            stop = min(end, fragment.end)
            offset = fragment.offset + (reached - fragment.start) * item
            steps += self._steps(fragment.file, offset, out[(reached - start) * item : (stop - start) * item])
            reached = stop
        self._run(steps)

    def _run(self, steps: list[Callable[[], None]]) -> None:
        if len(steps) < 2 or self._source.parallel < 2:
            for step in steps:
                step()
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._source.parallel, thread_name_prefix="ranges")
            futures = [self._pool.submit(step) for step in steps]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]

    def _steps(self, path: str, offset: int, out: memoryview) -> Iterator[Callable[[], None]]:
        """What is to be read for one stretch of a file, in pieces that do not depend on each other."""
        entry = self._entries.get(path)
        if entry is None or offset < 0 or offset + len(out) > entry.bytes:
            raise self._refuse(f"a fragment lies outside {path}")
        end = offset + len(out)
        number = offset // BLOCK_BYTES
        while number * BLOCK_BYTES < end:
            block_start, block_end = number * BLOCK_BYTES, min(entry.bytes, (number + 1) * BLOCK_BYTES)
            if block_start < offset or block_end > end:
                begin, stop = max(offset, block_start), min(end, block_end)
                yield _Part(self, entry, number, begin - block_start, out[begin - offset : stop - offset])
                number += 1
                continue
            full = min(_BLOCKS_A_READ, max(1, (end - block_start) // BLOCK_BYTES))
            stop = min(entry.bytes, (number + full) * BLOCK_BYTES)
            yield _Whole(self, entry, number, out[block_start - offset : stop - offset])
            number += full

    def _of(self, name: str, kind: str) -> list[Fragment]:
        fragments = self._fragments.get((name, kind))
        if not fragments:
            raise self._refuse(f"it has no {kind} of {name}")
        return fragments

    def _refuse(self, why: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self._uri}: {why}", hint=self._hint)

    def read_blocks(self, entry: FileEntry, number: int, out: memoryview) -> None:
        """Read whole blocks from `number` on into `out` and verify them."""
        got = self._source.read_into(self._places[entry.path], number * BLOCK_BYTES, out)
        if got < len(out):
            raise self._refuse(f"{entry.path} ends after {number * BLOCK_BYTES + got} of {entry.bytes} bytes")
        for count, start in enumerate(range(0, len(out), BLOCK_BYTES)):
            if not is_block(entry, number + count, out[start : start + BLOCK_BYTES]):
                raise self._refuse(damaged(entry, number + count))

    def block(self, entry: FileEntry, number: int) -> memoryview:
        """One verified block, from those kept or from the file."""
        key = (entry.path, number)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        block = memoryview(bytearray(min(BLOCK_BYTES, entry.bytes - number * BLOCK_BYTES)))
        self.read_blocks(entry, number, block)
        with self._lock:
            self._kept[key] = block
            while len(self._kept) > _KEPT_BLOCKS:
                self._kept.popitem(last=False)
        return block


class _Whole:
    """A run of blocks that lie wholly inside the slice."""

    def __init__(self, reader: RangeReader, entry: FileEntry, number: int, out: memoryview) -> None:
        self._reader, self._entry, self._number, self._out = reader, entry, number, out

    def __call__(self) -> None:
        self._reader.read_blocks(self._entry, self._number, self._out)


class _Part:
    """A part of one block."""

    def __init__(self, reader: RangeReader, entry: FileEntry, number: int, begin: int, out: memoryview) -> None:
        self._reader, self._entry, self._number, self._begin, self._out = reader, entry, number, begin, out

    def __call__(self) -> None:
        block = self._reader.block(self._entry, self._number)
        self._out[:] = block[self._begin : self._begin + len(self._out)]
