"""Fashion-MNIST (Xiao et al., arXiv 1708.07747), held in memory."""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data.sources.base import SOURCES, MissingSplit, Source, SourceConfig, Split
from ssl_zoo.settings import setting

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_SYSTEM_FOLDER = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist
_SIZE = 28
_PIXELS_MAGIC, _LABELS_MAGIC = 2051, 2049  # idx format: unsigned bytes of three dimensions, of one


@dataclass
class FashionMnistConfig(SourceConfig):
    root: str | None = setting(None, "folder with the idx files; null: SSL_ZOO_DATA or Debian's dataset-fashion-mnist")


@SOURCES.register("fashion_mnist", FashionMnistConfig)
class FashionMnist(Source):
    """Fashion-MNIST: 60,000 + 10,000 grey images of ten kinds of clothes at 28 pixels.

    Reads ``train-images-idx3-ubyte`` and its siblings, with or without ``.gz``, in the folder itself or in
    torchvision's ``FashionMNIST/raw``.
    """

    channel_counts = (1, 3)
    image_size = (_SIZE, _SIZE)
    num_classes = len(CLASSES)
    classes = CLASSES

    def __init__(self, config: FashionMnistConfig, split: Split, channels: int = 3) -> None:
        super().__init__(config, split, channels)
        roots = [config.root] if config.root else [os.environ.get("SSL_ZOO_DATA"), _SYSTEM_FOLDER]
        prefix = "train" if split is Split.train else "t10k"
        missing = ValueError if split is Split.train else MissingSplit
        images = _find(roots, f"{prefix}-images-idx3-ubyte", missing)
        labels = _find(roots, f"{prefix}-labels-idx1-ubyte", missing)
        self._grey = torch.from_numpy(_read_idx(images, _PIXELS_MAGIC, (_SIZE, _SIZE)))
        self._labels = torch.from_numpy(_read_idx(labels, _LABELS_MAGIC, ())).long()
        if len(self._grey) != len(self._labels):
            raise ValueError(f"{images} holds {len(self._grey)} images, {labels} {len(self._labels)} labels")
        self._grey.share_memory_()

    @classmethod
    def expected_size(cls, config: FashionMnistConfig) -> int | None:
        return 60_000

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> UInt8[Tensor, "C 28 28"]:
        return self._grey[index].expand(self.channels, -1, -1)

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B C 28 28"]:
        return self._grey[indices, None].expand(-1, self.channels, -1, -1)

    @property
    def stored(self) -> UInt8[Tensor, "n C 28 28"]:
        return self._grey[:, None].expand(-1, self.channels, -1, -1)

    def sample_name(self, index: int) -> str:
        return f"{self.split.value}/{CLASSES[self._labels[index]]}/record {index}"


def _find(roots: list[str | None], name: str, missing: type[ValueError]) -> Path:
    folders = [
        Path(root).expanduser() / inner for root in roots if root for inner in ("", "FashionMNIST/raw", "fashion-mnist")
    ]
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise missing(
        f"no file {name} or {name}.gz in {', '.join(map(str, folders))}; set data.root to the folder that holds it"
    )


def _read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> numpy.ndarray:
    """Read an array (n, *shape) from an idx file: big-endian magic number, sizes, then bytes."""
    header_bytes = 4 * (2 + len(shape))
    record_bytes = int(numpy.prod(shape, dtype=int))
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        header = numpy.frombuffer(file.read(header_bytes), dtype=">u4")
        if len(header) != 2 + len(shape) or header[0] != magic or tuple(header[2:]) != shape or header[1] > 1_000_000:
            raise ValueError(f"{path} does not have the header of a Fashion-MNIST file")
        num_bytes = int(header[1]) * record_bytes
        content = file.read(num_bytes)
    if len(content) != num_bytes:
        raise ValueError(f"{path} is truncated: {len(content)} of {num_bytes} bytes")
    return numpy.frombuffer(content, dtype=numpy.uint8).reshape(-1, *shape).copy()
