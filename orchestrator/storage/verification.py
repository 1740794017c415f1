"""Is a file what its entry says, and do the fragments make up every parameter? Damage is named with file and block."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import Protocol

from orchestrator.storage.hashing import BLOCK_BYTES, is_block
from orchestrator.storage.manifest import ITEM_BYTES, FileEntry, Manifest


class Source(Protocol):
    """Reads the bytes of a store's files. Safe to use from several threads."""

    parallel: int
    """How many reads at a time are worth while."""

    def read_into(self, place: str, offset: int, out: memoryview) -> int:
        """Fill `out` from a file, given relative to the store; how many bytes there were. Raises StorageError."""
        ...


def difference(source: Source, place: str, entry: FileEntry, content: memoryview | None = None) -> str | None:
    """What is wrong with a file's bytes, as a sentence; None when nothing is. Raises StorageError when it cannot be read.

    `content`: its bytes, when they are at hand.
    """
    if not entry.xxh3:
        return _difference_whole(source, place, entry, content)
    block = memoryview(bytearray(min(BLOCK_BYTES, entry.bytes)))
    for number, start in enumerate(range(0, entry.bytes, BLOCK_BYTES)):
        size = min(BLOCK_BYTES, entry.bytes - start)
        given = None if content is None else content[start : start + size]
        got = block[: source.read_into(place, start, block[:size])] if given is None else given
        if len(got) < size:
            return f"{entry.path} ends after {start + len(got)} of {entry.bytes} bytes"
        if not is_block(entry, number, got):
            return damaged(entry, number)
    return None


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


def _difference_whole(source: Source, place: str, entry: FileEntry, content: memoryview | None) -> str | None:
    if content is None:
        summer, start = hashlib.sha256(), 0
        block = memoryview(bytearray(min(BLOCK_BYTES, entry.bytes)))
        while start < entry.bytes and (got := source.read_into(place, start, block[: entry.bytes - start])):
            summer.update(block[:got])
            start += got
    else:
        summer, start = hashlib.sha256(content), len(content)
    if start < entry.bytes:
        return f"{entry.path} ends after {start} of {entry.bytes} bytes"
    return None if summer.hexdigest() == entry.sha256 else damaged(entry, 0)
