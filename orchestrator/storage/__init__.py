"""Where checkpoints live: written aside, hashed, committed in one step, verified before they are trusted. No torch here.

A checkpoint exists when it is whole, or not at all. `open_store(uri)` gives a `Store`; `Store.draft` begins a checkpoint,
`Draft.commit` makes it whole, `Store.ranges` reads slices of parameters whatever world wrote them.
"""

from orchestrator.storage.errors import is_full, storage_error
from orchestrator.storage.files import LocalFiles
from orchestrator.storage.hashing import BLOCK_BYTES, Content, content_digest, entry_of
from orchestrator.storage.local import LocalStore, local_folder
from orchestrator.storage.manifest import (
    FORMAT,
    ITEM_BYTES,
    MANIFEST,
    FileEntry,
    Fragment,
    Manifest,
    Parameter,
    World,
)
from orchestrator.storage.objects import ObjectStore
from orchestrator.storage.opening import open_store
from orchestrator.storage.ranges import RangeReader
from orchestrator.storage.retention import Held, Retention, retained
from orchestrator.storage.retries import Retries
from orchestrator.storage.store import Draft, Listed, Store

__all__ = [
    "BLOCK_BYTES",
    "FORMAT",
    "ITEM_BYTES",
    "MANIFEST",
    "Content",
    "Draft",
    "FileEntry",
    "Fragment",
    "Held",
    "Listed",
    "LocalFiles",
    "LocalStore",
    "Manifest",
    "ObjectStore",
    "Parameter",
    "RangeReader",
    "Retention",
    "Retries",
    "Store",
    "World",
    "content_digest",
    "entry_of",
    "is_full",
    "local_folder",
    "open_store",
    "retained",
    "storage_error",
]
