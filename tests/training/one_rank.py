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
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.storage import LocalFiles
from orchestrator.training import worker
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.link import JournalLink, Wishes


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
        def put(self: LocalFiles, path: Path, blocks: Iterable[Sequence[memoryview]]) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        LocalFiles.put = put  # type: ignore[method-assign]

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
