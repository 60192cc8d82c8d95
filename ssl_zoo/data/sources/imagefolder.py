"""Folders and tar archives of images."""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data.decode import EXTENSIONS, CorruptImage, DecodeLimits, PixelFormat, WrongChannels, decode
from ssl_zoo.data.files import MAX_UNPACKED_BYTES, Files, open_files, read_file
from ssl_zoo.data.listing import Reason
from ssl_zoo.data.names import is_hidden, normal, printable
from ssl_zoo.data.raster import WHITE
from ssl_zoo.data.sources.base import SOURCES, MissingSplit, Source, SourceConfig, Split, Splits
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


class Labels(Enum):
    """Where the labels of images in a folder come from."""

    folders = "folders"
    none = "none"


@dataclass
class ImageFolderConfig(FilesConfig):
    path: str = setting("", "folder, .tar or .tar.gz with images, in class folders or not")
    labels: Labels = setting(Labels.folders, "folders: the topmost folders are classes; none: no labels, every image")
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
            f"{refused[0]}. None of the {len(refused)} images that were checked can be; set backbone.in_channels, or "
            "--in-channels of a tool, to what the files hold (1 or 3 for grey and RGB images)"
        )


class FilesSource(Source):
    """Images in files, decoded on access."""

    channel_counts = (1, 3)

    def __init__(
        self,
        config: FilesConfig,
        split: Split,
        files: Files,
        channels: int = 3,
        check: bool = True,
        labelled: "Labelled | None" = None,
    ) -> None:
        super().__init__(config, split, channels)
        self._files, self._limits, self._pixels = files, config.limits, config.pixels(channels)
        self.listing = files.listing
        if labelled is not None:
            self.classes, self.num_classes, self._labels = labelled.classes, len(labelled.classes), labelled.labels
        if check:
            check_first_images(self, all(name.lower().endswith(_ANY_CHANNELS) for name in files.names))

    def __len__(self) -> int:
        return len(self._files.names)

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        return decode(self.encoded(index), self.sample_name(index), self._limits, self._pixels, self._notices)

    def encoded(self, index: int) -> bytes:
        return self._files.read(index, self._limits.max_bytes)

    def sample_name(self, index: int) -> str:
        return printable(self._files.names[index])

    def names(self) -> Sequence[str]:
        return [name.removeprefix("./") for name in self._files.names]


@dataclass(frozen=True)
class Labelled:
    """The classes of a data set and the labels of some of its samples.

    Attributes:
        classes: names over both splits, which both number alike.
    """

    classes: Sequence[str]
    labels: Int[Tensor, "n"]

    @classmethod
    def of(cls, used: Iterable[str], own: Sequence[str]) -> "Labelled":
        """Number the classes in sorted order.

        Names in composed and in decomposed Unicode (NFC, NFD) are equal: systems write the same folder name either way.

        Args:
            used: classes of all samples of both splits.
            own: classes of the labelled samples.
        """
        written: dict[str, str] = {}
        for name in sorted(set(used) | set(own)):
            written.setdefault(normal(name), name)
        number = {normal: label for label, normal in enumerate(written)}
        label_of = {name: number[normal(name)] for name in set(own)}
        labels = torch.tensor([label_of[name] for name in own], dtype=torch.int64)
        return cls([printable(name) for name in written.values()], labels)


@dataclass(frozen=True)
class _Layout:
    """The files of both splits.

    Attributes:
        files: without those that belong to neither split.
        names: of the files, without folders that hold everything.
        owners: split of each file.
        classes: class of each file; None without labels.
    """

    files: Files
    names: Sequence[str]
    owners: Sequence[Split]
    classes: Sequence[str] | None

    @classmethod
    def of(cls, config: ImageFolderConfig) -> "_Layout":
        if not config.path:
            raise ValueError("data=imagefolder needs data.path=FOLDER or data.path=ARCHIVE.tar")
        files = open_files(config.path, max_unpacked_bytes=config.max_unpacked_bytes)
        names = without_wrapper(files.names)
        owners, inner = _split(names, config.test_fraction)
        files, kept = leave_out(files, Reason.no_split, [owner is None for owner in owners])
        names, owners, inner = ([column[row] for row in kept] for column in (names, owners, inner))
        is_loose = None if config.labels is Labels.none else loose(inner, owners)
        if is_loose is None:
            return cls(files, names, owners, None)
        files, kept = leave_out(files, Reason.no_class, is_loose)
        names, owners, inner = ([column[row] for row in kept] for column in (names, owners, inner))
        return cls(files, names, owners, [name.partition("/")[0] for name in inner])


@SOURCES.register("imagefolder", ImageFolderConfig)
class ImageFolder(FilesSource):
    """Any folder or tar archive of images; class folders and train/test folders are used where they exist.

    Folders ``train`` and ``test`` (or ``val``) at the top are the splits. Otherwise a hash of its name decides whether
    an image is held out for the test split. If images lie in folders, the topmost folder is their class; classes are
    numbered in sorted order over both splits. Loose files beside class folders are left out, unless they are the
    majority: then there are no classes.
    """

    channel_counts = None

    def __init__(
        self, config: ImageFolderConfig, split: Split, channels: int = 3, layout: _Layout | None = None
    ) -> None:
        layout = layout or _Layout.of(config)
        chosen = [position for position, owner in enumerate(layout.owners) if owner is split]
        if not chosen:
            raise MissingSplit(
                f"data.path={config.path} leaves no image for the {split.value} split: {len(layout.owners)} images, "
                f"data.test_fraction={config.test_fraction}; raise it, or make folders train/ and test/"
            )
        labelled = None
        if layout.classes is not None:
            labelled = Labelled.of(layout.classes, [layout.classes[position] for position in chosen])
        self._names = [layout.names[position] for position in chosen]
        super().__init__(config, split, layout.files.keep(chosen), channels, labelled=labelled)

    @classmethod
    def build_splits(cls, config: ImageFolderConfig, channels: int = 3) -> Splits:
        return cls._both(config, channels, layout=_Layout.of(config))

    def names(self) -> Sequence[str]:
        return self._names

    @classmethod
    def check_channels(cls, config: ImageFolderConfig, channels: int) -> None:
        """Look at the files as far as there are any: at one of a folder of TIFFs for grey and RGB, else at some."""
        root = Path(config.path).expanduser()
        if not config.path or not root.exists():
            return
        if channels not in (1, 3):
            cls(config, Split.train, channels=channels)
        elif root.is_dir() and (file := _first_tiff(root)) is not None:
            try:
                data = read_file(str(file), printable(file.name), config.max_image_bytes)
                decode(data, printable(file.name), config.limits, config.pixels(channels))
            except WrongChannels as error:
                raise ValueError(f"{error}. Set backbone.in_channels to what the files hold") from error
            except (CorruptImage, OSError) as error:  # the loader meets and reports it
                _LOG.debug("%s", error)


def _first_tiff(root: Path) -> Path | None:
    """Return an image if all images among the first files of a folder are TIFFs; the rest is unread: it may be large.

    Other images, too, can be grey or RGB, and then a single TIFF that is neither is a corrupt sample.
    """
    listed = itertools.islice(root.rglob("*"), _NUM_LISTED)
    images = [path for path in listed if path.suffix.lower() in EXTENSIONS]
    images = [path for path in images if not any(map(is_hidden, path.relative_to(root).parts)) and path.is_file()]
    return images[0] if images and all(path.suffix.lower() in _ANY_CHANNELS for path in images) else None


def leave_out(files: Files, reason: Reason, is_out: Sequence[bool]) -> tuple[Files, Sequence[int]]:
    """Return the remaining files, and their positions among the given ones."""
    kept = [position for position, out in enumerate(is_out) if not out]
    if len(kept) == len(is_out):
        return files, kept
    listing = files.listing.without(reason, [name for name, out in zip(files.names, is_out, strict=True) if out])
    return files.keep(kept, listing), kept


def loose(names: Sequence[str], owners: Sequence[Split]) -> Sequence[bool] | None:
    """Decide which images lie beside the class folders and have no class; None if there are no classes.

    There are classes if in every split most images lie in a folder. With a single folder loose images are no strays:
    leaving them out would lose images for a label that says nothing.
    """
    is_loose = ["/" not in name for name in names]
    if not any(is_loose):
        return is_loose
    for split in set(owners):
        loose_here = [out for out, owner in zip(is_loose, owners, strict=True) if owner is split]
        if 2 * sum(loose_here) >= len(loose_here):
            return None
    folders = {name.partition("/")[0] for name, out in zip(names, is_loose, strict=True) if not out}
    return is_loose if len(folders) > 1 else None


def without_wrapper(names: Sequence[str]) -> list[str]:
    """Remove top folders that contain only one folder, which archives often have; a few loose files don't matter."""
    names = [name.removeprefix("./") for name in names]
    while True:
        tops = {name.partition("/")[0] for name in names if "/" in name}
        if len(tops) != 1 or 2 * sum(name.count("/") >= 2 for name in names) <= len(names):
            return names
        names = [name.partition("/")[2] or name for name in names]


def _split(names: list[str], test_fraction: float) -> tuple[list[Split | None], list[str]]:
    """Return the split of each file, None for neither, and its name within the split."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    test = next((folder for folder in _TEST_FOLDERS if folder in tops), None)
    if "train" not in tops or test is None:
        return split_by_hash(names, test_fraction), names
    owner = {"train": Split.train, test: Split.test}
    split = [owner.get(name.partition("/")[0]) if "/" in name else None for name in names]
    return split, [name.partition("/")[2] for name in names]


def split_by_hash(names: Sequence[str], test_fraction: float) -> list[Split]:
    """Assign each sample to a split; all of them to training if it would get none, as with one or two images."""
    owners = [held_out(name, test_fraction) for name in names]
    return owners if Split.train in owners else [Split.train] * len(owners)


def held_out(name: str, test_fraction: float) -> Split:
    """Assign a sample of data without splits to one, by a hash of its name."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return Split.test if int.from_bytes(digest, "little") / 2**64 < test_fraction else Split.train
