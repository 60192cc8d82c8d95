"""Folders and tar archives of images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.data.decode import DecodeLimits, decode
from ssl_zoo.data.files import MAX_UNPACKED_BYTES, Files, open_files
from ssl_zoo.data.sources.base import SOURCES, Source, SourceConfig, Split
from ssl_zoo.settings import setting

_TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first one that exists is the test split


@dataclass
class LimitedConfig(SourceConfig):
    """Limits on image files, checked before decoding."""

    max_image_bytes: int = setting(64 << 20, "larger image files count as corrupt", at_least=1)
    max_image_pixels: int = setting(64_000_000, "images with more pixels count as corrupt, undecoded", at_least=1)
    min_image_side: int = setting(8, "images with a shorter side of fewer pixels count as corrupt", at_least=1)

    @property
    def limits(self) -> DecodeLimits:
        return DecodeLimits(self.max_image_bytes, self.max_image_pixels, self.min_image_side)


@dataclass
class FilesConfig(LimitedConfig):
    """Limits on image files and on archives of them."""

    max_unpacked_bytes: int = setting(MAX_UNPACKED_BYTES, "largest .tar.gz content, unpacked into memory", at_least=1)


@dataclass
class ImageFolderConfig(FilesConfig):
    path: str = setting("", "folder, .tar or .tar.gz with images, in class folders or not")
    test_fraction: float = setting(0.1, "test split's fraction where no folder is test or val", above=0, below=1)


class FilesSource(Source):
    """Images in files, decoded on access."""

    def __init__(self, config: FilesConfig, split: Split, files: Files) -> None:
        super().__init__(config, split)
        self._files, self._limits = files, config.limits

    def __len__(self) -> int:
        return len(self._files.names)

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        return decode(self._files.read(index), self.sample_name(index), self._limits)

    def encoded(self, index: int) -> bytes:
        return self._files.read(index)

    def sample_name(self, index: int) -> str:
        return self._files.names[index]

    def label_by_folder(self, used: Sequence[str], own: Sequence[str]) -> None:
        """Make the top folders of all ``used`` names the classes, and those of ``own`` the labels, if all have one."""
        if all("/" in name for name in used):
            self.classes = sorted({name.partition("/")[0] for name in used})
            self.num_classes = len(self.classes)
            number = {name: label for label, name in enumerate(self.classes)}
            self._labels = torch.tensor([number[name.partition("/")[0]] for name in own])


@SOURCES.register("imagefolder", ImageFolderConfig)
class ImageFolder(FilesSource):
    """Any folder or tar archive of images; class folders and train/test folders are used where they exist.

    Folders ``train`` and ``test`` (or ``val``) at the top are the splits. Otherwise a hash of its name decides whether
    an image is held out for the test split. If every image lies in a folder, the topmost folder is its class; classes
    are numbered in sorted order over both splits.
    """

    def __init__(self, config: ImageFolderConfig, split: Split) -> None:
        if not config.path:
            raise ValueError("data=imagefolder needs data.path=FOLDER or data.path=ARCHIVE.tar")
        files = open_files(config.path, max_unpacked_bytes=config.max_unpacked_bytes)
        inner = without_wrapper(files.names)
        in_split, names = _split(inner, config.test_fraction)
        chosen = [position for position, owner in enumerate(in_split) if owner is split]
        if not chosen:
            raise ValueError(
                f"data.path={config.path} leaves no image for the {split.value} split: {len(inner)} images, "
                f"data.test_fraction={config.test_fraction}"
            )
        super().__init__(config, split, files.keep(chosen))
        used = [name for name, owner in zip(names, in_split, strict=True) if owner is not None]
        self.label_by_folder(used, [names[position] for position in chosen])


def without_wrapper(names: list[str]) -> list[str]:
    """Remove top folders that contain only one folder, which archives often have."""
    names = [name.removeprefix("./") for name in names]
    while True:
        tops = {name.partition("/")[0] for name in names}
        if len(tops) > 1 or not all(name.count("/") >= 2 for name in names):
            return names
        names = [name.partition("/")[2] for name in names]


def _split(names: list[str], test_fraction: float) -> tuple[list[Split | None], list[str]]:
    """Return the split of each file, None for neither, and its name within the split."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    test = next((folder for folder in _TEST_FOLDERS if folder in tops), None)
    if "train" not in tops or test is None:
        return [held_out(name, test_fraction) for name in names], names
    owner = {"train": Split.train, test: Split.test}
    split = [owner.get(name.partition("/")[0]) for name in names]
    return split, [name.partition("/")[2] for name in names]


def held_out(name: str, test_fraction: float) -> Split:
    """Assign a sample of data without splits to one, by a hash of its name."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return Split.test if int.from_bytes(digest, "little") / 2**64 < test_fraction else Split.train
