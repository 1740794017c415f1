"""Writes the state of a checkpoint in the forms of other programs: a model folder of transformers, a folder of DeepSpeed.
(torch's distributed checkpoints: `distributed_checkpoint`.)

It reads checkpoints of this program (layout `ranges`, and the older `deepspeed`) as well as DeepSpeed's own folders, always
by slices, so that memory does not grow with the model: a model folder needs one slice at a time, a DeepSpeed folder the
state of one rank. What is read is verified on the way, block by block.

An export is written beside its target, made durable and renamed: it is there whole, or not at all. Only an empty folder or
an earlier export is ever replaced.

Limits: float16 runs cannot be exported to DeepSpeed; a DeepSpeed folder suits an engine that groups its parameters as the
run did, in the model's order, with DeepSpeed's default `sub_group_size` and without `parameter_alignment` and
`round_robin_gradients`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator import storage
from orchestrator.domain.errors import Conflict, NotFound, StorageError, UsageError
from orchestrator.training.deepspeed_state import MASTER, STEP, TESTED
from orchestrator.training.errors import Reason, WorkerFailed
from orchestrator.training.fragments import BUFFER, FROZEN, TRAINED
from orchestrator.training.importing import is_deepspeed, read_deepspeed
from orchestrator.training.run_state import RANGES, TRAINER_FILE

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

SLICE_ELEMENTS = 4 * 1024 * 1024
SHARD_BYTES = 5_000_000_000
SAFETENSORS, DEEPSPEED, DCP = "safetensors", "deepspeed", "dcp"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
MARK = "orchestrate.json"
"""A file of every export: says where it comes from, and that the folder may be replaced."""
_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Types by the names of the safetensors format."""
_FLOATS = ("float32", "float16", "bfloat16")
KIND_OF = {TRAINED: MASTER, FROZEN: FROZEN, BUFFER: BUFFER}
SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's default `sub_group_size`."""
FLAT_ALIGNMENT = 2
"""DeepSpeed rounds a flat group up to a multiple of this times the number of ranks."""


class Ranges(Protocol):
    """Elements of parameters by name and kind; what a checkpoint's reader and a DeepSpeed folder have in common."""

    def kinds(self, name: str) -> frozenset[str]: ...
    def dtype(self, name: str, kind: str) -> str: ...
    def read_into(self, name: str, kind: str, start: int, end: int, out: memoryview) -> None: ...


@dataclass(frozen=True)
class Source:
    """One state, opened for reading."""

    uri: str
    step: int
    parameters: Sequence[storage.Parameter]
    ranges: Ranges
    scalars: Mapping[str, Any]
    """As `EngineState.scalars` gives them."""
    model_files: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    """The model's configuration and tokenizer, by name."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Exported:
    """What an export has written."""

    folder: Path
    files: int
    bytes: int
    notes: tuple[str, ...] = ()
    """What whoever uses it should know."""


# --- what is read ------------------------------------------------------------------------------------------------------
def open_source(uri: str, which: str = "latest") -> Source:
    """The state at `uri`: one checkpoint, a folder of checkpoints, or a folder of DeepSpeed. `which`: `latest`, `best`, or
    a step; for a folder of DeepSpeed `latest`, or a tag.

    Raises NotFound, UsageError and StorageError.
    """
    if "://" not in uri or uri.startswith("file://"):
        place = Path(uri.removeprefix("file://"))
        if not place.is_dir():
            raise NotFound(
                f"there is no folder {place}", hint="name a job, a folder of checkpoints or one of DeepSpeed"
            )
        if is_deepspeed(place):
            return _from_deepspeed(place, None if which == "latest" else which, uri)
    parent, _, name = uri.rstrip("/").rpartition("/")
    if name.startswith("step-"):
        listed = next((item for item in storage.open_store(parent).list() if item.uri.rstrip("/").endswith(name)), None)
        if listed is None:
            raise NotFound(f"there is no checkpoint {uri}", hint="list them with `orchestrate checkpoint list`")
        return open_checkpoint(parent, listed)
    return open_checkpoint(uri, choose(storage.open_store(uri).list(), which, uri))


def choose(found: Sequence[storage.Listed], which: str, uri: str) -> storage.Listed:
    """The checkpoint that `latest`, `best` or a step means, of a list with the newest first. Raises NotFound, UsageError."""
    whole = [item for item in found if item.whole]
    if not whole:
        what = f"{uri} has no whole checkpoint" if found else f"{uri} has no checkpoint"
        raise NotFound(what, hint="`orchestrate checkpoint list` says what is there")
    if which == "latest":
        return whole[0]
    if which == "best":
        best = next((item for item in whole if item.manifest is not None and item.manifest.best), None)
        if best is None:
            raise NotFound(f"no checkpoint of {uri} is marked best", hint="only jobs with evaluations mark one")
        return best
    if not which.isdigit():
        raise UsageError(f"{which!r} is no step", hint="write a number, best or latest")
    wanted = next((item for item in found if item.step == int(which)), None)
    steps = ", ".join(str(item.step) for item in whole[:10])
    if wanted is None:
        raise NotFound(f"{uri} has no checkpoint of step {which}", hint=f"there are {steps}")
    if not wanted.whole:
        raise StorageError(f"{wanted.uri} is not whole: {wanted.why}", hint=f"whole are {steps}")
    return wanted


def open_checkpoint(store_uri: str, listed: storage.Listed) -> Source:
    """One checkpoint of a store. Raises UsageError for states of a user's own function."""
    manifest = listed.manifest
    if manifest is None:
        raise StorageError(f"{listed.uri} is not whole: {listed.why}", hint="name another step")
    if manifest.layout == DEEPSPEED:
        return _from_deepspeed(Path(listed.uri.removeprefix("file://")) / DEEPSPEED, None, listed.uri)
    if manifest.layout != RANGES:
        raise UsageError(
            f"{listed.uri} holds states of a function of your own, which only that function can read",
            hint="let the function write its model at the end",
        )
    store = storage.open_store(store_uri)
    document = json.loads(store.read(listed, TRAINER_FILE))
    names = [entry.name or entry.path for entry in manifest.files]
    reader = store.ranges(listed)
    return Source(
        uri=listed.uri,
        step=listed.step,
        parameters=manifest.parameters,
        ranges=reader,
        scalars=document["engine"],
        model_files={
            name.removeprefix("model/"): (lambda name=name: store.read(listed, name))  # type: ignore[misc]
            for name in names
            if name.startswith("model/")
        },
        metrics=manifest.metrics,
        close=reader.close,
    )


def _from_deepspeed(folder: Path, tag: str | None, uri: str) -> Source:
    try:
        opened = read_deepspeed(folder, tag)
    except WorkerFailed as error:
        kind = UsageError if error.reason == Reason.CONFIG_INVALID else StorageError
        raise kind(error.message, hint=error.hint) from error
    return Source(uri, opened.global_steps, opened.parameters, opened, opened.scalars())


# --- a model folder ----------------------------------------------------------------------------------------------------
def export_model(
    source: Source, folder: Path, *, dtype: str | None = None, shard_bytes: int = SHARD_BYTES, force: bool = False
) -> Exported:
    """The weights as safetensors, with the model's configuration and tokenizer: what `from_pretrained` reads.

    `dtype`: float32 or bfloat16 for all parameters; None keeps each as the model computed with it. float32 is exact: the
    masters as they are. Tied weights are written under each of their names. Raises Conflict and StorageError.
    """
    plan = _shards(source.parameters, dtype, shard_bytes)
    with written_aside(folder, force) as partial:
        for number, shard in enumerate(plan, start=1):
            _write_safetensors(partial / _shard_name(number, len(plan)), source, shard)
        if len(plan) > 1:
            index = {
                "metadata": {"total_size": sum(tensor.bytes for shard in plan for tensor in shard)},
                "weight_map": {
                    tensor.name: _shard_name(number, len(plan))
                    for number, shard in enumerate(plan, start=1)
                    for tensor in shard
                },
            }
            write_json(partial / "model.safetensors.index.json", index)
        about: dict[str, Any] = {}
        for name, read in source.model_files.items():
            content = read()
            if name == "config.json":
                content = _with_dtype(content, plan)
            if name == MARK:
                about = json.loads(content)
                continue
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        write_json(partial / MARK, about | provenance(source, SAFETENSORS))
    notes = [] if "config.json" in source.model_files else ["there is no config.json in it: the state holds none"]
    return counted(folder, notes)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One entry of a safetensors file."""

    name: str
    parameter: storage.Parameter
    dtype: str

    @property
    def bytes(self) -> int:
        return self.parameter.elements * storage.ITEM_BYTES[self.dtype]


def _shards(parameters: Sequence[storage.Parameter], dtype: str | None, shard_bytes: int) -> list[list[_Tensor]]:
    """Tensors in files of at most `shard_bytes`, but for one tensor that is larger alone; at least one file."""
    shards: list[list[_Tensor]] = [[]]
    room = shard_bytes
    for parameter in parameters:
        wanted = dtype if dtype is not None and parameter.role != BUFFER else parameter.dtype
        for name in (parameter.name, *parameter.aliases):
            tensor = _Tensor(name, parameter, wanted)
            if shards[-1] and tensor.bytes > room:
                shards.append([])
                room = shard_bytes
            shards[-1].append(tensor)
            room -= tensor.bytes
    return shards


def _shard_name(number: int, of: int) -> str:
    return "model.safetensors" if of == 1 else f"model-{number:05d}-of-{of:05d}.safetensors"


def _write_safetensors(path: Path, source: Source, tensors: Sequence[_Tensor]) -> None:
    """The format is a length (8 bytes, little-endian), a JSON header, and the elements; wider types first, so that every
    tensor is aligned."""
    ordered = sorted(tensors, key=lambda tensor: -storage.ITEM_BYTES[tensor.dtype])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in ordered:
        if tensor.dtype not in _CODES:
            raise UsageError(f"{tensor.name} is {tensor.dtype}, which safetensors files cannot hold")
        offsets = [at, at + tensor.bytes]
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.parameter.shape),
            "data_offsets": offsets,
        }
        at += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in ordered:
            for piece in elements(source, tensor.parameter, KIND_OF[tensor.parameter.role], tensor.dtype):
                file.write(piece)


def elements(source: Source, parameter: storage.Parameter, kind: str, dtype: str) -> Iterator[memoryview]:
    """One kind of a parameter as `dtype`, slice by slice; a slice is valid until the next is asked for."""
    held = source.ranges.dtype(parameter.name, kind)
    room = memoryview(bytearray(min(parameter.elements, SLICE_ELEMENTS) * storage.ITEM_BYTES[held]))
    for start in range(0, parameter.elements, SLICE_ELEMENTS):
        end = min(start + SLICE_ELEMENTS, parameter.elements)
        part = room[: (end - start) * storage.ITEM_BYTES[held]]
        _read(source, parameter.name, kind, start, end, part)
        yield part if held == dtype else _converted(part, parameter.name, held, dtype)


def _read(source: Source, name: str, kind: str, start: int, end: int, out: memoryview) -> None:
    try:
        source.ranges.read_into(name, kind, start, end, out)
    except WorkerFailed as error:
        raise StorageError(error.message, hint=error.hint) from error


def _converted(values: memoryview, name: str, held: str, wanted: str) -> memoryview:
    """Floats of one type as another, rounded to the nearest (ties to even), as torch does it."""
    import numpy as np

    if held not in _FLOATS or wanted not in _FLOATS:
        raise UsageError(f"{name} is {held} and cannot be written as {wanted}")
    if held == "bfloat16":
        wide = (np.frombuffer(values, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        wide = np.frombuffer(values, np.float32 if held == "float32" else np.float16).astype(np.float32, copy=False)
    if wanted == "float32":
        made: Any = wide
    elif wanted == "float16":
        with np.errstate(over="ignore"):
            made = wide.astype(np.float16)
    else:
        bits = np.ascontiguousarray(wide).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        made = np.where(np.isnan(wide), 0x7FC0, rounded).astype(np.uint16)
    return memoryview(made).cast("B")


def _with_dtype(config: bytes, plan: Sequence[Sequence[_Tensor]]) -> bytes:
    """A configuration that names the type of what was written, so that the model is loaded in it."""
    document = json.loads(config)
    written = {tensor.dtype for shard in plan for tensor in shard if tensor.parameter.role != BUFFER}
    if len(written) == 1:
        document["torch_dtype" if "torch_dtype" in document else "dtype"] = written.pop()
    return _json(document)


# --- a DeepSpeed folder ------------------------------------------------------------------------------------------------
def export_deepspeed(
    source: Source, folder: Path, *, world_size: int, stage: int, dtype: str | None = None, force: bool = False
) -> Exported:
    """A folder that plain `engine.load_checkpoint` of DeepSpeed opens with `world_size` ranks and ZeRO stage `stage`.

    `dtype`: float32 or bfloat16, the precision of the engine that shall read it; None: that of the run. Raises Conflict,
    StorageError, and UsageError for what cannot be exported.
    """
    writer = _DeepSpeedWriter(source, world_size, stage, dtype)
    with written_aside(folder, force) as partial:
        tag = partial / f"global_step{writer.global_steps}"
        tag.mkdir()
        for rank in range(world_size if stage == 3 else 1):
            name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
            writer.save(writer.model(rank), tag / name)
        prefix = "bf16_" if writer.precision == "bfloat16" else ""
        for rank in range(world_size if stage else 0):
            state = writer.partition(rank) if stage == 3 else writer.flat_part(rank)
            document = {"optimizer_state_dict": state, "ds_config": writer.config, "ds_version": writer.version}
            writer.save(document, tag / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        (partial / "latest").write_text(tag.name, encoding="utf-8")
        write_json(partial / MARK, provenance(source, DEEPSPEED) | {"world_size": world_size, "stage": stage})
    return counted(folder, [])


class _DeepSpeedWriter:
    """Builds the objects that DeepSpeed saves, one rank at a time."""

    def __init__(self, source: Source, world_size: int, stage: int, dtype: str | None) -> None:
        import torch

        self._torch = torch
        self._source = source
        self._ranks = world_size
        self._stage = stage
        self._by_name = {parameter.name: parameter for parameter in source.parameters}
        trained = [parameter for parameter in source.parameters if parameter.role == TRAINED]
        kept = {parameter.dtype for parameter in trained}
        self.precision = dtype if dtype is not None else kept.pop() if len(kept) == 1 else "float32"
        if self.precision not in DTYPES.values():
            raise UsageError(
                f"a run in {self.precision} cannot be exported to DeepSpeed", hint="choose --dtype fp32 or bf16"
            )
        order = {parameter.name: number for number, parameter in enumerate(source.parameters)}
        optimizer = source.scalars["optimizer"]
        self._groups = [sorted(group["members"], key=order.__getitem__) for group in optimizer["groups"]]
        self._values = [group_values(group["values"]) for group in optimizer["groups"]]
        self._kinds = [[kind for kind in group["kinds"] if kind != MASTER] for group in optimizer["groups"]]
        steps = {name: optimizer["steps_of"].get(name, optimizer["steps"]) for name in self._by_name}
        self._steps = [[steps[name] for name in group] for group in self._groups]
        if stage and any(len(set(group)) > 1 for group in self._steps):
            raise UsageError(
                "parameters of one group have taken different numbers of steps, which ZeRO cannot hold",
                hint="export with --stage 0",
            )
        counters = source.scalars["engine"]
        self.global_steps = int(counters["global_steps"])
        self._counters = counters
        self._scheduler = (source.scalars["lr_scheduler"] or {}).get("state")
        self.version = version("deepspeed")
        if not self.version.startswith(".".join(map(str, TESTED)) + "."):
            raise UsageError(
                f"folders of DeepSpeed {self.version} are not known", hint=f"install DeepSpeed {TESTED[0]}.{TESTED[1]}"
            )
        self.config = {"zero_optimization": {"stage": stage}}

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        self._torch.save(state, path)

    # ---- the model's file

    def model(self, rank: int) -> dict[str, Any]:
        torch, partitioned = self._torch, self._stage == 3
        module: OrderedDict[str, Any] = OrderedDict()
        fragments: OrderedDict[str, Any] = OrderedDict()
        for parameter in self._source.parameters:
            kind = KIND_OF[parameter.role]
            dtype = parameter.dtype if parameter.role == BUFFER else self.precision
            if partitioned and parameter.role != BUFFER:
                tensor = torch.empty(0, dtype=getattr(torch, dtype))
                if parameter.role == FROZEN:
                    fragments[parameter.name] = self._part(parameter, kind, rank).to(getattr(torch, dtype))
            else:
                whole = self._elements(parameter.name, kind, 0, parameter.elements)
                tensor = whole.to(getattr(torch, dtype)).reshape(parameter.shape)
            for name in (parameter.name, *parameter.aliases):
                module[name] = tensor
        zero = self._stage > 0
        sub_groups = self._sub_groups() if partitioned else list(enumerate(self._groups))
        shapes = [
            OrderedDict((name, torch.Size(self._by_name[name].shape)) for name in group) for _, group in sub_groups
        ]
        frozen = OrderedDict((name, torch.Size(self._by_name[name].shape)) for name in fragments)
        counters = self._counters
        return {
            "module": module,
            "buffer_names": [one.name for one in self._source.parameters if one.role == BUFFER],
            "optimizer": None if zero else self._whole_optimizer(),
            "param_shapes": shapes if zero else None,
            "frozen_param_shapes": frozen if partitioned else None,
            "shared_params": {alias: one.name for one in self._source.parameters for alias in one.aliases}
            if zero
            else None,
            "frozen_param_fragments": fragments if partitioned else None,
            # What DeepSpeed's own schedulers keep: the number of the last step, from 0.
            "lr_scheduler": self._scheduler or {"last_batch_iteration": self.global_steps - 1},
            "data_sampler": None,
            "random_ltd": None,
            "skipped_steps": counters["skipped_steps"],
            "global_steps": self.global_steps,
            "global_samples": counters["global_samples"],
            "dp_world_size": self._ranks,
            "mp_world_size": 1,
            "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
            "ds_config": self.config,
            "ds_version": self.version,
        }

    # ---- the optimizer, stage 0

    def _whole_optimizer(self) -> dict[str, Any]:
        state: dict[int, Any] = {}
        groups, masters = [], []
        for values, names, kinds, steps in zip(self._values, self._groups, self._kinds, self._steps, strict=True):
            first = len(state)
            for name, step in zip(names, steps, strict=True):
                one = self._by_name[name]
                state[len(state)] = self._with_step(step) | {
                    kind: self._elements(name, kind, 0, one.elements).reshape(one.shape) for kind in kinds
                }
            groups.append(values | {"params": list(range(first, len(state)))})
            if self.precision != "float32":
                shapes = [self._by_name[name] for name in names]
                masters.append([self._elements(one.name, MASTER, 0, one.elements).reshape(one.shape) for one in shapes])
        optimizer = {"state": state, "param_groups": groups}
        if self.precision == "float32":
            return optimizer
        return {
            "dynamic_loss_scale": False,
            "cur_scale": 1.0,
            "cur_iter": self.global_steps,
            "optimizer_state_dict": optimizer,
            "fp32_groups": masters,
        }

    # ---- the optimizer, stages 1 and 2

    def flat_part(self, rank: int) -> dict[str, Any]:
        """Each group laid end to end, padded at its end, cut into equal parts; masters are stored without the padding."""
        masters, paddings = [], []
        state: dict[int, Any] = {}
        for number, (names, kinds, steps) in enumerate(zip(self._groups, self._kinds, self._steps, strict=True)):
            total = sum(self._by_name[name].elements for name in names)
            length = _up(total, FLAT_ALIGNMENT * self._ranks) // self._ranks
            low, high = min(rank * length, total), min((rank + 1) * length, total)
            padding = length - (high - low)
            paddings.append(padding)
            masters.append(self._flat(names, MASTER, low, high, 0))
            state[number] = self._with_step(steps[0] if steps else 0) | {
                kind: self._flat(names, kind, low, high, padding) for kind in kinds
            }
        return {
            "dynamic_loss_scale": False,
            "overflow": False,
            "clip_grad": 0.0,
            "base_optimizer_state": {
                "state": state,
                "param_groups": [values | {"params": [number]} for number, values in enumerate(self._values)],
            },
            "single_partition_of_fp32_groups": masters,
            "zero_stage": self._stage,
            "group_paddings": paddings,
            "param_alignment_paddings": [[0] * len(names) for names in self._groups],
            "partition_count": [self._ranks] * len(self._groups),
            "ds_version": self.version,
        }

    def _flat(self, names: Sequence[str], kind: str, low: int, high: int, padding: int) -> Tensor:
        """Elements [low, high) of parameters laid end to end, and zeros."""
        made = self._torch.zeros(high - low + padding, dtype=self._torch.float32)
        at = 0
        for name in names:
            size = self._by_name[name].elements
            start, end = max(low - at, 0), min(high - at, size)
            if start < end:
                made[at + start - low : at + end - low] = self._elements(name, kind, start, end)
            at += size
        return made

    # ---- the optimizer, stage 3

    def partition(self, rank: int) -> dict[str, Any]:
        """Each parameter cut into one part a rank, all equally long; the parts of a sub-group behind each other."""
        with redirect_stdout(sys.stderr):  # where DeepSpeed's log goes is decided when it is imported
            from deepspeed.runtime.fp16.loss_scaler import LossScaler

        masters = []
        state: dict[int, Any] = {}
        groups = [values | {"params": []} for values in self._values]
        for index, (number, names) in enumerate(self._sub_groups()):
            groups[number]["params"].append(index)
            members = [self._by_name[name] for name in names]
            masters.append(self._torch.cat([self._part(one, MASTER, rank) for one in members]))
            state[index] = self._with_step(self._steps[number][0]) | {
                kind: self._torch.cat([self._part(one, kind, rank) for one in members]) for kind in self._kinds[number]
            }
        return {
            "zero_stage": self._stage,
            "loss_scaler": LossScaler(scale=1.0),
            "dynamic_loss_scale": False,
            "overflow": False,
            "partition_count": self._ranks,
            "optimizer_state_dict": {"state": state, "param_groups": groups},
            "fp32_flat_groups": masters,
        }

    def _sub_groups(self) -> list[tuple[int, list[str]]]:
        """(number of the param group, names), as DeepSpeed divides large groups: by what one rank holds of them."""
        found = []
        for number, names in enumerate(self._groups):
            lengths = {name: -(-self._by_name[name].elements // self._ranks) for name in names}
            if sum(lengths.values()) <= SUB_GROUP_ELEMENTS:
                found.append((number, names))
                continue
            held: list[str] = []
            for name in names:
                held.append(name)
                if sum(lengths[one] for one in held) >= SUB_GROUP_ELEMENTS or name == names[-1]:
                    found.append((number, held))
                    held = []
        return found

    def _part(self, parameter: storage.Parameter, kind: str, rank: int) -> Tensor:
        length = -(-parameter.elements // self._ranks)
        low, high = min(rank * length, parameter.elements), min((rank + 1) * length, parameter.elements)
        values = self._elements(parameter.name, kind, low, high)
        padded: Tensor = self._torch.nn.functional.pad(values, (0, length - (high - low)))
        return padded

    # ---- parts

    def _elements(self, name: str, kind: str, start: int, end: int) -> Tensor:
        """Elements as they are, 1-D."""
        torch = self._torch
        made: Any = torch.empty(end - start, dtype=getattr(torch, self._source.ranges.dtype(name, kind)))
        if len(made):
            _read(self._source, name, kind, start, end, memoryview(made.view(torch.uint8).numpy()))
        elements: Tensor = made
        return elements

    def _with_step(self, step: float) -> dict[str, Any]:
        return {STEP: self._torch.tensor(float(step), dtype=self._torch.float32)}


def group_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A param group as torch's optimizers keep it; how they compute is left to the engine that reads it."""
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return made | {"foreach": None, "fused": None, "capturable": False, "differentiable": False}


def _up(size: int, to: int) -> int:
    return math.ceil(size / to) * to


# --- how it is written -------------------------------------------------------------------------------------------------
@contextmanager
def written_aside(folder: Path, force: bool) -> Iterator[Path]:
    """A folder to write into, that takes the place of `folder` when all went well. Raises Conflict, StorageError."""
    target = Path(os.path.abspath(folder))
    occupied = target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir())))
    if occupied and not force:
        raise Conflict(
            f"{target} is there already", hint="name another folder, or replace an earlier export with --force"
        )
    if occupied and not (target / MARK).is_file():
        raise Conflict(
            f"{target} is not an earlier export, so it is not replaced",
            hint="remove it yourself, or name another folder",
        )
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    before = target.with_name(f".{target.name}.before-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        _make_durable(partial)
        if target.exists():
            os.rename(target, before)
        os.rename(partial, target)
        _sync(target.parent)
    except OSError as error:
        raise storage.storage_error("write the export to", target, error) from error
    finally:
        if before.exists() and not target.exists():
            os.rename(before, target)
        for leftover in (partial, before):
            shutil.rmtree(leftover, ignore_errors=True)


def _make_durable(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def counted(folder: Path, notes: Sequence[str]) -> Exported:
    """What lies in the folder of a finished export."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Exported(folder, len(files), sum(path.stat().st_size for path in files), tuple(notes))


def provenance(source: Source, format_name: str) -> dict[str, Any]:
    """What the mark of an export says of it."""
    return {"exported_from": source.uri, "format": format_name, "step": source.step, "metrics": dict(source.metrics)}


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def write_json(path: Path, document: Any) -> None:
    path.write_bytes(_json(document))
