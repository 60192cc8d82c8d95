"""Train images as augmented views in the engine's order: every batch is a pure function of (seed, step)."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_zoo.data.batch import Batch, Corrupt, ViewConfig, ViewSpec
from ssl_zoo.data.loader import LoaderConfig, TrainingData
from ssl_zoo.data.sources.base import Source
from ssl_zoo.data.transforms import evaluation_view, is_whole_image
from ssl_zoo.eval.augment import RandAugment, random_erase
from ssl_zoo.eval.ranks import rank_and_size
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.seeding import generator_for

log = logging.getLogger(__name__)

_IMAGES_AT_ONCE = 1024  # of all ranks, in host memory: 150 MB at 224 x 224, however large the batch of a step is


@dataclass(frozen=True)
class EncoderInput:
    """How images become the encoder's input.

    Attributes:
        size: height and width in pixels.
        batch_size: images per forward pass of the encoder.
    """

    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int = 256
    loader: LoaderConfig = field(default_factory=LoaderConfig)


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a train image.

    Attributes:
        view: crop, flip and interpolation; images are normalised as evaluations see them. A crop scale of [1, 1] is the
            view of evaluations.
        rand_augment: policy in timm's notation; empty for none.
        erasing: probability of random erasing.
    """

    view: ViewConfig
    rand_augment: str = ""
    erasing: float = 0.0


@dataclass(frozen=True)
class Part:
    """This rank's images of a part of a step.

    Attributes:
        images: normalised, on the device.
        rows: places of the images in the batch of the step, over all ranks.
    """

    images: Float[Tensor, "b C H W"]
    labels: Int[Tensor, "b"]
    rows: range

    def pieces(self, size: int) -> Iterator["Part"]:
        """Split the part into consecutive ones of at most ``size`` images."""
        for start in range(0, max(1, len(self.images)), size):  # a rank without images has one piece, an empty one
            piece = slice(start, start + size)
            yield Part(self.images[piece], self.labels[piece], self.rows[piece])


class Subset(Source):
    """Some samples of another source, under ids of their own."""

    channel_counts = None

    def __init__(self, source: Source, index: Int[Tensor, "n"]) -> None:
        super().__init__(source.config, source.split, source.channels)
        self.source, self.index, self.image_size = source, index, source.image_size

    def __len__(self) -> int:
        return len(self.index)

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        return self.source.image(int(self.index[index]))

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B C H W"]:
        return self.source.images(self.index[indices])

    def sample_name(self, index: int) -> str:
        return self.source.sample_name(int(self.index[index]))

    def take_notices(self) -> tuple[str, ...]:
        return self.source.take_notices()


class TrainStream(TrainingData):
    """Streams the images of a split for as many steps as are asked for, epoch after epoch without a gap.

    The batch of a step is loaded in parts of at most 1,024 images. Order and augmentation of the images don't depend on
    the number of ranks, which take consecutive rows of each part. Corrupt images are replaced as in a training.

    Args:
        batch_size: images of a step, over all ranks.
    """

    def __init__(
        self,
        split: EvaluationSplit,
        encoder_input: EncoderInput,
        augmentation: Augmentation,
        *,
        seed: int,
        batch_size: int,
    ) -> None:
        self.step_batch_size = batch_size
        num_images = next(n for n in range(min(batch_size, _IMAGES_AT_ONCE), 0, -1) if batch_size % n == 0)
        self.parts_per_step = batch_size // num_images
        is_whole = len(split.index) == len(split.source)
        source = split.source if is_whole else Subset(split.source, split.index)
        config = replace(augmentation.view, mean=list(encoder_input.mean), std=list(encoder_input.std))
        view = ViewSpec("image", encoder_input.size, config, masked=False, channels=split.source.channels)
        super().__init__(source, [view], {}, seed=seed, batch_size=num_images, config=encoder_input.loader)
        self._rows = rows_in_pairs(num_images, *rank_and_size())
        self._labels = split.labels[split.index]
        self._erasing, self._has_corrupt = augmentation.erasing, False
        policy = augmentation.rand_augment
        self._rand_augment = RandAugment(policy, encoder_input.size, encoder_input.mean) if policy else None

    def batch(self, step: int) -> Batch:
        """Load this rank's images of a part; parts are counted through all steps."""
        [spec], rows = self.views, self._rows
        if rows.start == rows.stop:
            nothing = torch.empty(0, spec.channels, *spec.size, dtype=torch.uint8)
            return Batch({"image": nothing}, index=torch.empty(0, dtype=torch.int64))
        batch = self._evaluation_views(step) if is_whole_image(spec.config) else super().batch(step)
        if self._rand_augment is None:
            return batch
        keys = [(self.seed, "rand_augment", step, row) for row in range(rows.start, rows.stop)]
        return replace(batch, views={"image": self._rand_augment(batch.views["image"], keys)})

    def unrendered(self, step: int) -> Batch:
        """Load a part as ``batch``, and leave crops to the device where nothing on the host follows them."""
        is_cropped = not is_whole_image(self.views[0].config) and self._rand_augment is None
        return super().unrendered(step) if is_cropped and self._rows.start < self._rows.stop else self.batch(step)

    def _evaluation_views(self, step: int) -> Batch:
        """Load images as evaluations see them, flipped at random."""
        planned, [(spec, params)] = self.indices(step), self._sampled(step)
        index, images, corrupt = self._load(planned[self._rows])
        if isinstance(images, Tensor):
            view = evaluation_view(images, spec.size)
        else:
            view = torch.stack([evaluation_view(image, spec.size) for image in images])
        view = torch.where(params.flipped[:, None, None, None], view.flip(3), view)
        return self._batch(planned, {}, views={"image": view}, index=index, corrupt=corrupt)

    def parts(self, start: int, stop: int, device: torch.device) -> Iterator[Part]:
        """Yield the parts of the steps start .. stop-1, ``parts_per_step`` for each."""
        first = start * self.parts_per_step
        for number, batch in enumerate(self.batches(first, stop * self.parts_per_step), first):
            self._report(batch.corrupt)
            labels = self._labels[batch.index].to(device)
            images = self.to_device(batch, device, non_blocking=True).views["image"]
            offset = number % self.parts_per_step * self.batch_size
            if self._erasing:
                generator = generator_for(self.seed, "erase", number)
                images = random_erase(images, self._erasing, generator, self._rows, self.batch_size)
            yield Part(images, labels, range(offset + self._rows.start, offset + self._rows.stop))

    def _report(self, corrupt: Sequence[Corrupt]) -> None:
        """Log the first image that can't be decoded, as every epoch meets all of them again."""
        if corrupt and not self._has_corrupt:
            self._has_corrupt = True
            text = "%s can't be decoded (%s): it and others like it are replaced by the next image in each epoch"
            log.warning(text, corrupt[0].name, corrupt[0].reason)


def rows_in_pairs(num_rows: int, rank: int, world_size: int) -> slice:
    """Return a rank's rows of a batch, in whole pairs, so that the images of a pair are mixed on one rank.

    Shares may differ by a pair, and those of some ranks are empty where there are fewer pairs than ranks.
    """
    start, stop = (2 * (num_rows // 2 * number // world_size) for number in (rank, rank + 1))
    return slice(start, num_rows if rank == world_size - 1 else stop)
