"""Statistics of images: mean and standard deviation per channel, and the range of the values that files store."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from ssl_zoo.data.corrupt import CorruptImage
from ssl_zoo.data.decode import read_raster
from ssl_zoo.data.sources.base import Source
from ssl_zoo.data.sources.imagefolder import LimitedConfig
from ssl_zoo.seeding import generator_for

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)
_NUM_VALUES = 4096  # of each image, evenly spaced, for the percentiles


@dataclass(frozen=True)
class ImageStatistics:
    """What a sample of a source's images looks like.

    Attributes:
        num_images: images that were read.
        unreadable: those that were not, with their reasons.
        mean, std: per channel, of pixels in 0..1, as ``views.mean`` and ``views.std`` take them.
        types: numpy types of the stored values, in the order in which they were met.
        low, high: smallest and largest value that deep files store; None without such files.
        percentiles: of the values that deep files store, at ``PERCENTILES``.
        out_of_range: fraction of the pixels that are 0 or 255 after decoding.
    """

    num_images: int
    unreadable: Sequence[CorruptImage]
    mean: Sequence[float]
    std: Sequence[float]
    types: Sequence[str]
    low: float | None
    high: float | None
    percentiles: Sequence[float]
    out_of_range: float


def measure(source: Source, num_images: int, seed: int = 0) -> ImageStatistics:
    """Measure randomly chosen images of a source, each with the same weight whatever its size.

    Raises:
        ValueError: none of them could be read.
    """
    order = torch.randperm(len(source), generator=generator_for(seed, "statistics"))[:num_images].tolist()
    moments: list[Tensor] = []
    stored = _Stored()
    unreadable: list[CorruptImage] = []
    for index in order:
        try:
            pixels = source.image(index).flatten(1).double() / 255
            stored.add(source, index)
        except CorruptImage as error:
            unreadable.append(error)
            continue
        ends = ((pixels == 0) | (pixels == 1)).double().mean(1)
        moments.append(torch.stack([pixels.mean(1), pixels.square().mean(1), ends]))
    if not moments:
        first = f": {unreadable[0]}" if unreadable else ""
        raise ValueError(f"none of {len(order)} images could be read{first}")
    mean, square, ends = torch.stack(moments).mean(0)
    return ImageStatistics(
        len(moments),
        unreadable,
        [round(value, 4) for value in mean.tolist()],
        [round(value, 4) for value in (square - mean.square()).clamp(min=0).sqrt().tolist()],
        stored.types,
        None if stored.low == math.inf else stored.low,
        None if stored.high == -math.inf else stored.high,
        stored.percentiles,
        ends.mean().item(),
    )


class _Stored:
    """The values of files of more than 8 bits."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self.low, self.high = math.inf, -math.inf
        self._samples: list[numpy.ndarray] = []

    def add(self, source: Source, index: int) -> None:
        data = source.encoded(index)
        if data is None or not isinstance(source.config, LimitedConfig):
            return
        config = source.config
        raster = read_raster(data, source.sample_name(index), config.limits, config.pixels(source.channels))
        kind = str(raster.values.dtype)
        self.types += [] if kind in self.types else [kind]
        if raster.values.dtype == numpy.uint8 and raster.largest == 255:
            return
        values = raster.values[..., :-1] if raster.has_alpha else raster.values
        self.low, self.high = min(self.low, values.min().item()), max(self.high, values.max().item())
        flat = values.reshape(-1)
        self._samples.append(flat[:: max(1, len(flat) // _NUM_VALUES)].astype(numpy.float64))

    @property
    def percentiles(self) -> list[float]:
        return numpy.percentile(numpy.concatenate(self._samples), PERCENTILES).tolist() if self._samples else []
