"""What a rank has of the state memory: slots to publish its shard in, and the shards of the world before it.

A rank writes into memory that its agent owns, and goes on; the agent carries the copy to a neighbour. So a rank pays for
one copy of its state, and waits only when the neighbour is slower than `every` steps.

`Source` puts the shards of a world that is gone together again, whatever its size: the same resolver as for a checkpoint
(`storage.RangeReader`), over connections to the agents that hold them. Blocks of 4 MiB are moved and verified; a place
that fails makes way for the next.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock
from orchestrator.domain.errors import CorruptCheckpoint
from orchestrator.platforms.engines.native.couriers import quiet, ring
from orchestrator.platforms.engines.native.pace import Pace
from orchestrator.platforms.engines.native.segments import Segment
from orchestrator.platforms.engines.native.wire import Address, Description, Line, Name, Refused
from orchestrator.storage.hashing import BLOCK_BYTES, is_block
from orchestrator.storage.manifest import ITEM_BYTES, FileEntry, Fragment
from orchestrator.storage.ranges import RangeReader

LIMIT_SECONDS = 10.0
"""A rank waits for its neighbour as long as bytes go out, and this long when none do. Then it goes on alone."""
LOOK_SECONDS = 0.5
_PARALLEL = 4
_HINT = "load the newest checkpoint instead"

_ALONE = (
    "the state of this rank is in one place only: its neighbour does not take copies; if this node is lost meanwhile, the job "
    "resumes from its newest checkpoint"
)
_PAIRED = "the state of this rank is in two places again"

T = TypeVar("T")


class Ranged(Protocol):
    """One range of one parameter in the shard, such as `storage.Fragment`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def dtype(self) -> str:
        """As torch writes it."""
        ...

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def offset(self) -> int:
        """Where `start` lies in the shard, in bytes."""
        ...


class Memory:
    """For one rank of one generation; used by one thread. `grant` comes from `ShardStore.admit`."""

    def __init__(
        self,
        grant: Mapping[str, Any],
        clock: Clock,
        *,
        tell: Callable[[dict[str, Any]], object] = lambda event: None,
        limit_seconds: float = LIMIT_SECONDS,
    ) -> None:
        """`tell` takes events: `replication` from rank 0, `log` from any. Raises OSError when the agent is gone."""
        self._clock = clock
        self._limit_ns = int(limit_seconds * NANOSECONDS_PER_SECOND)
        self._look_ms = min(LOOK_SECONDS, limit_seconds) * 1000
        self._segment = Segment.attach(grant["segment"])
        self._bell = os.open(grant["bell"], os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._answer = os.open(grant["answer"], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._answer, select.POLLIN)
        self._sequence = 0
        self._pace = Pace()
        self._rank, self._paired, self._tell = grant["rank"], grant["paired"], tell
        self._told_alone = False
        self._taken: tuple[int, int, int] | None = None
        self._wait_ns = 0
        self._given_up: int | None = None
        source = grant["source"]
        host, port = grant["near"]
        self.source: Source | None = None
        """The state of the world before; None where there is none in memory. Close it when it has been read."""
        if source is not None:
            self.source = Source(source, grant["token"], near=(host, port), patience_seconds=grant["patience_seconds"])

    def close(self) -> None:
        """Let go of the memory. What was published stays with the agent."""
        if self.source is not None:
            self.source.close()
        if self._bell >= 0:
            self._segment.close()
            os.close(self._bell)
            os.close(self._answer)
            self._bell = -1

    @property
    def every(self) -> int:
        """Steps from one shard to the next by now, as this rank's own measurements say: all must go by rank 0's."""
        return self._pace.every

    @property
    def alone(self) -> bool:
        """True while only this node has what was published last: there is no neighbour, or it does not answer."""
        return self._segment.alone or self._given_up == self._sequence

    def open(
        self,
        layout: Sequence[Ranged],
        nbytes: int,
        fixed: Mapping[str, Any] | None = None,
        *,
        every: int | None = None,
    ) -> None:
        """Say what the shard looks like; once. `nbytes`: its size. `fixed`: what is the same in every document, such as the
        list of parameters; it is handed over once. `every`: steps from one shard to the next; None: found by measuring.
        Raises ValueError for a range that does not lie within the shard."""
        if every is not None:
            self._pace.fix(every)
        rows = []
        for item in layout:
            end = item.offset + (item.end - item.start) * ITEM_BYTES[item.dtype] if item.dtype in ITEM_BYTES else -1
            if not (0 <= item.offset <= end <= nbytes and 0 <= item.start < item.end):
                raise ValueError(f"{item} does not lie within a shard of {nbytes} bytes")
            rows.append((item.name, item.kind, item.dtype, item.start, item.end, item.offset))
        self._segment.lay_out(_json(rows), _json(dict(fixed or {})), nbytes)

    def settle(self) -> bool:
        """Wait until the neighbour has what was published last; True when it has, False when there is none that answers.

        To be called before the collective call that ends a step: when that is over, every rank has waited. In bounded time:
        a dead neighbour must not stop a healthy rank, the coordinator will have found it dead by then. That the rank goes
        on without a second copy, and that it has one again, is told as a line of its log.
        """
        ended_ns, waited_ns = self._clock.monotonic_ns(), self._wait_ns
        held = self._held()
        self._pace.stepped(ended_ns, self._wait_ns - waited_ns)
        return held

    def _held(self) -> bool:
        held = self._settled()
        if self._paired and held == self._told_alone:
            self._told_alone = not held
            line = _PAIRED if held else _ALONE
            now_ns = self._clock.now_ns()
            self._tell({"kind": "log", "rank": self._rank, "lines": [line], "at_ns": now_ns})
        return held

    def _settled(self) -> bool:
        segment = self._segment
        if not self._sequence or segment.acknowledged >= self._sequence:
            return True
        if self.alone:
            return False
        began_ns = since_ns = self._clock.monotonic_ns()
        progress = segment.progress
        while segment.acknowledged < self._sequence and not segment.alone:
            events = self._poll.poll(self._look_ms)
            if any(mask & ~select.POLLIN for _, mask in events):
                self._given_up = self._sequence  # the agent is gone
                break
            quiet(self._answer)
            now_ns = self._clock.monotonic_ns()
            if segment.progress != progress:
                progress, since_ns = segment.progress, now_ns
            elif now_ns - since_ns >= self._limit_ns:
                self._given_up = self._sequence
                break
        self._wait_ns += self._clock.monotonic_ns() - began_ns
        return segment.acknowledged >= self._sequence

    def buffer(self, step: int) -> memoryview:
        """Where the shard of `step` belongs: writable, as many bytes as `open` was told. Waits as `settle` does.

        The bytes are those of an older shard, not zeros. Whatever is written is seen by nobody before `publish`.
        """
        self._held()
        slot = self._segment.take()
        self._taken = step, slot, self._clock.monotonic_ns()
        return self._segment.data(slot)

    def publish(self, step: int, document: Mapping[str, Any]) -> None:
        """The buffer holds the whole shard of `step`, and this is what belongs to it; the agent begins to carry it away.

        Raises ValueError when `buffer` was not asked for this step, or for a document of more than 4 MiB.
        """
        if self._taken is None or self._taken[0] != step:
            raise ValueError(f"no buffer was taken for step {step}")
        _, slot, began_ns = self._taken
        text = _json(dict(document))
        ended_ns = self._clock.monotonic_ns()
        self._segment.commit(slot, self._sequence + 1, step, text, ended_ns - began_ns, self._wait_ns)
        self._sequence += 1
        ring(self._bell)
        if self._pace.note(step, began_ns, ended_ns, self._wait_ns, self._segment.ship_ns) and self._rank == 0:
            self._tell(self._replication())
        self._taken, self._wait_ns = None, 0

    def _replication(self) -> dict[str, Any]:
        pace = self._pace
        return {
            "kind": "replication",
            "every": pace.every,
            "bytes": self._segment.nbytes,
            "seconds": pace.copy_seconds,
            "ship_seconds": pace.ship_seconds,
            "slower_seconds": pace.slower_seconds,
            "step_seconds": pace.step_seconds,
            "because": pace.because,
            "at_ns": self._clock.now_ns(),
        }


class Source:
    """The state of a world that is gone, as its shards say. The same questions as `storage.RangeReader` answers.

    Nothing is asked of anybody before the first question. Every method raises CorruptCheckpoint, which says what is missing,
    when a shard can be had nowhere: then the checkpoint has to be loaded. Safe to use from several threads.
    """

    def __init__(self, plan: Mapping[str, Any], token: str, *, near: Address | None, patience_seconds: float) -> None:
        """`plan`: `source` of a plan. `near`: the memory server of this node, which is asked first."""
        self.generation: int = plan["generation"]
        self.step: int = plan["step"]
        self.world_size: int = plan["world_size"]
        self._shards = _Shards(token, patience_seconds)
        self._places: dict[int, list[Address]] = {}
        for rank, places in plan["shards"].items():
            found = [(str(host), int(port)) for host, port in places]
            self._places[int(rank)] = sorted(found, key=lambda place: place != near)
        self._lock = threading.Lock()
        self._opened: tuple[RangeReader, dict[int, Mapping[str, Any]]] | None = None

    def close(self) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()
        self._shards.close()

    @property
    def document(self) -> Mapping[str, Any]:
        """What rank 0 published with its shard, and gave at `open`."""
        return self.documents[0]

    @property
    def documents(self) -> Mapping[int, Mapping[str, Any]]:
        """The same of every rank."""
        return self._open()[1]

    def kinds(self, name: str) -> frozenset[str]:
        """Kinds of state that there are of a parameter; empty for one that is not known."""
        return self._open()[0].kinds(name)

    def dtype(self, name: str, kind: str) -> str:
        """The type of a parameter's state, such as `float32`."""
        return self._open()[0].dtype(name, kind)

    def read_into(self, name: str, kind: str, start: int, end: int, out: memoryview) -> None:
        """Elements [start, end) of the flattened parameter, as they were published, into `out` (as many bytes). `out` is
        undefined when it fails."""
        self._open()[0].read_into(name, kind, start, end, out)

    def _open(self) -> tuple[RangeReader, dict[int, Mapping[str, Any]]]:
        with self._lock:
            if self._opened is None:
                self._opened = self._look()
            return self._opened

    def _look(self) -> tuple[RangeReader, dict[int, Mapping[str, Any]]]:
        title = f"the state of generation {self.generation} at step {self.step} in memory"
        if missing := [rank for rank in range(self.world_size) if not self._places.get(rank)]:
            raise CorruptCheckpoint(f"{title} lacks the shard of rank {missing[0]}", hint=_HINT)
        ranks = range(self.world_size)
        names = [Name(self.generation, rank, self.step) for rank in ranks]
        for name in names:
            self._shards.add(name, self._places[name.rank])
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="shards") as pool:
            found = list(pool.map(self._shards.describe, names))
        files, fragments = [], []
        documents: dict[int, Mapping[str, Any]] = {}
        for rank, about in zip(ranks, found, strict=True):
            try:
                layout, fixed, document = (json.loads(text) for text in (about.layout, about.fixed, about.document))
                fragments += [
                    Fragment(name, kind, dtype, start, end, file=_file(rank), offset=offset)
                    for name, kind, dtype, start, end, offset in layout
                ]
                documents[rank] = {**fixed, **document}
            except (ValueError, TypeError) as error:
                raise CorruptCheckpoint(f"{title} has no readable layout of rank {rank}", hint=_HINT) from error
            if about.world_size != self.world_size or len(about.hashes) != -(-about.nbytes // BLOCK_BYTES):
                raise CorruptCheckpoint(f"{title}: the shard of rank {rank} is of another world", hint=_HINT)
            files.append(FileEntry(_file(rank), about.nbytes, xxh3=about.hashes))
            self._shards.expect(_file(rank), names[rank], files[-1])
        places = {entry.path: entry.path for entry in files}
        return RangeReader(title, files, fragments, places, self._shards, hint=_HINT), documents


class _Damaged(Refused):
    """Bytes came that are not those of the shard."""


class _Shards:
    """The agents' memory as a source of bytes for `RangeReader`: each file is the shard of one rank, had at some places."""

    parallel = _PARALLEL

    def __init__(self, token: str, patience_seconds: float) -> None:
        self._token, self._patience = token, patience_seconds
        self._lock = threading.Lock()
        self._idle: dict[Address, list[Line]] = {}
        self._places: dict[Name, list[Address]] = {}
        self._files: dict[str, tuple[Name, FileEntry]] = {}

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, {}
        for lines in idle.values():
            for line in lines:
                line.close()

    def add(self, name: Name, places: Sequence[Address]) -> None:
        self._places[name] = list(places)

    def expect(self, file: str, name: Name, entry: FileEntry) -> None:
        """`entry` holds the hashes that the file's blocks must have, wherever they come from."""
        self._files[file] = name, entry

    def describe(self, name: Name) -> Description:
        return self._anywhere(name, lambda line: line.describe(name))

    def read_into(self, place: str, offset: int, out: memoryview) -> int:
        """Whole blocks, verified, so that a damaged one can be had elsewhere."""
        name, entry = self._files[place]

        def fetch(line: Line) -> int:
            line.read_into(name, offset, out)
            for count, start in enumerate(range(0, len(out), BLOCK_BYTES)):
                if not is_block(entry, offset // BLOCK_BYTES + count, out[start : start + BLOCK_BYTES]):
                    raise _Damaged(f"{name} is not what it was described as")
            return len(out)

        return self._anywhere(name, fetch)

    def _anywhere(self, name: Name, ask: Callable[[Line], T]) -> T:
        """Ask the places that have a shard until one answers. One that failed is asked last from then on."""
        failures = []
        with self._lock:
            places = list(self._places[name])
        for place in places:
            try:
                return self._ask(place, ask)
            except (OSError, Refused) as error:
                failures.append(f"{place[0]}:{place[1]}: {error}")
                with self._lock:
                    self._places[name].remove(place)
                    self._places[name].append(place)
        raise CorruptCheckpoint(f"{name} can be had nowhere ({'; '.join(failures)})", hint=_HINT)

    def _ask(self, place: Address, ask: Callable[[Line], T]) -> T:
        with self._lock:
            idle = self._idle.get(place)
            line = idle.pop() if idle else None
        if line is None:
            line = Line(place, self._token, self._patience)
        try:
            answer = ask(line)
        except Refused:
            self._keep(place, line)
            raise
        except BaseException:
            line.close()
            raise
        self._keep(place, line)
        return answer

    def _keep(self, place: Address, line: Line) -> None:
        with self._lock:
            self._idle.setdefault(place, []).append(line)


def _file(rank: int) -> str:
    return f"shard {rank}"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
