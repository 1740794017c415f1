"""Out of memory: the next smaller micro-batch, the same global batch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.batch import BatchDoesNotDivide
from orchestrator.policy.memory_pressure import OutOfMemory, largest_untried, relieve


def test_the_next_smaller_divisor_is_taken() -> None:
    """24 samples on 2 ranks: 12 failed, then 6, 4, 3, 2, 1 and then none; the global batch stays."""
    failed, tried = [OutOfMemory(2, 12)], []
    while (batch := relieve(failed, 24, 2).batch) is not None:
        assert batch.micro_batch * batch.accumulation * 2 == 24
        tried.append(batch.micro_batch)
        failed.append(OutOfMemory(2, batch.micro_batch))
    assert tried == [6, 4, 3, 2, 1]
    assert relieve(failed, 24, 2).reason.startswith(
        "no micro-batch is smaller than 1; out of memory: 1 at 2 ranks, 2 at 2 ranks"
    )


def test_what_failed_is_remembered_for_as_many_and_for_fewer_ranks() -> None:
    """Fewer ranks have more state each, so what failed with four fails with two; with eight it may fit."""
    failed = [OutOfMemory(4, 8)]
    assert (largest_untried(failed, 4), largest_untried(failed, 2), largest_untried(failed, 8)) == (7, 7, None)
    for size, micro_batch in ((4, 4), (2, 4), (8, 8)):
        batch = relieve(failed, 64, size, micro_batch=8).batch
        assert batch is not None
        assert batch.micro_batch == micro_batch


def test_the_reason_has_the_batch_and_what_failed() -> None:
    """What is tried now, and after what."""
    assert relieve([OutOfMemory(2, 8), OutOfMemory(2, 8)], 32, 2).reason == (
        "32 = 2 ranks x micro-batch 4 x accumulation 4; out of memory: 8 at 2 ranks"
    )


def test_a_batch_that_does_not_divide_is_refused() -> None:
    """Sizes that never fitted are an error, not a relief."""
    with pytest.raises(BatchDoesNotDivide):
        relieve([OutOfMemory(3, 1)], 32, 3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 500),
    st.integers(1, 8),
    st.lists(st.builds(OutOfMemory, st.integers(1, 8), st.integers(1, 64)), max_size=5),
    st.none() | st.integers(1, 64),
)
def test_a_relief_is_exact_and_untried(
    share: int, world_size: int, failed: list[OutOfMemory], micro_batch: int | None
) -> None:
    """The global batch comes out exactly; nothing that failed here or with more ranks is tried again, nor more than is
    wished."""
    wanted = micro_batch if micro_batch is not None and share % micro_batch == 0 else None
    relief = relieve(failed, share * world_size, world_size, wanted)
    if relief.batch is None:
        assert any(each.micro_batch == 1 and each.world_size >= world_size for each in failed)
        return
    batch = relief.batch
    assert (batch.global_batch, batch.world_size) == (share * world_size, world_size)
    assert all(batch.micro_batch < each.micro_batch for each in failed if each.world_size >= world_size)
    assert wanted is None or batch.micro_batch <= wanted
