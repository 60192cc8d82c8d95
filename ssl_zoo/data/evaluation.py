"""Labelled images for evaluation, in order and without augmentation."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_zoo.data.batch import Batch, Corrupt, Normalize
from ssl_zoo.data.samples import all_decoded, announce, decoded
from ssl_zoo.data.sources.base import Source
from ssl_zoo.data.transforms import evaluation_view
from ssl_zoo.data.workers import Items, in_workers, resolve_workers

Transform = Callable[[UInt8[Tensor, "B C h w"], Int[Tensor, "B"]], UInt8[Tensor, "B C h w"]]


class NothingDecoded(ValueError):
    """No image for an evaluation could be decoded; the message has the first reason."""

    def __init__(self, num_images: int, corrupt: Sequence[Corrupt]) -> None:
        first = f": {corrupt[0].name}: {corrupt[0].reason}" if corrupt else ""
        super().__init__(f"none of {num_images} images for evaluation could be decoded{first}")


class EvaluationData:
    """Images without augmentation, in order, with labels; undecodable ones are left out and counted.

    Args:
        indices: sample ids to take, in this order; all when None.
        size: height and width in pixels of the images given out.
        transform: changes images of that size, given their sample ids, before they are normalised.

    Attributes:
        corrupt: samples that the last complete iteration left out, of the batches that it went through.
    """

    def __init__(
        self,
        source: Source,
        indices: Int[Tensor, "n"] | None = None,
        *,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 256,
        num_workers: int | None = 0,
        transform: Transform | None = None,
    ) -> None:
        self.source, self.size, self.batch_size, self.transform = source, tuple(size), batch_size, transform
        self.indices = torch.arange(len(source)) if indices is None else indices
        self.num_workers = resolve_workers(num_workers)
        self.corrupt: tuple[Corrupt, ...] = ()
        self.normalize = Normalize(mean, std)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "B C H W"], Int[Tensor, "B"] | None, Int[Tensor, "B"]]]:
        """Normalised images, labels (None without any) and sample ids.

        Raises:
            NothingDecoded: no image at all could be decoded.
        """
        labels, num_images = self.labels, 0
        for images, index in self.of_rank(0, 1):
            num_images += len(index)
            if len(index):
                yield images, None if labels is None else labels[index], index
        if num_images == 0:
            raise NothingDecoded(self.num_images, self.corrupt)

    @property
    def num_images(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Int[Tensor, "N"] | None:
        """The labels of all samples of the source."""
        return self.source.labels

    def of_rank(self, rank: int, world_size: int) -> Iterator[tuple[Float[Tensor, "B C H W"], Int[Tensor, "B"]]]:
        """Yield images and sample ids of the batches rank, rank + world_size, ...; no other image is decoded.

        A batch is empty where none of its images can be decoded.
        """
        corrupt: list[Corrupt] = []
        for batch in self._host_batches(range(rank, len(self), world_size)):
            announce(self.source, batch.notices)
            corrupt.extend(batch.corrupt)
            yield self.normalize(batch.views["image"]), batch.index
        self.corrupt = tuple(corrupt)

    def _host_batches(self, numbers: range) -> Iterator[Batch]:
        if self.num_workers == 0:
            return map(self._batch, numbers)
        return in_workers(Items(self._batch, numbers), self.num_workers)

    def _batch(self, number: int) -> Batch:
        index = self.indices[number * self.batch_size : (number + 1) * self.batch_size]
        images = all_decoded(self.source, index)
        if images is not None:
            notices = self.source.take_notices()
            return Batch(
                {"image": self.transformed(evaluation_view(images, self.size), index)}, index=index, notices=notices
            )
        results = [(sample, decoded(self.source, sample)) for sample in index.tolist()]
        kept = [(sample, image) for sample, image in results if not isinstance(image, Corrupt)]
        views = [torch.empty(0, self.source.channels, *self.size, dtype=torch.uint8)]
        views += [evaluation_view(image, self.size)[None] for _, image in kept]
        index = torch.tensor([sample for sample, _ in kept], dtype=torch.int64)
        return Batch(
            {"image": self.transformed(torch.cat(views), index)},
            index=index,
            corrupt=tuple(result for _, result in results if isinstance(result, Corrupt)),
            notices=self.source.take_notices(),
        )

    def transformed(self, images: UInt8[Tensor, "B C h w"], index: Int[Tensor, "B"]) -> UInt8[Tensor, "B C h w"]:
        """Apply the transform, if there is one, to views of the samples ``index``."""
        return images if self.transform is None else self.transform(images, index)
