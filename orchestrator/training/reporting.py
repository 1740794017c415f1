"""Events of a worker, stamped with the time, and the clock that stages are measured by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.clock import Clock, seconds_between
from orchestrator.training.link import Link
from orchestrator.training.own_work import OwnWork

MOST_REPORTS = 10_000


@dataclass
class StepReports:
    """The reports of the steps since the last checkpoint. They go into the next one, and whoever continues from it tells
    them again: the last of them may never have reached the controller."""

    kept: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, report: dict[str, Any]) -> None:
        """Keep one more; of very many, the newest."""
        self.kept.append(report)
        del self.kept[:-MOST_REPORTS]

    def forget(self, step: int) -> None:
        """Drop the reports of steps up to this one: a checkpoint has them."""
        self.kept = [report for report in self.kept if report["step"] > step]


class Reporter:
    """Sends events over a link; those marked as rank 0's are dropped elsewhere."""

    def __init__(self, link: Link, clock: Clock, rank: int) -> None:
        self.link = link
        self.clock = clock
        self.rank = rank
        self.own_work = OwnWork(getattr(link, "own_work", None), clock)
        """Of each step; told with it."""

    def every(self, kind: str, **fields: Any) -> None:
        """An event that each rank sends."""
        self.link.send({"kind": kind, **fields, "at_ns": self.clock.now_ns()})

    def first(self, kind: str, **fields: Any) -> None:
        """An event that only rank 0 sends. An engine that watches the progress of each rank (its link has `progress`) is
        told of the others' steps without one."""
        if self.rank == 0:
            self.every(kind, **fields)
        elif kind == "step" and (progress := getattr(self.link, "progress", None)) is not None:
            progress(fields["step"])

    def runs(self) -> None:
        """This rank is past its start. For functions that may never tell of a step, so that no engine waits for one."""
        if (progress := getattr(self.link, "progress", None)) is not None:
            progress(None)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure one stage of the start-up; no event when it fails."""
        start = self.clock.monotonic_ns()
        yield
        self.first("stage", stage=name, seconds=seconds_between(start, self.clock.monotonic_ns()))
