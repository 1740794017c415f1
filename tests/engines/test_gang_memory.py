"""A gang whose workers run out of memory goes on with a smaller micro-batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.platforms.engines.native.gang import Gang
from orchestrator.platforms.engines.native.terms import Terms
from tests.engines.gang_world import Cluster


def running(nodes: str, global_batch: int | None, *, elastic: bool = True) -> Cluster:
    cluster = Cluster((1, 2), global_batch=global_batch, elastic=elastic)
    if not elastic:
        cluster.gang = Gang(
            Terms((2,), elastic=False, global_batch=global_batch), cluster.now_ns, limits=cluster.limits
        )
    cluster.start_all(nodes)
    cluster.until(lambda: cluster.steady(len(nodes)) and cluster.steps.get(1, 0) >= 3)
    return cluster


def runs_out(cluster: Cluster, rank: int = 1) -> None:
    before = cluster.gang.generation
    cluster.kill_worker(cluster.members()[rank], "OutOfMemory")
    cluster.until(
        lambda: (
            cluster.outcome is not None
            or (cluster.steady() and cluster.gang.generation > before and cluster.steps.get(before + 1, 0) > 1)
        )
    )


def test_the_next_world_has_a_smaller_micro_batch_and_goes_on_from_memory() -> None:
    """Out of memory at micro-batch 8 on 2 ranks: both ranks of the next world are told 4, no step is done again, it is
    said, and the record goes to whoever keeps it."""
    cluster = running("ab", 16)
    assert {plan.micro_batch for plan in cluster.past} == {None}
    done = cluster.steps[1]
    runs_out(cluster)
    assert cluster.started_from[2] == done
    assert [plan.micro_batch for plan in cluster.past if plan.generation == 2] == [4, 4]
    (lost,) = [event for event in cluster.events if event["kind"] == "world_lost"]
    assert lost["reason"] == "OutOfMemory"
    assert "rank 1" in lost["message"]
    assert "out of memory at micro-batch 8 on 2 ranks; going on with 4" in lost["message"]
    assert lost["out_of_memory"] == ((2, 8),)


def test_what_shrank_stays_small() -> None:
    """A later world, lost for another reason, has the micro-batch that was found."""
    cluster = running("ab", 16)
    runs_out(cluster)
    cluster.kill_worker(cluster.members()[0])
    cluster.until(lambda: cluster.steady(2) and cluster.gang.generation == 3)
    assert [plan.micro_batch for plan in cluster.past if plan.generation == 3] == [4, 4]


def test_a_coordinator_that_takes_over_knows_what_failed() -> None:
    """The agents tell it; the next failure is that of the micro-batch that was in force."""
    cluster = running("ab", 16)
    runs_out(cluster)
    cluster.new_coordinator()
    cluster.until(lambda: cluster.steady(2))
    runs_out(cluster)
    lost = [event for event in cluster.events if event["kind"] == "world_lost"][-1]
    assert lost["out_of_memory"] == ((2, 4), (2, 8))
    assert [plan.micro_batch for plan in cluster.past if plan.generation == 3] == [2, 2]


def test_a_later_attempt_begins_with_what_was_found() -> None:
    """What an earlier attempt learned holds for the first world."""
    cluster = Cluster((1, 2), global_batch=16)
    cluster.gang = Gang(
        replace(cluster.terms, out_of_memory=((2, 8),)),
        cluster.now_ns,
        limits=cluster.limits,
        judgements=cluster.judgements,
    )
    cluster.start_all("ab")
    cluster.until(lambda: cluster.steady(2))
    assert [plan.micro_batch for plan in cluster.past] == [4, 4]


def test_where_there_is_no_smaller_one_the_job_fails_and_is_told_what_to_do() -> None:
    """Micro-batches 8, 4, 2 and 1 fail, more often than worlds may be lost in vain; then the attempt ends with advice."""
    cluster = running("ab", 16)
    for _ in range(4):
        runs_out(cluster)
    assert cluster.outcome is not None
    assert cluster.outcome.reason == "OutOfMemory"
    assert "use more workers" in cluster.outcome.message
    assert cluster.gang.generation == 4


@pytest.mark.parametrize(("batch", "elastic"), [(None, True), (16, False)])
def test_where_the_batch_is_not_ours_or_the_gang_is_fixed_it_is_the_jobs_failure(
    batch: int | None, elastic: bool
) -> None:
    """A user's own function divides its samples itself, and a gang of fixed size ends at its first loss."""
    cluster = running("ab", batch, elastic=elastic)
    runs_out(cluster)
    assert cluster.outcome is not None
    assert cluster.outcome.reason == "OutOfMemory"
    assert "rank 1" in cluster.outcome.message
