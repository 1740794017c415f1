"""Money: exact, additive, and unknown where it is unknown."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.money import (
    Nanodollars,
    add,
    cost_between,
    cumulative_cost,
    for_people,
    parse_dollars,
    to_decimal_string,
)

PRICES = st.integers(0, 10**12)
TIMES = st.lists(st.integers(0, 10**16), min_size=2, max_size=8).map(sorted)


@given(PRICES, TIMES)
def test_a_machines_time_can_be_split_anywhere(price: int, cuts: list[int]) -> None:
    """The parts of any split add up to the whole, to the nano-dollar."""
    start = cuts[0]
    parts = [cost_between(price, start, low, high) for low, high in pairwise(cuts)]
    assert sum(parts) == cumulative_cost(price, cuts[-1] - start)
    assert all(part >= 0 for part in parts)


def test_an_hour_costs_its_price() -> None:
    """One hour costs the price of an hour, and a nanosecond less costs a nano-dollar less."""
    hour = 3_600 * 10**9
    assert cumulative_cost(3_060_000_000, hour) == 3_060_000_000
    assert cumulative_cost(3_060_000_000, hour - 1) == 3_059_999_999


@pytest.mark.parametrize(("price", "held"), [(-1, 0), (0, -1)])
def test_negative_cost_is_refused(price: int, held: int) -> None:
    """Neither a price nor a time can be negative."""
    with pytest.raises(ValueError, match="must not be negative"):
        cumulative_cost(price, held)


@pytest.mark.parametrize("times", [(5, 4, 6), (0, 6, 5)])
def test_time_in_the_wrong_order_is_refused(times: tuple[int, int, int]) -> None:
    """A part lies after the machine's start and runs forwards."""
    with pytest.raises(ValueError, match="start <= from <= to"):
        cost_between(1, *times)


@given(st.integers(0, 10**21 - 1))
def test_amounts_survive_a_round_trip(amount: int) -> None:
    """An amount written as a decimal string is read back exactly."""
    text = to_decimal_string(Nanodollars(amount))
    assert text is not None
    assert parse_dollars(text) == amount
    assert Decimal(text) * 10**9 == Decimal(amount)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("3.06", 3_060_000_000),
        ("0", 0),
        ("-0", 0),
        ("0e999999999", 0),
        ("1e3", 10**12),
        ("1e-9", 1),
        ("3.060000000000", 3_060_000_000),
    ],
)
def test_ways_to_write_an_amount(text: str, amount: int) -> None:
    """Trailing zeros and exponents are read as what they mean."""
    assert parse_dollars(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "nan",
        "sNaN",
        "inf",
        "-1",
        "0.0000000001",
        "1e-10",
        "3.0600000000000000000000000000001",
        "1e12",
        "1e999999999",
        "1e-999999999",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    """Wrong, negative, endless, absurd and too fine amounts are refused without arithmetic that explodes."""
    with pytest.raises(ValueError, match=r"dollars|decimal"):
        parse_dollars(text)


def test_unknown_stays_unknown() -> None:
    """Adding to an unknown amount, and showing one, keeps it unknown."""
    assert add(None, Nanodollars(1)) is None
    assert add(Nanodollars(1), None) is None
    assert add(Nanodollars(1), Nanodollars(2)) == 3
    assert to_decimal_string(None) is None
    assert for_people(None) == "unknown"


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.0000"),
        (12_345_678, "$0.0123"),
        (999_999_999, "$1.0000"),
        (1_000_000_000, "$1.00"),
        (1_234_567_890_000, "$1,234.57"),
        (-2_500_000_000, "-$2.50"),
        (-1_000_000, "-$0.0010"),
    ],
)
def test_amounts_for_people(amount: int, text: str) -> None:
    """Two decimals from a dollar up, four below, the sign before the dollar."""
    assert for_people(Nanodollars(amount)) == text


def test_a_negative_amount_as_a_string() -> None:
    """The sign stands in front of the whole amount."""
    assert to_decimal_string(Nanodollars(-1_500_000_000)) == "-1.50"
