"""Work that comes and goes, as other tenants' does: `python -m benchmarks._noise SEED` until it is ended.

Burns one CPU for a tenth to two seconds, and rests for as long or longer; the lengths are drawn from the seed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator


def spells(seed: int) -> Iterator[tuple[float, float]]:
    """(burn, rest) in seconds, without end: half of the time at most is burnt, on average a third."""
    chance = random.Random(seed)
    while True:
        burn = min(2.0, 0.1 + chance.expovariate(2.0))
        yield burn, burn * (1.0 + min(3.0, chance.expovariate(1.0)))


def main() -> None:
    for burn, rest in spells(int(sys.argv[1])):
        end = time.monotonic() + burn
        while time.monotonic() < end:
            pass
        time.sleep(rest)


if __name__ == "__main__":
    main()
