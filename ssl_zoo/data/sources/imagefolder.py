"""Folders and tar archives of images."""

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.data.decode import CorruptImage, DecodeLimits, PixelFormat, WrongChannels, decode
from ssl_zoo.data.files import MAX_UNPACKED_BYTES, Files, open_files
from ssl_zoo.data.raster import WHITE
from ssl_zoo.data.sources.base import SOURCES, Source, SourceConfig, Split
from ssl_zoo.settings import setting

_ANY_CHANNELS = (".tif", ".tiff")  # endings of the format that holds any number of channels
_NUM_CHECKED = 4  # images whose channels are checked when the data are opened
_NUM_LISTED = 1000  # files of a folder whose names are read for a dry run
_LOG = logging.getLogger(__name__)
_TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first one that exists is the test split


@dataclass
class LimitedConfig(SourceConfig):
    """Limits on image files, checked before decoding, and what decoded images become."""

    max_image_bytes: int = setting(64 << 20, "larger image files count as corrupt", at_least=1)
    max_image_pixels: int = setting(64_000_000, "images with more pixels count as corrupt, undecoded", at_least=1)
    min_image_side: int = setting(8, "images with a shorter side of fewer pixels count as corrupt", at_least=1)
    intensity_range: list[float] | None = setting(
        None,
        "[low, high] of stored values that become 0 and 255, in files of more than 8 bits; null: guessed",
        length=2,
    )
    background: list[int] = setting(
        list(WHITE), "RGB under transparent images, 0..255", length=3, at_least=0, at_most=255
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        stretch = self.intensity_range
        if stretch is not None and not stretch[0] < stretch[1]:
            raise ValueError(f"{self.key('intensity_range')}={stretch} must be [low, high] with low < high")

    def pixels(self, channels: int) -> PixelFormat:
        """Return what images of ``channels`` channels are decoded to."""
        stretch = None if self.intensity_range is None else tuple(self.intensity_range)
        return PixelFormat(channels, stretch, tuple(self.background))

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


def check_first_images(source: Source, may_differ: bool) -> None:
    """Refuse data whose images have other channels than wanted, judged by a few of them.

    Grey and RGB become one another, so that images are read only where other numbers are wanted or can occur.

    Args:
        may_differ: whether the formats of all files can hold other than grey and RGB images.

    Raises:
        ValueError: every image looked at that can be decoded has other channels; single ones are corrupt samples.
    """
    if source.channels in (1, 3) and not may_differ:
        return
    refused = []
    for sample in range(0, len(source), max(1, len(source) // _NUM_CHECKED)):
        try:
            source.image(sample)
            return
        except WrongChannels as error:
            refused.append(error)
        except CorruptImage:  # it is replaced and reported when the loader meets it
            continue
    if refused:
        raise ValueError(
            f"{refused[0]}. So it is with all of {len(refused)} images looked at; set backbone.in_channels, or "
            "--in-channels of a tool, to what the files hold (1 or 3 for grey and RGB images)"
        )


class FilesSource(Source):
    """Images in files, decoded on access."""

    channel_counts = (1, 3)

    def __init__(self, config: FilesConfig, split: Split, files: Files, channels: int = 3, check: bool = True) -> None:
        super().__init__(config, split, channels)
        self._files, self._limits, self._pixels = files, config.limits, config.pixels(channels)
        if check:
            check_first_images(self, all(name.lower().endswith(_ANY_CHANNELS) for name in files.names))

    def __len__(self) -> int:
        return len(self._files.names)

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        return decode(self._files.read(index), self.sample_name(index), self._limits, self._pixels, self._notices)

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

    channel_counts = None

    def __init__(self, config: ImageFolderConfig, split: Split, channels: int = 3) -> None:
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
        super().__init__(config, split, files.keep(chosen), channels)
        used = [name for name, owner in zip(names, in_split, strict=True) if owner is not None]
        self.label_by_folder(used, [names[position] for position in chosen])

    @classmethod
    def check_channels(cls, config: ImageFolderConfig, channels: int) -> None:
        """Look at the files as far as there are any: at one TIFF where grey and RGB images would do, else at some."""
        root = Path(config.path).expanduser()
        if not config.path or not root.exists():
            return
        if channels not in (1, 3):
            cls(config, Split.train, channels=channels)
        elif root.is_dir() and (file := _first_of_any_channels(root)) is not None:
            try:
                decode(file.read_bytes(), file.name, config.limits, config.pixels(channels))
            except WrongChannels as error:
                raise ValueError(f"{error}. Set backbone.in_channels to what the files hold") from error
            except (CorruptImage, OSError) as error:  # the loader meets and reports it
                _LOG.debug("%s", error)


def _first_of_any_channels(root: Path) -> Path | None:
    """Return a file whose format holds any number of channels, among the first of a folder alone: it may be large."""
    listed = itertools.islice(root.rglob("*"), _NUM_LISTED)
    return next((path for path in listed if path.suffix.lower() in _ANY_CHANNELS and path.is_file()), None)


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
