"""Sizes of models from their configurations."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.planning.shapes import FAMILIES, UnknownShape, read_shape

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 300,
}
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bert", {}),
    ("bert", {**SMALL, "type_vocab_size": 1, "max_position_embeddings": 40}),
    ("roberta", {"type_vocab_size": 1, "max_position_embeddings": 514}),
    ("distilbert", {}),
    ("distilbert", {"dim": 64, "n_layers": 3, "hidden_dim": 100, "n_heads": 4}),
    ("gpt2", {}),
    ("gpt2", {"n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 100}),
    ("llama", {**SMALL, "num_key_value_heads": 2}),
    ("llama", {**SMALL, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {**SMALL, "head_dim": 32}),
    ("mistral", {**SMALL, "num_key_value_heads": 1}),
    ("qwen2", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("qwen3", {**SMALL, "num_key_value_heads": 2}),
    ("qwen3", {**SMALL, "head_dim": 8, "num_key_value_heads": 4, "attention_bias": True}),
)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("family", "config", "language_model"),
    [(*case, causal) for case in CASES for causal in (True, False) if not (causal and case[0] == "distilbert")],
)
def test_parameters_are_those_of_the_model(family: str, config: dict[str, Any], language_model: bool) -> None:
    """For every family the count is exactly that of the model which transformers builds, with the head of its task (DistilBERT has none for a causal one)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    full = AutoConfig.for_model(family, **config)
    full.num_labels, full.pad_token_id = 3, 0
    full.is_decoder = language_model and family in ("bert", "roberta")
    auto = AutoModelForCausalLM if language_model else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(full)  # type: ignore[no-untyped-call]
    counted = sum(parameter.numel() for parameter in model.parameters())
    shape = read_shape({"model_type": family, **config}, language_model=language_model, labels=3)
    assert shape.parameters == counted


def test_every_family_is_held_against_transformers() -> None:
    """No family is listed without a case above."""
    assert {family for family, _ in CASES} == set(FAMILIES)


def test_llama_of_seven_billion_by_hand() -> None:
    """32 layers of 4 x 4096^2 + 3 x 4096 x 11008 + two norms, two embeddings of 32,000 words, one norm; a lookup costs nothing."""
    shape = read_shape({"model_type": "llama"}, language_model=True)
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert shape.parameters == 32 * layer + 2 * 32000 * 4096 + 4096 == 6_738_415_616
    assert shape.embeddings == 32000 * 4096
    assert shape.flops_per_token(2048) == 6 * (shape.parameters - shape.embeddings) + 12 * 32 * 4096 * 2048


def test_lora_counts_both_matrices_of_each_linear_layer() -> None:
    """Rank 8 on a block of four square matrices and an MLP of two: 8 x (inputs + outputs) of each."""
    shape = read_shape({"model_type": "bert"}, language_model=False)
    assert shape.lora_parameters(8) == 12 * 8 * (4 * (768 + 768) + 2 * (768 + 3072))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "names no model_type"),
        ({"model_type": "mamba"}, "of the family 'mamba'"),
        ({"model_type": "bert", "hidden_size": "768"}, "hidden_size of the configuration is '768'"),
        ({"model_type": "gpt2", "n_layer": 0}, "num_hidden_layers of the configuration is 0"),
        ({"model_type": "llama", "num_key_value_heads": "4"}, "num_key_value_heads of the configuration is '4'"),
        ({"model_type": "gpt2", "n_inner": [3072]}, "intermediate_size of the configuration is"),
        ({"model_type": "llama", "vocab_size": True}, "vocab_size of the configuration is True"),
    ],
)
def test_what_is_not_known_is_not_guessed(config: dict[str, Any], words: str) -> None:
    """Another architecture, or a size that is none, is refused with the reason."""
    with pytest.raises(UnknownShape, match=words):
        read_shape(config, language_model=True)
