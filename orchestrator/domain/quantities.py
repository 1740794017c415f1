"""Durations and byte sizes as people and Kubernetes write them: `90s`, `1h30m`, `250ms`; `512Mi`, `16Gi`, `2G`."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal

_DURATION_UNITS = {"ms": 1_000_000, "s": 1_000_000_000, "m": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9}
_DURATION = re.compile(r"(?:\d{1,18}(?:\.\d{1,18})?(?:ms|s|m|h|d))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_BYTE_UNITS = {"": 1, **{u: 1_000 ** (i + 1) for i, u in enumerate("kMGTP")}, "K": 1_000} | {
    f"{u}i": 1_024 ** (i + 1) for i, u in enumerate("KMGTP")
}
_BYTES = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)([kKMGTP]?i?)", re.ASCII)


def parse_duration_ns(text: str) -> int:
    """Nanoseconds from `90s`, `12h` or `1h30m`. Raises ValueError, saying what is expected."""
    if not _DURATION.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a duration; write a number and a unit (ms, s, m, h, d), such as 90s or 1h30m"
        )
    return sum(_scaled(number, _DURATION_UNITS[unit]) for number, unit in _DURATION_PART.findall(text))


def _scaled(number: str, unit: int) -> int:
    return int((Decimal(number) * unit).to_integral_value(ROUND_HALF_EVEN))


def format_duration(ns: int) -> str:
    """The two largest units of a duration, rounded down: `1h30m`, `4m02s`, `12s`, `0.4s`."""
    tenths = max(0, ns) // 100_000_000
    if tenths < 100:
        return f"{tenths // 10}.{tenths % 10}s"
    whole = tenths // 10
    days, hours, minutes, rest = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def parse_bytes(text: str) -> int:
    """Bytes from `512Mi`, `16Gi`, `2G` or a plain number. Raises ValueError, saying what is expected."""
    match = _BYTES.fullmatch(text)
    if match is None or match[2] not in _BYTE_UNITS:
        raise ValueError(
            f"{text!r} is not a size; write a number and a unit (Ki, Mi, Gi, Ti or k, M, G, T), such as 16Gi"
        )
    return _scaled(match[1], _BYTE_UNITS[match[2]])


def format_bytes(size_bytes: int) -> str:
    """A size with one decimal in binary units: `1.5 GiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1_023.95:  # what would be shown as 1024.0 is one of the next unit
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1_024
    return f"{value:.1f} TiB"
