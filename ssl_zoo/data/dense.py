"""Images with a map of each, for the training and scoring of dense probes."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from ssl_zoo.data.batch import Corrupt, ViewSpec
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.maps import MapSet, crop_maps
from ssl_zoo.data.resample import resize_crop
from ssl_zoo.data.samples import announce
from ssl_zoo.data.sources.base import Source
from ssl_zoo.data.transforms import evaluation_box, is_whole_image, view_boxes
from ssl_zoo.data.view_params import ViewParams

_CACHED_BYTES = 512 << 20

Pair = tuple[UInt8[Tensor, "C H W"], Shaped[Tensor, "H W"]]  # an image and its map


class Pairs:
    """The images of a source with their maps, kept in memory while they fit into 512 MiB, so that epochs are cheap.

    Args:
        name: of the maps among the source's ``map_sets``.

    Attributes:
        corrupt: by sample id, what can't be decoded so far.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.corrupt: dict[int, Corrupt] = {}
        self._cached: dict[int, Pair] = {}
        self._bytes = 0

    @property
    def map_set(self) -> MapSet:
        return self.source.map_sets[self.name]

    def __call__(self, samples: Sequence[int]) -> dict[int, Pair]:
        """Return the pairs of these samples by their ids, without those that can't be decoded."""
        missing = [sample for sample in samples if sample not in self._cached and sample not in self.corrupt]
        read = self._read(missing)
        announce(self.source, self.source.take_notices())
        found = {sample: self._cached[sample] for sample in samples if sample in self._cached} | read
        self._bytes += sum(tensor.nbytes for pair in read.values() for tensor in pair)
        if self._bytes <= _CACHED_BYTES:
            self._cached |= read
        return found

    def _read(self, samples: Sequence[int]) -> dict[int, Pair]:
        if samples and self.source.image_size is not None:
            with suppress(CorruptImage):  # reading one by one finds out which
                pairs = self.source.images_and_maps(torch.tensor(samples), self.name)
                return dict(zip(samples, zip(*pairs, strict=True), strict=True))
        read = {}
        for sample in samples:
            try:
                read[sample] = self.source.image_and_map(sample, self.name)
            except CorruptImage as error:
                self.corrupt[sample] = Corrupt(error.name, error.reason)
        return read


@dataclass(frozen=True)
class DenseBatch:
    """B images with their maps; images that can't be decoded are left out.

    Attributes:
        num_images: B, or 0 where one black image takes the place of none.
    """

    images: Float[Tensor, "B C h w"]  # normalised
    maps: Shaped[Tensor, "B h w"]
    num_images: int


class DenseData:
    """Given batches of images, as evaluators see them or augmented, with their maps.

    An empty batch, or one in which no image can be decoded, is replaced by one black image whose map is unknown
    everywhere. So all processes have equally many forward passes, and the image counts nowhere.

    Args:
        data: its size, normalisation and transform count.
        batches: sample ids of each batch.
        view: random crops and flips to ``data.size``, which maps follow; other augmentations are not applied.
        params: random decisions of the view for each batch; without them images are what evaluators see.
    """

    def __init__(
        self,
        data: EvaluationData,
        pairs: Pairs,
        batches: Sequence[Int[Tensor, "B"]],
        *,
        view: ViewSpec | None = None,
        params: Sequence[ViewParams] | None = None,
    ) -> None:
        self._data, self._pairs, self._batches, self._view = data, pairs, batches, view
        self._params = [None] * len(batches) if params is None else params

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[DenseBatch]:
        for index, params in zip(self._batches, self._params, strict=True):
            yield self._batch(index, params)

    def _batch(self, index: Int[Tensor, "B"], params: ViewParams | None) -> DenseBatch:
        found = self._pairs(index.tolist())
        kept = [row for row, sample in enumerate(index.tolist()) if sample in found]
        if not kept:
            black = torch.zeros(1, self._data.source.channels, *self._data.size, dtype=torch.uint8)
            unknown = self._pairs.map_set.unknown.expand(1, *self._data.size)
            return DenseBatch(self._data.normalize(black), unknown, 0)
        index = index[kept]
        pairs = [found[sample] for sample in index.tolist()]
        flipped = torch.zeros(len(kept), dtype=torch.bool)
        boxes = torch.tensor([evaluation_box(*image.shape[1:], self._data.size) for image, _ in pairs])
        if params is not None:
            flipped = params.flipped[kept]
            if not is_whole_image(self._view.config):
                sizes = torch.tensor([image.shape[1:] for image, _ in pairs])
                params = ViewParams(**{name: value[kept] for name, value in vars(params).items()})
                boxes = view_boxes(params, *sizes.unbind(1), self._view)
        images, maps = self._cropped(pairs, boxes, flipped)
        return DenseBatch(self._data.normalize(self._data.transformed(images, index)), maps, len(kept))

    def _cropped(
        self, pairs: Sequence[Pair], boxes: Int[Tensor, "B 4"], flipped: Bool[Tensor, "B"]
    ) -> tuple[UInt8[Tensor, "B C h w"], Shaped[Tensor, "B h w"]]:
        size = self._data.size
        crops = zip(pairs, boxes.tolist(), strict=True)
        images = torch.stack([resize_crop(image, tuple(box), size, "bicubic") for (image, _), box in crops])
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        return images, crop_maps([of_image for _, of_image in pairs], boxes, flipped, size)
