"""Shards of images in webdataset's format, local or remote, with random access to every sample."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data import order
from ssl_zoo.data.corrupt import Refusal
from ssl_zoo.data.decode import decode
from ssl_zoo.data.listing import Listing, Reason
from ssl_zoo.data.names import normal, printable
from ssl_zoo.data.shards.index import Index
from ssl_zoo.data.shards.manifest import LabelSet
from ssl_zoo.data.shards.place import Shards, default_cache, open_shards
from ssl_zoo.data.shards.shuffle import windowed
from ssl_zoo.data.sources.base import SOURCES, MissingSplit, Source, Split, digest
from ssl_zoo.data.sources.imagefolder import LimitedConfig, check_first_images, split_by_hash
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
        parts = {Split.train: open_shards(config.path, cache)}
        if config.test_path is not None:
            is_same = config.test_path == config.path
            parts[Split.test] = parts[Split.train] if is_same else open_shards(config.test_path, cache)
        self._shards = parts.get(split, parts[Split.train])
        self.manifest = self._shards.manifest
        self._index = _read_index(self._shards)
        self._rows = _rows(self._index, self._shards, None if len(parts) == 2 else (split, config.test_fraction))
        if len(self._rows) == 0:
            raise (ValueError if split is Split.train else MissingSplit)(
                f"data.path={config.path} leaves no image for the {split.value} split"
            )
        manifests = [part.manifest for part in parts.values()]
        self._label_sets: dict[str, Int[Tensor, "n"]] = {}
        for name, own in self.manifest.label_sets.items():
            joint = _joint([manifest.label_sets[name] for manifest in manifests if name in manifest.label_sets])
            labels = self._index.labels[name][self._rows]
            self._label_sets[name] = _renumbered(labels, own.classes, joint.classes)
            if len(self._label_sets) == 1:  # the default
                self.num_classes, self.classes = joint.num_classes, joint.classes
        # Arrays, since reading an element takes a tenth of the time of a tensor's.
        shard, offset, size = (getattr(self._index, column)[self._rows] for column in ("shard", "offset", "size"))
        self._shard, self._offset, self._size = shard.numpy(), offset.numpy(), size.numpy()
        self.image_size = self.manifest.image_size
        self.listing = Listing(self._index.formats(self._rows))
        if split is Split.train or len(parts) == 2:  # of shards that both splits share, only once
            _note_left_out(self.listing, self._shards)
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
        return f"{self.manifest.shards[self._shard[index]].name}/{printable(name)}"

    def epoch_order(self, seed: int, epoch: int) -> Int[Tensor, "n"]:
        if self.config.shuffle is Shuffle.full:
            return order.shuffled(seed, epoch, len(self))
        shard, offset = torch.from_numpy(self._shard), torch.from_numpy(self._offset)
        return windowed(shard, offset, self.config.shuffle_window, generator_for(seed, "order", epoch))

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        return self._label_sets

    def names(self) -> Sequence[str]:
        names = self._index.all_names()
        return [names[row].decode("utf-8", "surrogateescape") for row in self._rows.tolist()]

    def fingerprint(self) -> str:
        numbers = ",".join(map(str, self._shards.numbers))
        return digest([self.manifest.index.sha256, numbers], self._rows.numpy().tobytes())

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
    used_names = [names[row].decode("utf-8", "surrogateescape") for row in rows.tolist()]
    owners = split_by_hash(used_names, test_fraction)
    return rows[torch.tensor([owner is split for owner in owners], dtype=torch.bool)]


def _joint(sets: Sequence[LabelSet]) -> LabelSet:
    """Return one numbering for the same label set of train and test shards, which may have been made apart.

    Class names decide where both have them: in the order of the split that has all classes, otherwise sorted. Numbers
    without names are taken as they are.
    """
    named = [label_set.classes for label_set in sets if label_set.classes]
    if len(named) < len(sets):
        num_classes = max(label_set.num_classes for label_set in sets)
        return LabelSet(num_classes, named[0] if named and len(named[0]) == num_classes else ())
    everything = {normal(name): name for classes in named for name in classes}
    complete = next((classes for classes in named if len(classes) == len(everything)), None)
    classes = complete or tuple(sorted(everything.values()))
    return LabelSet(len(classes), classes)


def _renumbered(labels: Int[Tensor, "n"], own: Sequence[str], joint: Sequence[str]) -> Int[Tensor, "n"]:
    if not own or not joint or tuple(own) == tuple(joint):
        return labels
    number = {normal(name): label for label, name in enumerate(joint)}
    return torch.tensor([number[normal(name)] for name in own])[labels]


def _note_left_out(listing: Listing, shards: Shards) -> None:
    for number in shards.numbers:
        shard = shards.manifest.shards[number]
        names = [f"{sample.name} ({sample.reason})" for sample in shard.left_out]
        listing.add(Reason.not_in_shards, shard.num_left_out, names)
