"""Checkpoints in a local or mounted folder: written aside, made durable, committed by a rename.

    <root>/step-00000100.partial-2/     being written by attempt 2; never listed as a checkpoint
    <root>/step-00000100.partial-2.3/   the same by its generation 3
    <root>/step-00000100/               whole: every file, and manifest.json, which was written last
    <root>/step-00000100.refused-2/     a folder of that name that was not whole when attempt 2 had a whole one to put there
    <root>/step-00000100.partial-0/     being deleted
    <root>/shared/                      files that several checkpoints refer to, claims and doom markers (`store`)

Every file is fsynced by its writer, with the folders that it made. Commit: write the manifest and fsync it, fsync the
folders, rename, fsync the parent. Deletion: rename away, fsync the parent, delete. A crash between any two of these leaves
either the old list or the new one.

Limits: file systems whose rename is atomic and whose fsync tells the truth.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.domain.errors import NotFound, StorageError
from orchestrator.storage.errors import storage_error
from orchestrator.storage.files import LocalFiles
from orchestrator.storage.hashing import Content, Hasher
from orchestrator.storage.manifest import MANIFEST, FileEntry, Manifest
from orchestrator.storage.store import SHARED, Draft, Listed, Store, completed, proper
from orchestrator.storage.verification import Source

_WHOLE_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL_NAME = re.compile(r"step-\d{8,}\.partial-(\d+)(?:\.(\d+))?")
_REFUSED_NAME = re.compile(r"step-\d{8,}\.refused-.+")
_UNFINISHED_SHARED = re.compile(r"[0-9a-f]{64}\.from-(\d+)\.unfinished-[0-9a-f]+")


@contextmanager
def _said(doing: str, place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(doing, place, error) from error


class LocalStore(Store):
    """Checkpoints below a folder."""

    def __init__(self, uri: str, root: Path, files: LocalFiles) -> None:
        super().__init__(uri)
        self.root = root
        self.files = files

    def draft(self, step: int, attempt: int, generation: int = 0) -> LocalDraft:
        return LocalDraft(self, step, attempt, generation)

    def clean_leftovers(self, attempt: int, generation: int = 0) -> list[str]:
        removed = []
        with _said("clean up", self.root):
            for name in self.files.names(self.root):
                match = _PARTIAL_NAME.fullmatch(name)
                if match and (int(match.group(1)), int(match.group(2) or 0)) < (attempt, generation):
                    self.files.remove(self.root / name)
                    removed.append(str(self.root / name))
            for name in self.files.names(self.root / SHARED):
                match = _UNFINISHED_SHARED.fullmatch(name)
                if match and int(match.group(1)) < attempt:
                    self.files.unlink(self.root / SHARED / name)
                    removed.append(str(self.root / SHARED / name))
        return removed + self._clean_claims(attempt)

    def make_folder(self, folder: Path) -> None:
        """Create a folder with its parents; durable on return."""
        missing = []
        while not self.files.exists(folder):
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            self.files.make_folder(new)
            self.files.sync(new.parent)

    def put(self, place: Path, content: Content, hasher: Hasher) -> None:
        """Write and fsync a file and its name."""
        self.files.put(place, hasher.blocks(content))
        self.files.sync(place.parent)

    # ---- what a kind of place knows

    def _survey(self) -> dict[str, dict[str, int]]:
        found = {}
        with _said("list the checkpoints in", self.root):
            for name in self.files.names(self.root):
                if _WHOLE_NAME.fullmatch(name) or _REFUSED_NAME.fullmatch(name) or name == SHARED:
                    found[name] = self._sizes(name)
        return found

    def _sizes(self, name: str) -> dict[str, int]:
        folder, sizes = self.root / name, {}
        for path in self.files.tree(folder):
            try:
                sizes[path] = self.files.size(folder / path)
            except OSError:  # a link to nowhere, or deleted between the look and this one: not a file with a size
                sizes[path] = -1
        return sizes

    def _checkpoints(self, survey: Mapping[str, Mapping[str, int]]) -> list[str]:
        return sorted((name for name in survey if _WHOLE_NAME.fullmatch(name)), key=self._step_of, reverse=True)

    def _step_of(self, name: str) -> int:
        match = _WHOLE_NAME.fullmatch(name)
        return int(match.group(1)) if match else -1

    def _may_refer(self, name: str) -> bool:
        return name != SHARED

    def _uri_of(self, path: str) -> str:
        return str(self.root / path)

    def _name_of(self, uri: str) -> str:
        folder = local_folder(uri)
        if folder.parent.resolve() != self.root.resolve():
            raise NotFound(f"{uri} is not a checkpoint in {self.uri}")
        return folder.name

    def _source(self) -> Source:
        return _LocalSource(self)

    def _read(self, path: str) -> bytes:
        with _said("read", self.root / path):
            return self.files.read(self.root / path)

    def _put(self, path: str, content: bytes) -> None:
        with _said("write", self.root / path):
            self.make_folder((self.root / path).parent)
            self.put(self.root / path, [content], Hasher())

    def _put_shared(self, name: str, content: Content) -> None:
        place = self.root / SHARED / name
        unfinished = place.with_name(f"{name}.unfinished-{uuid.uuid4().hex}")
        with _said("write", place):
            self.make_folder(place.parent)
            self.files.put(unfinished, Hasher().blocks(content))
            self.files.rename(unfinished, place)
            self.files.sync(place.parent)

    def _delete(self, path: str) -> None:
        with _said("delete", self.root / path):
            self.files.unlink(self.root / path)
            self.files.sync((self.root / path).parent)

    def _retire(self, name: str) -> None:
        """Take the name away first, so that a deletion cut short leaves no folder that looks like a checkpoint."""
        folder, doomed = self.root / name, self.root / f"{name}.partial-0"
        with _said("delete the old checkpoint", folder):
            if self.files.exists(doomed):
                self.files.remove(doomed)
            self.files.rename(folder, doomed)
            self.files.sync(self.root)
            self.files.remove(doomed)


class LocalDraft(Draft):
    """A folder beside the checkpoints, under a name that is not one of theirs."""

    def __init__(self, store: LocalStore, step: int, attempt: int, generation: int) -> None:
        self._store = store
        self._files = store.files
        self.folder = store.root / f"step-{step:08d}.partial-{attempt}{f'.{generation}' if generation else ''}"
        super().__init__(str(self.folder), step, attempt)

    def begin(self) -> None:
        with _said("prepare a checkpoint in", self.folder):
            if self._files.exists(self.folder):
                self._files.remove(self.folder)
            self._store.make_folder(self.folder)

    def write(self, path: str, content: Content, *, large: bool = False) -> FileEntry:
        place = self.folder / proper(path)
        hasher = Hasher(large=large)
        with _said("write", place):
            self._store.make_folder(place.parent)
            self._store.put(place, content, hasher)
        return hasher.entry(path)

    def write_shared(self, content: Content, digest: str | None = None) -> FileEntry:
        return self._store.share(self.attempt, content, digest)

    def commit(self, facts: Manifest, entries: Iterable[FileEntry], *, read_back: bool = True) -> Listed:
        manifest = completed(facts, entries, self)
        final = self._store.root / f"step-{self.step:08d}"
        with _said("commit the checkpoint", final):
            self._clear_strangers(manifest)
            self._store.check(manifest, self, self.folder.name, read_back=read_back)
            self._files.put(self.folder / MANIFEST, Hasher().blocks([manifest.to_json()]))
            for folder in self._files.folders(self.folder):
                self._files.sync(folder)
            if self._files.exists(final):
                there = self._store.verify(str(final))
                if there.whole:
                    self._files.remove(self.folder)
                    return there
                self._files.rename(final, self._free_name(final))
            self._files.rename(self.folder, final)
            self._files.sync(final.parent)
        return Listed(self.step, str(final), manifest, None)

    def drop(self) -> None:
        with _said("delete", self.folder):
            if self._files.exists(self.folder):
                self._files.remove(self.folder)

    def _clear_strangers(self, manifest: Manifest) -> None:
        """Delete what an earlier try of this attempt at this step left and this one did not write."""
        ours = {entry.path for entry in manifest.files}
        for path in self._files.tree(self.folder):
            if path not in ours:
                self._files.unlink(self.folder / path)

    def _free_name(self, final: Path) -> Path:
        taken = self._files.names(final.parent)
        name = f"{final.name}.refused-{self.attempt}"
        count = 1
        while name in taken:
            count += 1
            name = f"{final.name}.refused-{self.attempt}.{count}"
        return final.with_name(name)


class _LocalSource:
    parallel = 2

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def read_into(self, place: str, offset: int, out: memoryview) -> int:
        with _said("read", self._store.root / place):
            return self._store.files.read_into(self._store.root / place, offset, out)


def local_folder(uri: str) -> Path:
    """The folder behind a path or a `file://` URI. Raises StorageError for a scheme that is not local."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme != "file":
        raise StorageError(f"{uri} is not a local folder", hint="use a path or file://")
    return Path(rest)
