"""Why a gang ended, out of what its ranks and agents told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.platforms.engines.base import Outcome
from orchestrator.platforms.engines.native.messages import Left

if TYPE_CHECKING:
    from orchestrator.platforms.engines.native.roster import Member, Worker, World

SUCCEEDED = frozenset(("Completed", "EarlyStopped", "Stopped"))
REGROUPED = "Regrouped"
WORKER_LOST = "WorkerLost"
RETIRED = "Retired"
"""A process that was to come back from a world and is not fit for another."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One rank's end. `gone`: the process or its node was taken away, so that it told nothing itself."""

    rank: int
    who: str
    """The process and its host, for the message."""
    reason: str
    message: str
    collateral: bool
    gone: bool

    @classmethod
    def of(cls, left: Left, rank: int, who: str) -> Cause:
        gone = left.reason == WORKER_LOST and not left.collateral
        return cls(rank, who, left.reason, left.message, left.collateral, gone)

    @property
    def own(self) -> bool:
        """A reason of the rank's own, which says something about the job."""
        return not self.gone and not self.collateral

    def sentence(self) -> str:
        if self.gone:
            return f"rank {self.rank} ({self.who}) died: {self.message or 'nothing more is known'}"
        if self.collateral:
            return f"rank {self.rank} lost its peers: {self.message}"
        return f"rank {self.rank}: {self.message}"


def outcome_of(causes: Sequence[Cause]) -> Outcome:
    """The cause among several, in the order in which they were told: a reason of a rank's own, the user's code last among
    those; a process that is gone; a rank that lost its peers."""
    own = [cause for cause in causes if cause.own]
    if own:
        first = min(own, key=lambda cause: cause.reason == "ApplicationError")
        return Outcome(first.reason, first.sentence())
    gone = [cause for cause in causes if cause.gone]
    first = (gone or list(causes))[0]
    return Outcome(WORKER_LOST, first.sentence())


def end_of(world: World | None, causes: Sequence[Cause], last_fault: tuple[str, str]) -> Outcome:
    """How the attempt ended: what rank 0 returned, unless a rank failed beside it; else the cause; else the last fault."""
    result = None if world is None else world.result
    if result is not None and not any(cause.own for cause in causes):
        value = dict(result.result or {})
        return Outcome(str(value.get("reason", result.reason)), result.message, value)
    return outcome_of(causes) if causes else Outcome(*last_fault)


def who(worker: Worker | None, member: Member) -> str:
    """The process and its host."""
    process = "process unknown" if worker is None or worker.pid is None else f"process {worker.pid}"
    return f"{process} on {member.host}"
