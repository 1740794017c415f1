"""Which failures of an object store are worth another try, and how to say the ones that are not.

Tried again: timeouts, cut connections, 408, 429, 500, 502, 503, 504, and the codes by which stores ask for patience. Not tried
again: refused credentials (403), no such bucket (404), a full store (507, quotas). The libraries' own retries are turned off
(`opening`), so that the bound here is the bound.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.domain.clock import Clock, seconds_between
from orchestrator.domain.errors import StorageError

T = TypeVar("T")

_PATIENCE_STATUS = {408, 429, 500, 502, 503, 504}
_PATIENCE_CODES = {
    "BadDigest",  # the content was damaged on its way; the piece is sent again
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "XAmzContentSHA256Mismatch",
}
_FULL_CODES = {"InsufficientStorage", "QuotaExceeded", "QuotaExceededException", "XMinioStorageFull"}
_CUT_NAMES = {  # by name, since the libraries are optional and not to be imported for this
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "ServerDisconnectedError",
    "ConnectTimeoutError",  # botocore
    "ConnectionClosedError",
    "ConnectionError",
    "EndpointConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "FSTimeoutError",  # fsspec
    "ServiceRequestError",  # azure
    "ServiceResponseError",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "CredentialRetrievalError",
}


@dataclass(frozen=True, slots=True)
class Retries:
    """Exponential with full jitter, bounded in number and in time."""

    clock: Clock
    rng: random.Random
    wait: Callable[[float], object]
    """Waits so many seconds."""
    tries: int = 7
    first_seconds: float = 0.2
    longest_seconds: float = 10.0
    patience_seconds: float = 120.0
    """No further try begins after this."""

    def run(self, doing: str, place: str, work: Callable[[], T]) -> T:
        """Do it, again where that is right. Raises StorageError with what, where, how often, and the way out."""
        began = self.clock.monotonic_ns()
        count = 0
        while True:
            count += 1
            try:
                return work()
            except (StorageError, KeyboardInterrupt):
                raise
            except Exception as error:  # noqa: BLE001  # each library has its own tree; all are judged and reported here
                spent = seconds_between(began, self.clock.monotonic_ns())
                if not passing(error) or count >= self.tries or spent >= self.patience_seconds:
                    raise refusal(doing, place, error, count, spent) from _cause(error)
            limit = min(self.longest_seconds, self.first_seconds * 2 ** (count - 1))
            self.wait(limit * self.rng.uniform(0.5, 1.0))


def passing(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment."""
    status, code = answer(error)
    if code in _FULL_CODES:
        return False
    if code in _PATIENCE_CODES or status in _PATIENCE_STATUS:
        return True
    cut = any(isinstance(item, (TimeoutError, ConnectionError)) or _named(item, _CUT_NAMES) for item in _chain(error))
    return cut and not code  # with a code the store has answered, whatever went before


def answer(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and the store's own code behind an error; (None, "") when the store did not answer."""
    for item in _chain(error):
        response = getattr(item, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
        for name in ("status_code", "code", "status"):  # azure, gcsfs, aiohttp
            status = getattr(item, name, None)
            if isinstance(status, int) and 300 <= status < 600:
                return status, str(getattr(item, "error_code", None) or "")
    return None, ""


def refusal(doing: str, place: str, error: BaseException, count: int, seconds: float) -> StorageError:
    """A failure as a sentence with the way out."""
    status, code = answer(error)
    said = " ".join(str(part) for part in (status, code) if part)
    words = " ".join(str(error).split()) or type(error).__name__
    tries = f", after {count} tries in {seconds:.0f} s" if count > 1 else ""
    if _full(error):
        hint = "free space or raise the quota, then resume the job; earlier checkpoints are whole"
    elif status == 401 or status == 403 or isinstance(error, PermissionError):
        hint = "check the credentials, and that they may list, read, write and delete there"
    elif any(_named(item, _NO_CREDENTIALS) for item in _chain(error)):
        hint = "give the job credentials of the store (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    elif code == "NoSuchBucket" or "bucket does not exist" in words:
        hint = "create the bucket, or mend checkpoint.uri"
    elif status == 404 or isinstance(error, FileNotFoundError):
        hint = "somebody deleted it, or checkpoint.uri names the wrong place"
    else:
        hint = "check the store and the network, then resume the job; earlier checkpoints are whole"
    return StorageError(f"cannot {doing} {place}: {words}{f' ({said})' if said else ''}{tries}", hint=hint)


def absent(error: BaseException | None) -> bool:
    """Whether an error says that the object is not there."""
    if error is None:
        return False
    status, code = answer(error)
    return code != "NoSuchBucket" and (
        status == 404 or any(isinstance(item, FileNotFoundError) for item in _chain(error))
    )


def _full(error: BaseException) -> bool:
    status, code = answer(error)
    return status == 507 or code in _FULL_CODES


def _cause(error: BaseException) -> BaseException:
    """The error itself, or one that `is_full` knows."""
    if not _full(error):
        return error
    full = OSError(errno.ENOSPC, "the object store is full")
    full.__cause__ = error
    return full


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    item: BaseException | None = error
    while item is not None and item not in seen:
        seen.append(item)
        yield item
        item = item.__cause__ or item.__context__


def _named(error: BaseException, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)
