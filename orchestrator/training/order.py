"""Which samples belong to which step: a pure function of seed, step and global batch, never of ranks.

The samples of epoch e are put in the order of a keyed hash of (seed, e, index), which no library version can change. The
epochs' orders, one after another, are one stream; global batch s (counted from 0) is positions [s*B, (s+1)*B) of it. So
batches run over epoch borders, every batch is full, and every sample is read once an epoch. Only the last batch of a run
of E whole epochs may be shorter: it ends at E*N, and its loss is normalised by its own count.

A rank takes a contiguous share of the global batch, and cuts the share into micro-batches; sums over ranks and
micro-batches are sums over the global batch, so the world size cannot change the loss (apart from the order of additions).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def epoch_order(samples: int, seed: int, epoch: int) -> Indices:
    """The order in which epoch `epoch` (from 0) reads the samples: a permutation of range(samples)."""
    key = mix(mix(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    hashes = mix(np.arange(samples, dtype=np.uint64) ^ key)
    return np.argsort(hashes, kind="stable").astype(np.int64)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64: a bijection of 64-bit numbers that scatters them (Steele, Lea, Flood, OOPSLA 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass
class SampleOrder:
    """The stream of sample indices of one run. Keeps the two epochs' orders that a batch may touch."""

    samples: int
    seed: int
    global_batch: int
    total_samples: int | None = None
    """Where the stream ends (epochs x samples); None when the number of steps bounds the run."""

    def __post_init__(self) -> None:
        self._orders: dict[int, Indices] = {}

    def batch(self, step: int) -> Indices:
        """Sample indices of global batch `step` (from 0), in order; shorter only at the end of the stream."""
        first = step * self.global_batch
        last = first + self.global_batch
        if self.total_samples is not None:
            last = min(last, self.total_samples)
        parts = []
        position = first
        while position < last:
            epoch, offset = divmod(position, self.samples)
            taken = min(last - position, self.samples - offset)
            parts.append(self._order(epoch)[offset : offset + taken])
            position += taken
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def samples_before(self, step: int) -> int:
        """Samples of the global batches 0 to `step` - 1."""
        read = step * self.global_batch
        return read if self.total_samples is None else min(read, self.total_samples)

    def _order(self, epoch: int) -> Indices:
        if epoch not in self._orders:
            self._orders = {kept: order for kept, order in self._orders.items() if kept >= epoch - 1}
            self._orders[epoch] = epoch_order(self.samples, self.seed, epoch)
        return self._orders[epoch]


def share(batch: Indices, rank: int, world_size: int) -> Indices:
    """The contiguous part of a global batch that one rank computes; sizes differ by at most one."""
    return batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size]


def micro_batches(part: Indices, micro_batch: int, accumulation: int) -> list[Indices]:
    """A rank's share in exactly `accumulation` micro-batches; the last ones may be short or empty.

    Every rank must run the same number of forward passes, because ZeRO-3 talks in each of them.
    """
    if len(part) > micro_batch * accumulation:
        raise ValueError(f"{len(part)} samples do not fit in {accumulation} micro-batches of {micro_batch}")
    return [part[i * micro_batch : (i + 1) * micro_batch] for i in range(accumulation)]
