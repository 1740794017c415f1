"""Twenty no-op jobs through the real engine, with SIGKILLs of the controller meanwhile: `make bench-real_submits`.

The jobs are submitted one after the other with idempotency keys, detached; the queue runs as many as there are CPUs. The
controller's process is killed several times while they run, and Ray starts it anew. At the end the journal is opened with
plain SQL: each acknowledged job must be there once, with the acknowledged uid, and have ended once, as Succeeded.
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude
from benchmarks.kills import TITLES, World
from benchmarks.throughput import stop_server
from orchestrator.controller.client import Client
from orchestrator.controller.local import ensure_server
from orchestrator.controller.settings import resolve
from orchestrator.domain.clock import SystemClock
from orchestrator.domain.errors import ControllerUnreachable
from orchestrator.spec import load_file

JOB = REPOSITORY / "benchmarks" / "noop" / "job.yaml"
PATIENCE_SECONDS = 900.0


def documents(count: int) -> list[dict[str, Any]]:
    document = load_file(JOB).model_dump(mode="json", by_alias=True, exclude_none=True)
    document["spec"]["runtime"]["workingDir"] = str(JOB.parent)
    return [{**document, "metadata": {**document["metadata"], "name": f"noop-{number:02}"}} for number in range(count)]


def submit_all(world: World, jobs: list[dict[str, Any]]) -> dict[str, str]:
    """Uid by name, as acknowledged; a submit without an answer is repeated with the same key."""
    acknowledged = {}
    for job in jobs:
        name = job["metadata"]["name"]
        while name not in acknowledged:
            try:
                resource, _ = world.client.submit(job, idempotency_key=f"key-{name}")
                acknowledged[name] = resource["metadata"]["uid"]
            except ControllerUnreachable:
                time.sleep(0.2)  # it was killed; Ray starts it anew
    return acknowledged


def run(world: World, count: int, kills: int, rng: random.Random) -> dict[str, Any]:
    jobs = documents(count)
    settings = resolve(world.environ, world.folder, {})
    ensure_server(settings, lambda said: None, world.environ, SystemClock())
    began = time.monotonic()
    killed = int(kill_controller(world)) if kills else 0
    acknowledged = submit_all(world, jobs)
    next_kill = time.monotonic() + rng.uniform(2, 15)
    while time.monotonic() - began < PATIENCE_SECONDS:
        phases = phases_of(world.client)
        if killed < kills and time.monotonic() >= next_kill:
            killed += kill_controller(world)
            next_kill = time.monotonic() + rng.uniform(5, 25)
        if phases is not None and killed >= kills and all(phases.get(name) == "Succeeded" for name in acknowledged):
            break
        time.sleep(0.2)
    seconds = time.monotonic() - began
    stop_server(world.environ)
    return {"jobs": count, "kills": killed, "seconds": seconds, **judge(world.folder / "journal.sqlite", acknowledged)}


def phases_of(client: Client) -> dict[str, str] | None:
    """Phase by name; None while nobody answers."""
    try:
        return {job["metadata"]["name"]: job["status"]["phase"] for job in client.list()["items"]}
    except ControllerUnreachable:
        return None


def kill_controller(world: World) -> bool:
    """SIGKILL the controller's process; False while Ray has not started it anew yet."""
    for process in world.processes():
        try:
            if TITLES["controller"] in " ".join(process.cmdline()):
                process.kill()
                return True
        except psutil.Error:
            continue
    return False


def judge(journal: Path, acknowledged: dict[str, str]) -> dict[str, Any]:
    """Ask the journal itself."""
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT uid, name, state FROM jobs").fetchall()
        query = "SELECT uid, count(*) FROM story WHERE phase_after = 'Succeeded' AND phase_before != 'Succeeded' GROUP BY uid"
        ends: dict[str, int] = dict(database.execute(query).fetchall())
    found: dict[str, list[str]] = {}
    for uid, name, _ in rows:
        found.setdefault(name, []).append(uid)
    return {
        "lost": sum(acknowledged[name] not in found.get(name, []) for name in acknowledged),
        "doubled": sum(len(uids) > 1 for uids in found.values()),
        "unended": sum(ends.get(uid, 0) != 1 for uid in acknowledged.values()),
        "attempts": sum(json.loads(state)["attempt"] for _, _, state in rows),
        "journal_bytes": sum(file.stat().st_size for file in journal.parent.glob(f"{journal.name}*")),
    }


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--jobs", type=int, default=20, help="jobs to submit (default 20)")
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs of the controller (default 5)")
    given = parser.parse_args()
    samples = Samples("real_submits")
    kind = f"{given.jobs} jobs, {given.kills} kills"
    for number in samples.missing(kind, given.samples):
        with tempfile.TemporaryDirectory(prefix="bench-real-") as folder, samples.sample(kind) as sample:
            sample |= run(World(Path(folder)), given.jobs, given.kills, random.Random(number))
    verdicts = []
    for row in samples.rows(kind):
        found = row["sample"]
        per_minute = 60 * found["jobs"] / found["seconds"]
        print(
            f"{found['jobs']} jobs in {found['seconds']:.0f} s ({per_minute:.1f} a minute), {found['kills']} kills, "
            f"{found['attempts']} attempts, journal {found['journal_bytes'] / found['jobs'] / 1024:.1f} KiB a job"
        )
        verdicts += [
            Verdict(what, 0, found[what], "jobs", found["jobs"], "count") for what in ("lost", "doubled", "unended")
        ]
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
