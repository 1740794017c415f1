"""One rank of a gang for tests: runs assignments one after another in one process, with faults at chosen steps.

`python one_rank.py PLAN.json`; the plan is a list of {assignment, events, faults, result}. A fault fires in the n-th call
of `wishes`, which the loop makes once a step, and writes its name to `injected` first, so that a test can prove it.
Faults: {"kill": n}, {"full_disk": n}, {"checkpoint": n}, {"stop": n}, each with an optional "rank" (default 0).
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.training import saving, worker
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.link import JournalLink, Wishes


class _FullDisk:
    """A file that takes 100 bytes and no more."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._left = 100

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def flush(self) -> None:
        self._file.flush()

    def write(self, data: Any) -> int:
        if len(data) > self._left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._left -= len(data)
        return self._file.write(data)


class FaultyLink(JournalLink):
    """Counts the steps and does what the plan says at some of them."""

    def __init__(self, events: Path, faults: list[dict[str, int]], rank: int) -> None:
        super().__init__(events)
        self._faults = [fault for fault in faults if fault.get("rank", 0) == rank]
        self._injected = events.with_suffix(".injected")
        self._calls = 0

    def wishes(self) -> Wishes:
        self._calls += 1
        for fault in self._faults:
            for name, at in fault.items():
                if name != "rank" and at == self._calls:
                    with self._injected.open("a") as file:
                        file.write(f"{name}\n")
                    getattr(self, f"inject_{name}")()
        return super().wishes()

    def inject_kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def inject_full_disk(self) -> None:
        def open_full(path: Path) -> BinaryIO:
            return _FullDisk(path)  # type: ignore[return-value]

        saving.open_for_writing = open_full

    def inject_checkpoint(self) -> None:
        self.wish_checkpoint()

    def inject_stop(self) -> None:
        self.wish_stop()


def main(plan: Path) -> None:
    rank = int(os.environ["RANK"])
    for item in json.loads(plan.read_text()):
        link = FaultyLink(Path(item["events"]) / f"events-{rank}.jsonl", item["faults"], rank)
        try:
            outcome = {"result": worker.run(item["assignment"], link)}
        except WorkerFailed as error:
            again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes; it must cross processes
            outcome = {"reason": again.reason, "message": again.message, "hint": again.hint}
        (Path(item["events"]) / f"result-{rank}.json").write_text(json.dumps(outcome))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as orchestrator.training.__main__ does, for the reason given there


if __name__ == "__main__":
    main(Path(sys.argv[1]))
