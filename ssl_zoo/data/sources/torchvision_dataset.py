"""Data sets of torchvision whose files are not pickles."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy
import torch
import torchvision.datasets
from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.data.corrupt import Refusal
from ssl_zoo.data.decode import raster_of
from ssl_zoo.data.raster import PixelFormat, to_format
from ssl_zoo.data.sources.base import SOURCES, Source, SourceConfig, Split
from ssl_zoo.registry import nearest
from ssl_zoo.settings import setting

# For each class the name of its training split, None where the split is a flag, and its attribute with the labels.
# CIFAR10 and CIFAR100 are missing on purpose: their files are pickles (data=cifar10 reads the binary ones).
_DATASETS: Mapping[str, tuple[str | None, str]] = {
    "DTD": ("train", "_labels"),
    "FashionMNIST": (None, "targets"),
    "FGVCAircraft": ("trainval", "_labels"),
    "Flowers102": ("train", "_labels"),
    "Food101": ("train", "_labels"),
    "KMNIST": (None, "targets"),
    "MNIST": (None, "targets"),
    "OxfordIIITPet": ("trainval", "_labels"),
    "STL10": ("train", "labels"),
    "SVHN": ("train", "labels"),
    "USPS": (None, "targets"),
}


@dataclass
class TorchvisionConfig(SourceConfig):
    name: str = setting("", f"class of torchvision.datasets: {', '.join(_DATASETS)}")
    root: str | None = setting(None, "torchvision's root folder; null takes the environment variable SSL_ZOO_DATA")
    download: bool = setting(False, "let torchvision download what is missing")


@SOURCES.register("torchvision", TorchvisionConfig)
class TorchvisionDataset(Source):
    """A data set of ``torchvision.datasets``: MNIST, STL10, Food101 and others, in torchvision's folder layout."""

    channel_counts = (1, 3)

    def __init__(self, config: TorchvisionConfig, split: Split, channels: int = 3) -> None:
        super().__init__(config, split, channels)
        if config.name not in _DATASETS:
            near = nearest(config.name, _DATASETS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(_DATASETS)}"
            raise ValueError(f"data.name={config.name!r} is no torchvision data set that can be read here; {hint}")
        root = config.root or os.environ.get("SSL_ZOO_DATA")
        if not root:
            raise ValueError("data=torchvision needs data.root=FOLDER or the environment variable SSL_ZOO_DATA")
        train_split, labels = _DATASETS[config.name]
        is_train = split is Split.train
        options = {"split": train_split if is_train else "test"} if train_split else {"train": is_train}
        try:
            self._dataset = getattr(torchvision.datasets, config.name)(root, download=config.download, **options)
        except (RuntimeError, OSError) as error:
            hint = "" if config.download else "; here that is data.download=true"
            raise ValueError(f"data.name={config.name} below data.root={root}: {error}{hint}") from error
        self._labels = torch.as_tensor(numpy.asarray(getattr(self._dataset, labels)), dtype=torch.int64)
        self.classes = list(getattr(self._dataset, "classes", []))
        self.num_classes = max(len(self.classes), int(self._labels.max()) + 1)  # a split may lack the last classes

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        try:
            raster = raster_of(self._dataset[index][0])
        except (OSError, SyntaxError, ValueError) as error:  # of Pillow, where the data set consists of image files
            raise Refusal.damaged.of(self.sample_name(index), error=f"{type(error).__name__}: {error}") from error
        pixels = to_format(raster, PixelFormat(self.channels), self.sample_name(index))
        return torch.from_numpy(numpy.require(pixels, requirements=("C", "W"))).permute(2, 0, 1)

    def sample_name(self, index: int) -> str:
        return f"{self.config.name}/{self.split.value}/{index:06d}"
