"""A disk that forgets: a file layer in memory which keeps, of every file and folder, what was synced and what was not.

At a power cut everything that was not synced is up to chance, drawn from a seed: a file's content becomes its synced content,
empty, torn, zeros or what was written; of the changes to a folder's names since its last sync all, none, the first few or any
happened, each rename being one change. That is as mean as POSIX allows and meaner than common file systems are.

`trial` plays a job on such a disk: attempts that save, share frozen weights, prune and clean up, with a power cut at a random
operation of each, and checks after every cut that what was acknowledged is there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.storage import Held, LocalFiles, LocalStore, Retention, retained
from tests.storage.faulty import Crash
from tests.storage.samples import contents, save, trainer, weights

ROOT = Path("/disk/checkpoints")
FROZEN = (b"frozen weights" * 30, b"other frozen weights" * 20)


@dataclass(eq=False)
class File:
    content: bytes = b""
    synced: bytes | None = None
    """None: its content was never synced."""

    def after_cut(self, rng: random.Random) -> File:
        """What a power cut leaves of it."""
        if self.synced == self.content:
            return self
        torn = self.content[: rng.randrange(len(self.content) + 1)]
        left = rng.choice([self.synced or b"", b"", torn, bytes(len(self.content)), self.content])
        return File(left, left)


@dataclass(eq=False)
class Folder:
    entries: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[tuple[str, str, File | Folder | None]] = field(default_factory=list)
    """Since the last sync: (name, new name or "", node): linked, renamed (no node, new name) or gone (neither)."""

    def change(self, name: str, new: str = "", node: File | Folder | None = None) -> None:
        self.changes.append((name, new, node))
        _apply(self.entries, (name, new, node))

    def sync(self) -> None:
        self.synced, self.changes = dict(self.entries), []

    def after_cut(self, rng: random.Random) -> Folder:
        """What a power cut leaves of it."""
        how = rng.randrange(4)
        if how == 0:
            happened = self.changes
        elif how == 1:
            happened = []
        elif how == 2:
            happened = self.changes[: rng.randrange(len(self.changes) + 1)]
        else:
            happened = [change for change in self.changes if rng.random() < 0.5]
        left = dict(self.synced)
        for change in happened:
            with suppress(KeyError):  # what it builds on did not happen
                _apply(left, change)
        left = {name: node.after_cut(rng) for name, node in left.items()}
        return Folder(left, dict(left))


def _apply(entries: dict[str, File | Folder], change: tuple[str, str, File | Folder | None]) -> None:
    name, new, node = change
    if node is not None:
        entries[name] = node
    elif new:
        entries[new] = entries.pop(name)
    else:
        del entries[name]


class ForgetfulFiles(LocalFiles):
    """The file layer on such a disk. Dies when `allowed` operations are used up."""

    def __init__(self, disk: Folder | None = None, allowed: int = 10**9) -> None:
        self.disk = disk or Folder()
        self.allowed = allowed
        self.used = 0

    def cut(self, rng: random.Random) -> Folder:
        """The disk after the power is back."""
        return self.disk.after_cut(rng)

    def spend(self) -> None:
        if self.used == self.allowed:
            raise Crash
        self.used += 1

    def make_folder(self, folder: Path) -> None:
        parent = self._folder(folder.parent)
        if folder.name not in parent.entries:
            self.spend()
            parent.change(folder.name, node=Folder())

    def exists(self, path: Path) -> bool:
        try:
            self._node(path)
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: Path) -> list[str]:
        try:
            return sorted(self._folder(folder).entries)
        except FileNotFoundError:
            return []

    def tree(self, folder: Path) -> list[str]:
        return sorted(self._walk(folder, "")) if self.exists(folder) else []

    def folders(self, folder: Path) -> list[Path]:
        below = [folder / name for name, node in self._folder(folder).entries.items() if isinstance(node, Folder)]
        return [path for child in below for path in self.folders(child)] + [folder]

    def size(self, path: Path) -> int:
        return len(self.read(path))

    def read(self, path: Path) -> bytes:
        node = self._node(path)
        if isinstance(node, Folder):
            raise IsADirectoryError(21, "Is a directory", str(path))
        return node.content

    def read_into(self, path: Path, offset: int, out: memoryview) -> int:
        piece = self.read(path)[offset : offset + len(out)]
        out[: len(piece)] = piece
        return len(piece)

    def put(self, path: Path, blocks: Iterable[Sequence[memoryview]]) -> None:
        folder = self._folder(path.parent)
        self.spend()
        if path.name not in folder.entries:
            folder.change(path.name, node=File())
        file = folder.entries[path.name]
        assert isinstance(file, File)
        file.content = b""
        for views in blocks:
            for view in views:
                self.spend()
                file.content += bytes(view)
        self.sync(path)

    def sync(self, path: Path) -> None:
        self.spend()
        node = self._node(path)
        if isinstance(node, Folder):
            node.sync()
        else:
            node.synced = node.content

    def rename(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent
        self._node(old)
        self.spend()
        self._folder(old.parent).change(old.name, new.name)

    def unlink(self, path: Path) -> None:
        parent = self._folder(path.parent)
        if path.name in parent.entries:
            self.spend()
            parent.change(path.name)

    def remove(self, folder: Path) -> None:
        for name, node in list(self._folder(folder).entries.items()):
            if isinstance(node, Folder):
                self.remove(folder / name)
            else:
                self.unlink(folder / name)
        self.unlink(folder)

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        for name, node in self._folder(folder).entries.items():
            if isinstance(node, Folder):
                yield from self._walk(folder / name, f"{prefix}{name}/")
            else:
                yield f"{prefix}{name}"

    def _node(self, path: Path) -> File | Folder:
        node: File | Folder = self.disk
        for name in path.parts[1:]:
            if not isinstance(node, Folder) or name not in node.entries:
                raise FileNotFoundError(2, "No such file or directory", str(path))
            node = node.entries[name]
        return node

    def _folder(self, path: Path) -> Folder:
        node = self._node(path)
        if not isinstance(node, Folder):
            raise NotADirectoryError(20, "Not a directory", str(path))
        return node


@dataclass
class Tally:
    """What a trial saw."""

    cuts: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    """Sentences; empty when every promise was kept."""


def trial(seed: int, files: type[ForgetfulFiles] = ForgetfulFiles, attempts: int = 4) -> Tally:
    """Play a job with a power cut in each attempt, and see whether its acknowledged checkpoints survive."""
    rng = random.Random(seed)
    tally = Tally()
    retention = Retention(rng.randint(1, 3), best=rng.random() < 0.5, every_ns=rng.choice([None, 3, 7]))
    disk: Folder | None = None
    known: dict[int, tuple[Held, bytes | None]] = {}
    for attempt in range(1, attempts + 1):
        layer = files(disk, allowed=rng.randrange(1, 160))
        with suppress(Crash):
            _play(LocalStore(str(ROOT), ROOT, layer), attempt, retention, rng, known, tally)
        disk = layer.cut(rng)
        tally.cuts += 1
        _check(LocalStore(str(ROOT), ROOT, files(disk)), retention, known, tally, f"seed {seed}, cut {attempt}")
    store = LocalStore(str(ROOT), ROOT, files(disk))
    store.clean_leftovers(attempts + 1)
    _check(store, retention, known, tally, f"seed {seed}, after cleaning")
    left = [name for name in store.files.names(ROOT) if "." in name]
    shared = store.files.names(ROOT / "shared")
    left += [name for name in shared if not re.fullmatch(r"[0-9a-f]{64}\.from-\d+", name.removesuffix(".doomed"))]
    left += [name for name in shared if name.endswith(".doomed") and name.removesuffix(".doomed") not in shared]
    tally.lost += [f"seed {seed}: {name} was not cleaned up" for name in left]
    return tally


def _play(
    store: LocalStore,
    attempt: int,
    retention: Retention,
    rng: random.Random,
    known: dict[int, tuple[Held, bytes | None]],
    tally: Tally,
) -> None:
    store.clean_leftovers(attempt)
    newest, _ = store.newest_whole()
    step = newest.step if newest else 0
    while True:
        step += rng.randint(1, 2)
        frozen = rng.choice([None, *FROZEN])
        best = rng.random() < 0.3
        listed = save(store, step, attempt, frozen=frozen, best=best)
        known[step] = (Held(step, step, best), frozen)
        tally.acknowledged += 1
        store.prune(retention, verified=[listed.uri])


def _check(
    store: LocalStore,
    retention: Retention,
    known: dict[int, tuple[Held, bytes | None]],
    tally: Tally,
    where: str,
) -> None:
    listing = {listed.step: store.verify(listed.uri) for listed in store.list()}
    tally.lost += [f"{where}: step {step}: {listed.why}" for step, listed in listing.items() if not listed.whole]
    for step in retained((held for held, _ in known.values()), retention):
        listed = listing.get(step)
        frozen = known[step][1]
        wanted = {"weights": weights(step), "trainer": trainer(step)} | ({} if frozen is None else {"shared": frozen})
        if listed is None or not listed.whole:
            tally.lost.append(f"{where}: step {step} was acknowledged and is not there")
        elif contents(store, listed) != wanted:
            tally.lost.append(f"{where}: step {step} reads back other than it was saved")
    for step, listed in listing.items():  # committed, and cut before the acknowledgement: from now on it counts
        if step not in known and listed.manifest is not None:
            manifest = listed.manifest
            shared = contents(store, listed).get("shared") if listed.whole else None
            known[step] = (Held(step, manifest.created_ns, manifest.best), shared)
