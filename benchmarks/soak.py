"""Mixed faults, one after the other, on a real DeepSpeed job: `make bench-soak`.

Three nodes of one slot on this machine, each an agent with its workers, the native engine's driver in a process of its own,
and a small encoder (benchmarks/soak.yaml). Kinds and moments of the faults are drawn from a seed: SIGKILL of a worker, of a
template, of a node with all its processes, of the driver; two or three of them within 0.3 s, so that the second meets a
world that forms; both holders of a shard at once; SIGSTOP of a worker and of a node; the connection of an agent broken, or
silent for longer than the engine bears; a notice of 30 s; another size wished for. A fault counts when the process that it
was for lived and got it. After each, training must make a step that was never made before.

At the end everything is stopped, and what is left of it counted: processes, listening ports, files in /dev/shm, lock files
of extensions that are built at run time. While it runs, memory, threads and descriptors of the driver and the agents are read
after each fault; their growth is the least-squares slope over faults within the life of each process, its first ten faults
left out. Every step's loss is held against an undisturbed run of the same job on one worker. Over thousands of steps rounding alone grows until
the runs are apart, so a third run, undisturbed on three workers, tells how soon it does.

Bars: every fault recovered from; nothing left; loss within 1e-5 (relative) over the first 50 faults; memory grows by at most
64 KiB a fault, threads and descriptors by 0.05.

`--faults N --seed S` repeats a history as far as the moments of processes repeat. What fails or takes long prints its number,
kind and the engine's story. Limits: no Ray here; see tests/cluster for that and for network namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from benchmarks._soak_cluster import LOOK_SECONDS, Cluster
from benchmarks.harness import Samples, Verdict, arguments, conclude, describe
from orchestrator.platforms.engines.native.processes import Node, agent_name

JOB = "benchmarks/soak.yaml"
NODES = 3
LOSS_FAULTS = 50
LOSS_BAR = 1e-5
WARM_FAULTS = 10
FEWEST_POINTS = 5
"""Readings of one process below which its slope says nothing."""
START_SECONDS = 180.0
PATIENCE_SECONDS = 90.0
STOP_SECONDS = 120.0
SETTLE_SECONDS = 10.0
"""How long the next fault waits, half of the time, until every node has a standby again."""
SECOND_SECONDS = 0.3
SILENT_SECONDS = 4.0
"""For a cut connection and a stopped node; the engine bears 2.5 s."""
SLOW_SECONDS = 8.0
"""The engine's story is printed of a fault that took longer."""
STORY = ("decision", "world", "world_lost", "restored", "notice", "hung", "dismiss", "checkpoint", "failed", "overdue")
WEIGHTS = {
    "worker": 6,
    "node": 3,
    "template": 2,
    "driver": 2,
    "second fault": 4,
    "driver while forming": 2,
    "three faults": 1,
    "double loss": 2,
    "worker stopped": 1,
    "node stopped": 1,
    "connection broken": 2,
    "connection silent": 1,
    "notice": 2,
    "size": 4,
}


@dataclass(slots=True)
class Fault:
    number: int
    kind: str
    step: int
    size: int = 0
    """Workers that trained when it came."""
    seconds: float = 0.0
    """Until a step that was never made before."""
    redone: int = 0
    recovered: bool = False
    injected: list[str] = field(default_factory=list)
    met: str = ""
    """The gang's state at the last of its injections."""


class Soak:
    """One run under faults."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.cluster = cluster
        self.chance = chance
        self.injected: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.readings: dict[tuple[str, int], list[tuple[int, int, int, int]]] = defaultdict(list)
        """(fault, RSS, threads, descriptors) by role and process."""
        self._later: list[tuple[float, Callable[[], None]]] = []

    def run(self, faults: int) -> None:
        if not self.cluster.until(lambda: self.cluster.step() >= 5, START_SECONDS):
            raise RuntimeError(f"training did not begin: {self.story(40)}")
        for number in range(faults):
            fault = self._play(number)
            self.faults.append(fault)
            print(
                f"{number:4} {fault.kind:22} met {fault.met:10} {fault.size} workers {fault.seconds:6.2f} s, {fault.redone} redone, "
                f"{'+'.join(fault.injected) or 'nothing to hit'}",
                flush=True,
            )
            if fault.seconds > SLOW_SECONDS:
                print("\n".join(self.story(12)), flush=True)
            if not fault.recovered:
                told = "\n".join(self.story(40))
                raise RuntimeError(
                    f"fault {number} ({fault.kind}) was not recovered from; {self.cluster.outcome}\n{told}"
                )
            self._read(number)

    def _play(self, number: int) -> Fault:
        kind = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if self.chance.random() < 0.5:
            self.cluster.until(self._settled, SETTLE_SECONDS)
        else:
            self.cluster.until(lambda: False, self.chance.random())
        self._heal()
        look = self.cluster.look()
        fault = Fault(number, kind, self.cluster.step(), len(look.get("members", ())), met=look.get("state", "?"))
        told, began = len(self.cluster.told), time.monotonic()
        self._inject(fault, look)
        fault.recovered = self.cluster.until(
            # One step may have been under way that is told yet: the next one shows that training goes on.
            lambda: self._heal() or self.cluster.step() > fault.step + 1,
            PATIENCE_SECONDS,
        )
        fault.seconds = time.monotonic() - began
        made = [event["step"] for event in self.cluster.told[told:] if event["kind"] == "step"]
        fault.redone = len(made) - len({step for step in made if step > fault.step})
        self.injected.update(fault.injected)
        return fault

    def _settled(self) -> bool:
        look = self.cluster.look()
        return look.get("state") == "steady" and len(look.get("ready", ())) >= NODES

    def _inject(self, fault: Fault, look: dict[str, Any]) -> None:
        kind = fault.kind
        match kind:
            case "worker" | "node" | "template" | "driver":
                self._one(fault, kind, look)
            case "second fault" | "three faults" | "driver while forming":
                self._one(fault, self.chance.choice(("worker", "node", "template")), look)
                for _ in range(2 if kind == "three faults" else 1):
                    time.sleep(self.chance.random() * SECOND_SECONDS)
                    look = self.cluster.look(0.2)
                    fault.met = look.get("state", "?")
                    second = self.chance.choice(("worker", "worker", "node", "template"))
                    self._one(fault, "driver" if kind == "driver while forming" else second, look)
            case "double loss":
                members = {member["node"]: member["rank"] for member in look.get("members", ())}
                both = sorted(members, key=lambda node: members[node])[:2]
                for node in [node for node in self.cluster.nodes() if node.name in both]:
                    self._kill_node(fault, node)
            case "worker stopped":
                self._one(fault, "stop", look)
            case "node stopped":
                self._stop_node(fault)
            case "connection broken":
                if (there := self._node()) is not None and self.cluster.cable.break_off(agent_name(there.name)):
                    fault.injected.append("connection broken")
            case "connection silent":
                if (there := self._node()) is not None and self.cluster.cable.cut(agent_name(there.name)):
                    fault.injected.append("connection silent")
                    agent = agent_name(there.name)
                    self._after(SILENT_SECONDS, lambda: self.cluster.cable.mend(agent))
            case "notice":
                if (there := self._node()) is not None:
                    there.process.terminate()
                    self.cluster.leaving.add(there.name)
                    fault.injected.append("notice")
            case "size":
                sizes = [size for size in range(1, NODES + 1) if size != self.cluster.size]
                self.cluster.size = self.chance.choice(sizes)
                self.cluster.command({"size": self.cluster.size})
                fault.injected.append("size")

    def _one(self, fault: Fault, what: str, look: dict[str, Any]) -> None:
        if what == "driver":
            if self.cluster.kill_driver():
                fault.injected.append("driver killed")
            return
        if what == "node":
            if (node := self._node()) is not None:
                self._kill_node(fault, node)
            return
        if what == "template":
            pids = [pid for node in self.cluster.nodes() if (pid := _template(node)) is not None]
        else:
            pids = [member["pid"] for member in look.get("members", ()) if member["pid"]]
        if pids:
            number = signal.SIGSTOP if what == "stop" else signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), number)
                fault.injected.append("worker stopped" if what == "stop" else f"{what} killed")

    def _kill_node(self, fault: Fault, node: Node) -> None:
        if not node.alive:
            return
        for process in _family(node):  # all at once, as the machine would go
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.process.wait()
        fault.injected.append("node killed")

    def _stop_node(self, fault: Fault) -> None:
        node = self._node()
        if node is None:
            return
        family = _family(node)
        _signal(family, signal.SIGSTOP)
        fault.injected.append("node stopped")
        self._after(SILENT_SECONDS, lambda: _signal(family, signal.SIGCONT))

    def _node(self) -> Node | None:
        there = [node for node in self.cluster.nodes() if node.alive and node.name not in self.cluster.leaving]
        return self.chance.choice(there) if there else None

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, what))

    def _heal(self) -> bool:
        now = time.monotonic()
        for due in [one for one in self._later if one[0] <= now]:
            self._later.remove(due)
            due[1]()
        return False

    def heal_all(self) -> None:
        while self._later:
            self._heal()
            time.sleep(LOOK_SECONDS)

    def _read(self, number: int) -> None:
        processes = [("driver", self.cluster.driver.pid), *(("agent", node.pid) for node in self.cluster.nodes())]
        for role, pid in processes:
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                row = (number, process.memory_info().rss, process.num_threads(), process.num_fds())
                self.readings[role, pid].append(row)

    def growth(self, role: str, column: int) -> float:
        """A fault, pooled over the lives of the processes of this role; 0 when none lived long enough."""
        above = below = 0.0
        for (found, _), rows in self.readings.items():
            points = [(row[0], row[column]) for row in rows[WARM_FAULTS:]] if found == role else []
            if len(points) >= FEWEST_POINTS:
                x_mean, y_mean = fmean(x for x, _ in points), fmean(y for _, y in points)
                above += sum((x - x_mean) * (y - y_mean) for x, y in points)
                below += sum((x - x_mean) ** 2 for x, _ in points)
        return above / below if below else 0.0

    def story(self, lines: int) -> list[str]:
        events = [event for event in list(self.cluster.told) if event["kind"] in STORY]
        logs = [line for event in self.cluster.of_kind("log") for line in event["lines"]]
        return [*(json.dumps(event)[:400] for event in events[-lines:]), *logs[-lines:]]


def _signal(family: Sequence[psutil.Process], number: int) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _family(node: Node) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        agent = psutil.Process(node.pid)
        return [agent, *agent.children(recursive=True)]
    return []


def _template(node: Node) -> int | None:
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(node.pid).children():
            if any(part.endswith("native.template") for part in child.cmdline()):
                return int(child.pid)
    return None


def _files() -> set[str]:
    """What a run could leave outside its folder: shared memory, and locks of extensions that are built at run time."""
    locks = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions")).rglob("lock")
    return {*os.listdir("/dev/shm"), *map(str, locks)}  # noqa: S108 - looked at, not written


@contextlib.contextmanager
def running(folder: Path, nodes: int, size: int) -> Iterator[tuple[Cluster, dict[str, Any]]]:
    """A cluster, which is stopped at the end; what was left then is filled in."""
    folder.mkdir()
    before, left = _files(), dict[str, Any]()
    cluster = Cluster(JOB, folder, nodes, size)
    try:
        yield cluster, left
        cluster.stop(STOP_SECONDS)
        end = time.monotonic() + SETTLE_SECONDS
        while (processes := list(cluster.left())) and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        told = [f"{process.pid} {' '.join(process.cmdline())}"[:200] for process in processes]
        left["processes"] = told
        left["ports"] = [str(c.laddr) for p in processes for c in p.net_connections() if c.status == "LISTEN"]
        left["files"] = sorted(_files() - before)
        left["outcome"] = None if cluster.outcome is None else cluster.outcome["reason"]
    finally:
        cluster.close()


def losses(cluster: Cluster) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in cluster.of_kind("step")]


def undisturbed(folder: Path, steps: int, workers: int) -> dict[int, float]:
    """Losses by step of so many workers that nobody disturbs."""
    with running(folder, workers, workers) as (cluster, _):
        if not cluster.until(lambda: cluster.step() >= steps, START_SECONDS + 2.0 * steps):
            raise RuntimeError(f"the undisturbed run made {cluster.step()} of {steps} steps")
    return dict(losses(cluster))


def gap(made: Sequence[tuple[int, float]], calm: dict[int, float]) -> float:
    return max((abs(loss / calm[step] - 1) for step, loss in made), default=0.0)


def parting(made: Sequence[tuple[int, float]], calm: dict[int, float]) -> dict[str, int]:
    """From which step on two runs are apart by more than 1e-7, 1e-6 and so on. Rounding grows from step to step; a sample that
    is left out or counted twice shows as decades that are passed at once."""
    passed: dict[str, int] = {}
    for step, loss in sorted(made):
        apart = abs(loss / calm[step] - 1)
        for decade in range(-7, 1):
            if apart > 10.0**decade:
                passed.setdefault(f"1e{decade}", step)
    return passed


def measure(folder: Path, faults: int, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    with running(folder / "soak", NODES, NODES) as (cluster, left):
        soak = Soak(cluster, random.Random(seed))
        soak.run(faults)
        soak.heal_all()
    seconds = time.monotonic() - began
    made = losses(cluster)
    steps = max(step for step, _ in made)
    calm = undisturbed(folder / "calm", steps, 1)
    # Rounding alone: as many workers as there are nodes, and no fault.
    three = undisturbed(folder / "rounding", steps, NODES)
    rounding = parting([(step, loss) for step, loss in three.items() if step <= steps], calm)
    until = soak.faults[min(LOSS_FAULTS, len(soak.faults)) - 1].step
    restored = Counter(event["source"] for event in cluster.of_kind("restored"))
    return {
        "seed": seed,
        "faults": len(soak.faults),
        "injected": dict(soak.injected),
        "met": dict(Counter(fault.met for fault in soak.faults)),
        "recovered": sum(fault.recovered for fault in soak.faults),
        "seconds": seconds,
        "to_useful": [round(fault.seconds, 3) for fault in soak.faults],
        "kinds": [fault.kind for fault in soak.faults],
        "sizes": [fault.size for fault in soak.faults],
        "redone": [fault.redone for fault in soak.faults],
        "restored": dict(restored),
        "worlds": len(cluster.of_kind("world")),
        "steps": steps,
        "gap": gap([one for one in made if one[0] <= until], calm),
        "gap_all": gap(made, calm),
        "parting": parting(made, calm),
        "parting_by_rounding": rounding,
        "left": left,
        "growth": {
            role: {name: soak.growth(role, column) for column, name in enumerate(("rss", "threads", "fds"), 1)}
            for role in ("driver", "agent")
        },
    }


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--faults", type=int, default=300, metavar="N", help="faults of a run (default 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first sample (default 0)")
    given = parser.parse_args()
    samples = Samples("soak")
    kind = f"{given.faults} faults from seed {given.seed}"
    for number in samples.missing(kind, given.samples):
        seed = given.seed + number
        print(f"seed {seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-soak-") as folder, samples.sample(kind) as sample:
            sample |= measure(Path(folder), given.faults, seed)
    return report([row["sample"] for row in samples.rows(kind)])


def report(taken: list[dict[str, Any]]) -> int:
    for sample in taken:
        print(f"seed {sample['seed']}: {sample['faults']} faults, {sample['worlds']} worlds, {sample['seconds']:.0f} s")
        print(f"    injected {sample['injected']}; met {sample['met']}; state from {sample['restored']}")
        print(f"    to the next useful step: {describe(sample['to_useful'], 's')}; redone {sum(sample['redone'])}")
        print(f"    growth a fault {sample['growth']}; left {sample['left']}; loss over all: {sample['gap_all']:.3g}")
        print(f"    apart from one worker, from step: {sample['parting']}")
        print(f"    the same, {NODES} workers undisturbed:  {sample['parting_by_rounding']}")
    faults = sum(sample["faults"] for sample in taken)
    left = sum(len(sample["left"][name]) for sample in taken for name in ("processes", "ports", "files"))
    verdicts = [
        Verdict("faults not recovered from", 0, faults - sum(s["recovered"] for s in taken), "", faults, "count"),
        Verdict("processes, ports, files left", 0, left, "", len(taken), "count"),
        Verdict("loss over the first 50 faults", LOSS_BAR, max(s["gap"] for s in taken), "", len(taken), "worst"),
    ]
    for role in ("driver", "agent"):
        for name, bar, unit in (("rss", 65_536, "bytes"), ("threads", 0.05, ""), ("fds", 0.05, "")):
            worst = max(sample["growth"][role][name] for sample in taken)
            verdicts.append(Verdict(f"growth of a {role}'s {name} a fault", bar, worst, unit, len(taken), "worst"))
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
