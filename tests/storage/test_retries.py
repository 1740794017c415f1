"""What is worth another try gets one, on a clock and within bounds; what is not is told at once."""

from __future__ import annotations

import errno
import random

import pytest

from orchestrator.domain.clock import ManualClock
from orchestrator.domain.errors import StorageError
from orchestrator.storage import Retries, is_full


class Answered(Exception):
    """As botocore's ClientError carries it."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"an answer of {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


class HttpError(Exception):
    """As gcsfs and azure carry it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"an answer of {status}")
        self.status_code = status


class ClientPayloadError(Exception):
    """As aiohttp names a body that was cut."""

    code = 400


class NoCredentialsError(Exception):
    """As botocore names it."""


class Failing:
    """Fails with one error after the other, then gives 7; each wait moves the clock."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.clock = ManualClock()
        self.waits: list[float] = []
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)

    def run(self, **bounds: float) -> int:
        retries = Retries(self.clock, random.Random(1), self.wait, **bounds)  # type: ignore[arg-type]
        return retries.run("write", "s3://bucket/file", self)


PASSING = [
    TimeoutError(),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    ClientPayloadError("cut"),
    *(Answered(status, "") for status in (408, 429, 500, 502, 503, 504)),
    Answered(400, "RequestTimeout"),
    Answered(400, "IncompleteBody"),
    HttpError(503),
]
LASTING = [
    (Answered(403, "AccessDenied"), "check the credentials"),
    (HttpError(401), "check the credentials"),
    (PermissionError("no"), "check the credentials"),
    (NoCredentialsError("Unable to locate credentials"), "AWS_ACCESS_KEY_ID"),
    (Answered(404, "NoSuchBucket"), "create the bucket"),
    (Answered(404, "NoSuchKey"), "deleted it"),
    (Answered(507, ""), "free space"),
    (Answered(503, "XMinioStorageFull"), "free space"),
    (Answered(400, "InvalidRequest"), "check the store"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_passing_failure_is_tried_again(error: Exception) -> None:
    """Timeouts, cut connections and the answers of a busy store get another try, and its result counts."""
    failing = Failing(error)
    assert failing.run() == 7
    assert failing.calls == 2


@pytest.mark.parametrize(("error", "words"), LASTING, ids=repr)
def test_a_lasting_failure_is_told_at_once(error: Exception, words: str) -> None:
    """Refused credentials, missing places and full stores are not tried again; the error says where and what to do."""
    failing = Failing(error)
    with pytest.raises(StorageError, match=words) as caught:
        failing.run()
    assert failing.calls == 1
    assert "s3://bucket/file" in str(caught.value)


def test_a_full_store_is_known_as_full() -> None:
    """The cause of the error is one that the worker takes for a full disk, so that the job's reason is the same."""
    with pytest.raises(StorageError) as caught:
        Failing(Answered(507, "InsufficientStorage")).run()
    assert isinstance(caught.value.__cause__, OSError)
    assert is_full(caught.value.__cause__)


def test_waits_grow_with_jitter_to_a_bound() -> None:
    """Each wait is between half and all of a limit that doubles up to the longest; the last try's failure is counted."""
    failing = Failing(*(Answered(503, "SlowDown") for _ in range(9)))
    with pytest.raises(StorageError, match=r"503 SlowDown.*after 6 tries"):
        failing.run(tries=6, first_seconds=1.0, longest_seconds=4.0)
    limits = [1.0, 2.0, 4.0, 4.0, 4.0]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(failing.waits, limits, strict=True))
    assert len(set(failing.waits)) == 5


def test_patience_ends_before_the_tries_do() -> None:
    """No further try begins once the time is used up."""
    failing = Failing(*(TimeoutError() for _ in range(99)))
    with pytest.raises(StorageError, match="after 4 tries"):
        failing.run(tries=99, first_seconds=10.0, longest_seconds=10.0, patience_seconds=20.0)
    assert failing.calls == 4
