"""The interface of data sources."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data import order
from ssl_zoo.registry import Registry
from ssl_zoo.settings import Settings


class Split(Enum):
    """A split of a data set; the two never share a sample."""

    train = "train"
    test = "test"


@dataclass
class SourceConfig(Settings):
    """Base class of every source's config."""

    section = "data"


class Source(ABC):
    """The images of one split under indices 0..n-1, which are the same in every process and run.

    Instances are pickled to worker processes that read at the same time, so they hold no open file handles.

    Args:
        config: the source's own dataclass.
        split: train or test.

    Raises:
        ValueError: at construction, if the data is missing or has another layout; the message lists the expected paths.
    """

    image_size: tuple[int, int] | None = None  # (height, width) if all images share it; then ``images`` works
    num_classes: int = 0  # of the default label set; 0 without labels
    classes: Sequence[str] = ()  # their names; empty if unknown
    _labels: Int[Tensor, "n"] | None = None  # of a source whose only label set is ``class``

    def __init__(self, config: SourceConfig, split: Split) -> None:
        self.config, self.split = config, split

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """Return one image as RGB.

        Raises:
            CorruptImage: if it can't be decoded.
        """

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B 3 H W"]:
        """Return several images at once; only where ``image_size`` is set.

        Raises:
            CorruptImage: if one of them can't be decoded.
        """
        return torch.stack([self.image(int(index)) for index in indices])

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

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """Return a name for messages: a path, or a member of an archive."""

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        """Return the label sets by name; the first is the default. Empty without labels."""
        return {} if self._labels is None else {"class": self._labels}

    @property
    def labels(self) -> Int[Tensor, "n"] | None:
        """Return the default labels, classes 0..num_classes-1."""
        return next(iter(self.label_sets.values()), None)


SOURCES = Registry("data source", "data")
