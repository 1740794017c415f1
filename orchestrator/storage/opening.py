"""From a URI to the store behind it.

Object stores take credentials, region and endpoint as their own tools do (for S3: the AWS variables, files and instance roles;
`AWS_ENDPOINT_URL` for a store that speaks S3). fsspec and the store's package are imported when such a URI is opened.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.clock import SystemClock
from orchestrator.domain.errors import StorageError
from orchestrator.storage.files import LocalFiles
from orchestrator.storage.local import LocalStore, local_folder
from orchestrator.storage.objects import ObjectStore
from orchestrator.storage.retries import Retries
from orchestrator.storage.store import Store

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
    "memory": "",
}
_CONNECT_SECONDS = 10
_READ_SECONDS = 60


def open_store(uri: str, *, options: Mapping[str, Any] | None = None, retries: Retries | None = None) -> Store:
    """The store behind a path, `file://`, `s3://`, `gs://`, `abfs://` or `memory://`. Safe in every rank; no I/O.

    `options` go to the store's fsspec class as they are. Raises StorageError for an unknown scheme or a package that is not
    installed.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return LocalStore(uri, local_folder(uri), LocalFiles())
    if scheme not in _EXTRAS:
        known = ", ".join(f"{name}://" for name in ("file", "s3", "gs", "abfs"))
        raise StorageError(f"no store is known by {scheme}:// ({uri})", hint=f"use a path, or one of {known}")
    if retries is None:
        retries = Retries(SystemClock(), random.Random(), threading.Event().wait)
    return ObjectStore(uri, _filesystem(uri, scheme, options or {}), retries)


def _filesystem(uri: str, scheme: str, options: Mapping[str, Any]) -> Any:
    import fsspec

    own: dict[str, Any] = {} if scheme == "memory" else {"use_listings_cache": False, "skip_instance_cache": True}
    if _EXTRAS[scheme] == "s3":
        own["config_kwargs"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "retries": {"max_attempts": 0},
        }
    try:
        filesystem = fsspec.filesystem(scheme, **{**own, **options})
    except ImportError as error:
        hint = f"pip install 'orchestrate[{_EXTRAS[scheme]}]'"
        raise StorageError(f"{uri} needs a package that is not installed here: {error}", hint=hint) from error
    if _EXTRAS[scheme] in ("s3", "gcs"):
        filesystem.retries = 1  # `Retries` decides
    return filesystem
