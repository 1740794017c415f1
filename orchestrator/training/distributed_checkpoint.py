"""Writes a checkpoint as one of torch's distributed checkpoints (DCP), which FSDP and the like load at any world size.

What is in it: `model`, every parameter under its names, trained ones as their float32 masters, then frozen ones and
buffers; `optimizer`, in the form of `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`: `state` by parameter
name, and `param_groups`. Reference: torch.distributed.checkpoint, `SavePlanner`.

torch's writer asks for one tensor after the other, and each is read when it is asked for: memory holds one tensor, not the
model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import storage
from orchestrator.training.deepspeed_state import MASTER, STEP
from orchestrator.training.exporting import (
    DCP,
    KIND_OF,
    MARK,
    Exported,
    Source,
    counted,
    elements,
    group_values,
    provenance,
    write_json,
    written_aside,
)
from orchestrator.training.fragments import BUFFER

if TYPE_CHECKING:
    import torch


def export_distributed(source: Source, folder: Path, *, dtype: str | None = None, force: bool = False) -> Exported:
    """Model and optimizer for `torch.distributed.checkpoint.load`. Raises Conflict, StorageError, UsageError.

    `dtype`: float32 or bfloat16 for the weights; None keeps masters in float32. The optimizer's state stays as it is.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors: dict[str, Callable[[], torch.Tensor]] = {}
    document = _document(source, dtype, tensors)
    with written_aside(folder, force) as partial:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            save(
                document,
                storage_writer=FileSystemWriter(partial, sync_files=True),
                planner=_planner(tensors),
                no_dist=True,
            )
        write_json(partial / MARK, provenance(source, DCP))
    return counted(folder, [])


def _document(source: Source, dtype: str | None, tensors: dict[str, Callable[[], torch.Tensor]]) -> dict[str, Any]:
    """The state as DCP nests it, of tensors without content; `tensors` gets what reads each, by its flattened name."""
    import torch

    def add(place: str, parameter: storage.Parameter, kind: str, wanted: str) -> torch.Tensor:
        tensors[place] = lambda: _read(source, parameter, kind, wanted)
        return torch.empty(parameter.shape, dtype=getattr(torch, wanted), device="meta")

    model = {}
    for parameter in source.parameters:
        kind = KIND_OF[parameter.role]
        held = source.ranges.dtype(parameter.name, kind)
        wanted = held if dtype is None or parameter.role == BUFFER else dtype
        for name in (parameter.name, *parameter.aliases):
            model[name] = add(f"model.{name}", parameter, kind, wanted)
    by_name = {parameter.name: parameter for parameter in source.parameters}
    optimizer = source.scalars["optimizer"]
    state: dict[str, Any] = {}
    groups = []
    for group in optimizer["groups"]:
        for name in group["members"]:
            step = optimizer["steps_of"].get(name, optimizer["steps"])
            state[name] = {} if step is None else {STEP: torch.tensor(float(step))}
            for kind in group["kinds"]:
                if kind != MASTER:
                    held = source.ranges.dtype(name, kind)
                    state[name][kind] = add(f"optimizer.state.{name}.{kind}", by_name[name], kind, held)
        groups.append(group_values(group["values"]) | {"params": list(group["members"])})
    return {"model": model, "optimizer": {"state": state, "param_groups": groups}}


def _read(source: Source, parameter: storage.Parameter, kind: str, dtype: str) -> torch.Tensor:
    import torch

    content = bytearray()
    for piece in elements(source, parameter, kind, dtype):
        content += piece
    flat = torch.frombuffer(content, dtype=getattr(torch, dtype)) if content else torch.empty(0)
    return flat.to(getattr(torch, dtype)).reshape(parameter.shape)


def _planner(tensors: Mapping[str, Callable[[], torch.Tensor]]) -> Any:
    """torch's own planner, which takes what has no content yet from `tensors`."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    class Reading(DefaultSavePlanner):
        def lookup_object(self, index: Any) -> Any:
            read = tensors.get(index.fqn)
            return super().lookup_object(index) if read is None else read()

    return Reading()
