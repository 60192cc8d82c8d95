"""Features in parts: every rank holds those of its own batches, and tensor collectives complete or sum them.

No rank is sent padding as data: a batch that is padded to the size of the largest is cut to its own size on arrival.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.eval.ranks import exchange_device, on_all_ranks


@dataclass(frozen=True)
class Features:
    """Features of n images in host memory; row i belongs to the i-th image of the data."""

    values: Float[Tensor, "n *width"]  # (n, D); (n, N, D) for Pooling.tokens
    labels: Int[Tensor, "n"] | None  # None where the data has none
    index: Int[Tensor, "n"]  # sample ids in their source


@dataclass(frozen=True)
class FeatureShard:
    """One rank's part of the features of n images: those of the batches rank, rank + world_size, ...

    Every method whose result needs other ranks is a collective, and the identity where ``world_size`` is 1.

    Attributes:
        values: the m rows of this rank, in the order of the data.
        labels, index: of all n images, as in ``Features``.
        batch_sizes: images of every batch of the data, 0 where none could be decoded. Sums are taken batch by batch, so
            that they do not depend on which rank holds which batch.
    """

    values: Float[Tensor, "m *width"]
    labels: Int[Tensor, "n"] | None
    index: Int[Tensor, "n"]
    batch_sizes: Sequence[int]
    rank: int = 0
    world_size: int = 1

    @property
    def num_images(self) -> int:
        """Images of all ranks."""
        return sum(self.batch_sizes)

    def batches(self) -> Iterator[tuple[int, Float[Tensor, "B *width"]]]:
        """Yield the number of each batch of this rank and its features."""
        own = range(self.rank, len(self.batch_sizes), self.world_size)
        return zip(own, self.values.split([self.batch_sizes[number] for number in own]), strict=True)

    @property
    def rows(self) -> Int[Tensor, "m"]:
        """The positions of this rank's rows among those of all ranks."""
        return torch.arange(self.num_images)[self.owners() == self.rank]

    def owners(self) -> Int[Tensor, "n"]:
        """Return the rank that holds each row."""
        of_batch = torch.arange(len(self.batch_sizes)) % self.world_size
        return of_batch.repeat_interleave(torch.tensor(self.batch_sizes))

    def complete(self) -> Features:
        """Return the features of all images on every rank; without a copy where there is one rank."""
        return Features(self.gather(self.values), self.labels, self.index)

    def at(self, rows: Int[Tensor, "k"]) -> Features:
        """Return the features of few images, the same on every rank, in the order of ``rows``."""
        positions = torch.empty(self.num_images, dtype=torch.int64)
        positions[self.rows] = torch.arange(len(self.values))
        is_own = self.owners()[rows] == self.rank
        values = self.values.new_zeros(len(rows), *self.values.shape[1:])
        values[is_own] = self.values[positions[rows[is_own]]]
        return Features(self.add_entries(values), None if self.labels is None else self.labels[rows], self.index[rows])

    def gather(self, own: Tensor) -> Tensor:
        """Return the rows of all ranks in the order of the data.

        Besides the result, memory holds one batch of every rank.

        Args:
            own: one entry for each row of ``values``.
        """
        if self.world_size == 1:
            return own
        everything = own.new_empty(self.num_images, *own.shape[1:])
        starts = accumulate(self.batch_sizes, initial=0)
        for start, batch in zip(starts, self.in_order(own), strict=False):
            everything[start : start + len(batch)] = batch
        return everything

    def in_order(self, own: Tensor) -> Iterator[Tensor]:
        """Yield the rows of every batch of the data, on every rank; all ranks must read to the end.

        Args:
            own: one entry for each row of ``values``.
        """
        parts = dict(zip((number for number, _ in self.batches()), self._split(own), strict=True))
        if self.world_size == 1:
            yield from parts.values()
            return
        padded = own.new_zeros(max(self.batch_sizes), *own.shape[1:], device=exchange_device())
        for first in range(0, len(self.batch_sizes), self.world_size):
            if (part := parts.get(first + self.rank)) is not None:
                padded[: len(part)] = part
            received = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.all_gather(received, padded)
            for size, batch in zip(self.batch_sizes[first : first + self.world_size], received, strict=False):
                yield batch[:size].to(own.device)

    def _split(self, own: Tensor) -> Sequence[Tensor]:
        return own.split([len(batch) for _, batch in self.batches()])

    def everywhere(self, flag: bool) -> bool:
        """Return on every rank whether the flag is true on all ranks."""
        return flag if self.world_size == 1 else on_all_ranks(flag)

    def largest(self, values: Tensor) -> Tensor:
        """Return, on every rank, the elementwise maximum over ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def total(self, zeros: Tensor, parts: Iterable[Tensor], bound: Tensor) -> Tensor:
        """Sum float64 tensors over batches and ranks, to the same bits however batches are divided among ranks.

        Each part is rounded to a multiple of a power of two, at most bound * 2^-50, so that every partial sum of all
        parts is exact in float64 and their order does not matter.

        Args:
            zeros: filled with the sum and returned.
            parts: one for each batch of this rank.
            bound: limit of the sum of an entry's absolute values over all parts of all ranks, equal on every rank; of a
                shape that broadcasts to that of ``zeros``.
        """
        unit = exact_unit(bound)
        for part in parts:
            zeros += part.div(unit).round_()
        return self._reduced(zeros, dist.ReduceOp.SUM).mul_(unit)

    def add_entries(self, values: Tensor) -> Tensor:
        """Return the sum over ranks of tensors whose entries differ from zero on one rank each."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def _reduced(self, values: Tensor, operation: dist.ReduceOp) -> Tensor:
        if self.world_size == 1:
            return values
        shared = values.to(exchange_device())
        dist.all_reduce(shared, op=operation)
        return values.copy_(shared)


def exact_unit(bound: Tensor) -> Tensor:
    """Return powers of two of which multiples add exactly as long as their absolute sum is at most ``2 * bound``."""
    bound = bound.clamp_min(1e-290)
    return bound / bound.frexp().mantissa * 2.0**-51  # the first division gives the next power of two, exactly


def as_shard(features: Features | FeatureShard, batch_size: int = 1024) -> FeatureShard:
    """Return features that this process holds completely as the only part, in batches of ``batch_size``."""
    if isinstance(features, FeatureShard):
        return features
    sizes = [len(part) for part in features.index.split(batch_size)]
    return FeatureShard(features.values, features.labels, features.index, sizes)
