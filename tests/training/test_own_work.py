"""How long a step takes a rank by itself, measured with real collectives; and what a user's function announces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.domain.clock import ManualClock
from orchestrator.spec.models import TrainingJob
from orchestrator.training.context import PAUSES, Context
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.own_work import OwnWork
from orchestrator.training.reporting import Reporter

RANK = """
import json, sys, threading, torch
from orchestrator.domain.clock import SystemClock
from orchestrator.training.own_work import OwnWork

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
told, vector, both = [], torch.ones(8), torch.ones(16)
measured = OwnWork(told.append, SystemClock())
measured.listen(torch, "cpu")
measured.listen(torch, "cpu")
work = threading.Event()
for call in ("sync", "async", "into", "objects", "barrier"):
    measured.begin()
    work.wait(0.4 if rank else 0.05)
    if call == "sync":
        torch.distributed.all_reduce(vector)
    elif call == "async":
        torch.distributed.all_reduce(vector, async_op=True).wait()
    elif call == "into":
        torch.distributed.all_gather_into_tensor(both, vector)
    elif call == "objects":
        torch.distributed.all_gather_object([None, None], rank)
    else:
        torch.distributed.barrier()
    measured.end()
print(json.dumps(told))
torch.distributed.destroy_process_group()
"""


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_waiting_in_any_collective_is_not_a_ranks_own_work(tmp_path: Path) -> None:
    """Two ranks, one of which takes 0.4 s and the other 0.05 s before each kind of blocking collective: each tells its own."""
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    quick, slow = (json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks)
    assert all(own < 0.25 for own in quick), quick
    assert all(own >= 0.4 for own in slow), slow


class Link:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.own: list[float] = []

    def send(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def own_work(self, seconds: float) -> None:
        self.own.append(seconds)


class Torch:
    """As much of torch as is listened to."""

    class distributed:
        class Work:
            def wait(self) -> bool:
                return True


def test_what_is_dropped_or_waited_for_is_not_told() -> None:
    """A step with a pause in it is left out; waiting outside of collectives is taken off; without a listener nothing is
    measured, nor on a GPU."""
    clock, told = ManualClock(), list[float]()
    work = OwnWork(told.append, clock)
    work.end()
    work.listen(Torch, "cpu")
    work.begin()
    clock.advance(2.0)
    with work.waiting():
        clock.advance(5.0)
    work.end()
    work.begin()
    work.drop()
    work.end()
    assert told == [2.0]
    gpu = OwnWork(told.append, clock)
    gpu.listen(Torch, "cuda:0")
    for other in (gpu, OwnWork(None, clock)):
        other.begin()
        with other.waiting():
            clock.advance(1.0)
        other.end()
    assert told == [2.0]


def test_a_users_function_announces_what_takes_long() -> None:
    """`pause` tells why, in the words that the engine knows; that step is not told as work; another word is refused."""
    link, clock = Link(), ManualClock()
    context = object.__new__(Context)
    context._reporter = Reporter(link, clock, 0)  # type: ignore[arg-type]
    context._announces = False
    context._reporter.own_work.listen(Torch, "cpu")
    context._reporter.own_work.begin()
    context.pause("evaluation")
    context._reporter.own_work.end()
    assert [(event["kind"], event["pause"]) for event in link.events] == [("pause", "evaluation")]
    assert not link.own
    with pytest.raises(WorkerFailed, match="use one of 'first step', 'evaluation'"):
        context.pause("coffee")


def test_the_words_are_those_of_the_policy() -> None:
    """Training does not import the policy; the words must be the same."""
    from orchestrator.policy.hangs import Pause

    assert set(PAUSES) == {pause.value for pause in Pause}


def test_a_state_for_each_rank_is_refused_where_ranks_come_and_go() -> None:
    """Without an engine another number of ranks could not take it up: said at the first save, with what to do."""
    document = {
        "apiVersion": "orchestrate.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "mine"},
        "spec": {"entrypoint": {"function": "mine:train"}, "workers": {"min": 1, "max": 2}},
    }
    context = object.__new__(Context)
    context._assignment = SimpleNamespace(spec=TrainingJob.model_validate(document).spec)  # type: ignore[assignment]
    with pytest.raises(WorkerFailed, match="one state for each rank") as refused:
        context.save({"step": 1})
    assert refused.value.reason == "ConfigInvalid"
