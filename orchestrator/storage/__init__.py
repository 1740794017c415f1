"""Checkpoints on disk: written aside, hashed, committed by a rename, verified before they are trusted. No torch here.

A checkpoint exists when it is whole, or not at all: `manifest.json` is written last, and the folder gets its name only
after every byte of it is on the disk. Remote stores are not here yet; `local_folder` refuses their schemes by name.
"""

from orchestrator.storage.checkpoints import (
    Listed,
    begin,
    clean_leftovers,
    commit,
    list_checkpoints,
    local_folder,
    newest_whole,
    prune,
    verify,
)
from orchestrator.storage.files import LocalFiles
from orchestrator.storage.manifest import FORMAT, MANIFEST, FileEntry, Manifest, World

__all__ = [
    "FORMAT",
    "MANIFEST",
    "FileEntry",
    "Listed",
    "LocalFiles",
    "Manifest",
    "World",
    "begin",
    "clean_leftovers",
    "commit",
    "list_checkpoints",
    "local_folder",
    "newest_whole",
    "prune",
    "verify",
]
