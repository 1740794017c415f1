"""Two-phase, checksummed, atomic commit of checkpoint folders, and reading them back with suspicion.

    <uri>/step-00000100.partial-2/     being written by attempt 2; never listed as a checkpoint
    <uri>/step-00000100/               whole: every file, and manifest.json, which was written last
    <uri>/step-00000100.refused-2/     a folder of that name that was not whole when attempt 2 had a whole one to put there

Commit: make every file durable (fsync), hash what is on the disk, write the manifest, fsync it and the folders, rename,
fsync the parent. A crash between any two of these leaves either the old list or the new one. A reader trusts nothing:
sizes and the manifest's digest are checked when listing, every byte before a restore.

Limits: one writer a folder (the job's rank 0, ordered by attempts); file systems whose rename is atomic, so not an object
store (there the commit will be the one PUT of the manifest).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.domain.errors import NotFound, StorageError
from orchestrator.storage.errors import CHECK_DISK, is_full, storage_error
from orchestrator.storage.files import LocalFiles
from orchestrator.storage.local import local_folder
from orchestrator.storage.manifest import MANIFEST, FileEntry, Manifest, ManifestError
from orchestrator.storage.store import Listed

__all__ = ["is_full", "storage_error"]

_WHOLE_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL_NAME = re.compile(r"step-\d{8,}\.partial-(\d+)")
_LOCAL = LocalFiles()


def begin(uri: str, step: int, attempt: int, files: LocalFiles = _LOCAL) -> Path:
    """An empty folder to write the checkpoint of `step` into; a leftover of the same attempt is cleared first."""
    partial = local_folder(uri) / f"step-{step:08d}.partial-{attempt}"
    try:
        if files.names(partial):
            files.remove(partial)
        files.make_folder(partial)
    except OSError as error:
        raise storage_error("prepare a checkpoint in", partial, error) from error
    return partial


def commit(
    partial: Path,
    facts: Manifest,
    *,
    expected: Mapping[str, FileEntry] | None = None,
    read_back: bool = True,
    files: LocalFiles = _LOCAL,
) -> Listed:
    """Make what is in `partial` durable and give it its name. `facts.files` is filled in from the disk.

    `expected` holds size and sha256 of each file as its writer computed them; a file that is absent or reads back
    otherwise is a StorageError. Without `read_back` the writer's hashes are believed and only the sizes are compared.
    When a whole checkpoint of that step is there already, it stays and the new one is dropped (a repeated step has the
    same content). Raises StorageError; then the earlier checkpoints are untouched and this one is not listed.
    """
    final = partial.parent / f"step-{facts.global_step:08d}"
    try:
        entries = [
            _durable(partial, name, (expected or {}).get(name), files, read_back) for name in files.tree(partial)
        ]
        if lost := sorted((expected or {}).keys() - {entry.path for entry in entries}):
            raise StorageError(f"{_some(lost)} missing from {partial} after the write", hint=CHECK_DISK)
        manifest = replace(facts, files=tuple(entries))
        files.write(partial / MANIFEST, manifest.to_json())
        files.sync(partial / MANIFEST)
        for folder in files.folders(partial):
            files.sync(folder)
        if files.names(final):
            there = verify(final, files)
            if there.whole:
                files.remove(partial)
                return there
            files.rename(final, _free_name(final, facts.attempt, files))
        files.rename(partial, final)
        files.sync(final.parent)
    except OSError as error:
        raise storage_error("commit the checkpoint", final, error) from error
    return Listed(facts.global_step, str(final), manifest, None)


def verify(folder: Path, files: LocalFiles = _LOCAL) -> Listed:
    """Check every byte of one checkpoint against its manifest. Raises NotFound when there is no such folder."""
    if not folder.is_dir():
        raise NotFound(f"there is no checkpoint {folder}", hint="list them with `orchestrate checkpoint list`")
    return _inspect(folder, files, every_byte=True)


def list_checkpoints(uri: str, files: LocalFiles = _LOCAL) -> list[Listed]:
    """Checkpoints below `uri`, the newest first; manifest, names and sizes are checked, contents are not (`verify`)."""
    root = local_folder(uri)
    try:
        names = [name for name in files.names(root) if _WHOLE_NAME.fullmatch(name)]
    except OSError as error:
        raise storage_error("list the checkpoints in", root, error) from error
    found = [_inspect(root / name, files, every_byte=False) for name in names]
    return sorted(found, key=lambda listed: listed.step, reverse=True)


def newest_whole(uri: str, files: LocalFiles = _LOCAL) -> tuple[Listed | None, list[Listed]]:
    """The newest checkpoint whose every byte is right, and the newer ones that were refused on the way to it."""
    refused: list[Listed] = []
    for listed in list_checkpoints(uri, files):
        checked = _inspect(listed.folder, files, every_byte=True) if listed.whole else listed
        if checked.whole:
            return checked, refused
        refused.append(checked)
    return None, refused


def prune(
    uri: str, *, keep: int, keep_best: bool = True, verified: Collection[Path] = (), files: LocalFiles = _LOCAL
) -> list[Path]:
    """Delete whole checkpoints beyond the newest `keep`; returns what was deleted.

    Never deleted: the newest one that is whole to the last byte, the best one (`keep_best`), refused folders (somebody
    may want to look), and anything whose name is not ours. `verified` names folders that were hashed a moment ago.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    whole = [listed for listed in list_checkpoints(uri, files) if listed.whole]
    if len(whole) <= keep:
        return []
    newest = next(
        (
            listed
            for listed in whole
            if listed.folder in verified or _inspect(listed.folder, files, every_byte=True).whole
        ),
        None,
    )
    best = next((listed for listed in whole if listed.manifest is not None and listed.manifest.best), None)
    spared = [listed for listed in (newest, best if keep_best else None) if listed is not None]
    doomed = [listed.folder for listed in whole[keep:] if newest is not None and listed not in spared]
    for folder in doomed:
        _delete(folder, files)
    return doomed


def clean_leftovers(uri: str, attempt: int, files: LocalFiles = _LOCAL) -> list[Path]:
    """Delete what attempts before `attempt` left half-written; returns the folders. Later attempts' are not touched."""
    root = local_folder(uri)
    removed = []
    try:
        for name in files.names(root):
            match = _PARTIAL_NAME.fullmatch(name)
            if match and int(match.group(1)) < attempt:
                files.remove(root / name)
                removed.append(root / name)
    except OSError as error:
        raise storage_error("clean up", root, error) from error
    return removed


def _durable(partial: Path, name: str, expected: FileEntry | None, files: LocalFiles, read_back: bool) -> FileEntry:
    files.sync(partial / name)
    size = files.size(partial / name)
    believed = expected is not None and not read_back
    digest = expected.sha256 if expected is not None and believed else files.digest(partial / name)
    entry = FileEntry(name, size, digest)
    if expected is not None and (entry.bytes, entry.sha256) != (expected.bytes, expected.sha256):
        raise StorageError(f"{partial / name} reads back other than it was written", hint=CHECK_DISK)
    return entry


def _delete(folder: Path, files: LocalFiles) -> None:
    """Take the name away first, so that a deletion cut short leaves no folder that looks like a checkpoint."""
    doomed = folder.with_name(f"{folder.name}.partial-0")
    try:
        if files.names(doomed):
            files.remove(doomed)
        files.rename(folder, doomed)
        files.remove(doomed)
    except OSError as error:
        raise storage_error("delete the old checkpoint", folder, error) from error


def _free_name(final: Path, attempt: int, files: LocalFiles) -> Path:
    taken = files.names(final.parent)
    name = f"{final.name}.refused-{attempt}"
    count = 1
    while name in taken:
        count += 1
        name = f"{final.name}.refused-{attempt}.{count}"
    return final.with_name(name)


def _inspect(folder: Path, files: LocalFiles, *, every_byte: bool) -> Listed:
    match = _WHOLE_NAME.fullmatch(folder.name)
    step = int(match.group(1)) if match else -1
    try:
        manifest = Manifest.from_json(files.read(folder / MANIFEST))
    except FileNotFoundError:
        return Listed(step, str(folder), None, "it has no manifest.json, so it was never finished")
    except ManifestError as error:
        return Listed(step, str(folder), None, str(error))
    except OSError as error:
        return Listed(step, str(folder), None, f"its manifest cannot be read: {error.strerror or error}")
    try:
        why = _difference(folder, manifest, files, every_byte=every_byte)
    except OSError as error:
        why = f"it cannot be read: {error.strerror or error}"
    if why is None and match and manifest.global_step != step:
        why = f"its manifest is of step {manifest.global_step}, not of the step in its name"
    return Listed(manifest.global_step if step < 0 else step, str(folder), manifest, why)


def _difference(folder: Path, manifest: Manifest, files: LocalFiles, *, every_byte: bool) -> str | None:
    promised = {entry.path: entry for entry in manifest.files}
    there = set(files.tree(folder)) - {MANIFEST}
    if missing := sorted(promised.keys() - there):
        return f"{_some(missing)} missing"
    if extra := sorted(there - promised.keys()):
        return f"{_some(extra)} not in its manifest"
    for entry in manifest.files:
        size = files.size(folder / entry.path)
        if size != entry.bytes:
            return f"{entry.path} has {size} bytes, the manifest says {entry.bytes}"
    if every_byte:
        for entry in manifest.files:
            if files.digest(folder / entry.path) != entry.sha256:
                return f"{entry.path} does not match its sha256: its content changed after the commit"
    return None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    more = len(names) - 3
    return f"{shown} and {more} more are" if more > 0 else f"{shown} {'are' if len(names) > 1 else 'is'}"
