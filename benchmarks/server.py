"""What a server with a long past costs: CPU of `list` and `status` with 10,000 ended jobs in the journal.

    python benchmarks/server.py [--samples N] [--jobs N] [--requests N]

The jobs are made by the real controller, driven in this process through the fake engine, so that every record, story
and ledger is what it would be; the journal is then served by a controller process that is started for each sample.
Measured are: every page of the whole list once, by a server that has just started (reported, no bar); then the first
page (500 jobs), and the status of jobs all over the past, again and again, as people and dashboards ask. Requests come
one after the other on connections of their own, as commands make them; the server's CPU clock is read between them, so
that a request is charged with everything the server did since the one before.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._plain_server import PlainServer, job_document
from benchmarks.harness import (
    MILLISECONDS,
    CpuClock,
    Samples,
    Verdict,
    arguments,
    conclude,
    describe,
    percentile,
)
from orchestrator.controller.core import Controller
from orchestrator.controller.home import Home
from orchestrator.controller.hosts import LocalHost, Room
from orchestrator.controller.journal.sqlite import SqliteJournal
from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.fake import PRETEND, FakeEngine
from orchestrator.platforms.prices import load_prices

BAR_MS = 50.0
LIST_LIMIT = 500
STEPS = 20
SUBMITTERS = 8
WARM_UP = 10


def make_history(folder: Path, jobs: int) -> int:
    """Run `jobs` pretended jobs to their end; the bytes of the journal."""
    home = Home(folder)
    home.prepare()
    clock = SystemClock()
    journal = SqliteJournal(home.journal_file)
    host = LocalHost(FakeEngine, clock, Room(cpus=64, gpus=0))
    controller = Controller(journal, host, clock, load_prices(None), home, engine="fake", worker_loop=PRETEND)
    controller.start()

    def submit(first: int) -> None:
        for number in range(first, jobs, SUBMITTERS):
            controller.submit(job_document(f"job-{number:05}", STEPS))

    threads = [threading.Thread(target=submit, args=(first,)) for first in range(SUBMITTERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    version = 0
    while controller.info()["activeJobs"]:
        version = controller.wait_for_change(version, 5.0)
    wrong = [record.name for record in controller.jobs() if record.state.phase != "Succeeded"]
    size = journal.size_bytes()
    controller.close()
    if wrong or len(list(home.jobs.iterdir())) > jobs:
        sys.exit(f"{len(wrong)} jobs did not succeed, such as {wrong[:3]}")
    return size


def measure(server: PlainServer, clock: CpuClock, paths: Sequence[str]) -> tuple[list[float], list[float]]:
    """CPU and wall milliseconds of one GET of each path, in order."""
    cpu, wall = [], []
    for number, path in enumerate([paths[0]] * WARM_UP + list(paths)):
        before, begun = clock.seconds(), time.perf_counter()
        server.get(path)
        took, used = time.perf_counter() - begun, clock.seconds() - before
        if number >= WARM_UP:
            cpu.append(round(used * MILLISECONDS, 3))
            wall.append(round(took * MILLISECONDS, 3))
    return cpu, wall


def walk(server: PlainServer, clock: CpuClock) -> tuple[list[float], int]:
    """CPU milliseconds of each page of the whole list, read once by a server that has just started; and the jobs seen."""
    cpu: list[float] = []
    seen: set[str] = set()
    query = f"limit={LIST_LIMIT}"
    while True:
        before = clock.seconds()
        body, _ = server.get(f"/v1/trainingjobs?{query}")
        cpu.append(round((clock.seconds() - before) * MILLISECONDS, 3))
        page = json.loads(body)
        seen |= {item["metadata"]["uid"] for item in page["items"]}
        if not page["metadata"].get("continue"):
            return cpu, len(seen)
        query = f"limit={LIST_LIMIT}&continue={page['metadata']['continue']}"


def main() -> int:
    parser = arguments(__doc__, samples=3)
    parser.add_argument("--jobs", type=int, default=10_000, help="ended jobs in the journal (default 10,000)")
    parser.add_argument("--requests", type=int, default=300, help="requests of each kind in a sample (default 300)")
    given = parser.parse_args()
    samples = Samples("server")
    kind = f"{given.jobs} jobs"
    missing = samples.missing(kind, given.samples)
    if missing:
        folder = Path(tempfile.mkdtemp(prefix="bench-server-"))
        try:
            print(f"making {given.jobs:,} jobs; this takes a minute or two")
            journal_bytes = make_history(folder, given.jobs)
            for _ in missing:
                take(samples, kind, folder, given.jobs, given.requests, journal_bytes)
        finally:
            shutil.rmtree(folder)
    return report(samples, kind)


def take(samples: Samples, kind: str, folder: Path, jobs: int, requests: int, journal_bytes: int) -> None:
    with samples.sample(kind) as sample, PlainServer(folder) as server:
        clock = CpuClock(server.pid)
        pages_cpu, listed = walk(server, clock)
        if listed != jobs:
            sys.exit(f"the pages hold {listed} of {jobs} jobs")
        list_path = f"/v1/trainingjobs?limit={LIST_LIMIT}"
        status_paths = [
            f"/v1/namespaces/default/trainingjobs/job-{number * jobs // requests:05}" for number in range(requests)
        ]
        list_cpu, list_wall = measure(server, clock, [list_path] * requests)
        status_cpu, status_wall = measure(server, clock, status_paths)
        sample |= {
            "start_wall_ms": round(server.start_wall_seconds * MILLISECONDS),
            "start_cpu_ms": round(server.start_cpu_seconds * MILLISECONDS),
            "journal_bytes": journal_bytes,
            "list_bytes": len(server.get(list_path)[0]),
            "pages_cpu_ms": pages_cpu,
            "list_cpu_ms": list_cpu,
            "status_cpu_ms": status_cpu,
            "list_wall_p99_ms": percentile(list_wall, 99),
            "status_wall_p99_ms": percentile(status_wall, 99),
        }


def report(samples: Samples, kind: str) -> int:
    rows = [row["sample"] for row in samples.rows(kind)]
    verdicts = []
    pages = [value for row in rows for value in row["pages_cpu_ms"]]
    print(f"each page of the whole list, cold: CPU of the server {describe(pages, 'ms')}; the first {pages[0]} ms")
    for verb in ("list", "status"):
        cpu = [value for row in rows for value in row[f"{verb}_cpu_ms"]]
        walls = [row[f"{verb}_wall_p99_ms"] for row in rows]
        print(f"{verb}: CPU of the server {describe(cpu, 'ms')}; wall p99 of each sample {walls} ms")
        verdicts.append(Verdict(verb, BAR_MS, percentile(cpu, 99), "ms CPU", len(cpu), "p99"))
    print(f"start: wall {[row['start_wall_ms'] for row in rows]} ms, CPU {[row['start_cpu_ms'] for row in rows]} ms")
    last = rows[-1]
    print(f"journal: {last['journal_bytes']:,} bytes; a list of {LIST_LIMIT}: {last['list_bytes']:,} bytes")
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
