"""One rank of jobs whose cadence is planned: the link wishes for checkpoints often at first, then seldom. Run by test_automatic."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from orchestrator.training import worker
from orchestrator.training.link import JournalLink, Wishes

OFTEN_SECONDS = 0.5
SELDOM_SECONDS = 1_000.0
OFTEN_STEPS = 40
"""Steps with the first wish; the link makes each step last at least STEP_SECONDS."""
STEP_SECONDS = 0.05


class PlannedLink(JournalLink):
    """A link to a controller that changes its mind."""

    def __init__(self, events: Path) -> None:
        super().__init__(events, every_seconds=OFTEN_SECONDS)
        self._steps = 0
        self._pace = threading.Event()

    def wishes(self) -> Wishes:
        self._pace.wait(STEP_SECONDS)
        self._steps += 1
        if self._steps > OFTEN_STEPS:
            self._every_seconds = SELDOM_SECONDS
        return super().wishes()


def main(plan: Path) -> None:
    rank = int(os.environ["RANK"])
    for item in json.loads(plan.read_text()):
        link = PlannedLink(Path(item["events"]) / f"events-{rank}.jsonl")
        outcome = {"result": worker.run(item["assignment"], link)}
        (Path(item["events"]) / f"result-{rank}.json").write_text(json.dumps(outcome))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as orchestrator.training.__main__ does, for the reason given there


if __name__ == "__main__":
    main(Path(sys.argv[1]))
