"""Mixtures of data sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, UInt8
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from ssl_zoo.data import order
from ssl_zoo.data.sources.base import (
    SOURCES,
    MissingSplit,
    Source,
    SourceConfig,
    Split,
    Splits,
    build_source,
    build_splits,
    check_channels,
    digest,
)
from ssl_zoo.registry import nearest
from ssl_zoo.seeding import seed_for
from ssl_zoo.settings import setting


@dataclass
class PartConfig:
    """One source of a mixture."""

    source: str = setting("", "name of a data source")
    weight: float | None = setting(None, "share of the samples of an epoch, relative to the others; null: its size")
    settings: dict[str, Any] = setting({}, "keys of that source")

    def config(self) -> SourceConfig:
        """Build the source's own config.

        Raises:
            LookupError, ValueError: an unknown source, key or value.
        """
        schema = OmegaConf.structured(SOURCES.config_of(self.source))
        for key, value in self.settings.items():
            if key not in schema:
                near = nearest(str(key), schema)
                hint = f"; did you mean {near}?" if near else ""
                raise ValueError(f"data.parts: {self.source} has no key {key}{hint} Keys: {', '.join(schema)}")
            try:
                schema[key] = value
            except OmegaConfBaseException as error:
                raise ValueError(f"data.parts: {self.source}: {key}={value}: {str(error).splitlines()[0]}") from error
        return OmegaConf.to_object(schema)


@dataclass
class MixtureConfig(SourceConfig):
    parts: list[PartConfig] = setting([], "[{source: NAME, weight: 2, settings: {path: ...}}, ...]")

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.parts:
            part.config()
        weights = [part.weight for part in self.parts if part.weight is not None]
        if weights and (len(weights) < len(self.parts) or not all(0 < weight < float("inf") for weight in weights)):
            raise ValueError(f"data.parts: give every part a weight above 0, or none; the weights are {weights}")


@SOURCES.register("mixture", MixtureConfig)
class Mixture(Source):
    """Several sources as one, in proportion to their sizes or to weights.

    Ids number the samples of the first part, then those of the second, and so on. Without weights an epoch has every
    sample once. With weights it has equally many samples, distributed over the parts by weight; each part iterates
    through its own epochs in its own order, so that in the long run its samples are equally frequent.
    """

    channel_counts = None

    def __init__(
        self, config: MixtureConfig, split: Split, channels: int = 3, parts: Sequence[Source] | None = None
    ) -> None:
        super().__init__(config, split, channels)
        if not config.parts:
            raise ValueError("data=mixture needs data.parts=[{source: NAME, settings: {...}}, ...]")
        self.parts: Sequence[Source] = parts or [_part(part.config(), split, channels) for part in config.parts]
        self._sizes = torch.tensor([len(part) for part in self.parts])
        self._stops = self._sizes.cumsum(0)
        if len(self) == 0:
            raise MissingSplit(f"no part of data.parts has an image in its {split.value} split")
        has_all_parts = bool(self._sizes.all())
        self._quotas = _quotas([part.weight if has_all_parts else None for part in config.parts], self._sizes)
        image_sizes = {part.image_size for part in self.parts if len(part)}
        self.image_size = image_sizes.pop() if len(image_sizes) == 1 else None
        # Labels mean the same in all parts only if the class names are equal.
        first, *others = self.parts
        self._is_labelled = bool(first.classes) and all(tuple(part.classes) == tuple(first.classes) for part in others)
        self.classes = tuple(first.classes) if self._is_labelled else tuple(part.source for part in config.parts)
        self.num_classes = len(self.classes)

    @classmethod
    def build_splits(cls, config: MixtureConfig, channels: int = 3) -> Splits:
        parts = [build_splits(part.config(), channels) for part in config.parts]
        train = cls(config, Split.train, channels, [part.train for part in parts])
        try:
            test_parts = [_NoImages(part.train) if part.test is None else part.test for part in parts]
            test = cls(config, Split.test, channels, test_parts)
            return Splits(train, test, parts=parts)
        except MissingSplit as missing:
            return Splits(train, None, str(missing), parts)

    @classmethod
    def expected_size(cls, config: MixtureConfig) -> int | None:
        sizes = [SOURCES.get(part.source).expected_size(part.config()) for part in config.parts]
        return None if None in sizes else sum(sizes)

    @classmethod
    def check_channels(cls, config: MixtureConfig, channels: int) -> None:
        for part in config.parts:
            check_channels(part.config(), channels)

    def __len__(self) -> int:
        return int(self._stops[-1])

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        part, inner = self._locate(index)
        return part.image(inner)

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B C H W"]:
        images = torch.empty(len(indices), self.channels, *self.image_size, dtype=torch.uint8)
        owner = torch.bucketize(indices, self._stops, right=True)
        for number in owner.unique().tolist():
            rows = owner == number
            images[rows] = self.parts[number].images(indices[rows] - self._start(number))
        return images

    def encoded(self, index: int) -> bytes | None:
        part, inner = self._locate(index)
        return part.encoded(inner)

    def take_notices(self) -> tuple[str, ...]:
        return tuple(notice for part in self.parts for notice in part.take_notices())

    def sample_name(self, index: int) -> str:
        part, inner = self._locate(index)
        return part.sample_name(inner)

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        """Return the labels of the parts if all have the same classes; otherwise label each sample by its part."""
        if self._is_labelled:
            return {"class": torch.cat([part.labels for part in self.parts])}
        return {"source": torch.arange(len(self.parts)).repeat_interleave(self._sizes)}

    def epoch_order(self, seed: int, epoch: int) -> Int[Tensor, "n"]:
        owner = torch.arange(len(self.parts)).repeat_interleave(self._quotas)[order.shuffled(seed, epoch, len(self))]
        ids = torch.empty(len(self), dtype=torch.int64)
        for number, part in enumerate(self.parts):
            quota = int(self._quotas[number])
            inner = order.indices(seed_for(seed, "mixture", number), epoch, quota, len(part), part.epoch_order)
            ids[owner == number] = inner + self._start(number)
        return ids

    def names(self) -> Sequence[str] | None:
        names = [part.names() for part in self.parts]
        if None in names:
            return None
        return [f"{number}/{name}" for number, of_part in enumerate(names) for name in of_part]

    def fingerprint(self) -> str:
        return digest([part.fingerprint() for part in self.parts])

    def _locate(self, index: int) -> tuple[Source, int]:
        number = int(torch.bucketize(torch.tensor(index), self._stops, right=True))
        return self.parts[number], index - self._start(number)

    def _start(self, number: int) -> int:
        return int(self._stops[number - 1]) if number else 0


class _NoImages(Source):
    """The test split of a part that has none; it keeps the part's place among the labels."""

    def __init__(self, train: Source) -> None:
        super().__init__(train.config, Split.test, train.channels)
        self.classes, self.num_classes = train.classes, train.num_classes
        self._labels = None if train.labels is None else train.labels[:0]

    def __len__(self) -> int:
        return 0

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        raise IndexError(index)

    def sample_name(self, index: int) -> str:
        raise IndexError(index)


def _part(config: SourceConfig, split: Split, channels: int) -> Source:
    try:
        return build_source(config, split, channels)
    except MissingSplit:
        return _NoImages(build_source(config, Split.train, channels))


def _quotas(weights: list[float | None], sizes: Int[Tensor, "parts"]) -> Int[Tensor, "parts"]:
    """Return the number of samples per epoch and part, at least one each; the sum is the number of all samples."""
    total = int(sizes.sum())
    if weights[0] is None:
        return sizes
    share = torch.tensor(weights, dtype=torch.float64)
    stops = (share.cumsum(0) / share.sum() * total).round().long()
    quotas = stops.diff(prepend=torch.zeros(1, dtype=torch.int64))
    if int(quotas.min()) < 1:
        raise ValueError(f"data.parts: with the weights {weights} a part has none of the {total} samples of an epoch")
    return quotas
