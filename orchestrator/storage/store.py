"""A place that holds a job's checkpoints: what every kind of place has in common.

A reader trusts nothing: names, sizes and the manifest's digest are checked when listing, every byte before a restore. A
`Store` is safe to use from several threads and from every rank; who may write is ordered by attempts, and within an attempt
rank 0 commits and prunes.

Shared files. `shared/<digest>.from-<attempt>` is a file that several checkpoints refer to (frozen weights). It goes
when no checkpoint refers to it. Two markers keep a writer and a deleter that do not know each other apart: a writer
first puts a claim (`<digest>.claim-<attempt>`), then looks for a doom marker, and only then trusts the file; a deleter
first puts a doom marker (`<file>.doomed`), then looks for claims and manifests, and only then deletes. Whichever came
second sees the other and yields; a doomed file is written again under the writer's own attempt. Claims last as long as
their attempt.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from orchestrator.domain.errors import CorruptCheckpoint, NotFound, StorageError
from orchestrator.storage.errors import CHECK_DISK
from orchestrator.storage.hashing import Content, content_digest, entry_of
from orchestrator.storage.manifest import MANIFEST, FileEntry, Manifest, ManifestError
from orchestrator.storage.ranges import RangeReader
from orchestrator.storage.retention import Held, Retention, retained
from orchestrator.storage.verification import Source, difference, difference_of, gaps

SHARED = "shared"
Places = list[str]  # under names of their own, since `Store.list` hides the built-in one inside its class
Listing = list["Listed"]


@dataclass(frozen=True, slots=True)
class Listed:
    """One folder that bears a checkpoint's name: whole, or refused with the reason."""

    step: int
    uri: str
    """The full place, for people and for `Store.verify`."""
    manifest: Manifest | None
    why: str | None
    """None for a whole checkpoint; else why it is refused, as a sentence for people."""

    @property
    def whole(self) -> bool:
        return self.why is None

    @property
    def name(self) -> str:
        """The folder's own name in its store."""
        return self.uri.rpartition("/")[2]


class Draft(ABC):
    """A checkpoint that is being written. Every rank makes the same one; making it does no I/O."""

    def __init__(self, uri: str, step: int, attempt: int) -> None:
        """A launcher may begin an attempt anew, as another generation of it: each writes to a place of its own, so that a
        draft is never shared with a rank of an earlier one that is not dead yet."""
        self.uri = uri
        """Where it is written; it may get another name at the commit."""
        self.step = step
        self.attempt = attempt

    @abstractmethod
    def begin(self) -> None:
        """Make room: clear what an earlier try at the same step left. Rank 0, once, before anybody writes."""

    @abstractmethod
    def write(self, path: str, content: Content, *, large: bool = False) -> FileEntry:
        """Write one file, hashing it on the way; durable on return. Any rank, any thread, each path once.

        `large`: hashed by blocks however small it is; files above one block always are. On object stores the pieces of
        `content` are held until the file is written. Raises StorageError.
        """

    @abstractmethod
    def write_shared(self, content: Content, digest: str | None = None) -> FileEntry:
        """Write a file that other checkpoints may refer to, unless the store has it. `digest`: its `content_digest`, if it
        is known; a content that was already written by this store object is then not read again. Raises StorageError."""

    @abstractmethod
    def commit(self, facts: Manifest, entries: Iterable[FileEntry], *, read_back: bool = True) -> Listed:
        """Make the checkpoint whole. Rank 0, after every rank has written.

        `facts.files` is filled in from `entries`. Each file must be there with its size; with `read_back` every byte is
        read and compared. When a whole checkpoint of that step is there already, it stays and this one is dropped (a
        repeated step has the same content). Raises StorageError; then nothing is listed that was not before.
        """

    @abstractmethod
    def drop(self) -> None:
        """Delete what was written, as far as it was not committed."""


class Store(ABC):
    """Where a job's checkpoints lie. Make one with `open_store`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._sharing = threading.Lock()
        self._shared: dict[tuple[int, str], FileEntry] = {}
        """Shared files that this object has seen to, by attempt and digest."""

    @abstractmethod
    def draft(self, step: int, attempt: int, generation: int = 0) -> Draft:
        """A checkpoint to be written; no I/O. `generation`: how often the attempt was begun anew."""

    # ---- reading

    def list(self) -> Listing:
        """Checkpoints, the newest first; manifests, names and sizes are checked, contents are not (`verify`)."""
        survey = self._survey()
        return [self._inspect(name, survey) for name in self._checkpoints(survey)]

    def newest_whole(self) -> tuple[Listed | None, Listing]:
        """The newest checkpoint whose every byte is right, and the newer ones that were refused on the way to it."""
        refused: Listing = []
        for listed in self.list():
            checked = self._checked(listed)
            if checked.whole:
                return checked, refused
            refused.append(checked)
        return None, refused

    def verify(self, uri: str) -> Listed:
        """Check every byte of one checkpoint against its manifest. Raises NotFound when there is no such checkpoint."""
        survey = self._survey()
        name = self._name_of(uri)
        if name not in survey:
            raise NotFound(f"there is no checkpoint {uri}", hint="list them with `orchestrate checkpoint list`")
        return self._checked(self._inspect(name, survey))

    def read(self, listed: Listed, path: str) -> bytes:
        """A small file of a checkpoint by its path or name, its hash checked. Raises StorageError."""
        entry = self._entry(listed, path)
        content = bytearray(entry.bytes)
        source = self._source()
        got = source.read_into(place_of(listed.name, entry), 0, memoryview(content))
        if why := difference_of(memoryview(content)[:got], entry):
            raise CorruptCheckpoint(f"{listed.uri}: {why}", hint="restore from an older checkpoint")
        return bytes(content)

    def ranges(self, listed: Listed) -> RangeReader:
        """Slices of the parameters in a whole checkpoint of layout `ranges`; close it when done."""
        if listed.manifest is None:
            raise CorruptCheckpoint(
                f"{listed.uri} cannot be read: {listed.why}", hint="restore from an older checkpoint"
            )
        places = {entry.path: place_of(listed.name, entry) for entry in listed.manifest.files}
        manifest = listed.manifest
        return RangeReader(listed.uri, manifest.files, manifest.fragments, places, self._source())

    def _entry(self, listed: Listed, path: str) -> FileEntry:
        for entry in listed.manifest.files if listed.manifest else ():
            if path in (entry.path, entry.name):
                return entry
        raise CorruptCheckpoint(f"{listed.uri} has no file {path}", hint=listed.why)

    def _inspect(self, name: str, survey: Mapping[str, Mapping[str, int]]) -> Listed:
        uri, step = self._uri_of(name), self._step_of(name)
        if MANIFEST not in survey[name]:
            return Listed(step, uri, None, "it has no manifest.json, so it was never finished")
        try:
            manifest = Manifest.from_json(self._read(f"{name}/{MANIFEST}"))
        except ManifestError as error:
            return Listed(step, uri, None, str(error))
        except StorageError as error:
            return Listed(step, uri, None, f"its manifest cannot be read: {error.what}")
        why = _unlike(manifest, survey[name], survey.get(SHARED, {}))
        if why is None and step >= 0 and manifest.global_step != step:
            why = f"its manifest is of step {manifest.global_step}, not of the step in its name"
        return Listed(manifest.global_step if step < 0 else step, uri, manifest, why)

    def _checked(self, listed: Listed) -> Listed:
        """The same with every byte looked at."""
        if not listed.whole or listed.manifest is None:
            return listed
        try:
            why = difference(self._source(), ((place_of(listed.name, entry), entry) for entry in listed.manifest.files))
        except StorageError as error:
            why = f"it cannot be read: {error.what}"
        return replace(listed, why=why)

    # ---- writing

    def share(self, attempt: int, content: Content, digest: str | None) -> FileEntry:
        """See `Draft.write_shared`."""
        with self._sharing:
            if digest is not None and (attempt, digest) in self._shared:
                return self._shared[attempt, digest]
            pieces = list(content)
            entry = entry_of("", pieces, shared=True)
            if digest not in (None, content_digest(entry)):
                raise ValueError(f"the content's digest is {content_digest(entry)}, not {digest}")
            digest = content_digest(entry)
            if (attempt, digest) not in self._shared:
                self._put(f"{SHARED}/{digest}.claim-{attempt}", b"")
                name = self._there_already(digest, entry) or f"{digest}.from-{attempt}"
                if name not in self._sizes(SHARED) or not self._right(name, entry):
                    self._put_shared(name, pieces)
                self._shared[attempt, digest] = replace(entry, path=f"{SHARED}/{name}")
            return self._shared[attempt, digest]

    def _there_already(self, digest: str, entry: FileEntry) -> str | None:
        shared = self._sizes(SHARED)
        for name in sorted(shared):
            ours = _SHARED_FILE.fullmatch(name) and name.startswith(digest)
            if ours and f"{name}.doomed" not in shared and self._right(name, entry):
                return name
        return None

    def _right(self, name: str, entry: FileEntry) -> bool:
        return difference(self._source(), [(f"{SHARED}/{name}", entry)]) is None

    def check(self, manifest: Manifest, draft: Draft, name: str, *, read_back: bool) -> None:
        """That the store has what was written: each file with its size and, if asked, every byte. Raises StorageError."""
        sizes = {f"{folder}/{path}": size for folder in (name, SHARED) for path, size in self._sizes(folder).items()}
        lost = [entry.path for entry in manifest.files if place_of(name, entry) not in sizes]
        if lost:
            raise StorageError(f"{some(lost)} missing from {draft.uri} after the write", hint=CHECK_DISK)
        for entry in manifest.files:
            size = sizes[place_of(name, entry)]
            if size != entry.bytes:
                what = f"{entry.path} has {size} bytes in {draft.uri} after {entry.bytes} were written"
                raise StorageError(what, hint=CHECK_DISK)
        if read_back:
            why = difference(self._source(), ((place_of(name, entry), entry) for entry in manifest.files))
            if why:
                raise StorageError(f"{draft.uri} reads back other than it was written: {why}", hint=CHECK_DISK)

    # ---- deleting

    def prune(self, retention: Retention, *, verified: Collection[str] = ()) -> Places:
        """Delete whole checkpoints that `retention` does not keep, then shared files that none refers to.

        Never deleted: the newest one that is whole to the last byte, refused ones (somebody may want to look), and anything
        whose name is not ours. `verified` holds URIs that were hashed a moment ago. Returns what was deleted.
        """
        doomed = self.doomed(retention, verified=verified)
        for listed in doomed:
            self._retire(listed.name)
        return [listed.uri for listed in doomed] + (self._collect_shared() if doomed else [])

    def doomed(self, retention: Retention, *, verified: Collection[str] = ()) -> Listing:
        """The checkpoints that `prune` would delete now."""
        whole = [listed for listed in self.list() if listed.whole and listed.manifest is not None]
        kept = retained(
            (
                Held(listed.step, listed.manifest.created_ns, listed.manifest.best)
                for listed in whole
                if listed.manifest
            ),
            retention,
        )
        if all(listed.step in kept for listed in whole):
            return []
        newest = next((item for item in whole if item.uri in verified or self._checked(item).whole), None)
        if newest is None:
            return []
        return [listed for listed in whole if listed.step not in kept and listed.step != newest.step]

    @abstractmethod
    def clean_leftovers(self, attempt: int, generation: int = 0) -> Places:
        """Delete what attempts before `attempt`, and its own generations before `generation`, left unfinished: drafts and
        uploads; of the attempts, claims too, and shared files that nothing refers to. Later ones' are not touched. Returns
        the places."""

    def _collect_shared(self) -> Places:
        """Delete shared files that no checkpoint and no claim needs; none at all while a manifest cannot be read."""
        shared = self._sizes(SHARED)
        files = [name for name in shared if _SHARED_FILE.fullmatch(name)]
        for name in shared:  # marks that a cut deletion left; where the file is still there, the deletion is done below
            if name.endswith(".doomed") and name.removesuffix(".doomed") not in shared:
                self._delete(f"{SHARED}/{name}")
        needed = self._needed() if files else None
        removed: Places = []
        for name in files:
            if needed is not None and f"{SHARED}/{name}" not in needed and not self._claims(name, shared):
                removed += self._collect(name)
        return removed

    def _collect(self, name: str) -> Places:
        """Delete one shared file, unless somebody claims it or has come to need it meanwhile.

        Claims are looked at before manifests: a claim that is gone by now belonged to an attempt that has ended, and then
        all that it committed is there to be read.
        """
        doom = f"{SHARED}/{name}.doomed"
        self._put(doom, b"")
        claimed = self._claims(name, self._sizes(SHARED))
        needed = self._needed()
        spared = bool(claimed) or needed is None or f"{SHARED}/{name}" in needed
        if not spared:
            self._delete(f"{SHARED}/{name}")
        self._delete(doom)
        return [] if spared else [self._uri_of(f"{SHARED}/{name}")]

    def _needed(self) -> set[str] | None:
        """Shared files that a checkpoint refers to; None while a manifest cannot be read, since it may refer to any."""
        survey = self._survey()
        needed: set[str] = set()
        for name in survey:
            if not self._may_refer(name) or MANIFEST not in survey[name]:
                continue
            try:
                manifest = Manifest.from_json(self._read(f"{name}/{MANIFEST}"))
            except (ManifestError, StorageError):
                return None
            needed |= {entry.path for entry in manifest.files if entry.shared}
        return needed

    def _claims(self, name: str, shared: Iterable[str]) -> Sequence[str]:
        digest = name.partition(".")[0]
        return [other for other in shared if other.startswith(f"{digest}.claim-")]

    def _clean_claims(self, attempt: int) -> Places:
        """Take back the claims of dead attempts, then delete what they alone held."""
        shared = self._sizes(SHARED)
        for name in shared:
            claim = _CLAIM.fullmatch(name)
            if claim and int(claim.group(1)) < attempt:
                self._delete(f"{SHARED}/{name}")
        return self._collect_shared()

    # ---- what a kind of place knows

    @abstractmethod
    def _survey(self) -> dict[str, dict[str, int]]:
        """Each folder of ours in the store, with the files below it and their sizes in bytes."""

    @abstractmethod
    def _sizes(self, name: str) -> dict[str, int]:
        """The files below one folder of the store with their sizes in bytes; empty when there is none."""

    @abstractmethod
    def _checkpoints(self, survey: Mapping[str, Mapping[str, int]]) -> Places:
        """Names of the folders that bear a checkpoint's name, the newest first."""

    @abstractmethod
    def _step_of(self, name: str) -> int:
        """The step in a folder's name; -1 when there is none."""

    @abstractmethod
    def _may_refer(self, name: str) -> bool:
        """Whether a folder can hold a manifest that refers to shared files."""

    @abstractmethod
    def _uri_of(self, path: str) -> str: ...

    @abstractmethod
    def _name_of(self, uri: str) -> str:
        """The folder's name behind the URI of a checkpoint in this store. Raises NotFound for another place."""

    @abstractmethod
    def _source(self) -> Source: ...

    @abstractmethod
    def _read(self, path: str) -> bytes: ...

    @abstractmethod
    def _put(self, path: str, content: bytes) -> None:
        """Write a small file, durable on return."""

    @abstractmethod
    def _put_shared(self, name: str, content: Content) -> None:
        """Write a shared file, whole or not at all, durable on return."""

    @abstractmethod
    def _delete(self, path: str) -> None:
        """Delete a file, durable on return; no error when it is gone."""

    @abstractmethod
    def _retire(self, name: str) -> None:
        """Delete a checkpoint so that no cut leaves something that looks like one."""


_SHARED_FILE = re.compile(r"[0-9a-f]{64}\.from-\d+")
_CLAIM = re.compile(r"[0-9a-f]{64}\.claim-(\d+)")


def place_of(name: str, entry: FileEntry) -> str:
    """Where a file of the checkpoint `name` lies, relative to the store."""
    return entry.path if entry.shared else f"{name}/{entry.path}"


def proper(path: str) -> str:
    """A path that may stand in a manifest. Raises ValueError for one that is ours or leads out of the checkpoint."""
    parts = PurePosixPath(path).parts
    if not parts or path != "/".join(parts) or path == MANIFEST or ".." in parts or parts[0] == "/":
        raise ValueError(f"not a path of a checkpoint's file: {path!r}")
    return path


def completed(facts: Manifest, entries: Iterable[FileEntry], draft: Draft) -> Manifest:
    """The manifest with its files. Raises StorageError when its fragments lie outside them or leave gaps."""
    manifest = replace(facts, files=tuple(sorted(set(entries), key=lambda entry: entry.path)))
    if facts.global_step != draft.step or facts.attempt != draft.attempt:
        raise ValueError(f"facts of step {facts.global_step} for the draft {draft.uri}")
    if why := gaps(manifest):
        raise StorageError(
            f"{draft.uri} would not be whole: {why}", hint="this is a defect of the writer; nothing was saved"
        )
    return manifest


def _unlike(manifest: Manifest, sizes: Mapping[str, int], shared: Mapping[str, int]) -> str | None:
    promised = {entry.path: entry.bytes for entry in manifest.files if not entry.shared}
    borrowed = {entry.path: entry.bytes for entry in manifest.files if entry.shared}
    there = {f"{SHARED}/{name}": size for name, size in shared.items()} | {
        path: size for path, size in sizes.items() if path != MANIFEST
    }
    if missing := sorted((promised.keys() | borrowed.keys()) - there.keys()):
        return f"{some(missing)} missing"
    if extra := sorted(sizes.keys() - promised.keys() - {MANIFEST}):
        return f"{some(extra)} not in its manifest"
    for path, size in (promised | borrowed).items():
        if there[path] != size:
            return f"{path} has {there[path]} bytes, the manifest says {size}"
    return None


def some(names: Sequence[str]) -> str:
    """`a, b, c and 4 more are`."""
    shown = ", ".join(names[:3])
    more = len(names) - 3
    return f"{shown} and {more} more are" if more > 0 else f"{shown} {'are' if len(names) > 1 else 'is'}"
