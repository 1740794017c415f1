"""Writes text.txt: a made-up weather diary from a small grammar, the same every time."""

from __future__ import annotations

import random
from pathlib import Path

LINES = 900
PLACES = ["the harbour", "the old town", "the hills", "the island", "the valley", "the northern road"]
SKIES = {"rain": "grey", "fog": "pale", "snow": "white", "sun": "blue", "storm": "black"}
FOLLOWS = {
    "rain": "the streets were wet and the boats stayed in",
    "fog": "the ferry sounded its horn until noon",
    "snow": "the children pulled their sledges to school",
    "sun": "people sat outside and ate late",
    "storm": "a roof was lost and nobody slept",
}
TIMES = ["In the morning", "At noon", "In the evening", "All night", "Before dawn"]


def main() -> None:
    chance = random.Random(20)
    lines = []
    for day in range(1, LINES + 1):
        weather = chance.choice(list(SKIES))
        lines.append(
            f"Day {day}. {chance.choice(TIMES)} there was {weather} over {chance.choice(PLACES)}; "
            f"the sky was {SKIES[weather]}, and {FOLLOWS[weather]}."
        )
    Path(__file__).with_name("text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
