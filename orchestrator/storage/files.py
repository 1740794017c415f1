"""The few file operations that a commit is made of, as one object, so that a test can make any of them fail.

`LocalFiles` is the real thing. Each method is one step that a power cut can separate from the next. They raise OSError
as the system does; the local store turns that into a StorageError that says what to do.

A plain write and fsync fills the page cache first and the disk afterwards. `put` asks for room ahead and lets the disk begin
with each block at once (fallocate, sync_file_range), so that hashing and copying go on beside the disk; measured, that is
faster than the plain way although it hashes. Both are hints: where the system does not know them, nothing is lost.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.storage.hashing import BLOCK_BYTES

_VIEWS_A_CALL = 1024
"""What Linux takes in one writev."""
_AHEAD_BYTES = 16 * 1024 * 1024
_KEEP_SIZE = 1
_START_WRITING = 2
_LIBC = ctypes.CDLL(None)


class LocalFiles:
    """Operations on a local (or mounted) file system."""

    def make_folder(self, folder: Path) -> None:
        """Create a folder and its parents; no error when it is there."""
        folder.mkdir(parents=True, exist_ok=True)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def names(self, folder: Path) -> list[str]:
        """Names in a folder, sorted; empty when there is no such folder."""
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def tree(self, folder: Path) -> list[str]:
        """Every file below a folder as a relative path with forward slashes, sorted. Links count as files."""
        found = []
        for root, folders, files in os.walk(folder):
            links = [name for name in folders if (Path(root) / name).is_symlink()]
            found += [(Path(root) / name).relative_to(folder).as_posix() for name in files + links]
        return sorted(found)

    def folders(self, folder: Path) -> list[Path]:
        """The folder itself and every folder below it, the deepest first."""
        return [Path(root) for root, _, _ in os.walk(folder, topdown=False)]

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def read_into(self, path: Path, offset: int, out: memoryview) -> int:
        """Fill `out` with the bytes from `offset` on; how many there were."""
        handle = os.open(path, os.O_RDONLY)
        done = 0
        try:
            while done < len(out) and (got := os.preadv(handle, [out[done:]], offset + done)):
                done += got
        finally:
            os.close(handle)
        return done

    def put(self, path: Path, blocks: Iterable[Sequence[memoryview]]) -> None:
        """Write a whole file and wait until its content is on the disk. Its name is only there once its folder is synced."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        reserved = size = 0
        try:
            for views in blocks:
                length = sum(map(len, views))
                whole = length == BLOCK_BYTES
                if whole and size == reserved and _hint("fallocate", handle, _KEEP_SIZE, size, _AHEAD_BYTES):
                    reserved += _AHEAD_BYTES
                _write_all(handle, list(views))
                if whole:
                    _hint("sync_file_range", handle, size, length, _START_WRITING)
                size += length
            if reserved > size:
                os.truncate(handle, size)
            os.fsync(handle)
        finally:
            os.close(handle)

    def sync(self, path: Path) -> None:
        """Wait until a file's content, or a folder's list of names, is on the disk (fsync)."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder its name in one step. Fails when `new` is a folder that is not empty."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """Delete a file; no error when it is gone."""
        path.unlink(missing_ok=True)

    def remove(self, folder: Path) -> None:
        """Delete a folder and all below it."""
        shutil.rmtree(folder)


def _hint(name: str, handle: int, *arguments: int) -> bool:
    """Tell Linux about a file; False when it does not want to know."""
    call = getattr(_LIBC, name, None)
    if call is None:
        return False
    kinds = {"fallocate": "ill", "sync_file_range": "lli"}[name]
    values = [
        ctypes.c_int64(value) if kind == "l" else ctypes.c_int(value)
        for kind, value in zip(kinds, arguments, strict=True)
    ]
    return bool(call(ctypes.c_int(handle), *values) == 0)


def _write_all(handle: int, views: list[memoryview]) -> None:
    while views:
        written = os.writev(handle, views[:_VIEWS_A_CALL])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
