"""One rank of a gang that writes down what it trains on: `one_rank.py` with a ledger.

A line of `ledger-<attempt>-<rank>.jsonl`, beside the events: [step (from 0), sample numbers], for each training pass of
the model, as it was really given them. The announced samples, which dropout is keyed by, must be the same.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from orchestrator.training import engine, worker
from orchestrator.training.link import Link
from orchestrator.training.randomness import StepRandomness
from tests.training import one_rank

announced: list[Any] = []


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """The ledger is open."""
    with path.open("a", buffering=1) as ledger:
        loss_sum, at = engine.Batches.loss_sum, StepRandomness.at

        def announce(randomness: StepRandomness, step: int, samples: Any) -> None:
            announced.append([step, [int(sample) for sample in samples]])
            at(randomness, step, samples)

        def write(batches: engine.Batches, model: Any, indices: Any) -> Any:
            if announced:
                step, samples = announced.pop()
                read = [int(index) for index in indices]
                assert samples == (read or [0])
                ledger.write(json.dumps([step, read]) + "\n")
            return loss_sum(batches, model, indices)

        with (
            mock.patch.object(engine.Batches, "loss_sum", write),
            mock.patch.object(StepRandomness, "at", announce),
        ):
            yield


def record(assignment: Mapping[str, Any], link: Link, warm: Any = None) -> dict[str, Any]:
    """`worker.run`, with the ledger open."""
    with recording(Path(assignment["run_dir"]) / f"ledger-{assignment['attempt']}-{os.environ['RANK']}.jsonl"):
        return run(assignment, link, warm)


run = worker.run

if __name__ == "__main__":
    worker.run = record
    one_rank.main(Path(sys.argv[1]))
