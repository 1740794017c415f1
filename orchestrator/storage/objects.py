"""Checkpoints in an object store, through fsspec: S3, Google Cloud Storage, Azure Blob Storage, memory.

    <root>/step-00000100.attempt-2/                 what attempt 2 wrote of step 100; a checkpoint once it has a manifest.json
    <root>/step-00000100.attempt-2.3/               the same of its generation 3
    <root>/step-00000100.attempt-2/manifest.json    its one PUT is the commit
    <root>/step-00000100.attempt-2/deleting         its PUT is the deletion; the rest is cleaning up
    <root>/shared/                                  files that several checkpoints refer to, claims and doom markers (`store`)

Object stores cannot rename, but a PUT appears whole or not at all, and is seen by every later read. So attempts write to
folders of their own, and of several checkpoints of a step the one of the latest attempt counts. Files above a part's size go
to S3 in parts, several at a time, each tried again by itself; what a dead writer left of such an upload is found and aborted.
The other stores let go of unfinished uploads by themselves after a week.

Limits: the pieces of a file are held until it is written, and `part x uploads` bytes are copied at a time.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from orchestrator.domain.errors import NotFound, StorageError
from orchestrator.storage.errors import CHECK_DISK
from orchestrator.storage.hashing import BLOCK_BYTES, Content, Hasher, entry_of
from orchestrator.storage.manifest import MANIFEST, FileEntry, Manifest
from orchestrator.storage.retries import Retries, absent
from orchestrator.storage.store import SHARED, Draft, Listed, Store, completed, proper
from orchestrator.storage.verification import Source

T = TypeVar("T")

_FOLDER = re.compile(r"step-(\d{8,})\.attempt-(\d+)(?:\.(\d+))?")
_SHARED_FROM = re.compile(r"[0-9a-f]{64}\.from-(\d+)")
_DELETING = "deleting"
_MOST_PARTS = 9_000
"""S3 takes 10,000 parts a file."""


class ObjectStore(Store):
    """Checkpoints below a prefix of a bucket."""

    part_bytes = 2 * BLOCK_BYTES
    uploads = 4

    def __init__(self, uri: str, filesystem: Any, retries: Retries) -> None:
        super().__init__(uri.rstrip("/"))
        self._filesystem = filesystem
        self._root = filesystem._strip_protocol(self.uri)
        self._retries = retries
        self._in_parts = "s3" in _protocols(filesystem)

    def draft(self, step: int, attempt: int, generation: int = 0) -> ObjectDraft:
        return ObjectDraft(self, step, attempt, generation)

    def clean_leftovers(self, attempt: int, generation: int = 0) -> list[str]:
        removed = []
        for name, files in self._survey().items():
            match = _FOLDER.fullmatch(name)
            if match and (_DELETING in files or (MANIFEST not in files and _writer(match) < (attempt, generation))):
                self.delete_folder(name, files)
                removed.append(self._uri_of(name))
        return removed + self.abort_uploads("", (attempt, generation)) + self._clean_claims(attempt)

    # ---- for drafts

    def upload(self, path: str, content: Content, hasher: Hasher) -> None:
        """Write a file, hashing it; acknowledged and of the right size on return. Raises StorageError."""
        pieces = list(content)
        total = sum(memoryview(piece).nbytes for piece in pieces)
        blocks = hasher.blocks(pieces)
        if total <= self.part_bytes:
            whole = b"".join(chain.from_iterable(blocks))
            self._do("write", path, lambda place: self._filesystem.pipe_file(place, whole))
        elif self._in_parts:
            self._upload_parts(path, blocks, total)
        else:
            for _ in blocks:
                pass
            self._do("write", path, partial(self._stream, pieces))
        size = self._do("look at", path, lambda place: self._filesystem.info(place)["size"])
        if size != total:
            raise StorageError(f"{self._uri_of(path)} has {size} bytes after {total} were written", hint=CHECK_DISK)

    def delete_folder(self, name: str, files: Iterable[str]) -> None:
        """Delete the files of a folder; the marker of its deletion goes last."""
        for path in sorted(files, key=lambda path: path == _DELETING):
            self._delete(f"{name}/{path}")

    def abort_uploads(self, name: str, before: tuple[int, int] | None = None) -> list[str]:
        """Abort unfinished uploads below a folder: all of them, or those of writers below `before` (attempt, generation)."""
        if not self._in_parts:
            return []
        bucket, _, prefix = self._root.partition("/")
        aborted = []
        marks: dict[str, str] = {}
        while True:
            listing = partial(
                self._filesystem.call_s3,
                "list_multipart_uploads",
                Bucket=bucket,
                Prefix=f"{prefix}/{name}".lstrip("/"),
                **marks,
            )
            page = self._do("list the uploads in", name, lambda _, listing=listing: listing())
            for upload in page.get("Uploads", ()):
                path = upload["Key"].removeprefix(prefix).lstrip("/")
                writer = _writer_of(path)
                if before is None or (writer is not None and writer < before):
                    self._abort(path, bucket, upload["Key"], upload["UploadId"])
                    aborted.append(self._uri_of(path))
            if not page.get("IsTruncated"):
                return aborted
            marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def of_step(self, step: int) -> list[str]:
        """Folders with a committed checkpoint of a step, the latest attempt first."""
        survey = self._survey()
        return [name for name in _committed(survey) if self._step_of(name) == step]

    def sizes(self, name: str) -> dict[str, int]:
        return self._sizes(name)

    def put(self, path: str, content: bytes) -> None:
        self._put(path, content)

    # ---- what a kind of place knows

    def _survey(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for path, size in self._below("").items():
            name, separator, rest = path.partition("/")
            if separator and (name == SHARED or _FOLDER.fullmatch(name)):
                found.setdefault(name, {})[rest] = size
        return found

    def _sizes(self, name: str) -> dict[str, int]:
        return self._below(name)

    def _below(self, name: str) -> dict[str, int]:
        def look(place: str) -> dict[str, int]:
            self._filesystem.invalidate_cache()
            try:
                found = self._filesystem.find(place.rstrip("/"), detail=True)
            except FileNotFoundError as error:
                if absent(error):
                    return {}
                raise
            start = len(place.rstrip("/")) + 1
            return {
                path[start:]: info["size"] for path, info in found.items() if info["type"] == "file" and path[start:]
            }

        found: dict[str, int] = self._do("list", name, look)
        return found

    def _checkpoints(self, survey: Mapping[str, Mapping[str, int]]) -> list[str]:
        latest: dict[int, str] = {}
        for name in _committed(survey):
            latest.setdefault(self._step_of(name), name)
        return list(latest.values())

    def _step_of(self, name: str) -> int:
        match = _FOLDER.fullmatch(name)
        return int(match.group(1)) if match else -1

    def _may_refer(self, name: str) -> bool:
        return name != SHARED

    def _uri_of(self, path: str) -> str:
        return f"{self.uri}/{path}" if path else self.uri

    def _name_of(self, uri: str) -> str:
        root, _, name = uri.rstrip("/").rpartition("/")
        if self._filesystem._strip_protocol(root) != self._root:
            raise NotFound(f"{uri} is not a checkpoint in {self.uri}")
        return name

    def _source(self) -> Source:
        return _ObjectSource(self)

    def _read(self, path: str) -> bytes:
        return bytes(self._do("read", path, lambda place: self._filesystem.cat_file(place)))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file; fewer where it ends. Raises StorageError."""
        return bytes(self._do("read", path, lambda place: self._filesystem.cat_file(place, start=start, end=end)))

    def _put(self, path: str, content: bytes) -> None:
        self.upload(path, [content], Hasher())

    def _put_shared(self, name: str, content: Content) -> None:
        self.upload(f"{SHARED}/{name}", content, Hasher(large=True))

    def _delete(self, path: str) -> None:
        def delete(place: str) -> None:
            try:
                self._filesystem.rm_file(place)
            except FileNotFoundError as error:
                if not absent(error):
                    raise

        self._do("delete", path, delete)

    def _retire(self, name: str) -> None:
        """Mark it first, so that a deletion cut short leaves nothing that is listed. Earlier attempts' of that step go too."""
        survey = self._survey()
        for other in reversed([other for other in _committed(survey) if self._step_of(other) == self._step_of(name)]):
            self._put(f"{other}/{_DELETING}", b"")
            self.delete_folder(other, [*survey[other], _DELETING])

    def _do(self, doing: str, path: str, work: Any) -> Any:
        place = f"{self._root}/{path}" if path else self._root
        return self._retries.run(doing, self._uri_of(path), lambda: work(place))

    # ---- larger files

    def _upload_parts(self, path: str, blocks: Iterator[list[memoryview]], total: int) -> None:
        bucket, _, key = f"{self._root}/{path}".partition("/")
        part_bytes = max(self.part_bytes, -(-total // _MOST_PARTS))
        blocks_a_part = -(-part_bytes // BLOCK_BYTES)
        begin = partial(self._filesystem.call_s3, "create_multipart_upload", Bucket=bucket, Key=key)
        upload = self._do("begin an upload of", path, lambda _: begin())["UploadId"]

        def send(number: int, views: Sequence[memoryview]) -> dict[str, Any]:
            body = b"".join(views)
            call = partial(
                self._filesystem.call_s3,
                "upload_part",
                Bucket=bucket,
                Key=key,
                UploadId=upload,
                PartNumber=number,
                Body=body,
            )
            return {"PartNumber": number, "ETag": self._do("upload a part of", path, lambda _: call())["ETag"]}

        def finish(place: str) -> None:
            parts = {"Parts": [future.result() for future in futures]}
            try:
                self._filesystem.call_s3(
                    "complete_multipart_upload", Bucket=bucket, Key=key, UploadId=upload, MultipartUpload=parts
                )
            except FileNotFoundError:  # an earlier try got through and only its answer was lost
                self._filesystem.invalidate_cache()
                if self._filesystem.info(place)["size"] != total:
                    raise

        try:
            with ThreadPoolExecutor(self.uploads, thread_name_prefix="upload") as pool:
                futures = []
                number = 0
                while group := list(islice(blocks, blocks_a_part)):
                    number += 1
                    futures.append(pool.submit(send, number, list(chain.from_iterable(group))))
                failed = next((error for future in futures if (error := future.exception()) is not None), None)
            if failed is not None:
                raise failed
            self._do("finish the upload of", path, finish)
        except StorageError as error:
            try:
                self._abort(path, bucket, key, upload)
            except StorageError as second:  # the next attempt finds it and aborts it
                error.add_note(str(second))
            raise

    def _abort(self, path: str, bucket: str, key: str, upload: str) -> None:
        def abort(_: str) -> None:
            try:
                self._filesystem.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)
            except FileNotFoundError:
                return  # it is gone

        self._do("abort an upload of", path, abort)

    def _stream(self, pieces: Sequence[memoryview | bytes], place: str) -> None:
        file = self._filesystem.open(place, "wb", block_size=self.part_bytes)
        try:
            for piece in pieces:
                view = memoryview(piece).cast("B")
                for start in range(0, len(view), self.part_bytes):
                    file.write(view[start : start + self.part_bytes])
        except BaseException:
            file.closed = True  # closing would commit what was written so far
            raise
        file.close()


class ObjectDraft(Draft):
    """A folder that becomes a checkpoint by its manifest."""

    def __init__(self, store: ObjectStore, step: int, attempt: int, generation: int) -> None:
        self._store = store
        self._name = f"step-{step:08d}.attempt-{attempt}{f'.{generation}' if generation else ''}"
        self._looking = threading.Lock()
        self._taken: bool | None = None
        super().__init__(f"{store.uri}/{self._name}", step, attempt)

    def begin(self) -> None:
        self.drop()

    def write(self, path: str, content: Content, *, large: bool = False) -> FileEntry:
        proper(path)
        if self._committed_already():
            return entry_of(path, content, large=large)
        hasher = Hasher(large=large)
        self._store.upload(f"{self._name}/{path}", content, hasher)
        return hasher.entry(path)

    def write_shared(self, content: Content, digest: str | None = None) -> FileEntry:
        return self._store.share(self.attempt, content, digest)

    def commit(self, facts: Manifest, entries: Iterable[FileEntry], *, read_back: bool = True) -> Listed:
        manifest = completed(facts, entries, self)
        for name in self._store.of_step(self.step):
            there = self._store.verify(f"{self._store.uri}/{name}")
            if there.whole:
                self.drop()
                return there
        if self._committed_already():
            hint = "save at a later step, or resume the job: a new attempt writes to a place of its own"
            raise StorageError(f"{self.uri} was committed before and is damaged", hint=hint)
        ours = {entry.path for entry in manifest.files}
        self._store.delete_folder(self._name, self._store.sizes(self._name).keys() - ours)
        self._store.check(manifest, self, self._name, read_back=read_back)
        self._store.put(f"{self._name}/{MANIFEST}", manifest.to_json())
        return Listed(self.step, self.uri, manifest, None)

    def drop(self) -> None:
        files = self._store.sizes(self._name)
        if MANIFEST not in files:
            self._store.delete_folder(self._name, files)
            self._store.abort_uploads(f"{self._name}/")

    def _committed_already(self) -> bool:
        """Whether this very folder was committed before this draft was made: then nothing in it may be written over."""
        with self._looking:
            if self._taken is None:
                self._taken = MANIFEST in self._store.sizes(self._name)
            return self._taken


class _ObjectSource:
    parallel = 8

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read_into(self, place: str, offset: int, out: memoryview) -> int:
        if not len(out):
            return 0
        got = self._store.read_range(place, offset, offset + len(out))
        out[: len(got)] = got
        return len(got)


def _committed(survey: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Folders with a manifest that are not being deleted, by step and attempt, the newest first."""
    found = []
    for name, files in survey.items():
        match = _FOLDER.fullmatch(name)
        if match and MANIFEST in files and _DELETING not in files:
            found.append((int(match.group(1)), _writer(match), name))
    return [name for _, _, name in sorted(found, reverse=True)]


def _writer(folder: re.Match[str]) -> tuple[int, int]:
    """(attempt, generation) that wrote a folder."""
    return int(folder.group(2)), int(folder.group(3) or 0)


def _writer_of(path: str) -> tuple[int, float] | None:
    """(attempt, generation) that writes to a path of the store. Shared files are an attempt's, whichever generation's."""
    folder, _, rest = path.partition("/")
    match = _FOLDER.fullmatch(folder)
    if match:
        return _writer(match)
    shared = _SHARED_FROM.fullmatch(rest) if folder == SHARED else None
    return (int(shared.group(1)), math.inf) if shared else None


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
