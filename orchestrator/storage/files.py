"""The few file operations that a commit is made of, as one object, so that a test can make any of them fail.

`LocalFiles` is the real thing. Each method is one step that a power cut can separate from the next. They raise OSError
as the system does; `checkpoints` turns that into a StorageError that says what to do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

BLOCK_BYTES = 4 * 1024 * 1024


class LocalFiles:
    """Operations on a local (or mounted) file system."""

    def make_folder(self, folder: Path) -> None:
        """Create a folder and its parents; no error when it is there."""
        folder.mkdir(parents=True, exist_ok=True)

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

    def digest(self, path: Path) -> str:
        """sha256 of a file's content, hexadecimal."""
        summer = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                summer.update(block)
        return summer.hexdigest()

    def write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)

    def sync(self, path: Path) -> None:
        """Wait until a file's content, or a folder's list of names, is on the disk (fsync)."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a folder its name in one step. Fails when `new` is there and is not empty."""
        os.rename(old, new)

    def remove(self, folder: Path) -> None:
        """Delete a folder and all below it."""
        shutil.rmtree(folder)
