"""Which running worker makes no step any more.

In a collective operation one rank that hangs stops all, so the ranks' ages say that something hangs and not who. Before
the world is given up, every member is asked for its stack: who does not even answer that is stopped or stuck in the
kernel, and is the one. If all answer, the ranks that are a step behind are meant; where all are alike nobody is singled
out, and the stacks tell.

Ages are the agents' own measurements: a late beat makes nobody look older. Time in which a rank would have run and got no
processor does not count, for the others wait for it too: a machine under load is not a gang that hangs. A rank that turns in
circles on such a machine is found later, at ten times the limit at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.platforms.engines.native.messages import RUNNING
from orchestrator.platforms.engines.native.roster import Worker
from orchestrator.platforms.engines.native.terms import SECOND

NO_ANSWER = "(no answer: the process is stopped, or stuck in the kernel)"

LEAST_SHARE = 10
"""One in so many parts of a time counts whatever the load."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The world hangs. `stuck`: the workers that are meant, each with its stack; `silent`: those of them that did not
    answer."""

    stuck: tuple[tuple[Worker, str], ...]
    silent: tuple[Worker, ...]
    age_ns: int
    """How long no step was made."""

    @property
    def sentence(self) -> str:
        ranks = ", ".join(str(worker.rank) for worker, _ in self.stuck)
        return f"rank {ranks} made no step for {self.age_ns / SECOND:.1f} s"


class HangWatch:
    """One world's watch; `clear` for the next."""

    def __init__(self, dump_ns: int) -> None:
        self._dump_ns = dump_ns
        self._asked_ns: int | None = None
        self._stacks: dict[str, str] = {}

    def clear(self) -> None:
        self._asked_ns = None
        self._stacks.clear()

    def stacks(self, worker: str, text: str) -> None:
        if self._asked_ns is not None:
            self._stacks[worker] = text

    def look(self, workers: Sequence[Worker], limit_ns: int | None, now_ns: int) -> Verdict | Sequence[Worker] | None:
        """None: all is well, or it is too early to say. Workers: ask these for their stacks now. A verdict: it hangs."""
        old = [] if limit_ns is None else [worker for worker in workers if unhindered(_age(worker), workers) > limit_ns]
        if not old:
            self.clear()
            return None
        if self._asked_ns is None:
            self._asked_ns = now_ns
            return workers
        silent = [worker for worker in workers if worker.worker not in self._stacks]
        if silent and now_ns - self._asked_ns < self._dump_ns:
            return None
        singled_out = silent if 0 < len(silent) < len(workers) else []
        stuck = singled_out or _behind(old)
        told = tuple((worker, self._stacks.get(worker.worker, NO_ANSWER)) for worker in stuck)
        return Verdict(told, tuple(singled_out), max(_age(worker) for worker in old))


def unhindered(waited_ns: int, workers: Sequence[Worker]) -> int:
    """What is left of a time when that is taken off for which the most starved of the workers had no processor."""
    starved_ns = max((worker.starved_ns for worker in workers), default=0)
    return max(waited_ns - starved_ns, waited_ns // LEAST_SHARE)


def _age(worker: Worker) -> int:
    """Since its last step, in ns; 0 for one that made none or does not run."""
    steps = worker.state == RUNNING and worker.step is not None
    return worker.step_age_ns if steps else 0


def _behind(workers: Sequence[Worker]) -> list[Worker]:
    fewest = min(worker.step or 0 for worker in workers)
    return [worker for worker in workers if worker.step == fewest]
