"""What an engine calls once per rank: `run(assignment, link)`.

The caller is a torchrun process, a thread of a Ray actor, or a process of the native engine. So: no signal handlers, no
process exit, and a process group that may exist already.

The native engine calls more: `preload` once in a process of which workers are copied, `warm` in each worker before it has a
rank, and `run` with what `warm` gave. Everything that needs no rank is done by then. Where processes go on from one world to
the next it calls `recycle` between two runs.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.domain.clock import Clock, SystemClock
from orchestrator.domain.errors import StorageError
from orchestrator.storage import is_full
from orchestrator.training import environment
from orchestrator.training.agreement import Peers
from orchestrator.training.assignment import Assignment, read_assignment
from orchestrator.training.errors import Reason, WorkerFailed, config_invalid, out_of_memory
from orchestrator.training.hardware import choose_precision
from orchestrator.training.link import Link, Memory
from orchestrator.training.reporting import Reporter
from orchestrator.training.saving import as_worker_failure

if TYPE_CHECKING:
    from orchestrator.training.warming import Warm


def preload() -> None:
    """Import what workers on the CPU need, in a process that will be copied by forks: no thread is left running."""
    environ = environment.process_environment()
    environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's would else start its threads at import
    environment.quiet(environ)
    from orchestrator.training.warming import import_all

    import_all(environ)


def warm(assignment: Mapping[str, Any], env: Mapping[str, str]) -> Warm:
    """Do in this process all that needs no rank: imports, data, model, and a rehearsal of the first steps.

    `env`: variables of the environment to set first. Raises what `run` would.
    """
    from orchestrator.training.warming import make_ready

    environ = environment.process_environment()
    environ.update(env)
    with _classified():
        work = _begin(assignment, clean_locks=False)
        done = make_ready(work, environ, SystemClock())
    gc.collect()
    gc.freeze()  # what is here by now stays: later collections, of which DeepSpeed makes many, need not look at it
    return done


def recycle(assignment: Mapping[str, Any], warm: Warm) -> Warm:
    """After a run in this process that has regrouped or lost its peers: take its world down, test that nothing of it is left,
    and make the model again. Raises when the process is not fit for another run; what it holds is then of no use."""
    from orchestrator.training.warming import make_ready_again

    with _classified():
        return make_ready_again(read_assignment(assignment), warm, SystemClock())


def run(assignment: Mapping[str, Any], link: Link, warm: Warm | None = None) -> dict[str, Any]:
    """Train this rank's part of the job; the result of rank 0 counts.

    `warm`: what the function of that name gave in this process, for the same job; used up. Returns outcome, reason, step,
    metrics and model_uri. Raises WorkerFailed for what is understood; anything else is a defect or the user's own exception.
    """
    clock: Clock = SystemClock()
    environ = environment.process_environment()
    rank, local_rank, world_size, _ = environment.ranks(environ)
    try:
        with _classified():
            work = _begin(assignment, clean_locks=warm is None and local_rank == 0)
            return _run(work, Reporter(link, clock, rank), rank, local_rank, world_size, warm)
    finally:
        link.close()


def _begin(assignment: Mapping[str, Any], *, clean_locks: bool) -> Assignment:
    """The assignment, read, and the environment that it asks for."""
    environ = environment.process_environment()
    work = read_assignment(assignment)
    for variable in work.spec.runtime.env:
        environ[variable.name] = variable.value or ""
    environment.prepare(work.run_dir, work.threads, environ, clean_locks=clean_locks)
    if str(work.working_dir) not in sys.path:
        sys.path.insert(0, str(work.working_dir))
    return work


@contextmanager
def _classified() -> Iterator[None]:
    """What is understood leaves as WorkerFailed."""
    try:
        yield
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


def _run(
    work: Assignment, reporter: Reporter, rank: int, local_rank: int, world_size: int, warm: Warm | None
) -> dict[str, Any]:
    environ = environment.process_environment()
    if warm is not None:
        for stage, seconds in warm.seconds.items():
            reporter.first("stage", stage=stage, seconds=seconds, warm=True)
        if warm.notes:
            reporter.every("log", rank=rank, lines=list(warm.notes))
    with reporter.stage("imports"):
        import torch

        gpu = work.spec.workers.gpus > 0
        if gpu and not torch.cuda.is_available():
            raise config_invalid(
                f"spec.workers.gpus is {work.spec.workers.gpus}, but torch sees no GPU on {socket.gethostname()}",
                "set it to 0 to train on the CPU, or look at the driver and at torch's build (torch.version.cuda)",
            )
        deepspeed = environment.import_deepspeed(environ, cpu=not gpu)
        from orchestrator.training import context, models, trainer, world

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
    device = world.compute_device(torch, local_rank, gpu=gpu)
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
        world.start_group(torch, deepspeed, device, environ, f"{work.uid}/{work.attempt}")
    reporter.own_work.listen(torch, device)
    peers = Peers(torch, rank, world_size, device)
    generation = environment.generation(environ)
    if work.spec.entrypoint is not None:
        mine = context.Context(work, reporter, peers, torch, local_rank, generation)
        reporter.runs()
        return context.call(mine, work.spec.entrypoint.function)
    memory: Memory | None = getattr(reporter.link, "memory", None)
    own = trainer.Trainer(
        work,
        reporter,
        peers,
        torch,
        deepspeed,
        precision,
        ready=None if warm is None else warm.ready,
        memory=memory,
        generation=generation,
    )
    if warm is not None:
        warm.ready, warm.trainer = None, own
    return own.run()
