"""A slot is whole or not there, at whichever instruction its writer stops."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.native import memory as memory_module
from orchestrator.platforms.engines.native import segments
from orchestrator.platforms.engines.native.couriers import Bells
from orchestrator.platforms.engines.native.memory import Memory
from orchestrator.platforms.engines.native.segments import NotASegment, Segment
from orchestrator.storage.manifest import Fragment

BYTES = 3 * 4096 + 5


class Killed(BaseException):
    """Stands for SIGKILL: the writer stops here and never does anything again."""


def until_killed(line: int, work: Callable[[], None]) -> bool:
    """Run `work` and stop it before the `line`-th line of the code that writes; whether it came so far."""
    watched = {segments.__file__, memory_module.__file__, __file__}
    passed = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename not in watched:
            return None
        if event == "line":
            passed += 1
            if passed == line:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


class Node:
    """The agent's side of one rank without its courier: nobody takes copies."""

    def __init__(self, slots: int = 3) -> None:
        self.segment = Segment.create("test", slots)
        self.segment.alone = True
        self.bells = Bells()
        bell, answer = self.bells.paths
        grant: dict[str, Any] = {
            "segment": self.segment.path,
            "bell": bell,
            "answer": answer,
            "source": None,
            "near": ["", 0],
        }
        grant |= {"rank": 0, "every": None, "paired": False}
        self.memory = Memory(grant, SystemClock())

    def open(self) -> None:
        self.memory.open([Fragment("w", "master", "uint8", 0, BYTES, "memory", 0)], BYTES)

    def publish(self, step: int) -> None:
        room = self.memory.buffer(step)
        room[: BYTES // 2] = bytes([step]) * (BYTES // 2)
        room[BYTES // 2 :] = bytes([step]) * (BYTES - BYTES // 2)
        self.memory.publish(step, {"step": step})

    def whole(self) -> list[int]:
        """The steps that a reader finds, the newest first; each must be what was published."""
        found = self.segment.published()
        for shard in found:
            assert bytes(self.segment.data(shard.slot)) == bytes([shard.step]) * BYTES
            assert shard.document == b'{"step":%d}' % shard.step
        return [shard.step for shard in found]

    def close(self) -> None:
        self.memory.close()
        self.segment.close()
        self.bells.close()


@pytest.mark.parametrize("slots", [2, 3])
def test_a_writer_stopped_at_any_line_leaves_the_old_shard_or_the_new_one(slots: int) -> None:
    """Stop the writer before each line of a publication in turn: the reader finds the old whole ones, or the new one too."""
    line, seen = 0, set()
    while True:
        line += 1
        node = Node(slots)
        node.open()
        for step in range(1, slots + 1):
            node.publish(step)
        killed = until_killed(line, lambda node=node: node.publish(slots + 1))  # type: ignore[misc]
        old = list(range(slots, 0, -1))
        found = node.whole()
        node.close()
        assert found in (old, old[:-1], [slots + 1, *old[:-1]])
        seen.add(len(found) + (found[0] == slots + 1))
        if not killed:
            break
    assert found[0] == slots + 1
    assert line > 20
    assert len(seen) > 1


def test_a_writer_stopped_while_it_lays_out_the_memory_has_published_nothing() -> None:
    """Before each line of `open` in turn: the reader finds nothing, or a segment that is open; never an error."""
    line, killed, opened = 0, True, set()
    while killed:
        line += 1
        node = Node()
        killed = until_killed(line, node.open)
        assert node.whole() == []
        opened.add(node.segment.is_open())
        node.close()
    assert opened == {False, True}


@settings(max_examples=40)
@given(data=st.data())
def test_any_mixture_of_an_old_and_a_new_record_is_seen_as_nothing(data: st.DataObject) -> None:
    """A record of which only some bytes have been written is not taken for a shard."""
    node = Node(2)
    try:
        node.open()
        node.publish(1)
        node.publish(2)
        slot = node.segment.take()
        start = 8 * (segments._RECORDS + slot * segments._RECORD_WORDS)
        handle = os.open(node.segment.path, os.O_RDWR)
        try:
            old = os.pread(handle, 48, start)
            node.publish(3)
            new = os.pread(handle, 48, start)
            mixed = bytes(data.draw(st.sampled_from(pair)) for pair in zip(old, new, strict=True))
            os.pwrite(handle, mixed, start)
            assert node.whole() == ([3, 2] if mixed == new else [2])
        finally:
            os.close(handle)
    finally:
        node.close()


def test_the_slot_that_is_filled_is_never_the_newest() -> None:
    """With two slots and many steps, the step before is whole while the next is written, and a lost attempt costs nothing."""
    node = Node(2)
    node.open()
    node.publish(1)
    for step in range(2, 8):
        node.memory.buffer(step)
        node.memory.buffer(step)
        assert node.whole() == [step - 1]
        node.publish(step)
    assert node.whole() == [7, 6]
    node.close()


def test_what_makes_no_sense_is_refused() -> None:
    """Ranges outside the shard, foreign files, a second layout, a wrong step and too large a document are errors."""
    node = Node()
    for start, end, offset, dtype in [(0, 11, 0, "uint8"), (5, 5, 0, "uint8"), (0, 1, -1, "uint8"), (0, 1, 0, "int3")]:
        with pytest.raises(ValueError, match="does not lie within"):
            node.memory.open([Fragment("w", "master", dtype, start, end, "", offset)], 10)
    node.open()
    with pytest.raises(ValueError, match="laid out already"):
        node.open()
    with pytest.raises(ValueError, match="no buffer"):
        node.memory.publish(1, {})
    node.memory.buffer(1)
    with pytest.raises(ValueError, match="no buffer"):
        node.memory.publish(2, {})
    with pytest.raises(ValueError, match="fit"):
        node.memory.publish(1, {"text": "x" * segments.DOCUMENT_BYTES})
    with pytest.raises(NotASegment):
        Segment.attach(__file__)
    with pytest.raises(ValueError, match="slots"):
        Segment.create("test", 1)
    node.close()


def test_a_segment_cannot_be_cut_short_under_its_reader() -> None:
    """The file may grow, but not shrink: mapped pages stay there."""
    node = Node()
    node.open()
    handle = os.open(node.segment.path, os.O_RDWR)
    with pytest.raises(PermissionError):
        os.ftruncate(handle, 4096)
    os.close(handle)
    node.close()
