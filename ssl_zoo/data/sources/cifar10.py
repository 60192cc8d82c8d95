"""CIFAR-10 (Krizhevsky 2009), decoded once into memory."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data.decode import CorruptImage, DecodeLimits, PixelFormat, decode
from ssl_zoo.data.files import open_files
from ssl_zoo.data.names import printable
from ssl_zoo.data.sources.base import SOURCES, MissingSplit, Source, SourceConfig, Split, grey
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NUM_TRAIN = 50_000
_SIZE = 32
_RECORD_BYTES = 1 + 3 * _SIZE * _SIZE
_LIMITS = DecodeLimits(max_bytes=100_000, max_pixels=_SIZE * _SIZE, min_side=_SIZE)

log = logging.getLogger(__name__)


@dataclass
class Cifar10Config(SourceConfig):
    root: str | None = setting(None, "folder with the data; null takes the environment variable SSL_ZOO_DATA")
    validation: int = setting(0, "training images held out to replace the test split", at_least=0, below=_NUM_TRAIN)


@SOURCES.register("cifar10", Cifar10Config)
class Cifar10(Source):
    """CIFAR-10: 50,000 + 10,000 images of ten classes at 32 pixels.

    Reads the first that exists below ``data.root``: ``cifar10-train.tar.gz`` and ``cifar10-test.tar.gz`` with members
    ``train/<class>/<number>.jpg``; folders ``train/`` and ``test/`` of that layout (or ``cifar10/train`` ...);
    ``cifar-10-batches-bin/`` as distributed by the authors. Their pickled Python version is refused, since unpickling a
    downloaded file can execute code.
    """

    channel_counts = (1, 3)
    image_size = (_SIZE, _SIZE)
    num_classes = len(CLASSES)
    classes = CLASSES

    def __init__(self, config: Cifar10Config, split: Split, channels: int = 3) -> None:
        super().__init__(config, split, channels)
        root = Path(config.root or os.environ.get("SSL_ZOO_DATA", "")).expanduser()
        if not config.root and not os.environ.get("SSL_ZOO_DATA"):
            raise ValueError("data=cifar10 needs data.root=FOLDER or the environment variable SSL_ZOO_DATA")
        started = time.perf_counter()
        self._stored = Split.train if config.validation else split
        self._images, self._labels, self._names = _load(root, self._stored, channels)
        self._rows = torch.arange(len(self._labels))  # of the stored split
        if config.validation:
            self._rows = _validation_rows(len(self._labels), config.validation, split)
            self._images, self._labels = self._images[self._rows], self._labels[self._rows]
        # Worker processes map this memory and don't copy it.
        self._images.share_memory_()
        log.info("cifar10 %s: %d images in %.1f s", split.value, len(self), time.perf_counter() - started)

    @classmethod
    def expected_size(cls, config: Cifar10Config) -> int:
        return _NUM_TRAIN - config.validation

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> UInt8[Tensor, "C 32 32"]:
        return self._images[index]

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B C 32 32"]:
        return self._images[indices]

    @property
    def stored(self) -> UInt8[Tensor, "n C 32 32"]:
        return self._images

    def sample_name(self, index: int) -> str:
        row = int(self._rows[index])
        return self._names[row] if self._names else f"{self._stored.value}/{CLASSES[self._labels[index]]}/record {row}"


def _validation_rows(num_images: int, held_out: int, split: Split) -> Int[Tensor, "n"]:
    """Return the rows of the held-out training images, or of the others; they are the same in every run.

    Raises:
        ValueError: there are not enough training images.
    """
    if held_out >= num_images:
        raise ValueError(f"data.validation={held_out}: there are only {num_images} training images")
    order = torch.randperm(num_images, generator=generator_for("cifar10", "validation"))
    return (order[:held_out] if split is Split.test else order[held_out:]).sort().values


def _load(root: Path, split: Split, channels: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return images (n, channels, 32, 32), labels (n,), and names, which are empty for the binary files."""
    candidates = [root / f"cifar10-{split.value}.tar.gz", root / split.value, root / "cifar10" / split.value]
    for path in candidates:
        if path.exists():
            return _load_files(path, channels)
    for folder in (root / "cifar-10-batches-bin", root):
        if (folder / "test_batch.bin").is_file():
            return _load_binary(folder, split, channels)
    if (root / "cifar-10-batches-py").is_dir():
        raise ValueError(
            f"{root / 'cifar-10-batches-py'} contains pickles, and unpickling executes code; download the binary "
            "version of CIFAR-10 (cifar-10-batches-bin) instead"
        )
    raise (ValueError if split is Split.train else MissingSplit)(
        f"no CIFAR-10 {split.value} split below data.root={root}; looked for {', '.join(map(str, candidates))} and "
        f"{root / 'cifar-10-batches-bin'}"
    )


def _load_files(path: Path, channels: int) -> tuple[Tensor, Tensor, list[str]]:
    files = open_files(str(path), max_unpacked_bytes=1 << 30)
    images = torch.empty(len(files.names), channels, _SIZE, _SIZE, dtype=torch.uint8)
    labels = torch.empty(len(files.names), dtype=torch.int64)
    for position, name in enumerate(files.names):
        folder = name.split("/")[-2] if "/" in name else ""
        if folder not in CLASSES:
            raise ValueError(
                f"{path} holds {printable(name)}: {folder!r} is no class of CIFAR-10 ({', '.join(CLASSES)})"
            )
        try:
            content = files.read(position, _LIMITS.max_bytes)
            images[position] = decode(content, printable(name), _LIMITS, PixelFormat(channels))
        except CorruptImage as error:
            # Results on this data set are compared between papers, so no image may be missing.
            raise ValueError(f"{path} is damaged: {error}") from error
        labels[position] = CLASSES.index(folder)
    return images, labels, files.names


def _load_binary(folder: Path, split: Split, channels: int) -> tuple[Tensor, Tensor, list[str]]:
    """Read records of one label byte and 3072 pixel bytes, channel by channel, as the data set documents them."""
    parts = ["test_batch.bin"] if split is Split.test else [f"data_batch_{part}.bin" for part in range(1, 6)]
    records = []
    for part in parts:
        if not (folder / part).is_file() or (folder / part).stat().st_size % _RECORD_BYTES:
            raise ValueError(
                f"{folder / part} is missing or its size is no multiple of {_RECORD_BYTES} bytes, the size of a record"
            )
        records.append(numpy.fromfile(folder / part, dtype=numpy.uint8).reshape(-1, _RECORD_BYTES))
    table = torch.from_numpy(numpy.concatenate(records))
    images = table[:, 1:].reshape(-1, 3, _SIZE, _SIZE)
    return (images.contiguous() if channels == 3 else grey(images)), table[:, 0].long(), []
