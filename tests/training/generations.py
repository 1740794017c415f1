"""Worlds one after another, as the native engine makes them: ranks are forked from a process that has imported everything.

`python generations.py PLAN.json`; the plan is a list of scenarios, each {assignment, folder, worlds}, a world being
{world_size, faults, every?, forget_memory?, cold?: ranks that have not warmed up}. After each world the newest step whose shards are all there is what the next
one begins with. When a rank dies, the others of its world are killed, as a coordinator would. `ends.json` in the scenario's
folder says how the ranks of each world ended. Memory is files: a shard is there once its document is.

Faults, each for one rank (default 0): {"kill": n}, {"stop": n}, {"regroup": n}, {"checkpoint": n} in the n-th step of
the world; {"kill_publishing": n} before the n-th shard is whole; {"kill_evaluating": n} in the n-th evaluation; {"kill_saved": n}
in the first step from the n-th on after a checkpoint was told; {"hold_saves": n} lets nothing more be written to its end from
the n-th step on, and a later {"kill": n} waits until something was begun; {"break_source": 1} makes the rank's reads from
memory fail, {"break_rehearsal": 1} its rehearsal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from orchestrator.storage import ITEM_BYTES, LocalFiles
from orchestrator.training import worker
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.link import JournalLink, Place, Wishes

KEPT_SHARDS = 2


@dataclass(frozen=True)
class Held:
    """One state in memory."""

    generation: int
    step: int
    world_size: int


def newest(folder: Path) -> Held | None:
    """The newest step of which the shards of all ranks of one world are there."""
    found: dict[Held, int] = {}
    for path in folder.glob("memory/*/*/*.json"):
        document = json.loads(path.read_text())
        held = Held(int(path.parts[-3]), int(path.stem), document["world_size"])
        found[held] = found.get(held, 0) + 1
    whole = [held for held, shards in found.items() if shards == held.world_size]
    return max(whole, key=lambda held: (held.step, held.generation), default=None)


class FileSource:
    """The state of one step, out of files."""

    def __init__(self, folder: Path, held: Held, broken: bool) -> None:
        self.step = held.step
        self._broken = broken
        self._rows: list[tuple[Path, list[Any]]] = []
        for rank in range(held.world_size):
            place = folder / "memory" / str(held.generation) / str(rank) / f"{held.step}.json"
            found = json.loads(place.read_text())
            self._rows += [(place.with_suffix(".bin"), row) for row in found["layout"]]
            self.document: Mapping[str, Any] = found["document"]

    def read_into(self, name: str, kind: str, start: int, end: int, out: memoryview) -> None:
        if self._broken:
            raise ValueError("the memory of a neighbour is gone")
        filled = 0
        for path, (other, its_kind, dtype, first, last, offset) in self._rows:
            low, high = max(start, first), min(end, last)
            if (other, its_kind) == (name, kind) and low < high:
                item = ITEM_BYTES[dtype]
                with path.open("rb") as file:
                    file.seek(offset + (low - first) * item)
                    out[(low - start) * item : (high - start) * item] = file.read((high - low) * item)
                filled += (high - low) * item
        if filled != len(out):
            raise LookupError(f"{name} ({kind}) [{start}, {end}) is not all there")

    def close(self) -> None: ...


class FileMemory:
    """A rank's memory: files that outlive it."""

    def __init__(self, folder: Path, generation: int, rank: int, world_size: int, every: int, source: Any) -> None:
        self.source = source
        self.every = every
        self.before_whole: Any = None
        self.published: list[int] = []
        self._world_size = world_size
        self._folder = folder / "memory" / str(generation) / str(rank)
        self._layout: list[Any] = []
        self._buffer = bytearray()

    def open(self, layout: Sequence[Place], nbytes: int, *, every: int | None = None) -> None:
        self.every = every or self.every
        self._folder.mkdir(parents=True)
        self._layout = [(p.name, p.kind, p.dtype, p.start, p.end, p.offset) for p in layout]
        self._buffer = bytearray(nbytes)

    def settle(self) -> bool:
        return True

    def buffer(self, step: int) -> memoryview:
        return memoryview(self._buffer)

    def publish(self, step: int, document: Mapping[str, Any]) -> None:
        place = self._folder / f"{step}.json"
        place.with_suffix(".bin").write_bytes(self._buffer)
        self.published.append(step)
        if self.before_whole is not None:
            self.before_whole(len(self.published))
        text = json.dumps({"world_size": self._world_size, "layout": self._layout, "document": document})
        place.with_suffix(".new").write_text(text)
        place.with_suffix(".new").rename(place)
        for old in self.published[:-KEPT_SHARDS]:
            for suffix in (".json", ".bin"):
                (self._folder / f"{old}{suffix}").unlink(missing_ok=True)


class GenerationLink(JournalLink):
    """Counts the steps of its world and does what the plan says at some of them."""

    def __init__(self, events: Path, faults: Sequence[Mapping[str, int]], rank: int, memory: FileMemory) -> None:
        super().__init__(events)
        self.memory = memory
        memory.before_whole = lambda count: self._do("kill_publishing", count)
        self._faults = [(name, at) for fault in faults if fault.get("rank", 0) == rank for name, at in fault.items()]
        self._injected = events.with_suffix(".injected")
        self._calls = self._evaluations = 0
        self._regroup = False
        self._saved = False
        self._held: threading.Event | None = None

    def send(self, event: dict[str, Any]) -> None:
        self._saved = self._saved or event["kind"] == "checkpoint"
        super().send(event)

    def wishes(self) -> Wishes:
        self._calls += 1
        for name in ("kill", "stop", "regroup", "checkpoint", "hold_saves"):
            self._do(name, self._calls)
        for name, at in self._faults:
            if name == "kill_saved" and self._saved and self._calls >= at:
                self._do(name, at)
        given = super().wishes()
        return Wishes(given.checkpoint, given.stop, given.checkpoint_every_seconds, self._regroup)

    def evaluating(self) -> None:
        self._evaluations += 1
        self._do("kill_evaluating", self._evaluations)

    def _do(self, name: str, count: int) -> None:
        if (name, count) not in self._faults:
            return
        with self._injected.open("a") as file:
            file.write(f"{name}\n")
        if name.startswith("kill"):
            assert self._held is None or self._held.wait(20)
            os.kill(os.getpid(), signal.SIGKILL)
        elif name == "regroup":
            self._regroup = True
        elif name == "hold_saves":
            self._held = hold_saves()
        else:
            getattr(self, f"wish_{name}")()


def hold_saves() -> threading.Event:
    """From now on files of checkpoints are begun and never ended; the event says that one was begun."""
    begun = threading.Event()

    def put(self: LocalFiles, path: Path, blocks: Iterable[Sequence[memoryview]]) -> None:
        path.write_bytes(b"half of it")
        begun.set()
        threading.Event().wait()

    LocalFiles.put = put  # type: ignore[method-assign]
    return begun


def rank_of(scenario: Mapping[str, Any], world: Mapping[str, Any], generation: int, rank: int, place: int) -> NoReturn:
    """A forked rank, from its warm-up to its end."""
    from orchestrator.training import trainer, warming
    from tests.training.ledger_rank import recording

    folder = Path(scenario["folder"])
    size, faults = world["world_size"], world["faults"]
    code = 1
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if {"break_rehearsal": 1, "rank": rank} in faults:
            mock.patch.object(warming, "_steps", None).start()
        warm = None if rank in world.get("cold", ()) else worker.warm(scenario["assignment"], {})
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(place),
            TORCHELASTIC_USE_AGENT_STORE="True",
            TORCHELASTIC_RESTART_COUNT=str(generation),
        )
        held = newest(folder)
        broken = any("break_source" in fault and fault.get("rank", 0) == rank for fault in faults)
        source = None if held is None else FileSource(folder, held, broken)
        memory = FileMemory(folder, generation, rank, size, world.get("every", 1), source)
        link = GenerationLink(folder / f"events-{rank}.jsonl", faults, rank, memory)
        evaluate = trainer.Trainer._evaluate

        def told(self: trainer.Trainer, split: str) -> dict[str, float]:
            link.evaluating()
            return evaluate(self, split)

        mock.patch.object(trainer.Trainer, "_evaluate", told).start()
        with recording(folder / f"ledger-{generation}-{rank}.jsonl"):
            outcome = {"result": worker.run(scenario["assignment"], link, warm), "published": memory.published}
        (folder / f"result-{generation}-{rank}.json").write_text(json.dumps(outcome))
        code = 0
    except WorkerFailed as error:
        (folder / f"result-{generation}-{rank}.json").write_text(
            json.dumps({"reason": error.reason, "message": error.message})
        )
        code = 2
    except BaseException:  # noqa: BLE001 - the edge of a test's process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def play(scenario: Mapping[str, Any], place: int) -> None:
    """All worlds of one scenario."""
    ends = []
    for generation, world in enumerate(scenario["worlds"], start=1):
        if world.get("forget_memory"):
            for path in Path(scenario["folder"]).glob("memory/*/*/*.json"):
                path.unlink()
        pids = []
        for rank in range(world["world_size"]):
            pid = os.fork()
            if pid == 0:
                rank_of(scenario, world, generation, rank, place)
            pids.append(pid)
        ended: dict[int, int] = {}
        while len(ended) < len(pids):
            pid, status = os.wait()
            if pid not in pids:
                raise AssertionError(f"process {pid} ended with {status}: the store")
            ended[pid] = os.waitstatus_to_exitcode(status)
            if ended[pid] != 0:
                for other in set(pids) - ended.keys():
                    os.kill(other, signal.SIGKILL)
        ends.append([ended[pid] for pid in pids])
    (Path(scenario["folder"]) / "ends.json").write_text(json.dumps(ends))


def serve_store(to: int) -> NoReturn:
    """A store in a process of its own, as the engine has it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(to, f"{store.port}\n".encode())
    signal.pause()
    os._exit(0)


def main(plan: Path) -> None:
    worker.preload()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads run in a process that is to be forked"
    for scenario in json.loads(plan.read_text()):
        out, to = os.pipe()
        store = os.fork()
        if store == 0:
            serve_store(to)
        try:
            play(scenario, int(os.read(out, 16)))
        finally:
            os.kill(store, signal.SIGKILL)
            os.waitpid(store, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
