"""One rank's shard in memory that outlives the rank: a few slots, filled in turn, each either whole or not there.

The memory is an anonymous file (memfd) that the agent makes and keeps open; the rank opens it through `/proc/<agent>/fd`. So
it lives as long as the agent, whatever becomes of the rank, and when the agent itself is killed the kernel takes it back:
nothing is left in /dev/shm, and the small /dev/shm of a container sets no limit.

A rank fills the slot whose state is the oldest. It first strikes out what the slot says of itself, then writes the bytes and
the document, then the record that names step and lengths, and last a check over record and document. Whoever reads takes a
slot only if its check is right. So a rank may be killed between any two instructions: the other slots are as they were, and
the one it was at is not there.

Limits: the check covers record and document, not the bytes of the shard; those are covered by the order of writing, as seen
by a reader that was woken through the kernel or that knows the rank to be dead. Numbers are in the machine's own byte order:
a segment is never seen by another machine.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

DOCUMENT_BYTES = 4 * 1024 * 1024
"""Room for the document of one slot. Pages that are never written take no memory."""
FEWEST_SLOTS = 2

_PAGE = mmap.PAGESIZE
_MAGIC = int.from_bytes(b"shards/1", "little")

# Words of the header, 8 bytes each. Written by the agent ...
_FORMAT, _SLOTS, _ACKNOWLEDGED, _ALONE, _PROGRESS, _SHIP_NS = range(6)
# ... by the rank, once ...
_OPENED, _BYTES, _LAYOUT, _FIXED = range(8, 12)
# ... and by the rank for every slot.
_RECORDS, _RECORD_WORDS = 16, 8
_CHECK, _SEQUENCE, _STEP, _DOCUMENT, _COPY_NS, _WAIT_NS = range(6)
_FIELDS = struct.Struct("=5Q")

MOST_SLOTS = (_PAGE // 8 - _RECORDS) // _RECORD_WORDS


class NotASegment(ValueError):
    """The file is not what `Segment.create` makes, or what a rank wrote into its header makes no sense."""


@dataclass(frozen=True, slots=True)
class Published:
    """What one slot holds: the shard of one step."""

    slot: int
    check: int
    """Names this content of the slot; another one of the same slot has another."""
    sequence: int
    """1 for the first shard that the rank published, and so on."""
    step: int
    document: bytes
    """JSON, as the rank wrote it."""
    copy_ns: int
    """From the moment the rank was given the slot until it had filled it."""
    wait_ns: int
    """What the rank waited before that for its neighbour's answer."""


class Segment:
    """One such file, mapped. The agent makes it with `create`, the rank takes it with `attach`."""

    def __init__(self, handle: int) -> None:
        """`handle` is an open descriptor of the file and now belongs to the segment."""
        self._handle = handle
        self._head = mmap.mmap(handle, _PAGE)
        self._words = memoryview(self._head).cast("Q")
        self._body: mmap.mmap | None = None
        self._view = memoryview(b"")
        self.slots = self._words[_SLOTS]
        """How many shards it holds at a time."""
        self.nbytes = 0
        """The size of the shard, once `is_open`."""
        self.layout = self.fixed = b""
        """JSON that the rank gave once, once `is_open`."""

    @classmethod
    def create(cls, name: str, slots: int) -> Segment:
        """A new one with room for nothing yet. `name` is only shown in /proc."""
        if not FEWEST_SLOTS <= slots <= MOST_SLOTS:
            raise ValueError(f"a segment has {FEWEST_SLOTS} to {MOST_SLOTS} slots, not {slots}")
        handle = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(handle, _PAGE)
            # A file that cannot shrink cannot take mapped pages away from the agent.
            fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            os.pwrite(handle, struct.pack("=2Q", _MAGIC, slots), 0)
            return cls(handle)
        except BaseException:
            os.close(handle)
            raise

    @classmethod
    def attach(cls, path: str) -> Segment:
        """The one behind a path that the agent told. Raises OSError when there is none, NotASegment when it is another file."""
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            head = os.pread(handle, 16, 0)
            if len(head) < 16 or struct.unpack("=2Q", head)[0] != _MAGIC:
                raise NotASegment(f"{path} is not a segment of this version")
            return cls(handle)
        except BaseException:
            os.close(handle)
            raise

    @property
    def path(self) -> str:
        """Where another process of this user finds the file while this process has it open."""
        return path_of(self._handle)

    def close(self) -> None:
        """Let go of the file. What is mapped goes with the last reference to the segment, or to bytes of it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    # ---- the rank's side

    def lay_out(self, layout: bytes, fixed: bytes, nbytes: int) -> None:
        """Make room for shards of `nbytes`. `layout` and `fixed` are the same for all of them."""
        if self._words[_OPENED]:
            raise ValueError("the segment has been laid out already")
        os.ftruncate(self._handle, self._geometry(len(layout) + len(fixed), nbytes)[2])
        os.pwrite(self._handle, layout + fixed, _PAGE)
        self._words[_BYTES], self._words[_LAYOUT], self._words[_FIXED] = nbytes, len(layout), len(fixed)
        self._words[_OPENED] = self._opening(layout, fixed, nbytes)
        self._map(layout, fixed, nbytes)

    def take(self) -> int:
        """The slot to fill next, struck out: the one that holds nothing, or else the oldest."""
        taken = {shard.slot: shard.sequence for shard in self.published()}
        slot = min(range(self.slots), key=lambda slot: taken.get(slot, 0))
        self._words[self._record(slot) + _CHECK] = 0
        return slot

    def commit(self, slot: int, sequence: int, step: int, document: bytes, copy_ns: int, wait_ns: int) -> None:
        """Say that the slot which `take` gave holds the whole shard of `step`. Raises ValueError for too large a document."""
        if len(document) > DOCUMENT_BYTES:
            raise ValueError(f"a document of {len(document)} bytes; {DOCUMENT_BYTES} fit")
        start = self._start(slot) + _rounded(self.nbytes)
        self._view[start : start + len(document)] = document
        fields = (sequence, step, len(document), copy_ns, wait_ns)
        record = self._record(slot)
        for number, value in enumerate(fields, start=1):
            self._words[record + number] = value
        self._words[record + _CHECK] = _check(fields, document)

    # ---- both sides

    def is_open(self) -> bool:
        """Whether the rank has laid it out. Raises NotASegment when what it wrote cannot be."""
        if self._body is not None:
            return True
        if not (said := self._words[_OPENED]):
            return False
        nbytes, layout_bytes, fixed_bytes = (self._words[word] for word in (_BYTES, _LAYOUT, _FIXED))
        size = os.fstat(self._handle).st_size
        if self._geometry(layout_bytes + fixed_bytes, nbytes)[2] > size:
            raise NotASegment(f"a shard of {nbytes} bytes does not fit a segment of {size}")
        static = os.pread(self._handle, layout_bytes + fixed_bytes, _PAGE)
        layout, fixed = static[:layout_bytes], static[layout_bytes:]
        if self._opening(layout, fixed, nbytes) != said:
            raise NotASegment("the header of a segment does not match its own check")
        self._map(layout, fixed, nbytes)
        return True

    def published(self) -> list[Published]:
        """The shards that are whole, the newest first."""
        if not self.is_open():
            return []
        found = [shard for slot in range(self.slots) if (shard := self._read(slot)) is not None]
        return sorted(found, key=lambda shard: shard.sequence, reverse=True)

    def still(self, shard: Published) -> bool:
        """Whether a slot yet holds what was read of it."""
        return self._words[self._record(shard.slot) + _CHECK] == shard.check

    def data(self, slot: int) -> memoryview:
        """The bytes of one slot. They change as soon as the rank takes the slot again."""
        start = self._start(slot)
        return self._view[start : start + self.nbytes]

    # ---- what the agent tells the rank

    @property
    def acknowledged(self) -> int:
        """The sequence number of the newest shard that the neighbour holds too."""
        return self._words[_ACKNOWLEDGED]

    @acknowledged.setter
    def acknowledged(self, sequence: int) -> None:
        self._words[_ACKNOWLEDGED] = sequence

    @property
    def alone(self) -> bool:
        """Whether no neighbour takes a copy at present, so that waiting for one is in vain."""
        return self._words[_ALONE] != 0

    @alone.setter
    def alone(self, value: bool) -> None:
        self._words[_ALONE] = int(value)

    @property
    def progress(self) -> int:
        """A number that changes as long as bytes go out to the neighbour."""
        return self._words[_PROGRESS]

    def advance(self) -> None:
        """Say that bytes went out."""
        self._words[_PROGRESS] += 1

    @property
    def ship_ns(self) -> int:
        """How long the last shard that the neighbour has took to get there; 0 when none did."""
        return self._words[_SHIP_NS]

    @ship_ns.setter
    def ship_ns(self, value: int) -> None:
        self._words[_SHIP_NS] = value

    # ---- insides

    def _read(self, slot: int) -> Published | None:
        record = self._record(slot)
        check, *fields = (self._words[record + number] for number in range(_WAIT_NS + 1))
        sequence, step, length, copy_ns, wait_ns = fields
        if not check or length > DOCUMENT_BYTES:
            return None
        start = self._start(slot) + _rounded(self.nbytes)
        document = bytes(self._view[start : start + length])
        if _check(fields, document) != check:
            return None
        return Published(slot, check, sequence, step, document, copy_ns, wait_ns)

    def _record(self, slot: int) -> int:
        return _RECORDS + slot * _RECORD_WORDS

    def _start(self, slot: int) -> int:
        first, stride, _ = self._geometry(len(self.layout) + len(self.fixed), self.nbytes)
        return first + slot * stride

    def _geometry(self, static: int, nbytes: int) -> tuple[int, int, int]:
        """Where the first slot begins, how far it is from one to the next, and how long the whole is."""
        first, stride = _PAGE + _rounded(static), _rounded(nbytes) + DOCUMENT_BYTES
        return first, stride, first + self.slots * stride

    def _map(self, layout: bytes, fixed: bytes, nbytes: int) -> None:
        self.layout, self.fixed, self.nbytes = layout, fixed, nbytes
        body = mmap.mmap(self._handle, self._geometry(len(layout) + len(fixed), nbytes)[2])
        self._view = memoryview(body)
        self._body = body

    def _opening(self, layout: bytes, fixed: bytes, nbytes: int) -> int:
        return _check((nbytes, len(layout), len(fixed), self.slots, 0), layout + fixed)


def path_of(handle: int) -> str:
    """A path by which another process of this user can open what this process has open under `handle`."""
    return f"/proc/{os.getpid()}/fd/{handle}"


def _check(fields: Sequence[int], more: bytes) -> int:
    return xxhash.xxh3_64_intdigest(_FIELDS.pack(*fields) + more) or 1


def _rounded(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
