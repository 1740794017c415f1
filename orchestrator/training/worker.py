"""What an engine calls once per rank: `run(assignment, link)`.

The caller is a torchrun process or a thread of a Ray actor. So: no signal handlers, no process exit, and a process group
that may exist already.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.clock import Clock, SystemClock
from orchestrator.domain.errors import StorageError
from orchestrator.storage import is_full
from orchestrator.training import environment
from orchestrator.training.agreement import Peers
from orchestrator.training.assignment import Assignment, read_assignment
from orchestrator.training.errors import Reason, WorkerFailed, config_invalid, out_of_memory
from orchestrator.training.hardware import choose_precision
from orchestrator.training.link import Link
from orchestrator.training.reporting import Reporter
from orchestrator.training.saving import as_worker_failure


def run(assignment: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Train this rank's part of the job; the result of rank 0 counts.

    Returns outcome, reason, step, metrics and model_uri. Raises WorkerFailed for what is understood; anything else is a
    defect or the user's own exception.
    """
    clock: Clock = SystemClock()
    environ = environment.process_environment()
    rank, local_rank, world_size, _ = environment.ranks(environ)
    try:
        work = read_assignment(assignment)
        for variable in work.spec.runtime.env:
            environ[variable.name] = variable.value or ""
        environment.prepare(work.run_dir, work.threads, environ, clean_locks=local_rank == 0)
        return _run(work, Reporter(link, clock, rank), rank, local_rank, world_size)
    except WorkerFailed:
        raise
    except StorageError as error:
        raise as_worker_failure(error, error.__cause__) from error
    except OSError as error:
        if is_full(error):
            where = error.filename2 or error.filename  # of a copy, the second is the new file
            raise WorkerFailed(
                Reason.STORAGE_FULL, f"cannot write {where}: {error.strerror}", "make room there, or use a larger disk"
            ) from error
        raise
    except (MemoryError, RuntimeError) as error:
        failure = out_of_memory(error)
        if failure is None:
            raise
        raise failure from error
    finally:
        link.close()


def _run(work: Assignment, reporter: Reporter, rank: int, local_rank: int, world_size: int) -> dict[str, Any]:
    environ = environment.process_environment()
    with reporter.stage("imports"):
        import torch

        gpu = work.spec.workers.gpus > 0
        if gpu and not torch.cuda.is_available():
            raise config_invalid(
                f"spec.workers.gpus is {work.spec.workers.gpus}, but torch sees no GPU on {socket.gethostname()}",
                "set it to 0 to train on the CPU, or look at the driver and at torch's build (torch.version.cuda)",
            )
        deepspeed = environment.import_deepspeed(environ, cpu=not gpu)
        from orchestrator.training import context, models, trainer

        if work.spec.entrypoint is None:
            models.quiet()
    torch.set_num_threads(work.threads)
    hardware = environment.detect(torch, local_rank, gpu=gpu)
    if work.spec.entrypoint is not None:
        precision, why = "own", "the user's function decides"
    else:
        precision, why = choose_precision(
            work.spec.model.precision if work.spec.model is not None else "Auto", hardware
        )
    device = trainer.compute_device(torch, local_rank, gpu=gpu)
    reporter.every(
        "started",
        rank=rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        device=device,
        precision=precision,
        precision_reason=why,
    )
    with reporter.stage("process_group"):
        trainer.start_group(torch, deepspeed, device)
    peers = Peers(torch, rank, world_size, device)
    if str(work.working_dir) not in sys.path:
        sys.path.insert(0, str(work.working_dir))
    if work.spec.entrypoint is not None:
        return context.call(context.Context(work, reporter, peers, torch, local_rank), work.spec.entrypoint.function)
    return trainer.Trainer(work, reporter, peers, torch, deepspeed, precision).run()
