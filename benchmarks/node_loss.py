"""What the loss of a node costs, next to Ray Train's elastic mode: `make bench-node_loss`.

Three small Ray nodes and a head on this machine, a tiny encoder under DeepSpeed ZeRO (benchmarks/node_loss.yaml), and one
event a sample: SIGKILL of every process of a node; a notice of 30 s for the node of rank 0; a node that joins two; SIGSTOP
of a whole node. On our side the real worker loop on the native engine (benchmarks/_native_scene.py): a scene, which is one
attempt, takes several events in turn, each when the run has settled, and another node joins after each loss. On the other
side Ray Train 2.60 with `num_workers=(1, 3)`, by its defaults and tuned (start timeout 20 s), losing a node the same way, one
event a run (benchmarks/_ray_train_elastic.py); its data is drawn from a seed, and its checkpoint is the model alone. Scenes
and rivals take turns, so that they share the machine's mood. A scene that fails is kept among the samples, and missed.

Bars: kill to the next step that nobody had made, p95 <= 3 s and a tenth of the tuned rival's median; one step redone at
most, none after a notice or a join; dead at most 3 s at a notice and at a join; SIGSTOP at most max(3 s, 5 x step) and the
median of a kill. `--only` takes one kind of sample, `--rivals 0` leaves Ray Train out. About 22 minutes for ours and 15 for
Ray Train.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, zip_longest
from statistics import median
from typing import Any

from benchmarks._node_scenes import SIZE, Event
from benchmarks.harness import (
    MILLISECONDS,
    REPOSITORY,
    Samples,
    Verdict,
    arguments,
    conclude,
    describe,
    percentile,
    quiet,
)

JOB = "benchmarks/node_loss.yaml"
STAGES = (1, 2, 3)
TURNS = 3
"""Scenes of each stage, when nothing is there yet."""
TUNED_SECONDS = 20
MIXED_STAGE = 2
"""The stage of notices and freezes, and of Ray Train."""
PATIENCE_SECONDS = 600
FAILED = "failed scene"


@dataclass(frozen=True, slots=True)
class Series:
    """One kind of sample: an event under a ZeRO stage. `options` are the rival's."""

    kind: str
    event: str
    stage: int
    rival: bool = False
    options: tuple[str, ...] = ()


def _ours(event: str, stage: int) -> Series:
    return Series(f"{event}, ZeRO-{stage}", event, stage)


def _theirs(tuned: bool) -> Series:
    options = ("--start-timeout", str(TUNED_SECONDS)) if tuned else ()
    return Series(f"Ray Train {'tuned' if tuned else 'default'}, kill", "kill", MIXED_STAGE, True, options)


KILLS = tuple(_ours("kill", stage) for stage in STAGES)
JOINS = tuple(_ours("join", stage) for stage in STAGES)
NOTICE, FREEZE = (_ours(event, MIXED_STAGE) for event in ("notice", "freeze"))
TUNED, DEFAULT = _theirs(tuned=True), _theirs(tuned=False)
LEAVING = (*KILLS, NOTICE, FREEZE)
"""What scenes are made of; joins come between them."""
ALL = (*LEAVING, *JOINS, TUNED, DEFAULT)


def of_turn(turn: int, wanted: int, missing: Sequence[int]) -> list[int]:
    """Which of the missing samples belong to this turn: the wanted ones are divided in order over the turns."""
    size = math.ceil(wanted / TURNS)
    return [number for number in missing if number // size == turn]


def scene_of(numbers: Mapping[str, Sequence[int]]) -> tuple[Event, ...]:
    """The events of a scene: those of each kind in turn, with joins between. The victims go round, rank 0 among them, but for
    a notice, which is always for it."""
    rounds = zip_longest(
        *([Event(kind, 0 if kind == "notice" else number % SIZE) for number in of] for kind, of in numbers.items())
    )
    leaving = [event for events in rounds for event in events if event is not None]
    return tuple(chain.from_iterable((event, Event("join")) for event in leaving))[:-1]


def main() -> int:
    parser = arguments(__doc__, samples=10)
    parser.add_argument("--rivals", type=int, default=5, metavar="N", help="samples of each rival (default 5)")
    parser.add_argument(
        "--only", choices=[one.kind for one in ALL if one not in JOINS], help="one kind of sample, and joins"
    )
    given = parser.parse_args()
    samples = Samples("node_loss")
    series = [one for one in ALL if given.only in (None, one.kind)]
    for turn in range(TURNS):
        for stage in STAGES:
            numbers = {
                one.event: of_turn(turn, given.samples, samples.missing(one.kind, given.samples))
                for one in series
                if one in LEAVING and one.stage == stage
            }
            if events := scene_of(numbers):
                _take(samples, "benchmarks._native_scene", stage, events, ("--events", ",".join(map(str, events))))
        for one in (one for one in series if one.rival):
            for number in of_turn(turn, given.rivals, samples.missing(one.kind, given.rivals)):
                options = ("--event", one.event, "--victim", str(number % SIZE), *one.options)
                events = (Event(one.event, number % SIZE),)
                _take(samples, "benchmarks._ray_train_elastic", one.stage, events, options, one.kind)
    return report(samples, ALL if given.only is None else (*series, *JOINS))


def _take(
    samples: Samples, module: str, stage: int, events: Sequence[Event], options: Sequence[str], kind: str | None = None
) -> None:
    """Play a scene in a process of its own; each of its events is a sample as soon as it is over."""
    command = [sys.executable, "-m", module, JOB, "--stage", str(stage), *options]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryFile("w+") as words:
        scene = subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE, stderr=words, text=True)
        assert scene.stdout is not None
        impatience = threading.Timer(PATIENCE_SECONDS, scene.terminate)
        impatience.start()
        place = 0
        try:
            told = (json.loads(line) for line in scene.stdout if line.startswith("{"))
            for place, event in enumerate(events):
                with samples.sample(kind or _ours(event.kind, stage).kind) as sample, _end_is_failure():
                    sample |= {**next(told), "scene": began, "place": place}
                print(f"{kind or 'scene'}, ZeRO-{stage}, {event}: {json.dumps(sample)}", flush=True)
        except SceneFailed:
            scene.terminate()
            code = scene.wait()
            words.seek(0)
            with samples.sample(FAILED) as sample:
                sample |= {"scene": began, "command": command[2:], "place": place, "exit": code}
                sample["words"] = words.read()[-2000:]
            print(f"{' '.join(command)} ended with {code} at its event {place}:\n{sample['words']}", flush=True)
        finally:
            scene.stdout.read()  # what is said while it goes
            scene.wait()
            impatience.cancel()


class SceneFailed(Exception):
    """It told of fewer events than it was to play."""


@contextmanager
def _end_is_failure() -> Iterator[None]:
    """An end of the output is the scene's failure."""
    try:
        yield
    except StopIteration:
        raise SceneFailed from None


def report(samples: Samples, series: Sequence[Series]) -> int:
    taken = {one: [row["sample"] for row in samples.rows(one.kind)] for one in series}
    for one, found in taken.items():
        if found:
            rows = samples.rows(one.kind)
            scenes = len({sample["scene"] for sample in found})
            print(f"{one.kind}: of {scenes} scenes; {sum(quiet(row) for row in rows)} began on a quiet machine")
            for name in ("to_useful", "dead"):
                print(f"    {name:<10} {describe([MILLISECONDS * sample[name] for sample in found], 'ms')}")
            print(f"    redone     {sorted(sample['redone'] for sample in found)}")
    failed = len(samples.rows(FAILED))
    scenes = len({sample["scene"] for found in taken.values() for sample in found})
    return conclude([*verdicts(taken), Verdict("scenes that failed", 0, failed, "", max(scenes, failed), "count")])


def verdicts(taken: Mapping[Series, Sequence[Mapping[str, Any]]]) -> list[Verdict]:
    found = []
    kills = [sample for one in KILLS for sample in taken.get(one, [])]
    for one in (one for one in KILLS if taken.get(one)):
        times = [sample["to_useful"] for sample in taken[one]]
        words = f"{one.kind}: to the next useful step"
        found.append(Verdict(words, 3.0, percentile(times, 95), "s", len(times), "p95"))
    if kills:
        redone = max(sample["redone"] for sample in kills)
        found.append(Verdict("steps redone after a kill", 1, redone, "", len(kills), "most"))
    if kills and (rival := taken.get(TUNED)):
        ratio = median(sample["to_useful"] for sample in rival) / median(sample["to_useful"] for sample in kills)
        found.append(Verdict("times as fast as Ray Train tuned", 10, ratio, "", len(kills), at_most=False))
    joins = [sample for one in JOINS for sample in taken.get(one, [])]
    for some, words in ((taken.get(NOTICE, []), "at a notice"), (joins, "at a join")):
        if some:
            dead = percentile([sample["dead"] for sample in some], 95)
            redone = max(sample["redone"] for sample in some)
            found.append(Verdict(f"dead {words}", 3.0, dead, "s", len(some), "p95"))
            found.append(Verdict(f"steps redone {words}", 0, redone, "", len(some), "most"))
    if kills and (frozen := taken.get(FREEZE)):
        step = median(sample["step_seconds"] for sample in frozen)
        bar = max(3.0, 5 * step) + median(sample["to_useful"] for sample in kills)
        worst = percentile([sample["to_useful"] for sample in frozen], 95)
        found.append(Verdict("SIGSTOP of a node to the next useful step", bar, worst, "s", len(frozen), "p95"))
    return found


if __name__ == "__main__":
    sys.exit(main())
