"""Money as integers.

An amount is an `int` of nano-dollars (1e-9 US dollars); a price is an `int` of nano-dollars per hour. An amount that is
not known is `None`, and everything that adds or prints amounts keeps it unknown: it is never counted as zero.

Cost over time is the difference of a cumulative floor, C(b) - C(a) with C(t) = floor(price * (t - start) / hour), so
that a machine's time can be split at any instants and the parts still add up to the whole, to the last nano-dollar.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import NewType

Nanodollars = NewType("Nanodollars", int)

NANODOLLARS_PER_DOLLAR = 1_000_000_000
NANOSECONDS_PER_HOUR = 3_600 * 1_000_000_000


def cumulative_cost(price_nanodollars_per_hour: int, held_ns: int) -> Nanodollars:
    """C(t): what a machine has cost after `held_ns` nanoseconds, rounded down to a whole nano-dollar."""
    if price_nanodollars_per_hour < 0 or held_ns < 0:
        raise ValueError(f"price and time must not be negative: {price_nanodollars_per_hour=} {held_ns=}")
    return Nanodollars(price_nanodollars_per_hour * held_ns // NANOSECONDS_PER_HOUR)


def cost_between(price_nanodollars_per_hour: int, machine_start_ns: int, from_ns: int, to_ns: int) -> Nanodollars:
    """Cost of the time [from_ns, to_ns) of a machine held since `machine_start_ns`; adjacent parts add up exactly."""
    if not machine_start_ns <= from_ns <= to_ns:
        raise ValueError(f"need start <= from <= to, got {machine_start_ns=} {from_ns=} {to_ns=}")
    until = cumulative_cost(price_nanodollars_per_hour, to_ns - machine_start_ns)
    before = cumulative_cost(price_nanodollars_per_hour, from_ns - machine_start_ns)
    return Nanodollars(until - before)


def add(left: Nanodollars | None, right: Nanodollars | None) -> Nanodollars | None:
    """Sum of two amounts; unknown when either is unknown."""
    if left is None or right is None:
        return None
    return Nanodollars(left + right)


def parse_dollars(text: str) -> Nanodollars:
    """Nano-dollars from a decimal string of dollars such as `"3.06"`.

    Raises ValueError when the text is not a finite, non-negative decimal, has more than nine decimal places, or is a
    trillion dollars or more (a slip, and the arithmetic stays cheap).
    """
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a decimal amount of dollars such as 3.06") from error
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{text!r} is not a finite, non-negative amount of dollars")
    if amount == 0:
        return Nanodollars(0)
    if amount.adjusted() >= 12:
        raise ValueError(f"{text!r} is a trillion dollars or more")
    _, digits, exponent = amount.as_tuple()
    significant = "".join(map(str, digits)).rstrip("0")
    power = int(exponent) + len(digits) - len(significant) + 9
    if power < 0:
        raise ValueError(f"{text!r} has more than nine decimal places; the smallest unit is one nano-dollar")
    return Nanodollars(int(significant) * 10**power)


def to_decimal_string(amount: Nanodollars | None) -> str | None:
    """The exact amount of dollars as a decimal string, as the `*USD` fields of JSON carry it; None stays None."""
    if amount is None:
        return None
    sign, magnitude = ("-", -amount) if amount < 0 else ("", amount)
    dollars, rest = divmod(magnitude, NANODOLLARS_PER_DOLLAR)
    fraction = f"{rest:09d}".rstrip("0")
    return f"{sign}{dollars}.{fraction.ljust(2, '0')}"


def for_people(amount: Nanodollars | None) -> str:
    """An amount for a screen: two decimals from one dollar up, four below, `unknown` when it is not known."""
    if amount is None:
        return "unknown"
    dollars = Decimal(abs(amount)) / NANODOLLARS_PER_DOLLAR
    sign = "-" if amount < 0 else ""
    return f"{sign}${dollars:,.2f}" if dollars >= 1 else f"{sign}${dollars:.4f}"
