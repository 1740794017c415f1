"""A file layer that dies at the n-th operation, and counts that it did."""

from __future__ import annotations

import errno
from pathlib import Path

from orchestrator.storage import LocalFiles


class Crash(BaseException):
    """Power cut: nothing catches it, nothing is tidied up after it."""


class CrashingFiles(LocalFiles):
    """Runs `allowed` operations that change the disk, then crashes: at once, or in the middle of a write."""

    def __init__(self, allowed: int, *, torn: bool = False) -> None:
        self.allowed = allowed
        self.torn = torn
        self.crashes = 0

    def _spend(self) -> None:
        if self.allowed == 0:
            self.crashes += 1
            raise Crash
        self.allowed -= 1

    def make_folder(self, folder: Path) -> None:
        self._spend()
        super().make_folder(folder)

    def write(self, path: Path, content: bytes) -> None:
        if self.torn and self.allowed == 0:
            super().write(path, content[: len(content) // 2])
        self._spend()
        super().write(path, content)

    def sync(self, path: Path) -> None:
        self._spend()
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._spend()
        super().rename(old, new)

    def remove(self, folder: Path) -> None:
        if self.allowed == 0 and (names := self.tree(folder)):
            (folder / names[0]).unlink()  # a deletion can be cut halfway
        self._spend()
        super().remove(folder)


class FullFiles(LocalFiles):
    """A disk that refuses every write of a manifest with `number`."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        self.number = number
        self.refused = 0

    def write(self, path: Path, content: bytes) -> None:
        self.refused += 1
        raise OSError(self.number, "No space left on device", str(path))
