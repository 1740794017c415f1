"""Reads the folders of DeepSpeed's own `engine.save_checkpoint`, of any ZeRO stage and world size, range by range.

`read_deepspeed` gives the same view of a folder as `storage.RangeReader` gives of our checkpoints: elements [start, end) of
one kind of one parameter. So an engine of any size and stage is filled from it in process, each rank reading only what it
needs; no converter runs. Files are memory-mapped, and their pickles are opened with `weights_only`: what DeepSpeed keeps
in them beyond tensors and plain values becomes plain values too, anything else is refused, and no code of theirs runs.

Where elements lie is computed from the order of `param_shapes` and the padding, which are right for every setting; the
folder's own `param_slice_mappings` are not read, since `round_robin_gradients` makes them wrong. In stages 0 to 2 each
master that is read is compared with the folder's weight, so that a layout that is not as expected is refused, not loaded.

Limits: one file for each data-parallel rank, so no pipeline, tensor or expert parallelism; the whole folder must be
mounted here. Stage 0 does not name what its optimizer state belongs to: see `read_deepspeed`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from orchestrator.storage import Parameter
from orchestrator.storage.manifest import Role
from orchestrator.training.agreement import Peers
from orchestrator.training.deepspeed_scalars import SCALER_FIELDS
from orchestrator.training.deepspeed_state import MASTER, STEP, TESTED
from orchestrator.training.errors import Reason, WorkerFailed, config_invalid
from orchestrator.training.fragments import BUFFER, FROZEN, SHOWN, TRAINED, EngineState, differences
from orchestrator.training.snapshot import read_into

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_REFUSED = {
    re.compile(r"layer_\d+-model.*"): "pipeline parallelism",
    re.compile(r".*expert_\d+.*"): "mixture of experts (MoE)",
}
NOT_OF_A_PLAIN_RUN = "only folders of plain data-parallel runs are read"
OTHER_MODEL = "import into the model, frozen layers and adapters that wrote it"


@dataclass(frozen=True, slots=True)
class _Span:
    """Elements [start, end) of a parameter lie at `offset` of `tensor`."""

    start: int
    end: int
    tensor: Tensor
    offset: int


@dataclass(slots=True)
class _Held:
    """One parameter: what it is, and where each kind of it lies."""

    shape: tuple[int, ...]
    dtype: str
    role: Role
    weight: Tensor | None = None
    """The weight that the model computes with, flat; None in stage 3, whose folders do not hold it whole."""
    spans: dict[str, list[_Span]] = field(default_factory=dict)
    step: int | float | None = None


class DeepSpeedFolder:
    """One tag of a DeepSpeed folder, opened. Reading is local to the rank. Made by `read_deepspeed`."""

    def __init__(self, place: Path, held: dict[str, _Held], groups: list[_Group], facts: Mapping[str, Any]) -> None:
        self.place = place
        self._held = held
        self._groups = groups
        self._facts = facts
        aliases: dict[str, list[str]] = {}
        for alias, name in (facts["shared"]).items():
            aliases.setdefault(name, []).append(alias)
        self.parameters: tuple[Parameter, ...] = tuple(
            Parameter(name, one.shape, one.dtype, one.role, tuple(aliases.get(name, ()))) for name, one in held.items()
        )
        self.stage: int = facts["stage"]
        self.world_size: int = facts["world_size"]
        self.global_steps: int = facts["global_steps"]
        self.global_samples: int = facts["global_samples"]

    def kinds(self, name: str) -> frozenset[str]:
        """What there is of a parameter. Raises KeyError for an unknown name."""
        return frozenset(self._held[name].spans)

    def dtype(self, name: str, kind: str) -> str:
        return _dtype(self._held[name].spans[kind][0].tensor)

    def read_into(self, name: str, kind: str, start: int, end: int, out: memoryview) -> None:
        """Copy elements [start, end) as they are into `out`, which must be of just that many bytes.

        Raises WorkerFailed for what is not there, and when a master is not what the folder's weight says.
        """
        import torch

        held = self._held.get(name)
        if held is None or kind not in held.spans:
            raise _unreadable(self.place, f"{name} has no {kind}")
        target = torch.frombuffer(out, dtype=held.spans[kind][0].tensor.dtype) if len(out) else torch.empty(0)
        if len(target) != end - start:
            raise ValueError(f"{len(target)} elements of room for [{start}, {end}) of {name}")
        at = start
        for span in held.spans[kind]:
            low, high = max(at, span.start), min(end, span.end)
            if low < high and low == at:
                part = span.tensor[span.offset + low - span.start : span.offset + high - span.start]
                target[low - start : high - start].copy_(part)
                at = high
        if at < end:
            raise _unreadable(self.place, f"{name} {kind} ends at element {at} of {end}")
        if kind == MASTER and held.weight is not None and not _same_bits(target, held.weight[start:end]):
            raise _unreadable(
                self.place,
                f"the float32 master of {name} is not what its weight says, so the folder is laid out otherwise",
            )

    def scalars(self) -> dict[str, Any]:
        """What is not per element, in the form of `EngineState.scalars`. The scheduler stays behind: see `take_up`."""
        steps = {name: one.step for name, one in self._held.items() if one.step is not None}
        most = max(set(steps.values()), key=list(steps.values()).count) if steps else 0
        return {
            "optimizer": {
                "steps": most,
                "steps_of": {name: step for name, step in steps.items() if step != most},
                "groups": [
                    {
                        "kinds": [MASTER, *sorted(self.kinds(group.names[0]) - {MASTER})],
                        "members": sorted(group.names),
                        "values": {key: _plain(value) for key, value in group.values.items()},
                    }
                    for group in self._groups
                ],
            },
            "engine": {
                "global_steps": self.global_steps,
                "global_samples": self.global_samples,
                "skipped_steps": self._facts["skipped_steps"],
                "micro_steps": self.global_steps,
                "accumulation": 1,
            },
            "lr_scheduler": None,
            "loss_scaler": self._facts["scaler"],
        }


@dataclass(slots=True)
class _Group:
    """A param group of the optimizer that wrote the folder."""

    values: Mapping[str, Any]
    names: list[str] = field(default_factory=list)


# --- the way in --------------------------------------------------------------------------------------------------------
def take_up(state: EngineState, peers: Peers, folder: str | Path, tag: str | None = None) -> DeepSpeedFolder:
    """Fill a live engine from a DeepSpeed folder: weights, optimizer state, step numbers, loss scale. Collective.

    Param groups, hyperparameters and schedule stay those of the present engine: the job's document decides them. Raises
    WorkerFailed (ConfigInvalid) on every rank when the folder does not fit; what can be refused is refused before anything
    is changed.
    """
    import torch

    present = state.scalars()
    own = present["optimizer"]["groups"]

    def open_folder() -> DeepSpeedFolder:
        source = read_deepspeed(folder, tag, groups=[group["members"] for group in own])
        if found := differences(source.parameters, state.parameters):
            more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise config_invalid(
                f"{source.place} is of another model or trains other parameters: {', '.join(found[:SHOWN])}{more}",
                OTHER_MODEL,
            )
        for group in own:
            kept = source.kinds(group["members"][0]) if group["members"] else frozenset(group["kinds"])
            if kept != frozenset(group["kinds"]):
                raise config_invalid(
                    f"{source.place} holds {', '.join(sorted(kept))} of each parameter, and this job's optimizer keeps "
                    f"{', '.join(group['kinds'])}",
                    "import a state that was saved after a step, by the same optimizer",
                )
        return source

    source = peers.settle(open_folder)
    saved = source.scalars()
    saved["optimizer"]["groups"] = own  # what a parameter's group is does not matter to its ranges
    saved["lr_scheduler"] = present["lr_scheduler"]
    state.load(source.parameters, lambda local: read_into(torch, source, local), saved)
    return source


def is_deepspeed(folder: str | Path) -> bool:
    """Whether a folder looks like one of DeepSpeed's: by its `latest`, or as the folder of one tag itself."""
    place = Path(str(folder).removeprefix("file://"))
    return place.is_dir() and (
        (place / "latest").is_file() or any(_MODEL.fullmatch(path.name) for path in place.iterdir())
    )


def read_deepspeed(
    folder: str | Path, tag: str | None = None, *, groups: Sequence[Sequence[str]] | None = None
) -> DeepSpeedFolder:
    """Open a DeepSpeed folder: the one given to `save_checkpoint`, or that of one tag. Without `tag`, what `latest` names.

    `groups`: names of the trained parameters by param group. Needed only for stage 0, whose folders do not say which
    parameter an optimizer state belongs to; there, without `groups`, what shapes leave open is refused. Within a group,
    parameters are taken to stand in the model's own order, as `named_parameters` gives them.

    Raises WorkerFailed: ConfigInvalid for a folder that is none or not of a supported kind, StorageFailed when its files
    cannot be read.
    """
    place = _tag_folder(Path(str(folder).removeprefix("file://")), tag)
    models, optimizers = _files(place)
    first = _load(models[0])
    _refuse_by_content(place, first)
    ranks = first["dp_world_size"]
    try:
        if not optimizers:
            return _stage_0(place, first, groups)
        saved = [_load(path)["optimizer_state_dict"] for path in optimizers]
        if ranks != len(saved):
            raise _not_whole(place, f"it was written by {ranks} ranks and has the optimizer state of {len(saved)}")
        if "fp32_flat_groups" not in saved[0]:
            return _stages_1_and_2(place, first, saved)
        if ranks != len(models):
            raise _not_whole(place, f"it was written by {ranks} ranks and has the model files of {len(models)}")
        return _stage_3(place, [first, *map(_load, models[1:])], saved)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise config_invalid(
            f"{place} is not laid out as a folder of DeepSpeed {first['ds_version']} is ({type(error).__name__}: {error})",
            "report this with the DeepSpeed configuration that wrote it",
        ) from error


def _tag_folder(place: Path, tag: str | None) -> Path:
    hint = "name the folder that was given to engine.save_checkpoint, or the folder of one tag in it"
    try:
        if tag is None and (place / "latest").is_file():
            tag = (place / "latest").read_text(encoding="utf-8").strip()
        found = place if tag is None else place / tag
        if not found.is_dir():
            what = f"there is no folder {found}" if tag is None else f"{place} has no tag {tag!r}"
            raise config_invalid(what, hint)
        if not any(_MODEL.fullmatch(path.name) for path in found.iterdir()):
            tags = sorted(path.parent.name for path in place.glob("*/*_model_states.pt")) if tag is None else []
            if tags:
                raise config_invalid(f"{place} has no `latest`", f"name a tag: {', '.join(dict.fromkeys(tags))}")
            raise config_invalid(f"{found} is not a folder of DeepSpeed: it has no *_model_states.pt", hint)
    except OSError as error:
        raise _unreadable(place, error.strerror or str(error)) from error
    return found


def _files(place: Path) -> tuple[list[Path], list[Path]]:
    """Model files and optimizer files, by rank."""
    models: dict[int, Path] = {}
    optimizers: dict[int, Path] = {}
    for path in sorted(place.iterdir()):
        for pattern, what in _REFUSED.items():
            if pattern.fullmatch(path.name):
                raise config_invalid(f"{place} was written with {what}", NOT_OF_A_PLAIN_RUN)
        for found, pattern in ((models, _MODEL), (optimizers, _OPTIMIZER)):
            if match := pattern.fullmatch(path.name):
                if int(match[2]):
                    raise config_invalid(f"{place} was written with tensor parallelism", NOT_OF_A_PLAIN_RUN)
                found[int(match[1] or 0)] = path
    for found in (models, optimizers):
        if lost := set(range(len(found))) - found.keys():
            raise _not_whole(place, f"the file of rank {min(lost)} is missing")
    return [models[rank] for rank in sorted(models)], [optimizers[rank] for rank in sorted(optimizers)]


def _refuse_by_content(place: Path, state: Mapping[str, Any]) -> None:
    missing = [
        key for key in ("module", "buffer_names", "global_steps", "dp_world_size", "ds_version") if key not in state
    ]
    if missing:
        raise config_invalid(
            f"{place}: its model file has no {missing[0]!r}", "is it a folder of engine.save_checkpoint?"
        )
    version = str(state["ds_version"])
    if not version.startswith(".".join(map(str, TESTED)) + "."):
        tested = ".".join(map(str, TESTED))
        raise config_invalid(
            f"{place} was written by DeepSpeed {version}; folders of {tested} are known",
            f"load it with DeepSpeed {tested} and save it again",
        )
    if state.get("mp_world_size", 1) != 1:
        raise config_invalid(f"{place} was written with tensor parallelism", NOT_OF_A_PLAIN_RUN)
    if state["module"] is None:
        raise config_invalid(f"{place} was written with pipeline parallelism", NOT_OF_A_PLAIN_RUN)


# --- the pickles -------------------------------------------------------------------------------------------------------
class _Fields:
    """Stands for an object of DeepSpeed's: its fields, and nothing else of it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Whatever the pickle gives to the constructor is not needed."""


_STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3, "max_stage": 3}


def _member(_: object, name: str) -> int:
    """A ZeRO stage by the name of its member. Raises UnpicklingError for any other name."""
    if name not in _STAGES:
        raise UnpicklingError(f"GLOBAL {name} is no ZeRO stage")
    return _STAGES[name]


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What DeepSpeed 0.19 puts into the files of a plain run beside tensors and plain values, and what it becomes."""
    scaler = "deepspeed.runtime.fp16.loss_scaler"
    return [
        (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
        (_member, "builtins.getattr"),  # how Python 3.11.0 to 3.11.3 (Debian 12's among them) write a member of an enum
        (_Fields, "deepspeed.utils.tensor_fragment.fragment_address"),
        (_Fields, f"{scaler}.LossScaler"),
        (_Fields, f"{scaler}.DynamicLossScaler"),
        (_Fields, f"{scaler}.LossScalerBase"),
    ]


def _load(path: Path) -> dict[str, Any]:
    """One file, its tensors mapped into memory. Raises WorkerFailed; runs nothing of what the pickle names."""
    import torch

    try:
        with torch.serialization.safe_globals(_stand_ins()):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise config_invalid(
            f"{path} holds {named[1] if named else 'objects'} that it is not safe to open",
            "remove own objects from client_state and from the DeepSpeed configuration, and save the folder again",
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # what its directory names lies behind its end
            raise _not_whole(path, "it is cut off") from error
        raise _unreadable(path, error.strerror or str(error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _not_whole(path, f"torch cannot read it: {first[:200]}") from error
    if not isinstance(found, dict):
        raise config_invalid(f"{path} is not a file of DeepSpeed")
    return found


# --- where things lie --------------------------------------------------------------------------------------------------
def _stages_1_and_2(place: Path, model: Mapping[str, Any], saved: Sequence[Mapping[str, Any]]) -> DeepSpeedFolder:
    """The ranks' parts laid end to end are, by group, the parameters in the order of `param_shapes`, each with padding."""
    held = _module(model, {name for shapes in model["param_shapes"] for name in shapes})
    groups = []
    for number, shapes in enumerate(model["param_shapes"]):
        masters = [part["single_partition_of_fp32_groups"][number] for part in saved]
        states = [_optimizer_state(part["base_optimizer_state"], number) for part in saved]
        kinds = _kinds(states[0], masters[0])
        padding = saved[0].get("param_alignment_paddings")
        # Padding at the end is cut from what is stored: every rank's part is as long as the longest, the first.
        length = max(len(part) for part in masters)
        at = 0
        for index, (name, shape) in enumerate(shapes.items()):
            size = _count(shape)
            one = held[name]
            one.step = _step(states[0])
            for kind in (MASTER, *kinds):
                parts = masters if kind == MASTER else [state[kind] for state in states]
                one.spans[kind] = list(_cut(parts, length, at, size))
            at += size + (padding[number][index] if padding else 0)
        groups.append(_Group(_group_values(saved[0], number), list(shapes)))
    stage = int(saved[0].get("zero_stage", 1))
    return _opened(place, held, groups, model, stage, _scaler(saved[0].get("loss_scaler")))


def _cut(parts: Sequence[Tensor], length: int, at: int, size: int) -> Iterator[_Span]:
    """Where elements [at, at + size) of parts of `length` elements each, laid end to end, lie."""
    start = at
    while start < at + size:
        rank, offset = divmod(start, length)
        end = min(at + size, (rank + 1) * length)
        yield _Span(start - at, end - at, parts[rank], offset)
        start = end


def _stage_3(place: Path, models: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> DeepSpeedFolder:
    """Each parameter is cut into one part a rank, all equally long; a sub-group's parts lie behind each other."""
    ranks = len(saved)
    first = models[0]
    frozen = first.get("frozen_param_shapes") or {}
    shapes = {name: shape for sub_group in first["param_shapes"] for name, shape in sub_group.items()} | frozen
    held = _module(first, {name for sub_group in first["param_shapes"] for name in sub_group}, shapes)
    groups = [_Group(values) for values in _plain_groups(saved[0]["optimizer_state_dict"])]
    of_sub_group = {index: n for n, group in enumerate(groups) for index in group.values["params"]}
    for number, sub_group in enumerate(first["param_shapes"]):
        at = 0
        for name, shape in sub_group.items():
            size = _count(shape)
            length = -(-size // ranks)
            one = held[name]
            groups[of_sub_group[number]].names.append(name)
            for rank, part in enumerate(saved):
                state = part["optimizer_state_dict"]["state"].get(number, {})
                master = part["fp32_flat_groups"][number]
                one.step = _step(state)
                low, high = min(rank * length, size), min((rank + 1) * length, size)
                for kind in (MASTER, *_kinds(state, master)):
                    tensor = master if kind == MASTER else state[kind]
                    one.spans.setdefault(kind, [])
                    if low < high:
                        one.spans[kind].append(_Span(low, high, tensor.detach(), at))
            at += length
    for name, shape in frozen.items():
        size = _count(shape)
        parts = [model["frozen_param_fragments"][name].reshape(-1) for model in models]
        length = -(-size // ranks)
        held[name].spans[FROZEN] = [
            _Span(rank * length, min((rank + 1) * length, size), part, 0)
            for rank, part in enumerate(parts)
            if rank * length < size
        ]
        held[name].dtype = _dtype(parts[0])
    for group in groups:
        group.values = {key: value for key, value in group.values.items() if key != "params"}
    return _opened(place, held, groups, first, 3, _scaler(saved[0].get("loss_scaler")))


def _stage_0(place: Path, model: Mapping[str, Any], names: Sequence[Sequence[str]] | None) -> DeepSpeedFolder:
    """The optimizer's state by number; its masters are the weights (fp32), or stand beside it by group (bf16, fp16)."""
    optimizer = model.get("optimizer")
    if optimizer is None:
        raise config_invalid(f"{place} holds no optimizer state", "export its weights and name them as model.source")
    masters = optimizer.get("fp32_groups")
    state = optimizer if masters is None else optimizer["optimizer_state_dict"]
    values = _plain_groups(state)
    sizes = [[_shape_of(state["state"].get(index, {})) for index in group["params"]] for group in values]
    held = _module(model, None)
    weights = {name: one for name, one in held.items() if one.role != BUFFER}
    shapes = {name: one.shape for name, one in weights.items()}
    found = None if names is None else _as_told(place, names, shapes, sizes)
    if found is None:
        trained = shapes.keys() if names is None else {name for group in names for name in group}
        found = _by_shape(place, {name: shape for name, shape in shapes.items() if name in trained}, sizes)
    groups = []
    for number, (group, members) in enumerate(zip(values, found, strict=True)):
        for place_in_group, (index, name) in enumerate(zip(group["params"], members, strict=True)):
            one, own = held[name], state["state"].get(index, {})
            assert one.weight is not None
            master = one.weight if masters is None else masters[number][place_in_group].detach().reshape(-1)
            one.role, one.step = TRAINED, _step(own)
            for kind in (MASTER, *_kinds(own, one.weight)):
                tensor = master if kind == MASTER else own[kind].reshape(-1)
                one.spans[kind] = [_Span(0, len(tensor), tensor, 0)]
        groups.append(_Group({key: value for key, value in group.items() if key != "params"}, members))
    for one in weights.values():
        if not one.spans:
            assert one.weight is not None
            one.spans[FROZEN] = [_Span(0, len(one.weight), one.weight, 0)]
    return _opened(place, held, groups, model, 0, _scaler(optimizer))


_Sizes = list[list[tuple[int, ...] | None]]
"""Shapes of the optimizer's states by param group; None where it keeps nothing per element."""


def _as_told(
    place: Path, names: Sequence[Sequence[str]], shapes: Mapping[str, tuple[int, ...]], sizes: _Sizes
) -> list[list[str]] | None:
    """The given groups in the model's order, when their shapes are those of the folder's groups; else None."""
    order = {name: number for number, name in enumerate(shapes)}
    lost = [name for group in names for name in group if name not in order]
    if lost:
        raise config_invalid(f"{place} has no parameter {lost[0]}", OTHER_MODEL)
    found = [sorted(group, key=order.__getitem__) for group in names]
    fits = [len(group) for group in found] == [len(group) for group in sizes] and all(
        size in (None, shapes[name])
        for group, members in zip(sizes, found, strict=True)
        for size, name in zip(group, members, strict=True)
    )
    return found if fits else None


def _by_shape(place: Path, shapes: Mapping[str, tuple[int, ...]], sizes: _Sizes) -> list[list[str]]:
    """The one assignment of names to the slots of the groups that keeps the model's order. Raises ConfigInvalid when the
    shapes leave more than one."""
    by_shape: dict[tuple[int, ...] | None, list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    for wanted, candidates in by_shape.items():
        slots = [group.count(wanted) for group in sizes]
        if sum(slots) and (sum(slots) != len(candidates) or sum(1 for slot in slots if slot) > 1):
            raise config_invalid(
                f"{place} is of ZeRO stage 0 and does not say which of {candidates[0]}, {candidates[-1]} and others of "
                f"shape {list(wanted or ())} an optimizer state belongs to",
                "import it into a job whose parameters are grouped as in the run that wrote it",
            )
    found: list[list[str]] = []
    for group in sizes:
        found.append([])
        for size in group:
            if size not in by_shape:
                raise _not_whole(place, f"its optimizer keeps a state of shape {size}, and the model has none")
            found[-1].append(by_shape[size].pop(0))
    return found


# --- parts of the above ------------------------------------------------------------------------------------------------
def _module(
    model: Mapping[str, Any], trained: set[str] | None, shapes: Mapping[str, Any] | None = None
) -> dict[str, _Held]:
    """Parameters in the model's order, tied ones once, then buffers. `shapes` in stage 3, where the weights are not whole.

    Of what is not in `trained` (None: not known), the weight itself is the state.
    """
    module, buffers, shared = model["module"], model["buffer_names"], _shared(model)
    held: dict[str, _Held] = {}
    for name, tensor in module.items():
        if name in buffers or name in shared:
            continue
        shape = tuple(tensor.shape) if shapes is None else tuple(shapes[name])
        one = _Held(shape, _dtype(tensor), TRAINED if trained and name in trained else FROZEN)
        if shapes is None:
            one.weight = tensor.detach().reshape(-1)
            if trained is not None and name not in trained:
                one.spans[FROZEN] = [_Span(0, len(one.weight), one.weight, 0)]
        held[name] = one
    for name in buffers:
        if name in module:
            values = module[name].detach().reshape(-1)
            spans = {BUFFER: [_Span(0, len(values), values, 0)]}
            held[name] = _Held(tuple(module[name].shape), _dtype(values), BUFFER, values, spans)
    return held


def _shared(model: Mapping[str, Any]) -> dict[str, str]:
    """Names of tied weights and the first name of each. Stage 0 does not list them, but keeps them as one tensor."""
    listed = model.get("shared_params")
    if listed is not None:
        return dict(listed)
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    found = {}
    for name, tensor in model["module"].items():
        if name not in model["buffer_names"] and tensor.numel():
            owner = first.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
            if owner != name:
                found[name] = owner
    return found


def _opened(
    place: Path, held: dict[str, _Held], groups: list[_Group], model: Mapping[str, Any], stage: int, scaler: Any
) -> DeepSpeedFolder:
    facts = {
        "stage": stage,
        "world_size": int(model["dp_world_size"]),
        "global_steps": int(model["global_steps"]),
        "global_samples": int(model.get("global_samples") or 0),
        "skipped_steps": int(model.get("skipped_steps") or 0),
        "shared": _shared(model),
        "scaler": scaler,
    }
    return DeepSpeedFolder(place, held, groups, facts)


def _optimizer_state(saved: Any, number: int) -> Mapping[str, Any]:
    """The inner optimizer's state of one flat group; `elastic` folders keep a list of them."""
    found: Mapping[str, Any] = saved[number] if isinstance(saved, list) else saved["state"].get(number, {})
    return found


def _group_values(saved: Mapping[str, Any], number: int) -> dict[str, Any]:
    base = saved["base_optimizer_state"]
    if isinstance(base, list):
        return {}
    return {key: value for key, value in base["param_groups"][number].items() if key != "params"}


def _plain_groups(optimizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(group) for group in optimizer["param_groups"]]


def _kinds(state: Mapping[str, Any], like: Tensor) -> list[str]:
    """State that is kept per element: tensors about as long as the master (whose padding at the end is not stored)."""
    return [
        name
        for name, value in state.items()
        if name != STEP and hasattr(value, "numel") and value.numel() >= like.numel()
    ]


def _shape_of(state: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of the parameter that an optimizer's state belongs to; None when it keeps nothing per element."""
    return next((tuple(value.shape) for name, value in state.items() if name != STEP and hasattr(value, "shape")), None)


def _step(state: Mapping[str, Any]) -> int | float | None:
    if state.get(STEP) is None:
        return None
    number = float(state[STEP])
    return int(number) if number.is_integer() else number


def _scaler(scaler: Any) -> dict[str, Any]:
    """What a dynamic loss scaler has learned, of an object or of a mapping."""
    fields = scaler if isinstance(scaler, Mapping) else vars(scaler) if scaler is not None else {}
    if not (fields.get("dynamic") or fields.get("dynamic_loss_scale")):
        return {}
    return {name: fields[name] for name in SCALER_FIELDS if fields.get(name) is not None}


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _same_bits(master: Tensor, weight: Tensor) -> bool:
    import torch

    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return torch.equal(master.to(weight.dtype).view(whole), weight.view(whole))


def _not_whole(place: Path, why: str) -> WorkerFailed:
    return config_invalid(f"{place} is not whole: {why}", "copy the folder again, or name another tag")


def _unreadable(place: Path, why: str) -> WorkerFailed:
    return WorkerFailed(Reason.STORAGE_FAILED, f"cannot read {place}: {why}")
