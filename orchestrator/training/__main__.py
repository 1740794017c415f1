"""The worker loop without an engine: `torchrun --nproc_per_node 2 -m orchestrator.training --job job.yaml --run-dir DIR`.

The same `worker.run` as under Ray. SIGTERM asks to save and stop, SIGUSR1 to save. Events go to DIR/events-RANK.jsonl.
Runs again with the same DIR resume from its newest whole checkpoint. Exit codes are those of the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.domain.errors import ExitCode, InvalidSpec, UserError
from orchestrator.training import environment
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.link import JournalLink
from orchestrator.training.worker import run

LONE_PROCESS_PORT = 29_511


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.training", description="Train a job without an engine."
    )
    parser.add_argument("--job", type=Path, required=True, help="job file")
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="folder of this run; resumed when it holds checkpoints"
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE", help="override a field"
    )
    parser.add_argument("--threads", type=int, default=None, help="threads of each rank; the worker's cpus by default")
    parser.add_argument("--attempt", type=int, default=1, help="number of this run, from 1")
    options = parser.parse_args(arguments)
    from orchestrator.spec import load_file

    try:
        job = load_file(options.job, options.overrides)
    except (InvalidSpec, UserError) as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    environ = environment.process_environment()
    environment.lone_process_defaults(environ, LONE_PROCESS_PORT)
    rank, _, world_size, _ = environment.ranks(environ)
    run_dir = options.run_dir.resolve()
    link = JournalLink(run_dir / f"events-{rank}.jsonl", sys.stderr if rank == 0 else None)
    signal.signal(signal.SIGTERM, lambda *_: link.wish_stop())
    signal.signal(signal.SIGUSR1, lambda *_: link.wish_checkpoint())
    uri = job.spec.checkpoint.uri
    base = options.job.resolve().parent
    working_dir = base / (job.spec.runtime.working_dir or "")
    assignment = {
        "job": {"namespace": job.metadata.namespace, "name": job.metadata.name, "uid": run_dir.name},
        "spec": job.model_dump(mode="json", by_alias=True, exclude_none=True),
        "attempt": options.attempt,
        "workers": world_size,
        "world_size": world_size,
        "run_dir": str(run_dir),
        "checkpoint_uri": uri if uri is not None else str(run_dir / "checkpoints"),
        "working_dir": str(working_dir),
        "threads": options.threads or job.spec.workers.cpus,
    }
    try:
        result = run(assignment, link)
    except WorkerFailed as error:
        sys.stderr.write(f"rank {rank}: {error}\n")
        return ExitCode.JOB_FAILED
    finally:
        _leave_group()
    if rank == 0:
        sys.stdout.write(json.dumps(result) + "\n")
    return ExitCode.OK


def _leave_group() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # DeepSpeed keeps process groups whose gloo threads, now and then, abort an ordinary interpreter exit (SIGABRT after
    # the work is done). All files are closed and synced; this process is ours alone, so leave at once.
    os._exit(code)
