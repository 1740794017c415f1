"""A file layer that dies at the n-th operation, and counts that it did."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.storage import LocalFiles, LocalStore


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

    def put(self, path: Path, blocks: Iterable[Sequence[memoryview]]) -> None:
        if self.torn and self.allowed == 0:
            content = b"".join(view for views in blocks for view in views)
            super().put(path, [[memoryview(content)[: len(content) // 2]]])
        self._spend()
        super().put(path, blocks)

    def sync(self, path: Path) -> None:
        self._spend()
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._spend()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._spend()
        super().unlink(path)

    def remove(self, folder: Path) -> None:
        if self.allowed == 0 and (names := self.tree(folder)):
            (folder / names[0]).unlink()  # a deletion can be cut halfway
        self._spend()
        super().remove(folder)


class FullFiles(LocalFiles):
    """A disk that refuses, with `number`, every write of a file of this name."""

    def __init__(self, name: str, number: int = errno.ENOSPC) -> None:
        self.name = name
        self.number = number
        self.refused = 0

    def put(self, path: Path, blocks: Iterable[Sequence[memoryview]]) -> None:
        if path.name == self.name:
            self.refused += 1
            raise OSError(self.number, "No space left on device", str(path))
        super().put(path, blocks)


def store_on(root: Path, files: LocalFiles) -> LocalStore:
    return LocalStore(str(root), root, files)
