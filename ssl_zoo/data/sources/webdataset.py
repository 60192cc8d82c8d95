"""Shards of images in webdataset's format, local or remote, with random access to every sample."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data import order
from ssl_zoo.data.corrupt import Refusal
from ssl_zoo.data.decode import decode
from ssl_zoo.data.shards.index import Index
from ssl_zoo.data.shards.manifest import Manifest
from ssl_zoo.data.shards.place import Shards, default_cache, open_shards
from ssl_zoo.data.shards.shuffle import windowed
from ssl_zoo.data.shards.tar import readable
from ssl_zoo.data.sources.base import SOURCES, Source, Split
from ssl_zoo.data.sources.imagefolder import LimitedConfig, check_first_images, held_out
from ssl_zoo.io import PATHS
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


class Shuffle(Enum):
    """The order of the samples of an epoch."""

    full = "full"
    shards = "shards"


@dataclass
class WebDatasetConfig(LimitedConfig):
    path: str = setting("", "folder or address with manifest.json, the manifest, or FOLDER/shard-{000..123}.tar")
    test_path: str | None = setting(None, "the same for the test split; null holds out a fraction of path")
    test_fraction: float = setting(0.1, "fraction held out as the test split without a test_path", above=0, below=1)
    shuffle: Shuffle = setting(Shuffle.full, "full: over all samples; shards: shard by shard, faster on slow disks")
    shuffle_window: int = setting(10_000, "samples over which shuffle=shards mixes; needs no memory", at_least=1)
    cache: str | None = setting(None, "folder for copies of remote shards; null: ssl_zoo/shards in the user's cache")


@SOURCES.register("webdataset", WebDatasetConfig)
class WebDataset(Source):
    """Shards of images in webdataset's format with a manifest, local or remote; tools/make_shards.py writes them.

    The index beside the manifest has the offset of every sample, so that shards are read like a folder: order, resume
    and the distribution over ranks and workers are those of every other source. Remote shards are copied into a cache
    on first access and verified there. Training reads no tar headers, and nothing is ever unpickled or executed.
    """

    channel_counts = None

    def __init__(self, config: WebDatasetConfig, split: Split, channels: int = 3) -> None:
        super().__init__(config, split, channels)
        self._pixels = config.pixels(channels)
        if not config.path:
            raise ValueError(
                "data=webdataset needs data.path=FOLDER with shards, see python tools/make_shards.py --help"
            )
        cache = Path(config.cache).expanduser() if config.cache else default_cache()
        has_test_path = config.test_path is not None
        self._shards = open_shards(config.test_path if has_test_path and split is Split.test else config.path, cache)
        self.manifest = self._shards.manifest
        self._index = _read_index(self._shards)
        self._rows = _rows(self._index, self._shards, None if has_test_path else (split, config.test_fraction))
        if len(self._rows) == 0:
            raise ValueError(f"data.path={config.path} leaves no image for the {split.value} split")
        if has_test_path and split is Split.test:
            _check_classes(self.manifest, open_shards(config.path, cache).manifest)
        # Arrays, since reading an element takes a tenth of the time of a tensor's.
        shard, offset, size = (getattr(self._index, column)[self._rows] for column in ("shard", "offset", "size"))
        self._shard, self._offset, self._size = shard.numpy(), offset.numpy(), size.numpy()
        self.image_size = self.manifest.image_size
        default = next(iter(self.manifest.label_sets.values()), None)
        self.num_classes, self.classes = (default.num_classes, default.classes) if default else (0, ())
        self._paths: dict[int, Path] = {}
        for number in self._shards.numbers:  # find missing and truncated files without reading them
            if not PATHS.is_remote(self._shards.place(self.manifest.shards[number])):
                self._path(number)
        check_first_images(self, may_differ=False)

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        name, limits = self.sample_name(index), self.config.limits
        limits.check_bytes(int(self._size[index]), name)
        image = decode(self.encoded(index), name, limits, self._pixels, self._notices)
        if self.image_size is not None and image.shape[1:] != self.image_size:
            raise Refusal.not_of_the_shards.of(name, found=tuple(image.shape[1:]), expected=self.image_size)
        return image

    def encoded(self, index: int) -> bytes:
        path = self._path(int(self._shard[index]))
        try:
            with open(path, "rb", buffering=0) as file:  # opened per read, so that thousands of shards keep no handles
                return os.pread(file.fileno(), int(self._size[index]), int(self._offset[index]))
        except OSError as error:
            raise ValueError(f"{path} can't be read: {error}") from error

    def sample_name(self, index: int) -> str:
        name = self._index.name(int(self._rows[index]))
        return f"{self.manifest.shards[self._shard[index]].name}/{readable(name)}"

    def epoch_order(self, seed: int, epoch: int) -> Int[Tensor, "n"]:
        if self.config.shuffle is Shuffle.full:
            return order.shuffled(seed, epoch, len(self))
        shard, offset = torch.from_numpy(self._shard), torch.from_numpy(self._offset)
        return windowed(shard, offset, self.config.shuffle_window, generator_for(seed, "order", epoch))

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        return {name: self._index.labels[name][self._rows] for name in self.manifest.label_sets}

    def _path(self, number: int) -> Path:
        if number not in self._paths:
            self._paths[number] = self._shards.local(self.manifest.shards[number])
        return self._paths[number]


def _read_index(shards: Shards) -> Index:
    manifest = shards.manifest
    path = shards.local(manifest.index)
    try:
        index = Index.from_bytes(path.read_bytes(), [shard.bytes for shard in manifest.shards])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    counts = index.shard.bincount(minlength=len(manifest.shards)).tolist()
    if counts != [shard.samples for shard in manifest.shards] or set(index.labels) != set(manifest.label_sets):
        raise ValueError(f"{path} has different samples or labels than the manifest in {shards.base}")
    for name, labels in index.labels.items():
        if len(labels) and int(labels.max()) >= manifest.label_sets[name].num_classes:
            raise ValueError(f"{path}: a label of {name} is not below the manifest's number of classes")
    return index


def _rows(index: Index, shards: Shards, share: tuple[Split, float] | None) -> Int[Tensor, "n"]:
    """Return the rows of the index that belong to the used shards and, if there is no test_path, to the split."""
    used = torch.zeros(len(shards.manifest.shards), dtype=torch.bool)
    used[list(shards.numbers)] = True
    rows = used[index.shard].nonzero()[:, 0]
    if share is None:
        return rows
    split, test_fraction = share
    # The names exclude the shard, so that other shards of the same images hold out the same samples.
    names = index.all_names()
    owners = (held_out(names[row].decode("utf-8", "surrogateescape"), test_fraction) for row in rows.tolist())
    return rows[torch.tensor([owner is split for owner in owners], dtype=torch.bool)]


def _check_classes(test: Manifest, train: Manifest) -> None:
    for name in set(test.label_sets) & set(train.label_sets):
        ours, theirs = test.label_sets[name].classes, train.label_sets[name].classes
        if ours and theirs and ours != theirs:
            odd = ", ".join(sorted(set(ours) ^ set(theirs))[:3]) or "their order"
            raise ValueError(f"data.path and data.test_path have different classes of {name!r}; they differ in {odd}")
