"""What a disk or an object store refuses, said so that a person knows what to do."""

from __future__ import annotations

import errno

from orchestrator.domain.errors import StorageError

CHECK_DISK = "check the disk, then resume the job; earlier checkpoints are whole"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}


def storage_error(doing: str, place: object, error: OSError) -> StorageError:
    """An OSError of a file system as a StorageError with the way out."""
    if error.errno in _FULL:
        hint = "free space or point checkpoint.uri at a larger disk, then resume the job; earlier checkpoints are whole"
    elif error.errno in _DENIED:
        hint = "make the folder writable or point checkpoint.uri elsewhere, then resume the job"
    else:
        hint = CHECK_DISK
    return StorageError(f"cannot {doing} {place}: {error.strerror or error}", hint=hint)


def is_full(error: OSError) -> bool:
    """True when an error means that a disk, quota or read-only mount takes no more bytes."""
    return error.errno in _FULL | {errno.EROFS}
