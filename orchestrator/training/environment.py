"""What must be set in a worker's process before torch, transformers and DeepSpeed are used. The edge to os.environ.

Runs in a torchrun process or in a thread of a Ray actor, so it installs no signal handlers and never exits the process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.training.hardware import Hardware, read_cpu_flags


def process_environment() -> MutableMapping[str, str]:
    """The process' environment; everything else takes a mapping."""
    return os.environ


def prepare(run_dir: Path, threads: int, environ: MutableMapping[str, str], *, clean_locks: bool) -> None:
    """Set what the libraries read at import: no network, no extra threads, a JIT folder of the job's own.

    `clean_locks` (one rank a machine): remove the lock files of a JIT build that was killed. With them in place every
    later run waits for ever, in silence; the folder belongs to this job alone, so nobody else can hold them.
    """
    extensions = extensions_folder(run_dir)
    environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    environ.setdefault("OMP_NUM_THREADS", str(threads))
    environ["RAYON_NUM_THREADS"] = str(threads)
    environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    quiet(environ)
    if clean_locks:
        remove_stale_locks(extensions)


def quiet(environ: MutableMapping[str, str]) -> None:
    """No network and no notices; what libraries read when they are imported."""
    environ.setdefault("HF_HUB_OFFLINE", "1")
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def extensions_folder(run_dir: Path) -> Path:
    """Where operators are built that DeepSpeed compiles when they are first used."""
    return run_dir / "torch_extensions"


@contextmanager
def builder(extensions: Path) -> Iterator[None]:
    """Hold the right to build operators in this folder, on this machine; waits for who has it.

    A kernel lock, which ends with its holder's process. So who has it may delete the lock files of builds that were killed.
    """
    extensions.mkdir(parents=True, exist_ok=True)
    with (extensions / "builder").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_stale_locks(extensions)
        yield


def remove_stale_locks(extensions: Path) -> list[Path]:
    """Delete `lock` files below a JIT folder; returns them."""
    locks = [path for path in extensions.rglob("lock") if path.is_file()]
    for lock in locks:
        lock.unlink(missing_ok=True)
    return locks


def import_deepspeed(environ: MutableMapping[str, str], *, cpu: bool) -> Any:
    """The DeepSpeed module, imported for the right accelerator, quiet, and without JIT builds that need a compiler."""
    if cpu:
        environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed 0.19 calls collectives by the names that torch 2.13 is about to retire, once a rank and run.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if cpu:
        forbid_shared_memory_op(deepspeed)
    return deepspeed


def forbid_shared_memory_op(deepspeed: Any) -> None:
    """Keep `init_distributed` from compiling `deepspeed_shm_comm`, a shared-memory all-reduce for CPUs.

    It wants ninja and a C++ compiler, takes 42 s cold, and raises where either is missing. The table is DeepSpeed's own
    (0.19 reads it in `deepspeed.comm.torch.build_shm_op`); a test holds us to it.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def detect(torch: Any, local_rank: int, *, gpu: bool) -> Hardware:
    """What this rank computes on."""
    if gpu:
        index = local_rank % torch.cuda.device_count()
        return Hardware("cuda", torch.cuda.get_device_name(index), capability=torch.cuda.get_device_capability(index))
    try:
        name, flags = read_cpu_flags(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        name, flags = "this CPU", frozenset()
    return Hardware("cpu", name, cpu_flags=flags)


def ranks(environ: Mapping[str, str]) -> tuple[int, int, int, int]:
    """(rank, local rank, world size, local world size) as the launcher set them; a lone process without them."""
    names = ("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1)
    rank, local_rank, world_size, local_world_size = (int(environ.get(name, default)) for name, default in names)
    return rank, local_rank, world_size, local_world_size


def generation(environ: Mapping[str, str]) -> int:
    """Which world of this attempt: how often the launcher began anew, under torchrun from 0; 0 where nobody counts."""
    return int(environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def shared_store(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """(host, port) of a store for rendezvous that lives outside the ranks; None where rank 0 is to serve it."""
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return environ["MASTER_ADDR"], int(environ["MASTER_PORT"])


def lone_process_defaults(environ: MutableMapping[str, str], port: int) -> None:
    """What `env://` rendezvous needs when nobody set it: one process, meeting itself."""
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**defaults, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        environ.setdefault(name, value)
