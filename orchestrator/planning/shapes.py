"""The sizes of a transformer, read from its configuration: parameters, and what memory and time follow from. Pure; no torch.

A configuration is what `config.json` of a model holds. The counts are exact for the families listed in `FAMILIES` (tests hold
them against the models that transformers builds). Any other architecture is an `UnknownShape`, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BUILT_VOCABULARY = 8_000
"""Most words of a tokenizer that is built from the training texts; rarer ones become [UNK] piece by piece."""


class UnknownShape(ValueError):
    """A configuration whose sizes cannot be told; `str` says why."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model with the head of its task."""

    family: str
    parameters: int
    embeddings: int
    """Parameters that are only looked up: they take memory and no arithmetic."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    head_size: int
    vocabulary: int
    positions: int | None
    """Longest sample, in tokens; None: no limit in the configuration."""
    attention_dropout: bool
    """Whether attention drops weights in training, so that they are written out and kept."""
    language_model: bool
    """Whether the output is a number for each token of the vocabulary at each place."""

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest module that ZeRO-3 gathers at once: the embedding, or one matrix of a layer."""
        return max(self.vocabulary * self.hidden, self.intermediate * self.hidden)

    def lora_parameters(self, rank: int) -> int:
        """Trainable parameters with LoRA of this rank on every linear layer of the blocks: rank x (inputs + outputs) each
        (Hu et al. 2021, arxiv.org/abs/2106.09685)."""
        gated = self.family in GATED
        attention = self.heads * self.head_size
        matrices = [(self.hidden, attention)] * 3 + [(attention, self.hidden)]
        matrices += [(self.hidden, self.intermediate)] * (2 if gated else 1) + [(self.intermediate, self.hidden)]
        return self.layers * rank * sum(rows + columns for rows, columns in matrices)

    def flops_per_token(self, tokens: int) -> float:
        """Forward and backward, of one token of a sample of so many: 6 a parameter that computes, and 12 x layers x hidden x
        tokens for attention (Chowdhery et al. 2022, arxiv.org/abs/2204.02311, appendix B)."""
        return 6.0 * (self.parameters - self.embeddings) + 12.0 * self.layers * self.heads * self.head_size * tokens


FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "attention_probs_dropout_prob": 0.1,
    },
    "roberta": {
        "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "attention_probs_dropout_prob": 0.1,
    },
    "distilbert": {
        "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "max_position_embeddings": 512,
        "attention_dropout": 0.1,
    },
    "gpt2": {
        "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "n_positions": 1024,
        "attn_pdrop": 0.1,
    },
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": None, "intermediate_size": 11008, "max_position_embeddings": 2048, "attention_dropout": 0.0,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072, "attention_dropout": 0.0,
    },
    "qwen2": {
        "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": 22016, "max_position_embeddings": 32768, "attention_dropout": 0.0,
    },
    "qwen3": {
        "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": 128,
        "num_key_value_heads": 32, "intermediate_size": 22016, "max_position_embeddings": 32768, "attention_dropout": 0.0,
    },
}  # fmt: skip
"""Families whose sizes are known, with what transformers takes for a field that a configuration leaves out."""
GATED = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose blocks have a gate beside the way up."""
_NAMES = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
          "n_positions": "max_position_embeddings", "n_inner": "intermediate_size", "dim": "hidden_size",
          "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "hidden_dim": "intermediate_size",
          "attn_pdrop": "attention_dropout", "attention_probs_dropout_prob": "attention_dropout"}  # fmt: skip


_MAY_BE_ABSENT = {"intermediate_size", "num_key_value_heads", "head_dim"}
_NUMBERS = _MAY_BE_ABSENT | {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings", "type_vocab_size"
}  # fmt: skip


def read_shape(
    config: Mapping[str, Any], *, language_model: bool, labels: int = 2, vocabulary: int | None = None
) -> ModelShape:
    """The sizes of a configuration, with the head that training puts on it. `labels` counts for classification;
    `vocabulary` replaces the configuration's. Raises UnknownShape."""
    family = config.get("model_type")
    if family not in FAMILIES:
        named = "names no model_type" if family is None else f"is of the family {family!r}"
        raise UnknownShape(f"the configuration {named}; sizes are known for {', '.join(sorted(FAMILIES))}")
    plain = {_NAMES.get(name, name): value for name, value in FAMILIES[family].items()}
    given = {_NAMES.get(name, name): value for name, value in config.items()}
    plain |= {name: value for name, value in given.items() if name in plain or name == "head_dim"}
    for name in sorted(_NUMBERS & set(plain)):
        value = plain[name]
        if value is None and name in _MAY_BE_ABSENT:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < (0 if name == "type_vocab_size" else 1):
            raise UnknownShape(f"{name} of the configuration is {value!r}, not a whole number above 0")
    if vocabulary is not None:
        plain["vocab_size"] = vocabulary
    return _shape(family, plain, config, language_model=language_model, labels=labels)


def _shape(
    family: str, plain: Mapping[str, Any], config: Mapping[str, Any], *, language_model: bool, labels: int
) -> ModelShape:
    hidden, layers, heads = plain["hidden_size"], plain["num_hidden_layers"], plain["num_attention_heads"]
    vocabulary, positions = plain["vocab_size"], plain["max_position_embeddings"]
    inner = plain.get("intermediate_size") or 4 * hidden
    head = plain.get("head_dim") or hidden // heads
    tied = bool(config.get("tie_word_embeddings", family not in GATED))
    tokens, learned = vocabulary * hidden, 0
    if family in GATED:
        kv = (plain.get("num_key_value_heads") or heads) * head
        attention = 2 * hidden * heads * head + 2 * hidden * kv
        if family == "qwen2" or (family == "qwen3" and config.get("attention_bias")):
            attention += heads * head + 2 * kv + (hidden if family == "qwen3" else 0)
        elif config.get("attention_bias") and family == "llama":
            attention += heads * head + 2 * kv + hidden
        attention += 2 * head if family == "qwen3" else 0
        mlp = 3 * hidden * inner
        mlp += 2 * inner + hidden if family == "llama" and config.get("mlp_bias") else 0
        blocks, last = attention + mlp + 2 * hidden, hidden
        output = (0 if tied else tokens) if language_model else hidden * labels
    else:
        blocks = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
        types = plain.get("type_vocab_size") or 0
        learned = (positions + types) * hidden
        square = hidden * hidden + hidden
        last = 2 * hidden  # the norm after the embedding, or GPT-2's after the last layer
        if family == "gpt2":
            output = (0 if tied else tokens) if language_model else hidden * labels
        elif language_model:
            output = square + 2 * hidden + vocabulary + (0 if tied else tokens)  # dense, norm, bias; the matrix is tied
        else:
            output = square + hidden * labels + labels
    return ModelShape(
        family=family,
        parameters=tokens + learned + layers * blocks + last + output,
        embeddings=learned + (0 if language_model and tied else tokens),
        layers=layers,
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        head_size=head,
        vocabulary=vocabulary,
        positions=positions,
        attention_dropout=bool(plain.get("attention_dropout")),
        language_model=language_model,
    )
