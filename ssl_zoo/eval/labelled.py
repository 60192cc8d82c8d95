"""Images of one split as evaluators get them: rendered without augmentation, in order or shuffled, with labels."""

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.data.loader import EvaluationData
from ssl_zoo.data.sources.base import Source
from ssl_zoo.registry import nearest
from ssl_zoo.seeding import generator_for

Render = Callable[[Source, Int[Tensor, "n"]], EvaluationData]
_KEPT_BYTES = 512 << 20


class Labelled:
    """Batches (images, labels, sample ids) of a subset of a source, the same in each iteration.

    Up to 512 MiB of images are kept from the first iteration on, so that the random-init network and the trained one,
    or the probes of a run, read and render them once. More are rendered anew each time.

    Args:
        index: sample ids, in the order of the batches.
        labels: of all samples of the source; None for evaluators that need none.
        render: the images of sample ids, at the encoder's size.
        keep: false renders anew each time.
    """

    def __init__(
        self,
        source: Source,
        index: Int[Tensor, "n"],
        labels: Int[Tensor, "N"] | None,
        render: Render,
        *,
        keep: bool = True,
    ) -> None:
        self.source, self.index, self.labels, self._render, self._keep = source, index, labels, render, keep
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    @property
    def num_images(self) -> int:
        return len(self.index)

    @cached_property
    def split_hash(self) -> str:
        """Equal for the same samples, by their names and order, with the same labels."""
        digest = hashlib.blake2b(digest_size=6)
        for sample in self.index.tolist():
            digest.update(f"{self.source.sample_name(sample)}\n".encode(errors="surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels[self.index].contiguous().numpy())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        for images, index in self._kept or self._rendered():
            yield images, None if self.labels is None else self.labels[index], index

    def _rendered(self) -> Iterator[tuple[Tensor, Tensor]]:
        kept, size = [], 0
        for images, _, index in self._render(self.source, self.index):
            size += images.nbytes
            if self._keep and size <= _KEPT_BYTES:
                kept.append((images, index))
            else:
                kept.clear()
            yield images, index
        self._kept = kept or None

    def shuffled(self, generator: torch.Generator) -> "Labelled":
        """The same images in another order."""
        order = torch.randperm(len(self.index), generator=generator)
        return Labelled(self.source, self.index[order], self.labels, self._render, keep=False)


def subset(available: int, wanted: int, seed: int, split: str) -> Int[Tensor, "n"]:
    """Sorted sample ids, the same for equal seeds; all of them when 0 or more than there are were asked for."""
    if wanted in (0, available) or wanted > available:
        return torch.arange(available)
    return torch.randperm(available, generator=generator_for(seed, "probe", split))[:wanted].sort().values


def labels_of(source: Source, name: str | None) -> Int[Tensor, "n"]:
    """A label set of a source.

    Args:
        name: None takes the source's first.

    Raises:
        ValueError: the source has no labels, or none of that name.
    """
    known = source.label_sets
    if not known:
        raise ValueError(
            f"the {source.split.value} split of {type(source).__name__} has no labels; set probe.evaluators=[]"
        )
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        near = nearest(name, known)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(
            f"probe.label={name!r} is no label set of {type(source).__name__}.{hint} Known: {', '.join(known)}"
        )
    return known[name]
