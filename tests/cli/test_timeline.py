"""The picture of a replay: what each machine did, the world size, the loss."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cli.timeline import timeline, transitions
from orchestrator.simulation import Trace

SVG = "{http://www.w3.org/2000/svg}"


def machine(name: str, came: float, noticed: float | None = None, gone: float | None = None) -> Any:
    return SimpleNamespace(name=name, came=came, noticed=noticed, gone=gone)


def step(at: float, number: int, loss: float) -> dict[str, Any]:
    return {"kind": "step", "at": at, "step": number, "loss": loss, "seconds": 0.5}


def world(at: float, *nodes: str) -> dict[str, Any]:
    workers = [{"worker": node, "rank": rank, "node": node, "host": "h"} for rank, node in enumerate(nodes)]
    return {"kind": "world", "at": at, "generation": 1, "world_size": len(nodes), "workers": workers}


@pytest.fixture
def replayed() -> Any:
    """Two machines; one is told at 30 s and gone at 32; a third comes at 40 and joins at 52; the last loss is unrecovered."""
    lost = {"kind": "world_lost", "at": 30.6, "began": 30.5, "reason": "Preempted"}
    joined = {"kind": "world_lost", "at": 51.5, "began": 51.0, "reason": "Joined"}
    events = [
        world(10, "node-0", "node-<1>"),
        *(step(11 + number, number, 0.7 - number / 100) for number in range(19)),
        lost,
        world(30.8, "node-0"),
        *(step(31.5 + number, 19 + number, 0.5) for number in range(19)),
        joined,
        world(52, "node-0", "node-2"),
        step(53, 38, 0.4),
        {"kind": "world_lost", "at": 58.0, "began": 58.0, "reason": "WorkerLost"},
    ]
    machines = [machine("node-0", 0), machine("node-<1>", 0, 30, 32), machine("node-2", 40)]
    return SimpleNamespace(
        machines=machines,
        events=events,
        seconds=60.0,
        losses=1,
        useful_share=0.9,
        replay=SimpleNamespace(trace=Trace("us-east-1", 300.0, (2,) * 15), speed=75.0),
        record=SimpleNamespace(name="job", state=SimpleNamespace(step=38)),
    )


def test_a_transition_lasts_from_the_last_step_to_the_next(replayed: Any) -> None:
    """Its end is where the first step of the new world began; one that never came to a step lasts to the end."""
    found = transitions(replayed)
    assert [why for *_, why in found] == ["Preempted", "Joined", "WorkerLost"]
    assert [(start, end) for start, end, _ in found] == [(30.5, 31.0), (51.0, 52.5), (58.0, 60.0)]


def test_the_picture_says_what_each_machine_did(replayed: Any) -> None:
    """Each bar has a title in words; the bars of a machine cover its life once; names are escaped."""
    root = ElementTree.fromstring(timeline(replayed))  # noqa: S314 - our own text
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert "node-<1>: told that it goes, 30.0 to 32.0 s" in titles
    assert "node-2: warming up, 40.0 to 52.0 s" in titles
    assert "node-0: a new world forms, 51.0 to 52.5 s" in titles
    spans: dict[str, list[tuple[float, float]]] = {}
    for title in titles:
        name, _, rest = title.partition(": ")
        if name.startswith("node"):
            start, _, end = rest.rpartition(", ")[2].removesuffix(" s").partition(" to ")
            spans.setdefault(name, []).append((float(start), float(end)))
    assert {name: (parts[0][0], parts[-1][1]) for name, parts in spans.items()} == {
        "node-0": (0.0, 60.0),
        "node-<1>": (0.0, 32.0),
        "node-2": (40.0, 60.0),
    }
    assert all(before[1] == after[0] for parts in spans.values() for before, after in itertools.pairwise(parts))


def test_a_replay_without_a_step_is_drawn_too(replayed: Any, tmp_path: Path) -> None:
    """Nothing trained: machines warm up, and the picture is still one."""
    replayed.events.clear()
    replayed.useful_share = None
    text = timeline(replayed)
    assert "useful unknown" in text
    ElementTree.fromstring(text)  # noqa: S314 - our own text
