"""Dropout that a resize does not change: a pure function of seed, step, sample, place in the model, and coordinates.

torch's dropout takes the next numbers of one generator per process, so that another world size, another micro-batch or
more padding gives every sample other masks. Here each element's mask is a hash of where the element stands. So it does
not matter which rank computes a sample, beside which others, padded how far, or how often (activation checkpointing
computes a layer twice and must meet the same mask). All of it is integer arithmetic, the same on a CPU and a GPU.

`install` replaces every `nn.Dropout` of a transformers model, the calls of `nn.functional.dropout` in its modules, and
attention's dropout through transformers' attention interface (an attention function of ours, registered under a name of
its own; scaled-dot-product attention runs whenever nothing is to be dropped).

How a mask is made: splitmix64 over (seed, step, sample, place, all coordinates but the last) gives each row of the last
dimension 64 bits. 32 of them and the column's number go into the two rounds of lowbias32 (C. Wellons, "Prospecting for
hash functions", 2018), the other 32 between the rounds; each result is two 16-bit numbers, for two neighbouring columns.
So a probability is rounded to a 65,536th, and the survivors are scaled by what it was rounded to.

Limits: a model that draws its own random numbers (layer drop, noise) is not made exact by this; `StepRandomness.unhandled`
tells. Attention that drops is written out, so that its weights are in memory, which a fused kernel avoids. A sample that stands twice in one global batch gets one mask for both. The first
dimension of what is dropped must be the samples, or the samples times something (then sample by sample).
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from orchestrator.training.order import Indices, mix

ATTENTION = "orchestrate"
"""Name of our attention function in transformers' registries."""
LEVELS = 2**16
"""Probabilities are multiples of one part in this."""
CPU_CHUNK = 2**17
"""Numbers hashed at a time on a CPU: two buffers of them (1 MiB) stay in a core's cache."""
GPU_CHUNK = 2**24
_PLACE = "_orchestrate_place"
_WEYL = 0x9E3779B97F4A7C15  # splitmix64's increment: 2**64 over the golden ratio


def _signed(number: int, bits: int) -> int:
    """The number that has the same bits in torch's signed integers."""
    return number - 2**bits if number >= 2 ** (bits - 1) else number


# --- keys ------------------------------------------------------------------------------------------------------------
def key_of(*parts: int) -> int:
    """64 bits that depend on every part and on their order."""
    found = np.zeros(1, dtype=np.uint64)
    for part in parts:
        found = mix(found ^ np.uint64(part % 2**64))
    return int(found[0])


def sample_keys(seed: int, step: int, samples: Sequence[int] | Indices) -> npt.NDArray[np.uint64]:
    """64 bits for each sample of a step."""
    return mix(np.asarray(samples, dtype=np.int64).astype(np.uint64) ^ np.uint64(key_of(seed, step)))


def generator(seed: int, step: int, sample: int) -> np.random.Generator:
    """Random numbers of one sample in one step, for a user's own augmentation: the same on every rank and world size.

    Philox, a generator by counter: the seed and the step are its key and the sample is the counter's high word, so that
    no two samples, steps or seeds share numbers (within 2**192 draws).
    """
    words = np.array([key_of(seed), step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words, counter=np.array([0, 0, 0, sample], dtype=np.uint64)))


# --- masks -----------------------------------------------------------------------------------------------------------
def keep_mask(keys: Tensor, shape: Sequence[int], probability: float) -> Tensor:
    """Which elements of a tensor of `shape` stay; `keys` (int64) has one key for each index of its first dimension.

    Element [i, j, ..., z] depends on keys[i], j, ..., z and the probability alone, never on the extents.
    """
    columns = shape[-1] if len(shape) > 1 else 1
    rows = keys
    for size in shape[1:-1]:
        rows = _mix(rows.unsqueeze(-1) ^ _coordinates(size, keys.device))
    words = rows.reshape(-1, 1).view(torch.int32)  # [rows, 2]
    keep = torch.empty((len(words), columns), dtype=torch.bool, device=keys.device)
    pairs = (columns + 1) // 2
    numbers = torch.arange(pairs, dtype=torch.int32, device=keys.device)
    threshold = dropped(probability) - LEVELS // 2  # of a 16-bit number read as signed
    together = max(1, (CPU_CHUNK if keys.device.type == "cpu" else GPU_CHUNK) // max(1, pairs))
    chunk = (min(together, len(words)), pairs)
    hashes, scratch = (torch.empty(chunk, dtype=torch.int32, device=keys.device) for _ in range(2))
    for first in range(0, len(words), together):
        part = words[first : first + together]
        x, y = hashes[: len(part)], scratch[: len(part)]
        torch.bitwise_xor(part[:, :1], numbers, out=x)
        _fold(x, y, 16).mul_(0x7FEB352D).bitwise_xor_(part[:, 1:])
        _fold(x, y, 15).mul_(_signed(0x846CA68B, 32))
        _fold(x, y, 16)
        torch.ge(x.view(torch.int16)[:, :columns], threshold, out=keep[first : first + together])
    return keep.view(tuple(shape))


def dropped(probability: float) -> int:
    """A probability in parts of `LEVELS`."""
    return round(probability * LEVELS)


def scale(probability: float) -> float:
    """What survivors are multiplied by, so that the mean stays."""
    return LEVELS / (LEVELS - dropped(probability))


def _fold(x: Tensor, scratch: Tensor, bits: int) -> Tensor:
    """x ^= x >> bits, without the sign that torch's shift brings in."""
    torch.bitwise_right_shift(x, bits, out=scratch)
    return x.bitwise_xor_(scratch.bitwise_and_(2 ** (32 - bits) - 1))


def _mix(x: Tensor) -> Tensor:
    """splitmix64 of int64 numbers, as `order.mix` has it for uint64."""
    x = x + _signed(_WEYL, 64)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB, 64)
    return x ^ ((x >> 31) & (2**33 - 1))


def _coordinates(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, dtype=torch.int64, device=device) * _signed(_WEYL, 64)


# --- the model's side ------------------------------------------------------------------------------------------------
class Place:
    """One module's place in the model, known by its name: the keys of the present samples there."""

    def __init__(self, randomness: StepRandomness, name: str) -> None:
        self._randomness = randomness
        self._name = name
        self._keys: list[int] = []
        self._calls = 0
        self._call_of = -1

    def keys(self, rows: int, device: torch.device) -> Tensor | None:
        """One key for each of `rows`; None when the present samples cannot be told apart in so many rows."""
        present = self._randomness.samples
        if present == 0 or rows % present:
            return None
        number = self._number()
        while len(self._keys) <= number:
            digest = blake2b(f"{self._name} {len(self._keys)}".encode(), digest_size=8).digest()
            self._keys.append(int.from_bytes(digest, "little"))
        found = self._randomness.keys(self._keys[number], device)
        if rows == present:
            return found
        return _mix(found.unsqueeze(-1) ^ _coordinates(rows // present, device)).reshape(-1)

    def drop(self, values: Tensor, probability: float) -> Tensor:
        """Dropout of values whose first dimension is the samples; torch's own where it is not."""
        if dropped(probability) == 0:
            return values
        keys = self.keys(values.shape[0], values.device) if values.ndim and dropped(probability) < LEVELS else None
        if keys is None:
            return functional.dropout(values, probability)
        return torch.mul(values, keep_mask(keys, values.shape, probability)).mul_(scale(probability))

    def _number(self) -> int:
        """How often this module was called in this pass before: layers that share one module have masks of their own."""
        current = self._randomness.passes
        if self._call_of != current:
            self._call_of, self._calls = current, 0
        if torch._C._current_graph_task_id() != -1:  # recomputed in a backward pass
            if self._calls > 1:
                raise NotImplementedError(f"{self._name} is used by several layers and cannot be recomputed exactly")
            return 0
        self._calls += 1
        return self._calls - 1


class SampleDropout(nn.Dropout):
    """`nn.Dropout` whose mask belongs to the sample."""

    def __init__(self, place: Place, p: float) -> None:
        super().__init__(p)
        self._place = place

    def forward(self, input: Tensor) -> Tensor:
        return self._place.drop(input, self.p) if self.training else input


class _FunctionalDropout(TorchFunctionMode):
    """While it is entered, `nn.functional.dropout` is ours. The n-th call in a module's forward is the n-th place there."""

    def __init__(self, places: Callable[[int], Place]) -> None:
        super().__init__()
        self._places = places
        self._calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.dropout:
            return self._drop(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        number = self._calls
        self._calls += 1
        return self._places(number).drop(input, p) if training else input


def _wrap_forward(module: nn.Module, randomness: StepRandomness, name: str) -> None:
    """Let a module's own calls of `nn.functional.dropout` be ours."""
    places: list[Place] = []
    original = module.forward

    def place(number: int) -> Place:
        while len(places) <= number:
            places.append(Place(randomness, f"{name}.dropout{len(places)}"))
        return places[number]

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not module.training:
            return original(*args, **kwargs)
        with _FunctionalDropout(place):
            return original(*args, **kwargs)

    module.forward = forward


class StepRandomness:
    """The random numbers of one rank's training: what dropout asks, and torch's own generators for what is not known."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._samples: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._tables: dict[torch.device, Tensor] = {}
        self._rows: dict[int, int] = {}
        self._global_states: list[Tensor] = []
        self._moved = False
        self.passes = 0
        """Forward passes announced so far."""

    @property
    def samples(self) -> int:
        """Samples of the present micro-batch."""
        return len(self._samples)

    def begin(self, step: int, rank: int) -> None:
        """Seed torch's, Python's and numpy's global generators for this rank's part of a step, whatever went before.

        Nothing of a model that `install` knows draws from them. For other models it makes a run that was stopped and
        resumed at the same world size go on with the same numbers, without any state to save.
        """
        number = key_of(self._seed, step, rank)
        torch.manual_seed(number % 2**63)
        random.seed(number)
        np.random.seed(number % 2**32)
        self._global_states = _global_states()

    def at(self, step: int, samples: Sequence[int] | Indices) -> None:
        """Say which samples stand in the rows of the forward pass that follows, and in its recomputation."""
        self._samples = sample_keys(self._seed, step, samples)
        self._tables = {}
        self.passes += 1

    @property
    def unhandled(self) -> bool:
        """Whether the model has randomness of its own: it drew from torch's global generators since `begin`.

        Once seen, it stays true; so ask at the end of each step, before anything else may draw.
        """
        if not self._moved and self._global_states:
            now = _global_states()
            self._moved = any(not torch.equal(was, found) for was, found in zip(self._global_states, now, strict=True))
        return self._moved

    def keys(self, place: int, device: torch.device) -> Tensor:
        """A key (int64) for each present sample at a place. All places' keys go to the device in one copy a pass."""
        row = self._rows.setdefault(place, len(self._rows))
        table = self._tables.get(device)
        if table is None or row >= len(table):
            places = np.fromiter(self._rows, dtype=np.uint64, count=len(self._rows))
            mixed = mix(places[:, None] ^ self._samples[None, :])
            table = self._tables[device] = torch.from_numpy(mixed.view(np.int64)).to(device)
        return table[row]


def _global_states() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


def install(model: nn.Module, seed: int) -> StepRandomness:
    """Make the model's dropout a function of `StepRandomness.at`; evaluation stays as it was.

    Before `DeepSpeed.initialize`, so that places have the model's own names. The model's configuration, as it would be
    saved, does not change.
    """
    randomness = StepRandomness(seed)
    config = getattr(model, "config", None)
    kind = config._attn_implementation if config is not None and _drops_attention(config.to_dict()) else None
    for name, module in list(model.named_modules()):
        setattr(module, _PLACE, Place(randomness, name))
        for child_name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                whole = f"{name}.{child_name}" if name else child_name
                setattr(module, child_name, SampleDropout(Place(randomness, whole), child.p).train(child.training))
        names = set(inspect.unwrap(type(module).forward).__code__.co_names)
        if {"functional", "dropout"} <= names or (kind == "eager" and "eager_attention_forward" in names):
            _wrap_forward(module, randomness, name)
    if kind == "sdpa":
        _register()
        cast(Any, model).set_attn_implementation(ATTENTION)
    return randomness


def _drops_attention(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has an attention dropout above 0, under whichever of its names."""
    return any(
        "att" in name and "drop" in name and isinstance(value, (int, float)) and value > 0
        for name, value in config.items()
    )


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [batch, heads, length, width] each; the result is [batch, length, heads, width].

    torch's fused attention where nothing is dropped; otherwise the same written out, with the weights masked.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    place = getattr(module, _PLACE, None)
    keys = place.keys(query.shape[0], query.device) if place is not None and 0 < dropped(dropout) < LEVELS else None
    if keys is None:
        more |= {"scaling": scaling, "is_causal": is_causal, "position_bias": position_bias}
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, **more
        )
        return found
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    weights = torch.matmul(query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key.transpose(2, 3))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:
        attention_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    for bias in (position_bias, attention_mask):
        if bias is not None:
            weights += _additive(bias, weights.dtype)
    at_least_float32 = torch.promote_types(weights.dtype, torch.float32)
    weights = functional.softmax(weights, dim=-1, dtype=at_least_float32).to(value.dtype)
    kept = torch.mul(weights, keep_mask(keys, weights.shape, dropout))
    out = torch.matmul(kept, value).mul_(scale(dropout))  # scaled here, where there is least of it
    return out.transpose(1, 2).contiguous(), None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add: a boolean one says where to look."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
