"""A DeepSpeed engine around a model, and the exact loss of a global batch.

Loss: DeepSpeed divides gradients by the world size (averaging) and by the accumulation steps. A micro-batch's loss is
therefore `sum over its samples or tokens x world size x accumulation / count of the global batch`: what comes out is the
gradient of the mean over the global batch, whatever the ranks and micro-batches. Averages of averages would differ as
soon as two ranks hold unequal numbers of samples or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.training.order import Indices
from orchestrator.training.tokens import Tokens

if TYPE_CHECKING:
    import torch

IGNORED = -100


def initialize(deepspeed: Any, model: torch.nn.Module, config: dict[str, Any]) -> Any:
    """The engine; weight decay is not applied to biases and norms (parameters of one dimension)."""
    weight_decay = config["optimizer"]["params"]["weight_decay"]
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        model_parameters=[group for group in groups if group["params"]],
        config=config,
        dist_init_required=False,
    )
    return engine


def set_learning_rate(engine: Any, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(engine: Any) -> float | None:
    """The norm of the last step's gradient before clipping, over all ranks; None where DeepSpeed did not compute it."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


class Batches:
    """Turns sample numbers into padded tensors and losses for one task."""

    def __init__(self, torch: Any, tokens: Tokens, *, causal: bool, pad: int, device: str) -> None:
        self._torch = torch
        self._tokens = tokens
        self._causal = causal
        self._pad = pad
        self._device = device

    def weight(self, indices: Sequence[int] | Indices) -> int:
        """What the loss of these samples is divided by: samples, or predicted tokens."""
        if not self._causal:
            return len(indices)
        lengths = self._tokens.lengths[np.asarray(indices, dtype=np.int64)]
        return int((lengths - 1).sum())

    def loss_sum(self, engine: Any, indices: Indices) -> tuple[Any, Any, Any]:
        """(sum of the losses, logits, targets) of the samples; for no samples, a pass over sample 0 that counts nothing."""
        torch, counted = self._torch, len(indices) > 0
        ids, mask, targets = self._tensors(indices if counted else np.zeros(1, dtype=np.int64))
        logits = engine(input_ids=ids, attention_mask=mask).logits
        if self._causal:
            logits, targets = logits[:, :-1], targets[:, 1:]
        flat = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="sum", ignore_index=IGNORED
        )
        return (flat if counted else flat * 0.0), logits, targets

    def _tensors(self, indices: Indices) -> tuple[Any, Any, Any]:
        samples = [self._tokens.sample(int(i)) for i in indices]
        longest = max(len(sample) for sample in samples)
        ids = np.full((len(samples), longest), self._pad, dtype=np.int64)
        mask = np.zeros((len(samples), longest), dtype=np.int64)
        for row, sample in enumerate(samples):
            ids[row, : len(sample)] = sample
            mask[row, : len(sample)] = 1
        targets = np.where(mask == 1, ids, IGNORED) if self._causal else self._tokens.labels[indices]
        return tuple(self._torch.from_numpy(array).to(self._device) for array in (ids, mask, targets))


def evaluate(
    torch: Any, engine: Any, batches: Batches, tokens: Tokens, peers: Any, classes: int, batch_size: int
) -> dict[str, float]:
    """Metrics of one split, the same on every rank and for every world size (apart from the order of additions).

    Classification: loss, accuracy, macro-f1 (mean over the classes that occur or are predicted). Causal: loss, perplexity.
    """
    order = np.argsort(tokens.lengths, kind="stable")
    mine = order[peers.rank :: peers.world_size]
    rounds = math.ceil(math.ceil(len(order) / peers.world_size) / batch_size)
    confusion = np.zeros((classes, classes), dtype=np.float64)
    total, weight = 0.0, 0
    engine.eval()
    with torch.no_grad():
        for number in range(rounds):
            part = mine[number * batch_size : (number + 1) * batch_size]
            loss, logits, targets = batches.loss_sum(engine, part)
            if not len(part):
                continue
            total += float(loss)
            weight += batches.weight(part)
            if classes:
                np.add.at(confusion, (targets.cpu().numpy(), logits.argmax(-1).cpu().numpy()), 1)
    engine.train()
    summed = peers.sum([total, weight, *confusion.ravel()])
    loss = summed[0] / summed[1]
    if not classes:
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return {"loss": loss, **classification_metrics(np.asarray(summed[2:]).reshape(classes, classes))}


def classification_metrics(confusion: Any) -> dict[str, float]:
    """accuracy and macro-f1 of a confusion matrix whose rows are the true classes."""
    right = np.diag(confusion)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = sizes > 0
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "macro-f1": float((2 * right[present] / sizes[present]).mean()),
    }
