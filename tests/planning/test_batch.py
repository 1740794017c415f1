"""Batch arithmetic: the global batch comes out exactly, or the reason is told."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planning.batch import Batch, BatchDoesNotDivide, allowed_world_sizes, divide

SIZES = st.integers(1, 2_000)


@given(share=SIZES, world_size=st.integers(1, 64), limit=st.integers(1, 128))
def test_product_is_the_global_batch(share: int, world_size: int, limit: int) -> None:
    """micro-batch x accumulation x world size is the global batch, with the largest micro-batch within the limit."""
    batch = divide(share * world_size, world_size, max_micro_batch=limit)
    assert batch.micro_batch * batch.accumulation * batch.world_size == batch.global_batch
    assert batch.micro_batch <= limit
    assert not any(share % larger == 0 for larger in range(batch.micro_batch + 1, min(limit, share) + 1))


@given(global_batch=SIZES, world_size=st.integers(1, 64), micro_batch=st.integers(1, 64) | st.none())
def test_any_sizes_divide_or_are_refused_with_sizes_that_do(
    global_batch: int, world_size: int, micro_batch: int | None
) -> None:
    """Sizes that do not fit are refused, and the first size that the hint names fits."""
    try:
        divide(global_batch, world_size, micro_batch)
    except BatchDoesNotDivide as error:
        suggestion = int(error.hint.removeprefix("use ").split(" ")[0])
        if global_batch % world_size:
            assert divide(suggestion, world_size).global_batch == suggestion
        else:
            assert divide(global_batch, world_size, suggestion).micro_batch == suggestion
    else:
        assert global_batch % (world_size * (micro_batch or 1)) == 0


def test_given_micro_batch_is_taken() -> None:
    """A micro-batch of the user's is used as it is, also above the limit of Auto."""
    assert divide(256, 2, micro_batch=64) == Batch(256, 2, 64, 2)
    assert str(divide(256, 2, micro_batch=64)) == "256 = 2 ranks x micro-batch 64 x accumulation 2"


def test_auto_takes_the_largest_that_fits() -> None:
    """Without a micro-batch the largest divisor of a rank's share up to 32 is taken."""
    assert divide(32, 1) == Batch(32, 1, 32, 1)
    assert divide(96, 1) == Batch(96, 1, 32, 3)
    assert divide(80, 2) == Batch(80, 2, 20, 2)
    assert divide(74, 2) == Batch(74, 2, 1, 37)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((32, 3, None), "a global batch of 32 does not divide among 3 ranks; use 30 or 33"),
        ((2, 3, None), "a global batch of 2 does not divide among 3 ranks; use 3"),
        ((32, 2, 5), "a micro-batch of 5 does not divide the 16 samples of a rank; use 4"),
        ((32, 2, 0), "a micro-batch of 0 does not divide the 16 samples of a rank; use 1"),
        ((32, 2, 64), "a micro-batch of 64 does not divide the 16 samples of a rank; use 16"),
    ],
)
def test_refusals_say_what_fits(sizes: tuple[int, int, int | None], message: str) -> None:
    """Each refusal names the sizes and the nearest ones that would do, and survives pickling."""
    with pytest.raises(BatchDoesNotDivide) as caught:
        divide(*sizes)
    assert str(caught.value) == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message  # noqa: S301 - our own bytes


def test_sizes_must_be_positive() -> None:
    """Zero ranks or samples are a defect of the caller."""
    with pytest.raises(ValueError, match="world_size must be at least 1"):
        divide(32, 0)
    with pytest.raises(ValueError, match="is not 32"):
        Batch(32, 2, 3, 4)


def test_allowed_world_sizes() -> None:
    """Of a range of world sizes those remain on which the batch comes out exactly."""
    assert allowed_world_sizes(32, range(1, 9)) == [1, 2, 4, 8]
    assert allowed_world_sizes(48, range(9), micro_batch=8) == [1, 2, 3, 6]
    assert allowed_world_sizes(7, [8, 9]) == []
