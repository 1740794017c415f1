"""From a URI to the store behind it."""

from __future__ import annotations

from orchestrator.domain.errors import StorageError
from orchestrator.storage.files import LocalFiles
from orchestrator.storage.local import LocalStore, local_folder
from orchestrator.storage.store import Store


def open_store(uri: str) -> Store:
    """The store at a path or a `file://` URI. No I/O. Raises StorageError for a scheme that is not known."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return LocalStore(uri, local_folder(uri), LocalFiles())
    raise StorageError(f"no store is known by {scheme}:// ({uri})", hint="use a path or file://")
