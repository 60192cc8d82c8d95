"""One split of a source as evaluators read it: images without augmentation, in order, with labels."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.data.batch import Corrupt
from ssl_zoo.data.corruptions import Corruption
from ssl_zoo.data.dense import Pairs
from ssl_zoo.data.evaluation import EvaluationData, NothingDecoded
from ssl_zoo.data.sources.base import Source
from ssl_zoo.registry import did_you_mean
from ssl_zoo.seeding import generator_for

Render = Callable[..., EvaluationData]  # of a source, sample ids and optionally transform=
_CACHED_BYTES = 512 << 20


class EvaluationSplit:
    """A split yields batches (images, labels, sample ids) of a subset of a source, the same in each iteration.

    Images that fit into 512 MiB are cached in the first iteration, so that the random-init network and the trained
    one, or the probes of a run, render them once. A larger split is rendered in every iteration. In a process group
    each rank goes through its own batches with ``of_rank``, and the limit is that of its images.

    Args:
        index: sample ids, in the order of the batches.
        labels: the labels of all samples of the source; None for evaluators that need none.
        render: renders the images of sample ids at the encoder's input size.
        cache: whether to cache images at all.

    Attributes:
        corruption: what the images are corrupted by before they are normalised; None for clean images.
    """

    def __init__(
        self,
        source: Source,
        index: Int[Tensor, "n"],
        labels: Int[Tensor, "N"] | None,
        render: Render,
        *,
        cache: bool = True,
    ) -> None:
        self.source, self.index, self.labels, self._render, self._cache = source, index, labels, render, cache
        self._cached: tuple[tuple[int, int], list[tuple[Tensor, Tensor]]] | None = None  # of a rank and a world size
        self._pairs: dict[str, Pairs] = {}
        self.corruption: Corruption | None = None
        self._left_out: tuple[Corrupt, ...] = ()

    @property
    def corrupt(self) -> Sequence[Corrupt]:
        """Return the images that the last complete iteration left out, and pairs that can't be decoded so far."""
        of_pairs = {sample: None for pairs in self._pairs.values() for sample in pairs.corrupt.values()}
        return tuple(dict.fromkeys([*self._left_out, *of_pairs]))

    @property
    def num_images(self) -> int:
        return len(self.index)

    @cached_property
    def split_hash(self) -> str:
        """Hash the names of the samples in their order, and their labels."""
        digest = hashlib.blake2b(digest_size=6)
        for sample in self.index.tolist():
            digest.update(f"{self.source.sample_name(sample)}\n".encode(errors="surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels[self.index].contiguous().numpy())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.data())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        num_images = 0
        for images, index in self.of_rank(0, 1):
            num_images += len(index)
            if len(index):
                yield images, None if self.labels is None else self.labels[index], index
        if num_images == 0:
            raise NothingDecoded(self.num_images, self.corrupt)

    def of_rank(self, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and sample ids of the batches rank, rank + world_size, ..., as ``EvaluationData`` does."""
        share = rank, world_size
        if self._cached is not None and self._cached[0] == share:
            yield from self._cached[1]
            return
        cached, size = [], 0
        data = self.data()
        try:
            for images, index in data.of_rank(*share):
                size += images.nbytes
                if self._cache and size <= _CACHED_BYTES:
                    cached.append((images, index))
                else:
                    cached.clear()
                yield images, index
            self._cached = (share, cached) if cached else None
        finally:
            self._left_out = data.corrupt or self._left_out

    def data(self) -> EvaluationData:
        """Return the images as the data side renders them, which dense evaluators do in batches of their own."""
        return self._render(self.source, self.index)

    def pairs(self, name: str) -> Pairs:
        """Return the images with their maps ``name``; they stay in memory for the next evaluation where they fit."""
        if name not in self._pairs:
            self._pairs[name] = Pairs(self.source, name)
        return self._pairs[name]

    def corrupted(self, corruption: Corruption) -> "EvaluationSplit":
        """Return the same images, corrupted; they are rendered in every iteration."""
        render = partial(self._render, transform=corruption)
        split = EvaluationSplit(self.source, self.index, self.labels, render, cache=False)
        split.corruption, split._pairs = corruption, self._pairs
        return split

    def take(self, rows: Int[Tensor, "k"]) -> "EvaluationSplit":
        """Return the split of these rows of ``index``, in their order, whose images are not cached."""
        return EvaluationSplit(self.source, self.index[rows], self.labels, self._render, cache=False)


def subset(num_samples: int, limit: int, seed: int, split: str) -> Int[Tensor, "n"]:
    """Return at most ``limit`` random sample ids, sorted; a limit of 0 returns all of them."""
    if limit == 0 or limit >= num_samples:
        return torch.arange(num_samples)
    return torch.randperm(num_samples, generator=generator_for(seed, "probe", split))[:limit].sort().values


def labels_of(source: Source, name: str | None) -> Int[Tensor, "n"] | None:
    """Return a label set of a source, None if it has no labels at all.

    Args:
        name: None means the source's first.

    Raises:
        ValueError: the source has labels, but no label set of that name.
    """
    known = source.label_sets
    if not known:
        return None
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        hint = f"{type(source).__name__}.{did_you_mean(name, known)} Known: {', '.join(known)}"
        raise ValueError(f"probe.label={name!r} is no label set of {hint}")
    return known[name]
