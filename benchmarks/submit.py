"""Submitting 1,000 jobs over the REST API: how fast, how many bytes of journal, and whether kill -9 loses or doubles one.

    python benchmarks/submit.py [--samples N] [--jobs N] [--kills K] [--seed S]

Two kinds of sample. `calm`: nobody disturbs the server. `kills`: the server is killed with SIGKILL K times at random
moments, once right after the last acknowledgement, and started again over its journal; clients repeat a submit that got
no answer, with the same idempotency key. In both, 100 callers then submit one job with one key at the same moment, and
in `kills` the server is killed while they do.

Whether it went well is not asked of the server: when it has stopped, the journal is opened with plain SQL. Each
acknowledged job must be there once, with the uid that the acknowledgement named, ended exactly once, as Succeeded, with
every step; every machine that it held must be released; and there must be no other job.
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._plain_server import PlainServer, job_document
from benchmarks.harness import CpuClock, Samples, Verdict, arguments, conclude, quiet
from orchestrator.controller.client import Client
from orchestrator.domain.errors import ControllerUnreachable

CALLERS = 8
BURST = 100
BURST_NAME = "burst"
STEPS = 1
SPREAD_SECONDS = 0.02
"""A kill comes up to this long after its moment, so that it meets commits and answers at every stage."""
PATIENCE_SECONDS = 180.0
ENDED = ("Succeeded", "Failed", "Cancelled")


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What a caller was told about a job."""

    name: str
    key: str
    uid: str
    result: str
    tries: int


class Callers:
    """Submit with retries, to whichever server process runs now."""

    def __init__(self, server: PlainServer) -> None:
        self._server = server
        self._up = threading.Condition()
        self._address: tuple[str, str] | None = (server.url, server.token)
        self.answers: list[Acknowledged] = []

    def moved(self, address: tuple[str, str] | None) -> None:
        """The server is down (None) or listens at another address."""
        with self._up:
            self._address = address
            self._up.notify_all()

    def submit(self, name: str, key: str) -> Acknowledged:
        """Submit until acknowledged; the same key each time."""
        deadline, tries = time.monotonic() + PATIENCE_SECONDS, 0
        while time.monotonic() < deadline:
            with self._up:
                self._up.wait_for(lambda: self._address is not None, PATIENCE_SECONDS)
                address = self._address
            if address is None:
                break
            tries += 1
            try:
                resource, result = Client(*address).submit(job_document(name, STEPS), idempotency_key=key)
            except ControllerUnreachable:
                with self._up:  # until it moves, or at once if it was a passing failure
                    self._up.wait_for(lambda tried=address: self._address != tried, 1.0)  # type: ignore[misc]
                continue
            told = Acknowledged(name, key, resource["metadata"]["uid"], result, tries)
            with self._up:
                self.answers.append(told)
                self._up.notify_all()
            return told
        raise TimeoutError(f"{name} was not acknowledged within {PATIENCE_SECONDS:.0f} s")

    def wait_for_answers(self, number: int) -> None:
        with self._up:
            if not self._up.wait_for(lambda: len(self.answers) >= number, PATIENCE_SECONDS):
                raise TimeoutError(f"only {len(self.answers)} of {number} submits were acknowledged")


def kill_and_restart(server: PlainServer, callers: Callers) -> None:
    callers.moved(None)
    server.kill()
    server.start()
    callers.moved((server.url, server.token))


def run_sample(home: Path, jobs: int, kills: int, rng: random.Random) -> dict[str, Any]:
    with PlainServer(home) as server:
        callers = Callers(server)
        pause = threading.Event()
        moments = [rng.randrange(1, jobs) for _ in range(kills - 1)] + [jobs] if kills else []
        begun, cpu_before = time.perf_counter(), CpuClock(server.pid).seconds()
        with ThreadPoolExecutor(CALLERS) as pool:
            told = [pool.submit(callers.submit, f"job-{n:04}", f"key-{n:04}") for n in range(jobs)]
            for moment in sorted(moments):
                callers.wait_for_answers(moment)
                pause.wait(rng.uniform(0.0, SPREAD_SECONDS))
                kill_and_restart(server, callers)
            acknowledged = [future.result() for future in told]
        seconds = max(1e-9, time.perf_counter() - begun)
        cpu = CpuClock(server.pid).seconds() - cpu_before if not kills else None
        until_idle(server)
        ended_seconds = time.perf_counter() - begun
        one_key = burst(callers, (lambda: kill_and_restart(server, callers)) if kills else None)
        until_idle(server)
    return {
        "jobs": jobs,
        "kills": len(moments) + bool(kills),
        "submit_seconds": round(seconds, 3),
        "submits_per_second": round(jobs / seconds, 1),
        "server_cpu_ms_per_job": None if cpu is None else round(1_000 * cpu / jobs, 2),
        "until_all_ended_seconds": round(ended_seconds, 3),
        "retried": sum(answer.tries > 1 for answer in acknowledged),
        "replayed": sum(answer.result == "replayed" for answer in acknowledged),
        "burst_retried": sum(answer.tries > 1 for answer in one_key),
        "burst_results": dict(Counter(answer.result for answer in one_key)),
        "journal_bytes_per_job": round((home / "journal.sqlite").stat().st_size / (jobs + 1)),
        **verify(home / "journal.sqlite", acknowledged, one_key),
    }


def burst(callers: Callers, disturb: Callable[[], None] | None) -> list[Acknowledged]:
    """100 callers submit one job with one key at once; `disturb` happens when the first was answered or is under way."""
    gate = threading.Barrier(BURST + 1)

    def submit(_: int) -> Acknowledged:
        gate.wait()
        return callers.submit(BURST_NAME, "one-key")

    before = len(callers.answers)
    with ThreadPoolExecutor(BURST) as pool:
        futures = [pool.submit(submit, number) for number in range(BURST)]
        gate.wait()
        if disturb is not None:
            callers.wait_for_answers(before + 1)
            disturb()
        return [future.result() for future in futures]


def until_idle(server: PlainServer) -> None:
    """Wait until the server has no active job."""
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, threading.Event()
    while json.loads(server.get("/v1/info")[0])["activeJobs"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"jobs are still active after {PATIENCE_SECONDS:.0f} s")
        pause.wait(0.05)


def verify(journal: Path, acknowledged: list[Acknowledged], one_key: list[Acknowledged]) -> dict[str, Any]:
    """Read the journal of a stopped server with plain SQL and count what is wrong."""
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        jobs = {
            uid: (name, key, json.loads(state)["phase"])
            for uid, name, key, state in connection.execute("SELECT uid, name, idempotency_key, state FROM jobs")
        }
        ends = Counter(
            uid
            for uid, before, after in connection.execute("SELECT uid, phase_before, phase_after FROM story")
            if after in ENDED and before not in ENDED
        )
        attempts = [json.loads(state)["attempt"] for (state,) in connection.execute("SELECT state FROM jobs")]
        epoch = connection.execute("SELECT epoch FROM writer").fetchone()[0]
        steps = Counter(uid for uid, _ in connection.execute("SELECT DISTINCT uid, step FROM steps"))
        open_machines: Counter[str] = Counter()
        for uid, text in connection.execute("SELECT uid, entry FROM ledger"):
            kind = json.loads(text)["kind"]
            open_machines[uid] += {"MachineHeld": 1, "MachineReleased": -1}.get(kind, 0)
        integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        connection.close()
    expected = {answer.uid: (answer.name, answer.key) for answer in [*acknowledged, *one_key]}
    names = Counter(name for name, _, _ in jobs.values())
    return {
        "lost": sum(jobs.get(uid, ("", "", ""))[:2] != told for uid, told in expected.items()),
        "doubled": sum(count - 1 for count in names.values()) + len(expected) - len(set(expected.values())),
        "unasked": len(jobs.keys() - expected.keys()),
        "not_succeeded": sum(phase != "Succeeded" for _, _, phase in jobs.values()),
        "not_ended_once": sum(ends[uid] != 1 for uid in jobs),
        "steps_missing": sum(steps[uid] != STEPS for uid in jobs),
        "machines_not_released": sum(1 for count in open_machines.values() if count),
        "burst_jobs": len({answer.uid for answer in one_key}),
        "journal_intact": integrity == "ok",
        "epochs": epoch,
        "jobs_with_more_attempts": sum(attempt > 1 for attempt in attempts),
    }


WRONGS = (
    "lost",
    "doubled",
    "unasked",
    "not_succeeded",
    "not_ended_once",
    "steps_missing",
    "machines_not_released",
)


def main() -> int:
    parser = arguments(__doc__, samples=3)
    parser.add_argument("--jobs", type=int, default=1_000, help="jobs to submit (default 1,000)")
    parser.add_argument("--kills", type=int, default=5, help="kills among the submits of a `kills` sample (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments of killing (default 1)")
    given = parser.parse_args()
    samples = Samples("submit")
    kinds = {f"calm, {given.jobs} jobs": 0, f"kills, {given.jobs} jobs, {given.kills} kills": given.kills}
    verdicts = []
    for kind, kills in kinds.items():
        for number in samples.missing(kind, given.samples):
            with tempfile.TemporaryDirectory(prefix="bench-submit-") as folder, samples.sample(kind) as sample:
                seed = given.seed + number
                sample |= {"seed": seed, **run_sample(Path(folder), given.jobs, kills, random.Random(seed))}
            print(f"{kind}: {sample}")
        verdicts += report(kind, samples.rows(kind))
    return conclude(verdicts)


def report(kind: str, rows: list[dict[str, Any]]) -> list[Verdict]:
    taken = [row["sample"] for row in rows]
    note = "" if all(map(quiet, rows)) else " (other work ran beside some: wall times do not count)"
    rates = [sample["submits_per_second"] for sample in taken]
    print(f"{kind}: {rates} submits a second{note}; {[s['journal_bytes_per_job'] for s in taken]} journal bytes a job")
    jobs = sum(sample["jobs"] for sample in taken)
    wrong = {name: sum(sample[name] for sample in taken) for name in WRONGS}
    print(f"{kind}: jobs gone wrong: {wrong}")
    verdicts = [Verdict(f"{kind}: jobs gone wrong", 0, sum(wrong.values()), "", jobs, "number")]
    unfired = sum(sample["epochs"] != sample["kills"] + 1 for sample in taken)
    verdicts.append(Verdict(f"{kind}: samples whose kills did not all fire", 0, unfired, "", len(taken), "number"))
    most = max(sample["burst_jobs"] for sample in taken)
    broken = sum(not sample["journal_intact"] for sample in taken)
    verdicts.append(Verdict(f"{kind}: jobs made by {BURST} submits with one key", 1, most, "", len(taken), "most"))
    verdicts.append(Verdict(f"{kind}: damaged journals", 0, broken, "", len(taken), "number"))
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
