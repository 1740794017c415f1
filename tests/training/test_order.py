"""Data order and batches: functions of seed, step and global batch only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.training.order import SampleOrder, epoch_order, micro_batches, share
from orchestrator.training.schedule import learning_rate, warmup_steps


@given(samples=st.integers(1, 300), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 50))
def test_an_epoch_is_a_permutation(samples: int, seed: int, epoch: int) -> None:
    """Every sample stands exactly once in an epoch's order."""
    assert sorted(epoch_order(samples, seed, epoch)) == list(range(samples))


PINNED_00 = [0, 9, 1, 6, 3, 5, 4, 2, 8, 7]
PINNED_132 = [4, 7, 3, 8, 9, 0, 1, 6, 5, 2]


def test_the_order_is_pinned() -> None:
    """The order of a seed never changes between versions: a resumed run would read samples twice."""
    assert epoch_order(10, 0, 0).tolist() == PINNED_00
    assert epoch_order(10, 13, 2).tolist() == PINNED_132


def test_epochs_and_seeds_differ() -> None:
    """Different epochs and seeds give different orders."""
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(
    samples=st.integers(1, 60),
    batch=st.integers(1, 40),
    epochs=st.integers(1, 4),
    world_size=st.integers(1, 5),
    micro=st.integers(1, 8),
)
def test_every_sample_is_read_once_an_epoch_by_any_gang(
    samples: int, batch: int, epochs: int, world_size: int, micro: int
) -> None:
    """Over a run of whole epochs each sample is read once an epoch, whatever the ranks and micro-batches."""
    order = SampleOrder(samples, 3, batch, samples * epochs)
    steps = -(-samples * epochs // batch)
    largest_share = -(-batch // world_size)
    accumulation = -(-largest_share // micro)
    read: list[int] = []
    for step in range(steps):
        whole = order.batch(step)
        assert len(whole) == batch or step == steps - 1
        parts = [
            part
            for rank in range(world_size)
            for part in micro_batches(share(whole, rank, world_size), micro, accumulation)
        ]
        assert len(parts) == world_size * accumulation
        assert np.concatenate(parts).tolist() == whole.tolist()
        read += whole.tolist()
    for epoch in range(epochs):
        assert sorted(read[epoch * samples : (epoch + 1) * samples]) == list(range(samples))
    assert len(order.batch(steps)) == 0


@given(steps=st.lists(st.integers(0, 30), min_size=1, max_size=10))
def test_a_batch_does_not_depend_on_which_came_before(steps: list[int]) -> None:
    """Asking for batches in any order, as a resumed run does, gives the same batches."""
    order = SampleOrder(17, 5, 6)
    for step in steps:
        assert order.batch(step).tolist() == SampleOrder(17, 5, 6).batch(step).tolist()


def test_a_share_that_does_not_fit_is_refused() -> None:
    """More samples than micro-batches can hold is a defect, not something to drop silently."""
    with pytest.raises(ValueError, match="do not fit"):
        micro_batches(np.arange(5), 2, 2)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_rate_rises_and_falls(schedule: str, expected: list[float]) -> None:
    """Two steps of warm-up, then the named course down to zero after the last step."""
    rates = [learning_rate(1.0, schedule, step, 6, 2) for step in range(6)]
    assert rates == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.1, 22), (100, 100), (0.0, 0), (1, 1)])
def test_warm_up_is_a_fraction_or_a_number(warmup: float, steps: int) -> None:
    """Below one it is a fraction of all steps, rounded up; from one on a number of steps."""
    assert warmup_steps(warmup, 214) == steps
