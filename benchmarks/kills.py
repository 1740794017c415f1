"""SIGKILL at random moments of a real run: `make bench-kills`.

For each victim (a worker, the driver, the controller, both at once, all of Ray) a job is submitted, attached, several times; at a step drawn
from a seed the victim is killed. Then, for every run:

1. the kill happened: the process is dead, and the story tells of a second attempt (for the controller: of a new epoch;
   an elastic job's workers outlive both, in the first attempt);
2. the job ends Succeeded, once, and the attached submit exits 0;
3. every step of every attempt has the loss of an undisturbed run (relative gap at most 1e-6), and none is missing;
4. money is conserved: the segments, recomputed from their times and the price, add up to the total, nothing is at risk;
5. no process of the job's gang or driver is left, and after `server stop` none of Ray at all.

Bar: all runs of all victims.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import REPOSITORY, Samples, arguments
from benchmarks.throughput import client_of, environment, stop_server
from orchestrator.accounting import PriceBook
from orchestrator.controller.client import Client
from orchestrator.controller.home import Home
from orchestrator.controller.ray_processes import find
from orchestrator.domain.errors import OrchestrateError
from orchestrator.domain.money import cumulative_cost, parse_dollars
from orchestrator.platforms.prices import load_prices

JOB = REPOSITORY / "benchmarks" / "kills.yaml"
TITLES = {"driver": "ray::DriverActor", "controller": "ray::ControllerActor"}
VICTIMS = ("worker", "driver", "controller", "both", "both-elastic", "ray")
"""`both`: driver and controller at once; `both-elastic`: those of a job whose workers outlive them."""
TOLERANCE = 1e-6
PATIENCE_SECONDS = 240.0
LOOK_SECONDS = 0.05


class Broken(AssertionError):
    """A promise that did not hold."""


@dataclass
class World:
    """One home, its environment, and what an undisturbed run of the job did."""

    folder: Path
    environ: Mapping[str, str] = field(init=False)
    reference: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environ = environment(self.folder)

    @property
    def client(self) -> Client:
        return client_of(self.environ)

    def processes(self) -> list[psutil.Process]:
        """Every process of this home's Ray, by the mark in its environment."""
        return find(Home(self.folder))[1]

    def submit(self, name: str, *more: str) -> subprocess.Popen[str]:
        """An attached submit, as a user would have it in a terminal."""
        command = [sys.executable, "-m", "orchestrator.cli.main", "submit", str(JOB), "--set", f"metadata.name={name}"]
        command += [part for each in more for part in ("--set", each)]
        return subprocess.Popen(
            command,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def steps(self, name: str) -> list[dict[str, Any]]:
        return self.client.steps("default", name)

    def learn(self) -> None:
        """The undisturbed run, whose losses all others must repeat."""
        attached = self.submit("undisturbed")
        said = _finished(attached)
        _require(attached.returncode == 0, f"the undisturbed run failed:\n{said}")
        self.reference = {row["step"]: row["loss"] for row in self.steps("undisturbed")}


def run_once(world: World, victim: str, name: str, at_step: int) -> dict[str, Any]:
    """One job with one kill; what was found. Raises `Broken` when a promise did not hold."""
    attached = world.submit(name, *(["spec.workers.min=1"] if victim == "both-elastic" else []))
    _wait_for_step(world, name, at_step, attached)
    epoch = world.client.info()["epoch"]
    gang = [rank["pid"] for rank in world.client.get("default", name)["status"]["workers"]["ranks"]]
    victims = _victims(world, victim, gang)
    killed_ns = time.time_ns()
    for process in victims:
        process.kill()
    _, alive = psutil.wait_procs(victims, timeout=10)
    _require(not alive, f"{alive} did not die")
    said = _finished(attached)
    _require(attached.returncode == 0, f"submit ended with {attached.returncode}:\n{said}")
    return {
        "victim": victim,
        "at_step": at_step,
        "killed": len(victims),
        **_inspect(world, victim, name, killed_ns, epoch, gang),
    }


def _inspect(world: World, victim: str, name: str, killed_ns: int, epoch: int, gang: list[int]) -> dict[str, Any]:
    client = world.client
    document = client.get("default", name)
    status = document["status"]
    _require(status["phase"] == "Succeeded", f"the job is {status['phase']}: {status['message']}")
    ends = [event for event in client.events("default", name) if event["phase"] == "Succeeded"]
    _require(len(ends) == 1, f"the job ended {len(ends)} times")
    if victim not in ("worker", "driver"):
        _require(client.info()["epoch"] > epoch, "the controller was not started anew")
    if victim in ("controller", "both-elastic"):
        _require(status["attempt"] == 1, "the workers did not survive")
    else:
        _require(status["attempt"] >= 2, "there was no second attempt")
    rows = client.steps("default", name)
    made = {row["step"] for row in rows}
    _require(made == set(world.reference), f"steps are missing: {sorted(set(world.reference) - made)}")
    gap = max(abs(row["loss"] - world.reference[row["step"]]) / abs(world.reference[row["step"]]) for row in rows)
    _require(gap <= TOLERANCE, f"a loss differs from the undisturbed run by {gap:.2e}")
    _check_money(client.cost("default", name), load_prices(None))
    left = [pid for pid in [*gang, *(rank["pid"] for rank in status["workers"]["ranks"])] if psutil.pid_exists(pid)]
    _require(not left, f"processes of the gang are left: {left}")
    drivers = [process for process in world.processes() if TITLES["driver"] in _title(process)]
    psutil.wait_procs(drivers, timeout=15)
    _require(not any(process.is_running() for process in drivers), f"the driver is left: {drivers}")
    after = [row["at_ns"] for row in rows if row["at_ns"] > killed_ns]
    return {
        "attempts": status["attempt"],
        "redone_steps": len(rows) - len(made),
        "largest_gap": gap,
        "seconds_to_next_step": (min(after) - killed_ns) / 1e9 if after else None,
        "total": status["cost"]["totalUSD"],
    }


def _check_money(cost: dict[str, Any], prices: PriceBook) -> None:
    """Recompute each machine's cost from its first and last instant, and compare with the segments and the total."""
    price = prices.local_offering().price_nanodollars_per_hour
    assert price is not None
    machines: dict[str, list[dict[str, Any]]] = {}
    for segment in cost["segments"]:
        machines.setdefault(segment["machine"], []).append(segment)
    total = 0
    for segments in machines.values():
        segments.sort(key=lambda segment: segment["start_ns"])
        for before, after in pairwise(segments):
            _require(before["end_ns"] == after["start_ns"], "the segments of a machine do not touch")
        expected = cumulative_cost(price, segments[-1]["end_ns"] - segments[0]["start_ns"])
        _require(
            sum(s["cost_nanodollars"] for s in segments) == expected, "a machine's segments do not add up to its cost"
        )
        total += expected
    _require(total == parse_dollars(cost["totalUSD"]), "the machines do not add up to the total")
    parts = [cost["usefulUSD"], cost["atRiskUSD"], *cost["wastedUSD"].values()]
    _require(sum(map(Decimal, parts)) == Decimal(cost["totalUSD"]), "the categories do not add up to the total")
    _require(Decimal(cost["atRiskUSD"]) == 0, "work is at risk after the end")


def _victims(world: World, victim: str, gang: list[int]) -> list[psutil.Process]:
    if victim == "worker":
        return [psutil.Process(gang[-1])]
    processes = world.processes()
    if victim == "ray":
        return processes
    titles = [TITLES[victim]] if victim in TITLES else list(TITLES.values())
    chosen = [process for process in processes if any(title in _title(process) for title in titles)]
    _require(len(chosen) == len(titles), f"looked for {titles}, found {chosen}")
    return chosen


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _wait_for_step(world: World, name: str, step: int, attached: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        _require(attached.poll() is None, "submit ended before the kill")
        try:
            if world.client.get("default", name)["status"]["progress"]["step"] >= step:
                return
        except (OrchestrateError, FileNotFoundError):
            pass  # not submitted yet
        time.sleep(LOOK_SECONDS)
    raise Broken(f"{name} did not reach step {step}")


def _finished(attached: subprocess.Popen[str]) -> str:
    try:
        said, _ = attached.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(attached.pid, signal.SIGKILL)
        said, _ = attached.communicate()
        raise Broken(f"submit did not end within {PATIENCE_SECONDS} s:\n{said}") from None
    return said


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


def main() -> int:
    parser = arguments(__doc__, samples=5)
    parser.add_argument("--victim", action="append", choices=VICTIMS, help="only this one (may be repeated)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    given = parser.parse_args()
    samples = Samples("kills")
    broken = 0
    with tempfile.TemporaryDirectory(prefix="bench-kills-") as folder:
        world = World(Path(folder))
        try:
            world.learn()
            for victim in given.victim or VICTIMS:
                for number in samples.missing(victim, given.samples):
                    at_step = random.Random(f"{given.seed}-{victim}-{number}").randint(1, len(world.reference) - 5)
                    try:
                        with samples.sample(victim) as sample:
                            sample.update(run_once(world, victim, f"{victim}-{number}", at_step))
                        print(json.dumps(sample), flush=True)
                    except Broken as error:
                        broken += 1
                        print(f"{victim} {number}, step {at_step}: BROKEN: {error}", flush=True)
        finally:
            stop_server(world.environ)
        if left := world.processes():
            broken += 1
            print(f"BROKEN: left after server stop: {left}")
    for victim in given.victim or VICTIMS:
        print(f"{victim:<11}{len(samples.rows(victim))} of {given.samples} kills survived as promised")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
