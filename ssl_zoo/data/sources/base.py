"""What every data source offers, and the contract it keeps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data import order
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.registry import Registry

__all__ = ["SOURCES", "CorruptImage", "Source", "SourceConfig", "Split"]


class Split(Enum):
    """Which part of a data set; the two never share a sample."""

    train = "train"
    test = "test"


@dataclass
class SourceConfig:
    """Base of every source's config."""


class Source(ABC):
    """The images of one split under indices 0..n-1; an index means the same image in every process and run.

    Instances are pickled to worker processes and read from several at once, so they hold no open handle that
    processes would share.

    Args:
        config: the source's own dataclass.
        split: train or test.

    Raises:
        ValueError: at construction, when the data is missing or has another layout; says what was looked for.
    """

    image_size: tuple[int, int] | None = None  # (height, width) where all images share it; ``images`` works then
    num_classes: int = 0  # of the default labelling; 0 without labels
    classes: Sequence[str] = ()  # their names; empty where nobody knows any

    def __init__(self, config: SourceConfig, split: Split) -> None:
        self.config, self.split = config, split

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """One image as RGB.

        Raises:
            CorruptImage: if it can't be decoded.
        """

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B 3 H W"]:
        """Several images at once; only where ``image_size`` is set.

        Raises:
            CorruptImage: if one of them can't be decoded.
        """
        return torch.stack([self.image(int(index)) for index in indices])

    def encoded(self, index: int) -> bytes | None:
        """The image file as it is stored; None where there are only pixels."""
        return None

    def epoch_order(self, seed: int, epoch: int) -> Int[Tensor, "n"]:
        """The order in which training visits the samples of an epoch, a pure function of its arguments."""
        return order.shuffled(seed, epoch, len(self))

    @classmethod
    def expected_size(cls, config: SourceConfig) -> int | None:
        """Number of training samples as far as it is known without looking at the data; for plans."""
        return None

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """A name by which a person finds the sample: a path, a member of an archive."""

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        """Every labelling of the samples by name; the first is the default. Empty without labels."""
        return {}

    @property
    def labels(self) -> Int[Tensor, "n"] | None:
        """The default labelling, classes 0..num_classes-1."""
        return next(iter(self.label_sets.values()), None)


SOURCES = Registry("data source", "data")
