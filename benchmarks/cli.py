"""What a command costs: CPU of `orchestrate` verbs against a running server, beside the bare interpreter, kubectl and ray.

    python benchmarks/cli.py [--samples N] [--jobs N]

Each sample runs every command once, in turn, so that all of them meet the same machine. CPU is user and system time of
the process and its children, as the kernel counted it. Commands run as people run them: the installed console script
(the module where it is not installed), which finds the controller of its home; output goes to a file. The controller is
started by `orchestrate server start` with the fake engine, and has jobs in its list.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._plain_server import clean_environ, job_document
from benchmarks.harness import MILLISECONDS, Samples, Verdict, arguments, conclude, describe, must_run, quiet
from orchestrator.controller.client import Client

BARS_MS = {"help": 80.0, "validate": 300.0, "list": 150.0, "status": 150.0}
"""Most CPU, in milliseconds: the median of the samples."""
GOAL_VALIDATE_MS = 200.0
SLOW = ("ray",)
"""Measured in the first samples only."""
SLOW_SAMPLES = 3


def our_command() -> list[str]:
    script = Path(sys.executable).with_name("orchestrate")
    return [str(script)] if script.exists() else [sys.executable, "-m", "orchestrator.cli.main"]


def commands() -> dict[str, list[str]]:
    """Names and argument lists, ours and those beside them."""
    ours = our_command()
    table = {
        "python": [sys.executable, "-c", "pass"],
        "help": [*ours, "--help"],
        "version": [*ours, "version"],
        "validate": [*ours, "validate", "examples/sentiment/job.yaml"],
        "list": [*ours, "list"],
        "status": [*ours, "status", "job-0007"],
    }
    kubectl = shutil.which("kubectl")
    if kubectl is not None:
        table["kubectl"] = [kubectl, "version", "--client"]
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or shutil.which("ray")
    if ray is not None:
        table["ray"] = [ray, "--help"]
    return table


@contextmanager
def controller(home: Path) -> Iterator[dict[str, str]]:
    """A controller of this machine, started and stopped as people do it; the environment in which commands find it."""
    environ = {
        **clean_environ(),
        "ORCHESTRATE_HOME": str(home),
        "ORCHESTRATE_ENGINE": "fake",
        "ORCHESTRATE_PORT": "0",
        "ORCHESTRATE_CPUS": "64",
    }
    must_run([*our_command(), "server", "start"], environ=environ)
    try:
        yield environ
    finally:
        must_run([*our_command(), "server", "stop"], environ=environ)


def take(samples: Samples, kind: str, table: Mapping[str, list[str]], environ: Mapping[str, str], number: int) -> None:
    with samples.sample(kind) as sample:
        runs = {
            name: must_run(command, environ=environ)
            for name, command in table.items()
            if name not in SLOW or number < SLOW_SAMPLES
        }
        sample["cpu_ms"] = {name: round(run.cpu_seconds * MILLISECONDS, 2) for name, run in runs.items()}
        sample["wall_ms"] = {name: round(run.wall_seconds * MILLISECONDS, 2) for name, run in runs.items()}


def main() -> int:
    parser = arguments(__doc__, samples=15)
    parser.add_argument("--jobs", type=int, default=50, help="jobs that the server lists (default 50)")
    given = parser.parse_args()
    samples = Samples("cli")
    kind = f"{given.jobs} jobs"
    missing = samples.missing(kind, given.samples)
    if missing:
        table = commands()
        with tempfile.TemporaryDirectory(prefix="bench-cli-") as folder, controller(Path(folder)) as environ:
            facts = json.loads((Path(folder) / "server.json").read_text(encoding="utf-8"))
            client = Client(facts["url"], (Path(folder) / "token").read_text(encoding="ascii").strip())
            for number in range(max(given.jobs, 8)):
                client.submit(job_document(f"job-{number:04}", steps=20))
            for command in table.values():  # fills the bytecode and page caches, and shows that each works
                must_run(command, environ=environ)
            for number in missing:
                take(samples, kind, table, environ, number)
    return report(samples.rows(kind))


def report(rows: list[dict[str, Any]]) -> int:
    cpu: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row["sample"]["cpu_ms"].items():
            cpu.setdefault(name, []).append(value)
    for name, values in cpu.items():
        print(f"{name:<9} {describe(values, 'ms CPU')}")
    calm = [row["sample"]["wall_ms"] for row in rows if quiet(row)]
    if calm:
        print("wall, quiet machine:", {name: round(median(wall[name] for wall in calm)) for name in BARS_MS})
    verdicts = [Verdict(name, bar, median(cpu[name]), "ms CPU", len(cpu[name])) for name, bar in BARS_MS.items()]
    print(f"goal: {Verdict('validate', GOAL_VALIDATE_MS, median(cpu['validate']), 'ms CPU', len(cpu['validate']))}")
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
