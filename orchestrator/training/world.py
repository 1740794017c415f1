"""How a rank meets the others: its device, and the process group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.training import environment


def compute_device(torch: Any, local_rank: int, *, gpu: bool) -> str:
    """`cpu`, or `cuda:N` for this rank; the device becomes the current one."""
    if not gpu:
        return "cpu"
    index = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def start_group(torch: Any, deepspeed: Any, device: str, environ: Mapping[str, str], run: str = "") -> None:
    """Join torch's process group (a new one unless the launcher made it) and let DeepSpeed use it.

    A store that outlives a world is used by each generation of each `run` under a name of its own: torch itself would read
    there what an earlier generation left.
    """
    backend = "gloo" if device == "cpu" else "nccl"
    place = environment.shared_store(environ)
    if torch.distributed.is_initialized():
        pass
    elif place is None:
        torch.distributed.init_process_group(backend)
    else:
        rank, _, world_size, _ = environment.ranks(environ)
        store = torch.distributed.TCPStore(*place, is_master=False)
        store = torch.distributed.PrefixStore(f"{run}/{environment.generation(environ)}", store)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
