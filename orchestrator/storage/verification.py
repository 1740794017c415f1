"""Is a file what its entry says, and do the fragments make up every parameter? Damage is named with file and block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Protocol

from orchestrator.storage.hashing import BLOCK_BYTES, is_block
from orchestrator.storage.manifest import ITEM_BYTES, FileEntry, Manifest

_BLOCKS_A_TASK = 4


class Source(Protocol):
    """Reads the bytes of a store's files. Safe to use from several threads."""

    parallel: int
    """How many reads at a time are worth while."""

    def read_into(self, place: str, offset: int, out: memoryview) -> int:
        """Fill `out` from a file, given relative to the store; how many bytes there were. Raises StorageError."""
        ...


def difference(source: Source, files: Iterable[tuple[str, FileEntry]]) -> str | None:
    """What is wrong with the first file, given as (place, entry), that is not what its entry says; None when none is.

    Every byte is read, by as many threads as the source can use. Raises StorageError when a file cannot be read.
    """
    tasks = [task for place, entry in files for task in _tasks(source, place, entry)]
    if len(tasks) < 2 or source.parallel < 2:
        return next((why for task in tasks if (why := task())), None)
    with ThreadPoolExecutor(source.parallel, thread_name_prefix="verify") as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            return next((why for future in futures if (why := future.result())), None)
        finally:
            pool.shutdown(cancel_futures=True)


def difference_of(content: memoryview, entry: FileEntry) -> str | None:
    """What is wrong with a file's bytes that are at hand."""
    if len(content) < entry.bytes:
        return f"{entry.path} ends after {len(content)} of {entry.bytes} bytes"
    if not entry.xxh3:
        return None if hashlib.sha256(content).hexdigest() == entry.sha256 else damaged(entry, 0)
    blocks = range(0, entry.bytes, BLOCK_BYTES)
    wrong = (n for n, start in enumerate(blocks) if not is_block(entry, n, content[start : start + BLOCK_BYTES]))
    return next((damaged(entry, number) for number in wrong), None)


def _tasks(source: Source, place: str, entry: FileEntry) -> Iterator[Callable[[], str | None]]:
    """Checks of a file that do not depend on each other: a few blocks each, or the whole where it has one hash."""
    if not entry.xxh3:
        yield partial(_check_whole, source, place, entry)
        return
    for number in range(0, len(entry.xxh3), _BLOCKS_A_TASK):
        yield partial(_check_blocks, source, place, entry, number)


def _check_blocks(source: Source, place: str, entry: FileEntry, first: int) -> str | None:
    start = first * BLOCK_BYTES
    room = memoryview(bytearray(min(_BLOCKS_A_TASK * BLOCK_BYTES, entry.bytes - start)))
    got = source.read_into(place, start, room)
    if got < len(room):
        return f"{entry.path} ends after {start + got} of {entry.bytes} bytes"
    for count, begin in enumerate(range(0, len(room), BLOCK_BYTES)):
        if not is_block(entry, first + count, room[begin : begin + BLOCK_BYTES]):
            return damaged(entry, first + count)
    return None


def _check_whole(source: Source, place: str, entry: FileEntry) -> str | None:
    summer, start = hashlib.sha256(), 0
    block = memoryview(bytearray(min(BLOCK_BYTES, entry.bytes)))
    while start < entry.bytes and (got := source.read_into(place, start, block[: entry.bytes - start])):
        summer.update(block[:got])
        start += got
    if start < entry.bytes:
        return f"{entry.path} ends after {start} of {entry.bytes} bytes"
    return None if summer.hexdigest() == entry.sha256 else damaged(entry, 0)


def damaged(entry: FileEntry, number: int) -> str:
    """The sentence for a block that does not match."""
    if not entry.xxh3:
        return f"{entry.path} does not match its sha256: its content changed after the commit"
    last = min(entry.bytes, (number + 1) * BLOCK_BYTES) - 1
    place = f"block {number} (bytes {number * BLOCK_BYTES} to {last})"
    return f"{entry.path} does not match its hash in {place}: its content changed after the commit"


def gaps(manifest: Manifest) -> str | None:
    """Why the fragments do not make up every parameter exactly once from the manifest's files; None when they do."""
    sizes = {entry.path: entry.bytes for entry in manifest.files}
    elements = {parameter.name: parameter.elements for parameter in manifest.parameters}
    for fragment in manifest.fragments:
        if fragment.dtype not in ITEM_BYTES:
            return f"{fragment.name} ({fragment.kind}) is of an unknown type, {fragment.dtype}"
        if not (
            fragment.start <= fragment.end and 0 <= fragment.offset <= sizes.get(fragment.file, -1) - fragment.bytes
        ):
            return f"{fragment.name} ({fragment.kind}) lies outside {fragment.file}"
    in_order = sorted(manifest.fragments, key=lambda item: (item.name, item.kind, item.start, item.end))
    for (name, kind), group in groupby(in_order, key=lambda item: (item.name, item.kind)):
        why = _gap([(item.start, item.end) for item in group], elements.get(name))
        if why:
            return f"{name} ({kind}) {why}"
    return None


def _gap(spans: list[tuple[int, int]], elements: int | None) -> str | None:
    reached = 0
    for start, end in spans:
        if start > reached:
            return f"lacks its elements {reached} to {start - 1}"
        if start < reached and end > start:
            return f"has its elements {start} to {min(end, reached) - 1} twice"
        reached = max(reached, end)
    if elements is not None and reached != elements:
        return f"has {reached} of {elements} elements"
    return None
