"""Texts to token numbers, once, kept as one flat array; and a small tokenizer for models that come without one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from orchestrator.planning.shapes import BUILT_VOCABULARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token numbers of many samples, one after another."""

    flat: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    """Where each sample starts, and the end of the last: samples + 1 numbers."""
    labels: npt.NDArray[np.int64]
    """Number of each sample's label; empty for causal-lm."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.starts)

    def sample(self, index: int) -> npt.NDArray[np.int32]:
        return self.flat[self.starts[index] : self.starts[index + 1]]

    def digest(self) -> str:
        """sha256 over everything, so that ranks and restarts can tell that they read the same data."""
        summer = hashlib.sha256()
        for array in (self.flat, self.starts, self.labels):
            summer.update(np.ascontiguousarray(array).tobytes())
        return summer.hexdigest()


def load_tokenizer(folder: Path | str, **where: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a model: straight from `tokenizer.json` where there is one, which is seconds faster."""
    if isinstance(folder, Path) and (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        return tokenizer
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, use_fast=True, **where)
    return cast("PreTrainedTokenizerFast", loaded)


def build_tokenizer(texts: Sequence[str], vocabulary: int = BUILT_VOCABULARY) -> PreTrainedTokenizerFast:
    """A lower-case WordPiece tokenizer made from the training texts; the same texts give the same tokenizer.

    Not the trainer of `tokenizers`, whose order of equal counts is not promised: words by (count, spelling), then the
    single characters, so that any word of known characters can be spelt.
    """
    from collections import Counter

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    pieces = [*SPECIAL.values(), *characters, *(f"##{character}" for character in characters)]
    known = set(pieces)
    for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if len(pieces) >= vocabulary:
            break
        if word not in known:
            pieces.append(word)
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=SPECIAL["unk_token"]))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.WordPiece()
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, pieces.index(cls)), (sep, pieces.index(sep))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)  # type: ignore[no-untyped-call]


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], labels: Sequence[int], max_length: int) -> Tokens:
    """One sample a text, special tokens included, cut to `max_length`."""
    if not texts:
        return _tokens([], [])
    found = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return _tokens(found["input_ids"], labels)


def pack(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int) -> Tokens:
    """Samples for a causal model: the texts one after another, each followed by an end token, cut into full blocks.

    Only the last block may be shorter; a last block of one token predicts nothing and is left out.
    """
    if not texts:
        return _tokens([], [])
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    found = tokenizer(list(texts), add_special_tokens=False, padding=False, return_attention_mask=False, verbose=False)
    stream: list[int] = []
    for ids in found["input_ids"]:
        stream += ids
        if end is not None:
            stream.append(end)
    blocks = [stream[i : i + max_length] for i in range(0, len(stream), max_length)]
    return _tokens([block for block in blocks if len(block) > 1], [])


def _tokens(samples: Sequence[Sequence[int]], labels: Sequence[int]) -> Tokens:
    starts = np.zeros(len(samples) + 1, dtype=np.int64)
    np.cumsum([len(sample) for sample in samples], out=starts[1:])
    flat = np.fromiter((token for sample in samples for token in sample), dtype=np.int32, count=int(starts[-1]))
    return Tokens(flat, starts, np.asarray(labels, dtype=np.int64))
