"""Hashes of files, taken while the bytes pass by: sha256 for a file of one block, xxh3-128 a block for a larger one.

xxh3 finds what disks, networks and cut writes do to a file, at several GB/s a core and without holding Python's lock; it is
no defence against somebody who means harm, and neither is a sha256 that lies beside the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import xxhash

from orchestrator.storage.manifest import FileEntry

BLOCK_BYTES = 4 * 1024 * 1024

Content = Iterable[memoryview | bytes]
"""The content of a file in any number of pieces; each must stay as it is until the write returns."""


class Hasher:
    """Hashes a stream: pass the content through `blocks`, then ask for the `entry`. `large`: by blocks, however small."""

    def __init__(self, *, large: bool = False) -> None:
        self.bytes = 0
        self._large = large
        self._sha256 = hashlib.sha256()
        self._xxh3: list[str] = []

    def blocks(self, content: Content) -> Iterator[list[memoryview]]:
        """The same bytes, block by block, each as the views that make it up; nothing is copied."""
        for views in cut(content, BLOCK_BYTES):
            block = xxhash.xxh3_128()
            for view in views:
                block.update(view)
                if not self._xxh3 and not self._large:
                    self._sha256.update(view)
                self.bytes += len(view)
            self._xxh3.append(block.hexdigest())
            yield views

    def entry(self, path: str, *, shared: bool = False) -> FileEntry:
        """What was hashed, as a manifest's entry."""
        if len(self._xxh3) > (0 if self._large else 1):
            return FileEntry(path, self.bytes, xxh3=tuple(self._xxh3), shared=shared)
        return FileEntry(path, self.bytes, sha256=self._sha256.hexdigest(), shared=shared)


def cut(content: Content, size: int) -> Iterator[list[memoryview]]:
    """Views on the content in groups of `size` bytes; the last group may be smaller, and none is empty."""
    group: list[memoryview] = []
    room = size
    for piece in content:
        view = memoryview(piece).cast("B")
        while len(view):
            group.append(view[:room])
            room -= len(group[-1])
            view = view[len(group[-1]) :]
            if room == 0:
                yield group
                group, room = [], size
    if group:
        yield group


def entry_of(path: str, content: Content, *, large: bool = False, shared: bool = False) -> FileEntry:
    """Hash a content without writing it."""
    hasher = Hasher(large=large)
    for _ in hasher.blocks(content):
        pass
    return hasher.entry(path, shared=shared)


def content_digest(entry: FileEntry) -> str:
    """One hexadecimal name of 64 digits for a file's content, from its hashes."""
    return entry.sha256 or hashlib.sha256("".join(entry.xxh3).encode()).hexdigest()


def is_block(entry: FileEntry, number: int, block: memoryview) -> bool:
    """Whether these are the bytes of the block `number` of a file; only for entries that `Hasher` made."""
    if entry.xxh3:
        return xxhash.xxh3_128_hexdigest(block) == entry.xxh3[number]
    return hashlib.sha256(block).hexdigest() == entry.sha256
