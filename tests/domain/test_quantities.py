"""Durations and sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.quantities import format_bytes, format_duration, parse_bytes, parse_duration_ns

SECOND = 10**9


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("90s", 90 * SECOND),
        ("1h30m", 5_400 * SECOND),
        ("250ms", SECOND // 4),
        ("1.5h", 5_400 * SECOND),
        ("2d", 172_800 * SECOND),
        ("0s", 0),
        ("0.1s", SECOND // 10),
        ("9007199254740993ms", 9_007_199_254_740_993 * 10**6),
    ],
)
def test_durations_are_read_exactly(text: str, ns: int) -> None:
    """A duration is read to the nanosecond, also where a float would round."""
    assert parse_duration_ns(text) == ns


@pytest.mark.parametrize(
    "text", ["", "5", "s", "1m30", "-1s", "1 s", " 1s", "1s ", "1e3s", "1h,2m", "٣s", "9" * 400 + "d", "1s\n"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Wrong forms and absurd lengths are refused, and the message shows a right form."""
    with pytest.raises(ValueError, match="such as 90s"):
        parse_duration_ns(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512Mi", 512 * 2**20),
        ("16Gi", 2**34),
        ("2G", 2 * 10**9),
        ("1k", 1_000),
        ("1K", 1_000),
        ("7", 7),
        ("1.5Ki", 1_536),
        ("9007199254740993", 9_007_199_254_740_993),
        ("1Pi", 2**50),
    ],
)
def test_sizes_are_read_exactly(text: str, size: int) -> None:
    """A size is read to the byte, also where a float would round."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "i", "5i", "5 Gi", "-5", "5GB", "5ki", "Gi", "1e9", "9" * 400, "٣Gi", "5\n"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Wrong forms and absurd sizes are refused, and the message shows a right form."""
    with pytest.raises(ValueError, match="such as 16Gi"):
        parse_bytes(text)


@given(st.integers(0, 10**17), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_whole_numbers_of_a_unit_are_exact(number: int, unit: str) -> None:
    """Any whole number of a unit is that many times the unit."""
    assert parse_duration_ns(f"{number}{unit}") == number * parse_duration_ns(f"1{unit}")


@given(st.integers(0, 10**17))
def test_a_shown_duration_is_rounded_down_to_two_units(ns: int) -> None:
    """What is shown can be read back, is never more than the duration, and less by under one of its smaller unit."""
    text = format_duration(ns)
    lost = ns - parse_duration_ns(text)
    smaller = (
        SECOND // 10
        if "." in text
        else {"d": 3_600, "h": 60, "m": 1, "s": 1}[next(c for c in text if c.isalpha())] * SECOND
    )
    assert 0 <= lost < smaller


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0.0s"),
        (-5, "0.0s"),
        (9_990_000_000, "9.9s"),
        (10 * SECOND, "10s"),
        (242 * SECOND, "4m02s"),
        (5_400 * SECOND, "1h30m"),
        (90_000 * SECOND, "1d01h"),
    ],
)
def test_durations_for_people(ns: int, text: str) -> None:
    """The two largest units, rounded down."""
    assert format_duration(ns) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1_023, "1023 B"),
        (1_024, "1.0 KiB"),
        (1_536 * 2**20, "1.5 GiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    """One decimal in binary units, never 1024 of a unit that has a larger one."""
    assert format_bytes(size) == text
