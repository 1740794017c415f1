"""Dropout as a function of place: the same however samples are grouped, and as good as chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from orchestrator.training import randomness
from orchestrator.training.randomness import StepRandomness, generator, install, keep_mask, sample_keys, scale

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 97}
MODELS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": {**SMALL, "max_position_embeddings": 64, "pad_token_id": 1},
    "electra": SMALL | {"embedding_size": 32},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "vocab_size": 97,
        "seq_classif_dropout": 0.1,
    },
    "albert": SMALL | {"embedding_size": 16, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0},
    "llama": SMALL | {"num_key_value_heads": 2, "attention_dropout": 0.1, "pad_token_id": 0},
    "deberta-v2": SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64},
}
MODELS |= {
    "bert eager": SMALL,
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.1, "attention_dropout": 0.1},
    "starcoder2": SMALL
    | {
        "num_key_value_heads": 2,
        "residual_dropout": 0.1,
        "embedding_dropout": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
}
CAUSAL = ("gpt2", "llama", "opt", "starcoder2")


@pytest.fixture(autouse=True)
def undisturbed_torch() -> Iterator[None]:
    """Other tests keep the global generators that they had. One thread does for models of this size; more would spin."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def keys(count: int, seed: int = 0, step: int = 0) -> torch.Tensor:
    return torch.from_numpy(sample_keys(seed, step, range(count)).view(np.int64))


def build(name: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(1)
    auto = AutoModelForCausalLM if name in CAUSAL else AutoModelForSequenceClassification
    config = AutoConfig.for_model(name.split()[0], **MODELS[name])
    chosen = {"attn_implementation": "eager"} if "eager" in name else {}
    model: Any = auto.from_config(config, **chosen)  # type: ignore[no-untyped-call]
    model.train()
    return model


def batch(lengths: list[int], longest: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(token numbers, mask) of samples that depend on their index alone, padded."""
    width = longest or max(lengths)
    ids, mask = (
        torch.ones((len(lengths), width), dtype=torch.int64),
        torch.zeros((len(lengths), width), dtype=torch.int64),
    )
    for row, length in enumerate(lengths):
        ids[row, :length] = (torch.arange(length) * 7 + 11 * row) % 90 + 3
        mask[row, :length] = 1
    return ids, mask


# --- masks -----------------------------------------------------------------------------------------------------------
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    more=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    probability=st.sampled_from([0.1, 0.3, 0.5]),
)
def test_a_mask_does_not_depend_on_the_extents(shape: list[int], more: list[int], probability: float) -> None:
    """Cut to a smaller shape, the mask of a larger one is the smaller one's: padding changes nothing."""
    larger = [size + extra for size, extra in zip(shape, more, strict=False)]
    whole = keep_mask(keys(larger[0]), larger, probability)
    part = keep_mask(keys(larger[0])[: shape[0]], shape, probability)
    assert torch.equal(part, whole[tuple(slice(size) for size in shape)])


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_mask_does_not_depend_on_how_it_is_cut_up(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many numbers are hashed at a time, the mask is one."""
    expected = keep_mask(keys(5), (5, 3, 4, 11), 0.2)
    monkeypatch.setattr(randomness, "CPU_CHUNK", chunk)
    assert torch.equal(keep_mask(keys(5), (5, 3, 4, 11), 0.2), expected)


PINNED_DROPS = [1, 8, 9, 13, 17, 21, 25, 30, 38, 42, 44, 45, 46, 47, 48, 54, 57, 60, 62]
PINNED_NUMBERS = [8030660730102191445, 986616092488679756]


def test_the_mask_is_pinned() -> None:
    """The masks of a seed never change between versions: a resumed run would go on with others."""
    place = StepRandomness(3)
    place.at(5, [17])
    drops = ~keep_mask(place.keys(11, torch.device("cpu")), (1, 64), 0.25)
    assert drops.nonzero()[:, 1].tolist() == PINNED_DROPS
    assert generator(1, 2, 3).bit_generator.random_raw(2).tolist() == PINNED_NUMBERS


def splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def test_the_mask_is_what_the_description_says() -> None:
    """Each element agrees with the hash written down in plain integers."""
    shape, probability = (3, 2, 5, 7), 0.4
    mask = keep_mask(keys(3, seed=9, step=2), shape, probability)
    job_step = splitmix64(splitmix64(9) ^ 2)
    for place in product(*(range(size) for size in shape)):
        word = splitmix64(place[0] ^ job_step)
        for coordinate in place[1:-1]:
            word = splitmix64(word ^ (coordinate * 0x9E3779B97F4A7C15 % 2**64))
        number = (word % 2**32) ^ (place[-1] // 2)
        number = ((number ^ (number >> 16)) * 0x7FEB352D % 2**32) ^ (word >> 32)
        number = (number ^ (number >> 15)) * 0x846CA68B % 2**32
        number ^= number >> 16
        half = number >> 16 if place[-1] % 2 else number % 2**16
        signed = half - 2**16 if half >= 2**15 else half
        assert bool(mask[place]) == (signed >= round(probability * 2**16) - 2**15)


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9])
def test_the_rate_is_the_one_asked_for(probability: float) -> None:
    """Over five million elements the share of survivors is within four standard deviations, and the mean stays 1."""
    mask = keep_mask(keys(40), (40, 8, 128, 128), probability)
    kept = mask.count_nonzero().item() / mask.numel()
    exact = 1 / scale(probability)
    assert abs(kept - exact) < 4 * math.sqrt(exact * (1 - exact) / mask.numel())
    assert abs(exact - (1 - probability)) <= 2**-17


def test_neighbours_of_every_kind_are_independent() -> None:
    """No correlation between neighbouring columns, rows, heads, samples, layers, steps and seeds (four sigma each)."""
    shape, limit = (16, 4, 96, 96), 4.0
    base = StepRandomness(0)

    def mask(seed: int = 0, step: int = 0, place: int = 1) -> torch.Tensor:
        base._seed = seed
        base.at(step, range(shape[0]))
        return keep_mask(base.keys(place, torch.device("cpu")), shape, 0.5).double() * 2 - 1

    here = mask()
    pairs = {
        "columns": (here[..., 1:], here[..., :-1]),
        "pairs of columns": (here[..., 2:], here[..., :-2]),
        "rows": (here[:, :, 1:], here[:, :, :-1]),
        "heads": (here[:, 1:], here[:, :-1]),
        "samples": (here[1:], here[:-1]),
        "diagonals": (here[:, :, 1:, 1:], here[:, :, :-1, :-1]),
        "places": (here, mask(place=2)),
        "steps": (here, mask(step=1)),
        "seeds": (here, mask(seed=1)),
        "transposed": tuple(side[..., *torch.triu_indices(96, 96, 1)] for side in (here, here.transpose(2, 3))),
    }
    for name, (one, other) in pairs.items():
        scores = (one * other).mean() * math.sqrt(one.numel())
        assert abs(scores) < limit, name
    triples = here[..., 2:] * here[..., 1:-1] * here[..., :-2]
    squares = here[:, :, 1:, 1:] * here[:, :, :-1, 1:] * here[:, :, 1:, :-1] * here[:, :, :-1, :-1]
    for name, product_of in (("triples", triples), ("squares", squares)):
        assert abs(product_of.mean() * math.sqrt(product_of.numel())) < limit, name


@pytest.mark.parametrize(("rows", "columns"), [(20_000, 256), (200_000, 16)])
def test_counts_and_patterns_follow_the_binomial(rows: int, columns: int) -> None:
    """Drops by row and patterns of eight neighbours have the frequencies of independent drops (chi-square, p > 1e-4)."""
    drops = ~keep_mask(keys(rows), (rows, columns), 0.1)
    exact = randomness.dropped(0.1) / randomness.LEVELS
    expected = [rows * math.comb(columns, k) * exact**k * (1 - exact) ** (columns - k) for k in range(columns + 1)]
    assert _chi_square_z(np.bincount(drops.sum(1).numpy(), minlength=columns + 1), expected) < 3.8
    coins = ~keep_mask(keys(rows), (rows, columns), 0.5)
    patterns = (coins.view(-1, 8) * (2 ** torch.arange(8))).sum(1).numpy()
    assert _chi_square_z(np.bincount(patterns, minlength=256), [len(patterns) / 256] * 256) < 3.8
    by_column = coins.sum(0).numpy()
    assert _chi_square_z(by_column, [rows / 2] * columns, spread=0.5) < 3.8


def _chi_square_z(counts: Any, expected: list[float], spread: float = 1.0) -> float:
    """Pearson's chi-square as a standard normal (Wilson and Hilferty, 1931); cells below ten are put together."""
    cells, rest = [], [0.0, 0.0]
    for count, wanted in zip(counts, expected, strict=True):
        if wanted < 10:
            rest = [rest[0] + float(count), rest[1] + wanted]
        else:
            cells.append((float(count), wanted))
    if rest[1] >= 10:
        cells.append((rest[0], rest[1]))
    degrees = len(cells) - (1 if spread == 1.0 else 0)
    value = sum((count - wanted) ** 2 / wanted for count, wanted in cells) / spread
    cube_root: float = (value / degrees) ** (1 / 3)
    return (cube_root - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))


# --- models ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_a_sample_meets_the_same_masks_in_any_company(name: str) -> None:
    """Logits and gradients of samples are the same to rounding alone, together, in other order, and padded further."""
    model = build(name)
    model.double()  # so that rounding (some models compute parts in float32) is far below what a mask does
    found = install(model, seed=5)
    lengths = [9, 14, 6, 11]
    ids, mask = batch(lengths, 17)

    def run(rows: list[int], width: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        model.zero_grad()
        found.at(3, [40 + row for row in rows])
        logits = model(input_ids=ids[rows, :width], attention_mask=mask[rows, :width]).logits
        parts = [logits[i, : lengths[row]] if name in CAUSAL else logits[i] for i, row in enumerate(rows)]
        sum(part.square().sum() for part in parts).backward()
        return parts, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    found.begin(3, 0)
    together, gradient = run([0, 1, 2, 3], 14)
    padded, padded_gradient = run([3, 1, 0, 2], 17)
    alone = [run([row], lengths[row]) for row in range(4)]
    for row in range(4):
        torch.testing.assert_close(alone[row][0][0], together[row], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(padded[[3, 1, 0, 2].index(row)], together[row], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(sum(g for _, g in alone), gradient, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(padded_gradient, gradient, rtol=1e-6, atol=1e-7)
    assert not found.unhandled
    found.at(4, [40, 41, 42, 43])
    other = model(input_ids=ids[:, :14], attention_mask=mask[:, :14]).logits[1]
    assert not torch.allclose(other[: lengths[1]] if name in CAUSAL else other, together[1], rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_stays_as_it_was(name: str) -> None:
    """In evaluation the model gives the same numbers, bit by bit, as before, and needs no samples."""
    model = build(name).eval()
    ids, mask = batch([9, 14, 6])
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        install(model, seed=5)
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_with_nothing_dropped_attention_is_the_usual_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention written out, with a mask that keeps all, agrees with torch's fused one: mask, causality, scale, groups."""
    model = build(name)
    ids, mask = batch([9, 14, 6])
    for attention_mask in (mask, torch.ones_like(mask)):
        expected = model.eval()(input_ids=ids, attention_mask=attention_mask).logits
        found = install(model, seed=5)
        monkeypatch.setattr(randomness, "keep_mask", lambda _, shape, p: torch.ones(tuple(shape), dtype=torch.bool))
        monkeypatch.setattr(randomness, "scale", lambda p: 1.0)
        found.at(0, range(3))
        actual = model.train()(input_ids=ids, attention_mask=attention_mask).logits
        seen = attention_mask.bool() if name in CAUSAL else slice(None)
        torch.testing.assert_close(actual[seen], expected[seen], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["bert", "bert eager", "gpt2", "starcoder2"])
def test_a_recomputed_layer_meets_the_same_masks(name: str, reentrant: bool) -> None:
    """With activation checkpointing the gradients are bit-equal to those without."""
    gradients = []
    for checkpointed in (False, True):
        model = build(name)
        found = install(model, seed=5)
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        ids, mask = batch([9, 14, 6])
        for step in range(2):
            found.at(step, range(3))
            model(input_ids=ids, attention_mask=mask, use_cache=False).logits.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


class Twice(nn.Module):
    """One module used as two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.drop(x) + 10 * self.drop(x)
        return found


def test_layers_that_share_a_module_have_masks_of_their_own() -> None:
    """The second use of a module drops other elements than the first; recomputing them is refused, not guessed."""
    model = Twice()
    found = install(model, 0)
    found.at(0, [1, 2])
    x = torch.ones((2, 400), requires_grad=True)
    first = model(x)
    assert len(set(first.flatten().tolist())) == 4
    found.at(0, [1, 2])
    assert torch.equal(model(x), first)
    found.at(1, [1, 2])
    with pytest.raises(NotImplementedError, match="drop is used by several layers"):
        checkpoint(model, x, use_reentrant=False).sum().backward()


def test_rows_of_folded_samples_belong_to_their_sample() -> None:
    """A first dimension of samples times heads gives each sample the masks that it has alone; others fall to torch."""
    model = nn.Sequential(nn.Dropout(0.5))
    found = install(model, 0)
    found.at(0, [7, 8, 9])
    together = model(torch.ones(6, 5, 40))
    for row, sample in enumerate([7, 8, 9]):
        found.at(0, [sample])
        assert torch.equal(model(torch.ones(2, 5, 40)), together[2 * row : 2 * row + 2])
    found.begin(0, 0)
    assert not found.unhandled
    found.at(0, [7, 8, 9])
    model(torch.ones(4, 40))
    assert found.unhandled


def test_a_model_with_randomness_of_its_own_is_found_out_and_repeats() -> None:
    """A model that draws numbers is noticed; after the same step of the same rank it draws the same numbers again."""

    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rand_like(x)

    model = Own()
    found = install(model, 3)
    draws: dict[tuple[int, int], tuple[torch.Tensor, float, torch.Tensor]] = {}
    for step, rank in product((1, 2), (0, 1)):
        found.begin(step, rank)
        assert found.unhandled is bool(draws)
        draws[step, rank] = (model(torch.ones(64)), np.random.random(), torch.rand(1))
        assert found.unhandled
    assert len({tuple(mask.tolist()) for mask, _, _ in draws.values()}) == 4
    again = StepRandomness(3)
    again.begin(2, 0)
    mask, number, drawn = draws[2, 0]
    assert torch.equal(model(torch.ones(64)), mask)
    assert (np.random.random(), torch.rand(1)) == (number, drawn)


def test_the_saved_configuration_names_nothing_of_ours(tmp_path: Path) -> None:
    """A model saved after training loads with transformers alone, on its usual attention."""
    from transformers import AutoModelForSequenceClassification

    model = build("bert")
    install(model, 0)
    assert model.config._attn_implementation == randomness.ATTENTION
    model.save_pretrained(tmp_path)
    assert "orchestrate" not in (tmp_path / "config.json").read_text()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_drops_the_same_elements(dtype: torch.dtype) -> None:
    """A mask does not depend on the number format."""
    model = nn.Sequential(nn.Dropout(0.3))
    found = install(model, 0)
    results = []
    for kind in (torch.float32, dtype):
        found.at(0, range(4))
        results.append(model(torch.ones((4, 100), dtype=kind)))
    assert results[1].dtype == dtype
    assert torch.equal(results[0] == 0, results[1] == 0)


def test_a_sample_has_numbers_of_its_own_for_user_code() -> None:
    """The helper's numbers depend on seed, step and sample, and on nothing else."""
    drawn = {
        (seed, step, sample): generator(seed, step, sample).random()
        for seed, step, sample in product(range(4), repeat=3)
    }
    assert len(set(drawn.values())) == 64
    assert all(generator(*place).random() == value for place, value in drawn.items())
