"""The interface of data sources."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from operator import attrgetter
from typing import ClassVar

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from ssl_zoo.data import order
from ssl_zoo.data.listing import Listing
from ssl_zoo.data.maps import MapSet
from ssl_zoo.data.video import Video
from ssl_zoo.registry import Registry
from ssl_zoo.settings import Settings


class Split(Enum):
    """A split of a data set; the two never share a sample."""

    train = "train"
    test = "test"


@dataclass
class SourceConfig(Settings):
    """Base class of every source's config.

    Attributes:
        is_announced: what was noticed about the data is in the log already.
    """

    section = "data"
    is_announced: ClassVar[bool] = False


class MissingSplit(ValueError):
    """The data has no test split, or the split has no image; training needs none."""


class Source(ABC):
    """The images of one split under indices 0..n-1, which are the same in every process and run.

    Instances are pickled to worker processes that read at the same time, so they hold no open file handles.

    Args:
        config: the source's own dataclass.
        split: train or test.
        channels: of every image, 1 (grey), 3 (RGB) or another number that the data have. A source is built without this
            argument for RGB, so that only one that declares other ``channel_counts`` has to accept it.

    Raises:
        ValueError: at construction, if the data is missing or has another layout; the message lists the expected paths.
            A ``MissingSplit`` where only the test split is missing.

    Attributes:
        listing: what the files are of which the source is a split, and what was left out; None if it has no files.
    """

    channel_counts: ClassVar[tuple[int, ...] | None] = (3,)  # that the constructor accepts; None: any
    image_size: tuple[int, int] | None = None  # (height, width) if all images share it; then ``images`` works
    num_classes: int = 0  # of the default label set; 0 without labels
    classes: Sequence[str] = ()  # their names; empty if unknown
    listing: Listing | None = None
    _labels: Int[Tensor, "n"] | None = None  # of a source whose only label set is ``class``
    _notices: list[str] | None = None  # lines for the log; None where nothing more is to be noticed

    def __init__(self, config: SourceConfig, split: Split, channels: int = 3) -> None:
        self.config, self.split, self.channels = config, split, channels
        self._notices = []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        """Return one image.

        Raises:
            CorruptImage: if it can't be decoded.
        """

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B C H W"]:
        """Return several images at once; only where ``image_size`` is set.

        Raises:
            CorruptImage: if one of them can't be decoded.
        """
        return torch.stack([self.image(int(index)) for index in indices])

    @property
    def stored(self) -> UInt8[Tensor, "n C H W"] | None:
        """Return all images where they are in memory already, so that a device can hold a copy; None elsewhere."""
        return None

    @property
    def map_sets(self) -> Mapping[str, MapSet]:
        """Return the kinds of maps, labels per pixel, by name; empty without any."""
        return {}

    def image_and_map(self, index: int, name: str) -> tuple[UInt8[Tensor, "C H W"], Shaped[Tensor, "H W"]]:
        """Return an image and its map ``name`` of ``map_sets``.

        Raises:
            CorruptImage: if one of the two can't be decoded.
        """
        raise NotImplementedError

    def images_and_maps(
        self, indices: Int[Tensor, "B"], name: str
    ) -> tuple[UInt8[Tensor, "B C H W"], Shaped[Tensor, "B H W"]]:
        """Return several images and their maps at once; only where ``image_size`` is set."""
        images, maps = zip(*(self.image_and_map(int(index), name) for index in indices), strict=True)
        return torch.stack(images), torch.stack(maps)

    @property
    def num_videos(self) -> int:
        """Return the number of videos of which objects are known; 0 without any."""
        return 0

    def video(self, index: int) -> Video:
        """Return one of ``num_videos`` videos.

        Raises:
            CorruptImage: if a frame or its objects can't be decoded.
        """
        raise NotImplementedError

    def encoded(self, index: int) -> bytes | None:
        """Return the encoded image file; None if the source only has pixels."""
        return None

    def epoch_order(self, seed: int, epoch: int) -> Int[Tensor, "n"]:
        """Return the order of an epoch's samples, a pure function of the arguments."""
        return order.shuffled(seed, epoch, len(self))

    @classmethod
    def expected_size(cls, config: SourceConfig) -> int | None:
        """Return the number of training samples if it is known without reading the data; for ``--dry-run``."""
        return None

    @classmethod
    def check_channels(cls, config: SourceConfig, channels: int) -> None:
        """Refuse a number of channels that the images can't have, before the data are opened; for ``--dry-run``.

        Raises:
            ValueError: the source's images are RGB or grey, and ``channels`` is another number.
        """
        if cls.channel_counts is not None and channels not in (1, 3, *cls.channel_counts):
            raise ValueError(
                f"backbone.in_channels={channels}: data={SOURCES.name_of(config)} has RGB images, which become 3 "
                "channels or 1. Set backbone.in_channels to one of these, or choose data=imagefolder or "
                f"data=webdataset with files of {channels} channels"
            )

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """Return a name for messages: a path, or a member of an archive."""

    def take_notices(self) -> tuple[str, ...]:
        """Return what reading images brought up for the log of the run, at most once in a process."""
        taken = tuple(self._notices or ())[:1]
        if taken:
            self._notices = None
        return taken

    @classmethod
    def build_splits(cls, config: SourceConfig, channels: int = 3) -> "Splits":
        """Build both splits; a source of files lists them once for both. ``channels`` as for the constructor."""
        return cls._both(config, channels)

    @classmethod
    def _both(cls, config: SourceConfig, channels: int, **listed: object) -> "Splits":
        """Build both splits from what their constructor takes beside config, split and channels."""
        arguments = listed if channels == 3 else {"channels": channels, **listed}
        train = cls(config, Split.train, **arguments)
        try:
            return Splits(train, cls(config, Split.test, **arguments))
        except MissingSplit as missing:
            return Splits(train, None, str(missing))

    def names(self) -> Sequence[str] | None:
        """Return all names relative to the root of the data, in the order of ids; None if it has no files."""
        return None

    def fingerprint(self) -> str:
        """Return a digest of what the samples are, by names and not by contents; the place of the data is no part."""
        names = self.names()
        if names is None:
            labels = [] if self._labels is None else [self._labels.contiguous().numpy().tobytes()]
            return digest([type(self).__name__, self.split.value, str(len(self))], *labels)
        return digest(names)

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        """Return the label sets by name; the first is the default. Empty without labels."""
        return {} if self._labels is None else {"class": self._labels}

    @property
    def labels(self) -> Int[Tensor, "n"] | None:
        """Return the default labels, classes 0..num_classes-1."""
        return next(iter(self.label_sets.values()), None)


class GreySource(Source):
    """The images of a source of RGB, as grey images of one channel; everything but pixels is the wrapped source's."""

    channel_counts = (1,)

    def __init__(self, source: Source) -> None:
        super().__init__(source.config, source.split, channels=1)
        self.source = source

    @property
    def stored(self) -> None:
        """Return None: the images in memory are those of the source, in RGB."""
        return None

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> UInt8[Tensor, "1 H W"]:
        return grey(self.source.image(index))

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B 1 H W"]:
        return grey(self.source.images(indices))

    def image_and_map(self, index: int, name: str) -> tuple[UInt8[Tensor, "1 H W"], Shaped[Tensor, "H W"]]:
        image, of_image = self.source.image_and_map(index, name)
        return grey(image), of_image

    def images_and_maps(
        self, indices: Int[Tensor, "B"], name: str
    ) -> tuple[UInt8[Tensor, "B 1 H W"], Shaped[Tensor, "B H W"]]:
        images, maps = self.source.images_and_maps(indices, name)
        return grey(images), maps

    def video(self, index: int) -> Video:
        video = self.source.video(index)
        return replace(video, frames=grey(video.frames))

    def sample_name(self, index: int) -> str:
        return self.source.sample_name(index)


# A property returns attributes and bound methods alike, so that none can be forgotten when ``Source`` gets another.
for _name, _member in vars(Source).items():
    if not (_name.startswith("_") or _name in vars(GreySource) or isinstance(_member, classmethod)):
        setattr(GreySource, _name, property(attrgetter(f"source.{_name}")))


def grey(images: UInt8[Tensor, "*B 3 H W"]) -> UInt8[Tensor, "*B 1 H W"]:
    """Return the luminance (ITU-R 601-2) of RGB images, rounded as Pillow's mode L."""
    red, green, blue = images.int().split(1, dim=-3)
    return (19595 * red).add_(38470 * green).add_(7471 * blue).add_(0x8000).bitwise_right_shift_(16).to(torch.uint8)


@dataclass(frozen=True)
class Splits:
    """Both splits of a data set.

    Attributes:
        test: None where there is no test image.
        without_test: the reason.
        parts: the splits of the parts of a mixture.
    """

    train: Source
    test: Source | None
    without_test: str = ""
    parts: Sequence["Splits"] = ()

    def as_grey(self) -> "Splits":
        """Return the splits of a source of RGB as grey images."""
        return replace(self, train=GreySource(self.train), test=None if self.test is None else GreySource(self.test))


def digest(words: Iterable[str], *more: bytes) -> str:
    """Return a digest of a sequence of words."""
    hashed = hashlib.blake2b("\0".join(words).encode("utf-8", "surrogateescape"), digest_size=16)
    for part in more:
        hashed.update(part)
    return hashed.hexdigest()


SOURCES = Registry("data source", "data")


def check_channels(config: SourceConfig, channels: int) -> None:
    """Refuse a number of channels that the images of a configured source can't have, as far as is known unopened.

    Raises:
        ValueError: with the number, the key and the remedy.
    """
    SOURCES.get(SOURCES.name_of(config)).check_channels(config, channels)


def build_source(config: SourceConfig, split: Split, channels: int = 3) -> Source:
    """Open the data of a split as images of ``channels`` channels, which are ``backbone.in_channels`` in a run.

    Raises:
        ValueError: missing data, data in another layout, or data that can't have that number of channels; a
            ``MissingSplit`` where only the test split is missing.
    """
    if channels == 3:
        return SOURCES.build(config, split)
    if _has_channels(config, channels):
        return SOURCES.build(config, split, channels=channels)
    return GreySource(SOURCES.build(config, split))


def build_splits(config: SourceConfig, channels: int = 3) -> Splits:
    """Open the data of both splits at once, as ``build_source`` opens one; there may be no test split.

    Raises:
        ValueError: as for ``build_source``.
    """
    cls = SOURCES.get(SOURCES.name_of(config))
    if channels == 3 or _has_channels(config, channels):
        return cls.build_splits(config, channels)
    return cls.build_splits(config).as_grey()


def _has_channels(config: SourceConfig, channels: int) -> bool:
    """Return whether the source itself makes images of ``channels`` channels; else its RGB images can be made grey.

    Raises:
        ValueError: neither is possible.
    """
    cls = SOURCES.get(SOURCES.name_of(config))
    if cls.channel_counts is None or channels in cls.channel_counts:
        return True
    cls.check_channels(config, channels)
    return False
