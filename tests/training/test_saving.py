"""The saver of one rank on a local folder: what is copied when, what is told when, and what a failure does."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import storage
from orchestrator.domain.clock import SystemClock
from orchestrator.training.agreement import Peers
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.saving import Part, Saved, Saver

WAIT_SECONDS = 20.0


class Content:
    """A file's content that is written only when its gate opens; says when it is asked for."""

    def __init__(self, content: bytes = b"state", *, held: bool = False) -> None:
        self.content = content
        self.gate = threading.Event()
        self.asked = threading.Event()
        if not held:
            self.gate.set()

    def __call__(self) -> Iterator[bytes]:
        self.asked.set()
        assert self.gate.wait(WAIT_SECONDS)
        yield self.content


class World:
    """One rank and its store."""

    def __init__(self, folder: Path) -> None:
        self.store = storage.open_store(str(folder))
        self.saver = Saver(
            Peers(None, 0, 1, "cpu"),
            self.store,
            SystemClock(),
            attempt=1,
            retention=storage.Retention(2),
            verify=True,
        )
        self.saved: list[Saved] = []
        self.told = threading.Event()

    def save(self, step: int, content: Content) -> bool:
        facts = storage.Manifest(step, 0, storage.World(1), 0, "ranges", 0, 0, 1)
        return self.saver.save(step, lambda: ([Part("a.bin", content)], facts), self.acknowledge)

    def acknowledge(self, saved: Saved) -> None:
        self.saved.append(saved)
        self.told.set()

    def steps(self) -> list[int]:
        return [listed.step for listed in self.store.list() if listed.whole]

    def until_flags(self, wanted: tuple[float, float]) -> None:
        """Steps of training go by until the flags are so."""
        step = threading.Event()
        for _ in range(2_000):
            if self.saver.flags() == wanted:
                return
            step.wait(0.01)
        raise AssertionError(f"the flags stay {self.saver.flags()}")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.saver.close()


def test_nothing_is_told_before_all_have_written_and_rank_0_has_committed(world: World) -> None:
    """`save` returns while the file is being written; the checkpoint exists, and is told, after the ranks agreed."""
    content = Content(held=True)
    assert world.save(1, content)
    assert content.asked.wait(WAIT_SECONDS)
    assert world.saver.flags() == (0.0, 0.0)
    world.saver.agreed(0.0, 0.0)
    assert world.steps() == []
    content.gate.set()
    world.until_flags((1.0, 0.0))
    assert world.saved == []
    world.saver.agreed(1.0, 0.0)
    assert world.told.wait(WAIT_SECONDS)
    assert [saved.listed.step for saved in world.saved] == world.steps() == [1]
    assert 0 <= world.saved[0].stall_seconds <= world.saved[0].seconds


def test_at_most_one_save_is_under_way(world: World) -> None:
    """A second save waits for the first to be written before it copies anything, and both become checkpoints."""
    first, order = Content(held=True), []
    world.save(1, first)
    assert first.asked.wait(WAIT_SECONDS)

    def release() -> None:
        order.append("first written")
        first.gate.set()

    opener = threading.Timer(0.2, release)
    opener.start()
    facts = storage.Manifest(2, 0, storage.World(1), 0, "ranges", 0, 0, 1)

    def prepare() -> tuple[list[Part], storage.Manifest]:
        order.append("second copied")
        return [Part("a.bin", Content(b"second"))], facts

    assert world.saver.save(2, prepare, world.acknowledge)
    opener.join()
    world.saver.finish()
    assert order == ["first written", "second copied"]
    assert world.steps() == [2, 1]
    assert [saved.listed.step for saved in world.saved] == [1, 2]
    assert world.saved[1].stall_seconds > 0.1


def test_a_step_is_saved_once(world: World) -> None:
    """The same step again is left alone, and its state is not asked for."""
    assert world.save(1, Content(b"one"))
    again = Content(b"two")
    assert not world.save(1, again)
    world.saver.finish()
    assert not again.asked.is_set()
    (listed,) = world.store.list()
    assert world.store.read(listed, "a.bin") == b"one"


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "StorageFull"), (errno.EDQUOT, "StorageFull"), (errno.EROFS, "StorageFull"), (errno.EIO, "StorageFailed")],
)  # fmt: skip
def test_a_disk_that_refuses_is_told_at_the_next_step(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    """The thread's error is a flag first and is raised, with its reason, when the ranks have agreed; nothing is listed."""

    def put(*_: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(storage.LocalFiles, "put", put)
    world.save(1, Content())
    world.until_flags((0.0, 1.0))
    with pytest.raises(WorkerFailed, match="refused") as raised:
        world.saver.agreed(0.0, 1.0)
    assert raised.value.reason == reason
    assert raised.value.hint
    assert world.saved == []
    assert world.steps() == []


def test_a_commit_that_fails_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at the manifest fails the run, at the next step or when it waits; nobody was told of a checkpoint."""

    def rename(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "refused")

    monkeypatch.setattr(storage.LocalFiles, "rename", rename)
    world.save(1, Content())
    with pytest.raises(WorkerFailed, match="refused"):
        world.saver.finish()
    assert world.saver.flags() == (0.0, 1.0)
    with pytest.raises(WorkerFailed, match="refused"):
        world.saver.agreed(0.0, 1.0)
    assert (world.saved, world.steps()) == ([], [])


def test_old_checkpoints_go_when_a_new_one_is_there(world: World) -> None:
    """Of five saves the newest two are kept, all were told, and a shared file is written once."""
    shared = Content(b"weights that never change")
    for step in range(1, 6):
        facts = storage.Manifest(step, 0, storage.World(1), 0, "ranges", 0, 0, 1)
        parts = [Part("a.bin", Content()), Part("frozen.bin", shared, shared=True)]
        world.saver.save(step, lambda facts=facts, parts=parts: (parts, facts), world.acknowledge)  # type: ignore[misc]
        shared.asked.clear() if step > 1 else None
    world.saver.finish()
    assert [saved.listed.step for saved in world.saved] == [1, 2, 3, 4, 5]
    assert world.steps() == [5, 4]
    assert not shared.asked.is_set()
    assert [world.store.read(listed, "frozen.bin") for listed in world.store.list()] == [shared.content] * 2
