"""Data sets of torchvision whose files are not pickles."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch
import torchvision.datasets
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.sources.base import SOURCES, Source, SourceConfig, Split
from ssl_zoo.registry import nearest
from ssl_zoo.settings import setting


@dataclass(frozen=True)
class _Interface:
    """Constructor arguments of a torchvision class for each split, and its attribute with the labels."""

    train: Mapping[str, Any]
    test: Mapping[str, Any]
    labels: str


def _by_split(train: str, labels: str) -> _Interface:
    return _Interface({"split": train}, {"split": "test"}, labels)


_BY_FLAG = _Interface({"train": True}, {"train": False}, "targets")

# CIFAR10 and CIFAR100 are missing on purpose: their files are pickles (data=cifar10 reads the binary ones).
_DATASETS: Mapping[str, _Interface] = {
    "DTD": _by_split("train", "_labels"),
    "FashionMNIST": _BY_FLAG,
    "FGVCAircraft": _by_split("trainval", "_labels"),
    "Flowers102": _by_split("train", "_labels"),
    "Food101": _by_split("train", "_labels"),
    "KMNIST": _BY_FLAG,
    "MNIST": _BY_FLAG,
    "OxfordIIITPet": _by_split("trainval", "_labels"),
    "STL10": _by_split("train", "labels"),
    "SVHN": _by_split("train", "labels"),
    "USPS": _BY_FLAG,
}


@dataclass
class TorchvisionConfig(SourceConfig):
    name: str = setting("", f"class of torchvision.datasets: {', '.join(_DATASETS)}")
    root: str | None = setting(None, "torchvision's root folder; null takes the environment variable SSL_ZOO_DATA")
    download: bool = setting(False, "let torchvision download what is missing")


@SOURCES.register("torchvision", TorchvisionConfig)
class TorchvisionDataset(Source):
    """A data set of ``torchvision.datasets``: MNIST, STL10, Food101 and others, in torchvision's folder layout."""

    def __init__(self, config: TorchvisionConfig, split: Split) -> None:
        super().__init__(config, split)
        if config.name not in _DATASETS:
            near = nearest(config.name, _DATASETS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(_DATASETS)}"
            raise ValueError(f"data.name={config.name!r} is no torchvision data set that can be read here; {hint}")
        root = config.root or os.environ.get("SSL_ZOO_DATA")
        if not root:
            raise ValueError("data=torchvision needs data.root=FOLDER or the environment variable SSL_ZOO_DATA")
        interface = _DATASETS[config.name]
        options = interface.train if split is Split.train else interface.test
        try:
            self._dataset = getattr(torchvision.datasets, config.name)(root, download=config.download, **options)
        except (RuntimeError, OSError) as error:
            hint = "" if config.download else "; here that is data.download=true"
            raise ValueError(f"data.name={config.name} below data.root={root}: {error}{hint}") from error
        self._labels = torch.as_tensor(numpy.asarray(getattr(self._dataset, interface.labels)), dtype=torch.int64)
        self.num_classes = int(self._labels.max()) + 1
        self.classes = list(getattr(self._dataset, "classes", []))

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        try:
            image = self._dataset[index][0].convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # of Pillow, where the data set consists of image files
            raise CorruptImage(self.sample_name(index), f"{type(error).__name__}: {error}") from error
        return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)

    def sample_name(self, index: int) -> str:
        return f"{self.config.name}/{self.split.value}/{index:06d}"

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        return {"class": self._labels}
