"""Where DeepSpeed keeps the state of a run: which tensors, which elements of which parameter, and how weights follow.

One small class for each of DeepSpeed's optimizer classes, chosen by exact name; what is not known is refused by name.
Positions are computed from what the classes themselves compute with (their flat groups, offsets and partitions), not from
`_hp_mapping`: with `round_robin_gradients` that mapping is wrong in the tested versions, and DeepSpeed's own converter
writes wrong weights with it.

Limits: tested with DeepSpeed 0.19.8 on CPU with gloo; fp16 cannot run there. Refused: MoE, pipeline and tensor parallelism,
hpZ, quantised weights, parameters or optimizer state on NVMe, partial offload, ZenFlow, SuperOffload, masters that are not
float32, torch autocast, fused and 1-bit optimizers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.training.errors import WorkerFailed, config_invalid

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

TESTED = (0, 19)
"""Major and minor version of the DeepSpeed releases whose insides are known here."""
STEP = "step"
MASTER = "master"


# --- the optimizers whose state is known ------------------------------------------------------------------------------
def element_kinds(optimizer: Any, group: Mapping[str, Any]) -> tuple[str, ...]:
    """The state that the optimizer keeps per element of a parameter of this group. Raises ConfigInvalid for others."""
    kind = type(optimizer)
    home, name = kind.__module__.split(".")[0], kind.__name__
    if (home, name) in {("torch", "Adam"), ("torch", "AdamW"), ("deepspeed", "DeepSpeedCPUAdam")}:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
    if (home, name) == ("torch", "SGD"):
        if group["dampening"]:
            raise config_invalid("checkpoints of SGD with dampening are not supported", "set dampening to 0")
        return ("momentum_buffer",) if group["momentum"] else ()
    raise config_invalid(
        f"checkpoints of the optimizer {kind.__module__}.{name} are not supported: it is not known which state it keeps",
        "use AdamW with torch_adam: true, Adam, SGD, or DeepSpeedCPUAdam with offload",
    )


def _first_step(optimizer: Any, group: Mapping[str, Any], like: Tensor) -> Any:
    """The step number of a parameter that was never stepped, of the type that the optimizer itself begins with."""
    import torch

    if type(optimizer).__name__ == "DeepSpeedCPUAdam":
        return 0
    on_device = group["capturable"] or group["fused"]
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 and not group["fused"] else torch.float32
    return torch.zeros((), dtype=dtype, device=like.device if on_device else "cpu")


def complete_state(optimizer: Any, group: Mapping[str, Any], tensor: Tensor) -> dict[str, Any]:
    """The optimizer's state of one tensor; before its first step it is made, equal to what that step would begin with.

    Not by a dummy step: weight decay would move the weights. Raises ConfigInvalid for entries that are not known.
    """
    import torch

    kinds = element_kinds(optimizer, group)
    state: dict[str, Any] = optimizer.state[tensor]
    if not state or (kinds and state.get(kinds[0]) is None):
        if "betas" in group:
            state[STEP] = _first_step(optimizer, group, tensor)
        full = getattr(optimizer, "fp32_optimizer_states", True)
        for kind in kinds:
            state[kind] = torch.zeros_like(tensor.detach(), dtype=torch.float32 if full else tensor.dtype)
    for name, value in state.items():
        per_element = name in kinds and torch.is_tensor(value) and value.shape == tensor.shape
        if not per_element and name != STEP and value is not None:
            raise config_invalid(
                f"the optimizer {type(optimizer).__name__} keeps a state {name!r} that is not known here",
                "use AdamW with torch_adam: true",
            )
    return state


def repeat_steps(optimizer: Any, groups: Sequence[int], steps: int) -> None:
    """Bring DeepSpeedCPUAdam's hidden numbers to where `steps` steps leave them; `groups` are those of its tensors, in order.

    Its C++ side multiplies the powers of the betas up step by step, and takes them anew with `pow` when the step number
    jumps, which differs in the last bit. So the steps are repeated on one element, some microseconds each.
    """
    import torch

    if type(optimizer).__name__ != "DeepSpeedCPUAdam":
        return
    scratch = [torch.zeros(1) for _ in range(4)]
    for step in range(steps + 1):
        for number in groups:
            group = optimizer.param_groups[number]
            rate, (beta1, beta2), epsilon = group["lr"], group["betas"], group["eps"]
            bias = group["bias_correction"]
            optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, rate, beta1, beta2, epsilon, 0.0, bias, *scratch)


# --- where elements lie -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [start, end) of the flattened parameter `name`; the first of them is element `offset` of its holder."""

    name: str
    start: int
    end: int
    offset: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A tensor that the inner optimizer steps as one, and what lies in it on this rank."""

    tensor: Tensor
    group: int
    """Number of its param group in the inner optimizer."""
    members: tuple[str, ...]
    """Every parameter that shares its step number, on whichever rank the elements lie."""
    pieces: tuple[Piece, ...]

    def gaps(self) -> Iterator[tuple[int, int]]:
        """(start, end) of the elements that belong to no parameter: padding."""
        at = 0
        for piece in sorted(self.pieces, key=lambda piece: piece.offset):
            if piece.offset > at:
                yield at, piece.offset
            at = piece.offset + piece.end - piece.start
        if at < self.tensor.numel():
            yield at, self.tensor.numel()


class Layout:
    """One of DeepSpeed's optimizer classes. Everything here is local to the rank except `refresh`, which is collective."""

    spread = True
    """Each rank holds another part of the trained state; False: every rank holds all of it."""
    spread_frozen = False
    """The same of parameters that are not trained."""

    def __init__(self, engine: Any, names: Mapping[int, str], rank: int) -> None:
        self.engine = engine
        self.wrapper = engine.optimizer
        self.inner = getattr(self.wrapper, "optimizer", self.wrapper)
        self.names = names
        self.rank = rank

    def holders(self) -> list[Holder]:
        raise NotImplementedError

    def state(self, holder: Holder) -> dict[str, Any]:
        """The optimizer's state of a holder, made where it does not exist yet."""
        return complete_state(self.inner, self.inner.param_groups[holder.group], holder.tensor)

    def kinds(self, holder: Holder) -> dict[str, Any]:
        """A holder's tensors by kind: the master, and the optimizer's state of the same shape."""
        state = self.state(holder)
        names = element_kinds(self.inner, self.inner.param_groups[holder.group])
        return {MASTER: holder.tensor} | {name: state[name] for name in names}

    def weight(self, parameter: Any, start: int, end: int) -> Tensor:
        """This rank's elements [start, end) of the weight that the forward pass uses."""
        return flat(parameter)[start:end]

    def held(self, parameter: Any) -> tuple[int, Tensor, Tensor | None]:
        """(first element, view, padding) of what this rank keeps of a parameter that is not trained."""
        return 0, flat(parameter), None

    def prepare(self) -> None:
        """Before masters and frozen weights are overwritten."""

    def refresh(self) -> None:
        """Make the weights of the model, and DeepSpeed's own views, follow the masters. Collective."""

    def scaler(self) -> Any:
        """The object with the loss scaler's fields, or None."""
        return getattr(self.wrapper, "loss_scaler", None) or getattr(self.wrapper, "loss_scale_config", None)

    def name_of(self, parameter: Any) -> str:
        try:
            return self.names[id(parameter)]
        except KeyError:
            raise config_invalid(
                f"the optimizer trains a parameter of shape {tuple(parameter.shape)} that is not in the model",
                "give deepspeed.initialize only parameters of the model",
            ) from None


class Plain(Layout):
    """Stage 0 in float32: a plain torch optimizer over the model's own parameters."""

    spread = False

    def holders(self) -> list[Holder]:
        return [
            Holder(p, number, (name,), (Piece(name, 0, p.numel(), 0),))
            for number, group in enumerate(self.inner.param_groups)
            for p in group["params"]
            if p.requires_grad and p.numel()
            for name in [self.name_of(p)]
        ]


class Unfused(Layout):
    """Stage 0 in bf16 or fp16: a float32 master beside each parameter (FP16_UnfusedOptimizer).

    DeepSpeed runs a real optimizer step when it makes this class, so that weight decay has moved the masters away from
    the weights before the first step, unlike in every other stage. That step is taken back here.
    """

    spread = False

    def __init__(self, engine: Any, names: Mapping[int, str], rank: int) -> None:
        super().__init__(engine, names, rank)
        if engine.global_steps == 0 and engine.micro_steps == 0:
            for master, weight in self._pairs():
                if float(self.inner.state[master].get(STEP, 1)) == 1:  # not what a load has put there since
                    master.data.copy_(weight.data)
                    self.inner.state.pop(master)

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        for masters, weights in zip(self.wrapper.fp32_groups, self.wrapper.fp16_groups, strict=True):
            yield from zip(masters, weights, strict=True)

    def holders(self) -> list[Holder]:
        groups = zip(self.wrapper.fp32_groups, self.wrapper.fp16_groups, strict=True)
        return [
            Holder(master, number, (name,), (Piece(name, 0, weight.numel(), 0),))
            for number, (masters, weights) in enumerate(groups)
            for master, weight in zip(masters, weights, strict=True)
            for name in [self.name_of(weight)]
        ]

    def refresh(self) -> None:
        for master, weight in self._pairs():
            weight.data.copy_(master.data)


class Flat(Layout):
    """Stages 1 and 2: each param group is one flat tensor with padding at its end, cut into equal parts for the ranks."""

    def holders(self) -> list[Holder]:
        found = []
        for number, (tensor, parameters, offsets) in enumerate(self._groups()):
            first = self.rank * tensor.numel()
            last = first + tensor.numel()
            pieces = tuple(
                Piece(self.name_of(p), low - offset, high - offset, low - first)
                for p, offset in zip(parameters, offsets, strict=True)
                for low, high in [(max(offset, first), min(offset + p.numel(), last))]
                if low < high
            )
            found.append(Holder(tensor, number, tuple(self.name_of(p) for p in parameters), pieces))
        return found

    def _groups(self) -> Iterator[tuple[Any, Sequence[Any], Sequence[int]]]:
        """(this rank's part of the flat master, parameters, where each begins in the whole flat tensor) of each group."""
        yield from zip(
            self.wrapper.single_partition_of_fp32_groups,
            self.wrapper.round_robin_bit16_groups,
            self.wrapper.round_robin_bit16_offsets,
            strict=True,
        )

    def refresh(self) -> None:
        self.wrapper.update_lp_params()
        self.wrapper._hp_optimizer_states_linked = False
        self.wrapper._lazy_init_hp_params_optimizer_state()


class FlatBf16(Flat):
    """Stage 1 in bf16 with float32 gradient accumulation (BF16_Optimizer): the same, under other names."""

    def _groups(self) -> Iterator[tuple[Any, Sequence[Any], Sequence[int]]]:
        for tensor, parameters in zip(self.wrapper.fp32_groups_flat_partition, self.wrapper.bf16_groups, strict=True):
            offsets = [0]
            for parameter in parameters[:-1]:
                offsets.append(offsets[-1] + parameter.numel())
            yield tensor, parameters, offsets


class Partitioned(Layout):
    """Stage 3: every parameter is cut into equal padded parts; a sub-group's parts lie behind each other in one tensor."""

    spread_frozen = True

    def holders(self) -> list[Holder]:
        found = []
        for number, (tensor, parameters) in enumerate(
            zip(self.wrapper.fp32_partitioned_groups_flat, self.wrapper.fp16_groups, strict=True)
        ):
            pieces, offset = [], 0
            for p in parameters:
                start, end = self._part(p)
                if start < end:
                    pieces.append(Piece(self.name_of(p), start, end, offset))
                offset += p.partition_numel()
            members = tuple(self.name_of(p) for p in parameters)
            found.append(Holder(tensor, self.wrapper.sub_group_to_group_id[number], members, tuple(pieces)))
        return found

    def _part(self, parameter: Any) -> tuple[int, int]:
        size = parameter.partition_numel()
        return min(self.rank * size, parameter.ds_numel), min((self.rank + 1) * size, parameter.ds_numel)

    def weight(self, parameter: Any, start: int, end: int) -> Tensor:
        first, _ = self._part(parameter)
        return flat(parameter.ds_tensor)[start - first : end - first]

    def held(self, parameter: Any) -> tuple[int, Tensor, Tensor | None]:
        start, end = self._part(parameter)
        part = flat(parameter.ds_tensor)
        return start, part[: end - start], part[end - start :]

    def prepare(self) -> None:
        self.wrapper.checkpoint_event_prologue()

    def refresh(self) -> None:
        for number, master in enumerate(self.wrapper.fp32_partitioned_groups_flat):
            self.wrapper.fp16_partitioned_groups_flat[number].data.copy_(master.data)
            self.wrapper._unflatten_partitioned_parameters(number)
        self.wrapper.checkpoint_event_epilogue()  # gathers the small parameters that every rank keeps whole


KNOWN = {
    "FP16_UnfusedOptimizer": Unfused,
    "DeepSpeedZeroOptimizer": Flat,
    "BF16_Optimizer": FlatBf16,
    "DeepSpeedZeroOptimizer_Stage3": Partitioned,
}


def flat(tensor: Any) -> Tensor:
    """All elements as a 1-D view that shares memory. The tensor must be contiguous."""
    view: Tensor = tensor.detach().view(-1)
    return view


# --- what is refused --------------------------------------------------------------------------------------------------
def find_layout(engine: Any, names: Mapping[int, str], rank: int, world_size: int, deepspeed_version: str) -> Layout:
    """The layout of this engine. Raises ConfigInvalid, by name, for what is not known."""
    for what, hint in _unknown(engine, rank, world_size, deepspeed_version):
        raise config_invalid(f"checkpoints are not supported {what}", hint)
    wrapper = engine.optimizer
    if wrapper is engine.basic_optimizer:
        layout: Layout = Plain(engine, names, rank)
    else:
        layout = KNOWN[type(wrapper).__name__](engine, names, rank)
    for group in layout.inner.param_groups:
        element_kinds(layout.inner, group)
    return layout


def _unknown(engine: Any, rank: int, world_size: int, version: str) -> Iterator[tuple[str, str]]:
    found = re.match(r"(\d+)\.(\d+)\.", version)
    if found is None or (int(found[1]), int(found[2])) != TESTED:
        tested = ".".join(map(str, TESTED))
        yield f"with DeepSpeed {version}", f"install DeepSpeed {tested}, whose insides are known"
    if type(engine).__name__ != "DeepSpeedEngine":
        yield f"of a {type(engine).__name__}", "use a plain DeepSpeedEngine, without pipeline stages or hybrid engine"
    if engine.has_moe_layers:
        yield "of a model with mixture-of-experts layers (MoE)", "use a dense model"
    if engine.optimizer is None or engine.basic_optimizer is None:
        yield "of an engine without an optimizer", "give the configuration an optimizer"
    if engine.autotp_size() > 1:
        yield "with tensor parallelism", "remove tensor_parallel"
    if engine.torch_autocast_enabled():
        yield "with torch autocast", "use bf16 or fp16 of DeepSpeed"
    if engine.zero_hpz_partition_size() > 1:
        yield "with zero_hpz_partition_size (hpZ)", "remove it"
    if engine.zero_quantized_weights() or engine.zero_quantized_nontrainable_weights():
        yield "with quantised weights (ZeRO++)", "remove zero_quantized_weights and zero_quantized_nontrainable_weights"
    parameters = engine.zero_offload_param()
    if parameters is not None and str(getattr(parameters.device, "value", parameters.device)) != "none":
        yield "with offload_param", "remove offload_param; offload of the optimizer is supported"
    state = engine.zero_offload_optimizer()
    if state is not None and str(getattr(state.device, "value", state.device)) == "nvme":
        yield "with optimizer state on NVMe", "set offload_optimizer.device to cpu"
    if state is not None and state.ratio != 1.0:
        yield "with partial offload", "set offload_optimizer.ratio to 1"
    wrapper = engine.optimizer
    if wrapper is not engine.basic_optimizer:
        if type(wrapper).__name__ not in KNOWN:
            yield f"of DeepSpeed's {type(wrapper).__name__}", "use ZeRO 0 to 3, and torch_adam: true in the optimizer"
        if "float32" not in str(getattr(wrapper, "master_weights_and_grads_dtype", "float32")):
            yield "with master weights in half precision", "remove the *_master_weights_and_grads keys"
        for group in _process_groups(wrapper):
            if _place(group) != (rank, world_size):
                yield (
                    "when the data-parallel group is not the whole world",
                    "remove sequence, expert or model parallelism and MiCS",
                )


def _process_groups(wrapper: Any) -> list[Any]:
    groups = getattr(wrapper, "real_dp_process_group", None) or getattr(wrapper, "sub_group_process_groups", None)
    return list(groups or ())


def _place(group: Any) -> tuple[int, int]:
    import torch

    return torch.distributed.get_rank(group), torch.distributed.get_world_size(group)


def between_steps(engine: Any) -> WorkerFailed | None:
    """The failure that stands for an engine with gradients of a step that is not finished, or with offloaded state."""
    if getattr(engine.optimizer, "offloaded_states", None):
        return config_invalid("DeepSpeed's states are offloaded", "call engine.reload_states() first")
    if engine.managed_gradient_accumulation() and engine.micro_steps % engine.gradient_accumulation_steps():
        return config_invalid(
            f"micro-batch {engine.micro_steps} is in the middle of a step of {engine.gradient_accumulation_steps()}",
            "save and load only after a whole step",
        )
    return None
