"""Checkpoints on an S3 server: faults on the way are outlived or told, and no cut leaves half a checkpoint."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator import storage
from orchestrator.domain.errors import NotFound, StorageError
from orchestrator.storage import ObjectStore, Retention, is_full
from tests.storage.s3 import BUCKET, Fault, Proxy, proxied, s3_server, store_at
from tests.storage.samples import FROZEN, contents, facts, save, trainer, weights

pytestmark = pytest.mark.integration
LARGE = random.Random(3).randbytes(9 * 2**20)


@pytest.fixture(scope="module")
def running() -> Iterator[Proxy]:
    with s3_server() as upstream, proxied(upstream) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: Proxy) -> Iterator[Proxy]:
    yield running
    running.reset()


@pytest.fixture
def path() -> str:
    return f"{uuid.uuid4().hex}/checkpoints"


@pytest.fixture
def store(proxy: Proxy, path: str) -> ObjectStore:
    return store_at(proxy.url, path)


def direct(proxy: Proxy, path: str) -> ObjectStore:
    """The same place without the proxy."""
    return store_at(f"http://{proxy.upstream[0]}:{proxy.upstream[1]}", path)


def save_large(store: storage.Store, step: int, attempt: int = 1) -> storage.Listed:
    """A checkpoint with one file of 9 MiB, which goes up in two parts."""
    draft = store.draft(step, attempt)
    draft.begin()
    entries = [
        draft.write("large.bin", [LARGE[:100], memoryview(LARGE)[100:]]),
        draft.write("trainer.json", [trainer(step)]),
    ]
    fragments = (storage.Fragment("w", "frozen", "uint8", 0, len(LARGE), "large.bin", 0),)
    parameters = (storage.Parameter("w", (len(LARGE),), "uint8", "frozen"),)
    whole = facts(step, attempt, fragments=fragments, parameters=parameters)
    return draft.commit(whole, entries, read_back=False)


def read_large(store: storage.Store, listed: storage.Listed, start: int = 0, end: int = len(LARGE)) -> bytes:
    out = bytearray(end - start)
    with store.ranges(listed) as ranges:
        ranges.read_into("w", "frozen", start, end, memoryview(out))
    return bytes(out)


def objects(store: ObjectStore) -> list[str]:
    return sorted(store._below(""))


def uploads(store: ObjectStore, path: str) -> list[Any]:
    found = store._filesystem.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=path)
    return list(found.get("Uploads", ()))


def test_a_checkpoint_goes_up_and_comes_back(store: ObjectStore) -> None:
    """Small, shared and large files are saved, listed, verified, read by slices, and pruned with nothing left."""
    assert store.list() == []
    assert store.newest_whole() == (None, [])
    for step in (1, 2):
        save(store, step, frozen=FROZEN)
    large = save_large(store, 3)
    assert [item.step for item in store.list()] == [3, 2, 1]
    assert all(store.verify(item.uri).whole for item in store.list())
    assert contents(store, store.list()[1]) == {"weights": weights(2), "trainer": trainer(2), "shared": FROZEN}
    assert read_large(store, large) == LARGE
    assert read_large(store, large, 5_000_000, 5_000_100) == LARGE[5_000_000:5_000_100]
    assert len(store.prune(Retention(1))) == 2
    assert [item.step for item in store.list()] == [3]
    store.clean_leftovers(2)
    assert objects(store) == [
        f"step-00000003.attempt-1/{name}" for name in ("large.bin", "manifest.json", "trainer.json")
    ]
    with pytest.raises(NotFound):
        store.verify(f"{store.uri}/step-00000009.attempt-1")


PASSING = {
    "503 to a file": Fault("503", "PUT", "trainer.json", times=2),
    "500 to the manifest": Fault("500", "PUT", "manifest.json"),
    "no answer to the manifest": Fault("lost", "PUT", "manifest.json"),
    "cut in a part": Fault("cut", "PUT", "partNumber=2", times=2),
    "503 to every part once": Fault("503", "PUT", "partNumber", times=2),
    "hanging part": Fault("hang", "PUT", "partNumber=1"),
    "slow part": Fault("slow", "PUT", "partNumber=1"),
    "answer to the last call lost": Fault("lost", "POST", "uploadId"),
    "cut listing": Fault("torn", "GET", "list-type", times=2),
    "hanging listing": Fault("hang", "GET", "list-type"),
    "503 to a look": Fault("503", "HEAD", "large.bin"),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_outlived(store: ObjectStore, proxy: Proxy, path: str, name: str) -> None:
    """A fault that passes happens, is counted, and the checkpoint is whole all the same."""
    fault = PASSING[name]
    wanted = fault.times
    proxy.inject(Fault(fault.kind, fault.method, fault.words, fault.times))
    listed = save_large(store, 1)
    assert proxy.injected == {fault.kind: wanted}
    clean = direct(proxy, path)
    assert clean.verify(listed.uri).whole
    assert uploads(clean, path) == []


@pytest.mark.parametrize("kind", ["503", "torn", "cut", "hang"])
def test_a_passing_fault_of_a_read_is_outlived(store: ObjectStore, proxy: Proxy, kind: str) -> None:
    """A slice is right though its first request failed."""
    listed = save_large(store, 1)
    proxy.inject(Fault(kind, "GET", "large.bin", times=2))
    assert read_large(store, listed) == LARGE
    assert proxy.injected == {kind: 2}


@pytest.mark.parametrize("words", ["trainer.json", "manifest.json", "partNumber"])
def test_a_full_store_is_told_once(store: ObjectStore, proxy: Proxy, path: str, words: str) -> None:
    """Insufficient storage is not tried again; the error says so, and nothing is listed or left as an upload."""
    proxy.inject(Fault("507", "PUT", words, times=100))
    with pytest.raises(StorageError, match="free space") as caught:
        save_large(store, 1)
    assert isinstance(caught.value.__cause__, OSError)
    assert is_full(caught.value.__cause__)
    assert proxy.injected["507"] == (2 if words == "partNumber" else 1)
    proxy.reset()
    assert store.list() == []
    assert uploads(store, path) == []


def test_wrong_credentials_are_told_once(proxy: Proxy, path: str) -> None:
    """A refused key is not tried again, and the error names the place, the code and what to check."""
    store = store_at(proxy.url, path, key="wrong")
    with pytest.raises(StorageError, match=rf"s3://{BUCKET}/{path}.*403 InvalidAccessKeyId.*check the credentials"):
        store.list()
    assert proxy.injected == {"403": 1}
    with pytest.raises(StorageError, match="check the credentials"):
        store.draft(1, 1).write("file", [b"x"])


def test_a_bucket_that_is_not_there_is_told(proxy: Proxy, path: str) -> None:
    """Neither listing nor writing takes a missing bucket for an empty one."""
    store = store_at(proxy.url, path, bucket="nowhere")
    for work in (store.list, store.draft(1, 1).begin, lambda: store.draft(1, 1).write("file", [b"x"])):
        with pytest.raises(StorageError, match="create the bucket"):
            work()


def test_a_store_that_stays_away_is_given_up(proxy: Proxy, path: str) -> None:
    """A fault that does not pass ends after the tries that are allowed, and the error counts them."""
    store = store_at(proxy.url, path, tries=3)
    proxy.inject(Fault("503", "PUT", "trainer.json", times=100))
    with pytest.raises(StorageError, match=r"503 SlowDown.*after 3 tries"):
        save(store, 1)
    assert proxy.injected == {"503": 3}


def test_a_machine_that_dies_at_any_request_leaves_the_old_list_or_the_new_one(proxy: Proxy, path: str) -> None:
    """Cutting a save and the pruning after it at each changing request loses nothing, and the next attempt cleans up."""
    seen = set()
    for allowed in range(100):
        place = f"{path}/{allowed}"
        clean = direct(proxy, place)
        save(clean, 1, frozen=b"old")
        clean.clean_leftovers(2)
        dying = store_at(proxy.url, place, tries=1)
        proxy.reset()
        proxy.allowed = allowed
        acknowledged = False
        try:
            save_large(dying, 2, attempt=2)
            acknowledged = True
            dying.prune(Retention(1))
        except StorageError:
            assert proxy.injected["dead"]
        listed = clean.list()
        assert all(clean.verify(item.uri).whole for item in listed)
        assert listed[0].step == 2 or not acknowledged
        seen.add((tuple(item.step for item in listed), acknowledged))
        clean.clean_leftovers(3)
        folders = {name.partition("/")[0] for name in objects(clean)}
        assert folders - {"shared"} == {item.uri.rpartition("/")[2] for item in clean.list()}
        assert uploads(clean, place) == []
        assert sum(name.startswith("shared/") for name in objects(clean)) == (1 in [item.step for item in listed])
        if not proxy.injected["dead"]:
            break
    assert seen == {((1,), False), ((2, 1), True), ((2,), True)}


def test_leftovers_of_dead_attempts_are_cleaned_and_no_others(store: ObjectStore, path: str) -> None:
    """Drafts, unfinished uploads and claims of attempts before this one go; this one's and later ones' stay."""
    for attempt in (1, 2, 3):
        draft = store.draft(5, attempt)
        draft.write("file", [b"x"])
        draft.write_shared([b"content of %d" % attempt])
        key = f"{path}/step-00000005.attempt-{attempt}/large"
        store._filesystem.call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
        key = f"{path}/shared/{'0' * 64}.from-{attempt}"
        store._filesystem.call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
    removed = store.clean_leftovers(3)
    assert len(removed) == 2 + 4 + 2
    assert [name.rpartition(".")[2] for name in objects(store)] == ["claim-3", "from-3", "attempt-3/file"]
    assert len(uploads(store, path)) == 2


def test_a_later_attempt_replaces_a_damaged_checkpoint_of_the_same_step(store: ObjectStore) -> None:
    """A whole checkpoint of a step stays, whoever writes it again; a damaged one is superseded, and goes with its step."""
    first = save(store, 1)
    assert save(store, 1) == first
    assert save(store, 1, attempt=2) == first
    store._put("step-00000001.attempt-1/trainer.json", b"X" * len(trainer(1)))
    assert "trainer.json does not match" in str(store.verify(first.uri).why)
    with pytest.raises(StorageError, match="committed before and is damaged"):
        save(store, 1)
    second = save(store, 1, attempt=2)
    assert second.uri.endswith("attempt-2")
    assert store.newest_whole() == (second, [])
    save(store, 2, attempt=2)
    store.prune(Retention(1))
    assert {name.partition("/")[0] for name in objects(store)} == {"step-00000002.attempt-2"}


def test_a_flipped_bit_is_named_with_its_block(store: ObjectStore) -> None:
    """Damage in an object is told by file and block, when verified and when read."""
    listed = save_large(store, 1)
    broken = bytearray(LARGE)
    broken[5_000_000] ^= 4
    store._filesystem.pipe_file(f"{store._root}/step-00000001.attempt-1/large.bin", bytes(broken))
    words = r"large\.bin does not match its hash in block 1 \(bytes 4194304 to 8388607\)"
    with pytest.raises(StorageError, match=words):
        read_large(store, listed)
    assert read_large(store, listed, 0, 4_000_000) == LARGE[:4_000_000]
    assert "in block 1" in str(store.verify(listed.uri).why)
