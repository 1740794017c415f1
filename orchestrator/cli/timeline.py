"""The picture of a replay, as one SVG file that any browser shows, light or dark: machines, world size, loss.

One row a machine: warming up, training, waiting while a new world forms, told that it goes. Below, the world size over time
with the transitions, and the loss. No colour carries a meaning alone: the legend and each bar's title say it in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.controller.replay import Machine, Replayed

WIDTH, LEFT, RIGHT, TOP = 1200, 110, 24, 96
ROW, BAR = 22, 14
WORLD, LOSS, GAP = 70, 150, 46
MOST_POINTS = 600
KINDS = {
    "warming": ("#b8b8b8", "warming up"),
    "training": ("#0072b2", "training"),
    "waiting": ("#d55e00", "a new world forms"),
    "leaving": ("#e69f00", "told that it goes"),
}
_STYLE = """
svg { background: #fff; color: #1a1a1a; font: 12px system-ui, sans-serif }
text { fill: currentColor } .soft { opacity: .65 } .line { stroke: currentColor; fill: none }
.grid { stroke: currentColor; opacity: .12 } .lost { stroke: #d55e00 } .left { stroke: #0072b2 }
@media (prefers-color-scheme: dark) { svg { background: #16181c; color: #e8e8e8 } }
"""


def timeline(replayed: Replayed) -> str:
    """An SVG document."""
    machines = list(replayed.machines)
    spells = _spells(replayed)
    seconds = max(replayed.seconds, 1e-9)
    top = TOP + ROW * len(machines) + GAP
    height = top + WORLD + GAP + LOSS + 50

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at, 0.0), seconds) / seconds

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="timeline of a replay">',
        f"<style>{_STYLE}</style>",
        *_head(replayed),
        *_axis(replayed, x, TOP - 8, height - 28),
    ]
    for number, machine in enumerate(machines):
        y = TOP + ROW * number
        parts.append(f'<text x="{LEFT - 10}" y="{y + BAR - 2}" text-anchor="end">{escape(machine.name)}</text>')
        for kind, start, end in spells[machine.name]:
            colour, words = KINDS[kind]
            title = f"{machine.name}: {words}, {start:.1f} to {end:.1f} s"
            parts.append(
                f'<rect x="{x(start):.1f}" y="{y}" width="{max(0.8, x(end) - x(start)):.1f}" height="{BAR}" fill="{colour}">'
                f"<title>{escape(title)}</title></rect>"
            )
    parts += _world(replayed, x, top)
    parts += _loss(replayed, x, top + WORLD + GAP)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def transitions(replayed: Replayed) -> list[tuple[float, float, str]]:
    """(when the old world stopped stepping, when the next one made its first step or the replay ended, why)."""
    found, lost = [], None
    for event in replayed.events:
        if event["kind"] == "world_lost" and lost is None:
            lost = (float(event.get("began", event["at"])), str(event["reason"]))
        elif event["kind"] == "step" and lost is not None and event["at"] > lost[0]:
            began = event["at"] - event.get("seconds", 0.0)
            found.append((lost[0], max(lost[0], began), lost[1]))
            lost = None
    if lost is not None:
        found.append((lost[0], replayed.seconds, lost[1]))
    return found


def _spells(replayed: Replayed) -> dict[str, list[tuple[str, float, float]]]:
    """What each machine did, as (kind, start, end) in order."""
    worlds = [event for event in replayed.events if event["kind"] == "world"]
    dead = [(start, end) for start, end, _ in transitions(replayed)]
    spells: dict[str, list[tuple[str, float, float]]] = {}
    for machine in replayed.machines:
        gone = replayed.seconds if machine.gone is None else machine.gone
        joined = next((event["at"] for event in worlds if machine.name in _nodes(event)), gone)
        cuts = sorted(
            {machine.came, min(joined, gone), gone, *(c for span in dead for c in span), machine.noticed or gone}
        )
        mine = []
        for start, end in pairwise(cut for cut in cuts if machine.came <= cut <= gone):
            mine.append((_kind(machine, joined, dead, (start + end) / 2), start, end))
        spells[machine.name] = _joined(mine)
    return spells


def _kind(machine: Machine, joined: float, dead: Sequence[tuple[float, float]], at: float) -> str:
    if machine.noticed is not None and at >= machine.noticed:
        return "leaving"
    if at < joined:
        return "warming"
    return "waiting" if any(start <= at < end for start, end in dead) else "training"


def _joined(spells: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Neighbours of one kind made one."""
    found: list[tuple[str, float, float]] = []
    for kind, start, end in spells:
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1], end)
        else:
            found.append((kind, start, end))
    return found


def _nodes(world: Mapping[str, Any]) -> set[str]:
    return {str(worker["node"]) for worker in world["workers"]}


def _head(replayed: Replayed) -> Iterator[str]:
    share = replayed.useful_share
    useful = "unknown" if share is None else f"{100 * share:.1f} %"
    moved = transitions(replayed)
    title = f"{replayed.record.name} on {replayed.replay.trace.name}"
    hours = replayed.replay.trace.seconds / 3600
    line = (
        f"{hours:.3g} h of market in {replayed.seconds / 60:.1f} min; {len(replayed.machines)} machines, {replayed.losses} "
        f"taken away; {len(moved)} transition{'' if len(moved) == 1 else 's'}; {replayed.record.state.step:,} steps; useful {useful} of the warm machines' time"
    )
    yield f'<text x="{LEFT}" y="26" font-size="18" font-weight="600">{escape(title)}</text>'
    yield f'<text x="{LEFT}" y="46" class="soft">{escape(line)}</text>'
    at = float(LEFT)
    for colour, words in KINDS.values():
        yield f'<rect x="{at}" y="58" width="12" height="12" fill="{colour}"/><text x="{at + 18}" y="68">{words}</text>'
        at += 34 + 6.4 * len(words)


def _axis(replayed: Replayed, x: Any, top: float, bottom: float) -> Iterator[str]:
    hours = replayed.replay.trace.seconds / 3600
    every = next((step for step in (0.25, 0.5, 1, 2, 4, 6, 12, 24, 48) if hours / step <= 13), 96)
    hour = 0.0
    while hour <= hours + 1e-9:
        at = x(hour * 3600 / replayed.replay.speed)
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}" class="grid"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle" class="soft">{hour:g} h</text>'
        hour += every


def _world(replayed: Replayed, x: Any, top: float) -> Iterator[str]:
    """The world size as steps, and a mark where a world was lost or left."""
    most = max(1, replayed.replay.trace.most)

    def y(size: float) -> float:
        return top + WORLD * (1 - size / most)

    yield f'<text x="8" y="{top + WORLD / 2 + 4}">world size</text>'
    for size in range(most + 1):
        yield f'<text x="{LEFT - 10}" y="{y(size) + 4:.1f}" text-anchor="end" class="soft">{size if size in (0, most) else ""}</text>'
    points, size = [(0.0, 0)], 0
    for event in replayed.events:
        if event["kind"] in ("world", "world_lost"):
            start = event.get("began", event["at"])
            points.append((start, size))
            size = int(event["world_size"]) if event["kind"] == "world" else 0
            points.append((start, size))
    points.append((replayed.seconds, size))
    path = " ".join(f"{x(at):.1f},{y(held):.1f}" for at, held in points)
    yield f'<polyline points="{path}" class="line" stroke-width="1.6"/>'
    for start, end, why in transitions(replayed):
        kind = "lost" if why in ("WorkerLost", "Preempted", "Hung") else "left"
        title = f"{why}: {end - start:.2f} s without a step"
        yield (
            f'<line x1="{x(start):.1f}" x2="{x(start):.1f}" y1="{top + WORLD + 4}" y2="{top + WORLD + 14}" class="{kind}" '
            f'stroke-width="2"><title>{escape(title)}</title></line>'
        )


def _loss(replayed: Replayed, x: Any, top: float) -> Iterator[str]:
    steps = [event for event in replayed.events if event["kind"] == "step"]
    yield f'<text x="8" y="{top + LOSS / 2 + 4}">loss</text>'
    if not steps:
        return
    steps = steps[:: max(1, len(steps) // MOST_POINTS)]
    low, high = min(step["loss"] for step in steps), max(step["loss"] for step in steps)
    spread = (high - low) or 1.0
    path = " ".join(f"{x(s['at']):.1f},{top + LOSS * (1 - (s['loss'] - low) / spread):.1f}" for s in steps)
    yield f'<polyline points="{path}" class="line" stroke-width="1.2"/>'
    for value, at in ((high, top + 10), (low, top + LOSS)):
        yield f'<text x="{LEFT - 10}" y="{at}" text-anchor="end" class="soft">{value:.3f}</text>'
