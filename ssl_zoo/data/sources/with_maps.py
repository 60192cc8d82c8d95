"""Image files that have a map of the same size in another file each: ADE20K and NYU Depth v2."""

import io
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from ssl_zoo.data.corrupt import CorruptImage, DecodeLimits, Refusal
from ssl_zoo.data.files import Files, open_files
from ssl_zoo.data.maps import IGNORED, MapSet
from ssl_zoo.data.names import printable
from ssl_zoo.data.sources.base import SOURCES, MissingSplit, Split
from ssl_zoo.data.sources.imagefolder import FilesConfig, FilesSource
from ssl_zoo.settings import setting

_ADE_CLASSES = 150


class MappedFiles(FilesSource):
    """Images in files, each with a PNG of numbers per pixel.

    Args:
        maps: files, among them the map of each image.
        names_of: returns where the map of an image may be, given its name.
        name: of the kind of maps.
    """

    def __init__(
        self,
        config: FilesConfig,
        split: Split,
        images: Files,
        channels: int,
        *,
        maps: Files,
        names_of: Callable[[str], Sequence[str]],
        name: str,
        map_set: MapSet,
    ) -> None:
        self._maps, self._positions = maps, _positions(images, maps, names_of)
        super().__init__(config, split, images, channels)
        self._name, self._map_set = name, map_set

    @property
    def map_sets(self) -> Mapping[str, MapSet]:
        return {self._name: self._map_set}

    def image_and_map(self, index: int, name: str) -> tuple[UInt8[Tensor, "C H W"], Shaped[Tensor, "H W"]]:
        position = self._positions[index]
        image, file = self.image(index), printable(self._maps.names[position])
        values = self.converted(_numbers(self._maps.read(position, self._limits.max_bytes), file, self._limits))
        if values.shape != image.shape[1:]:
            found, expected = (f"{width}x{height}" for height, width in (values.shape, image.shape[1:]))
            raise Refusal.map_size.of(file, found=found, expected=expected)
        return image, values

    @abstractmethod
    def converted(self, numbers: numpy.ndarray) -> Shaped[Tensor, "H W"]:
        """Turn the numbers of a PNG into a map."""


def _numbers(data: bytes, name: str, limits: DecodeLimits) -> numpy.ndarray:
    """Read the numbers of a PNG of one channel; those of a palette are indices, not colours."""
    limits.check_bytes(len(data), name)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            limits.check_size(*image.size, name)
            found = numpy.array(image)
    except CorruptImage:
        raise
    except Exception as error:  # as of images: Pillow's decoders raise many kinds
        raise Refusal.damaged.of(name, error=f"{type(error).__name__}: {error}") from None
    if found.ndim != 2:
        raise Refusal.map_numbers.of(name, found=found.shape[2])
    return found


def _positions(images: Files, maps: Files, names_of: Callable[[str], Sequence[str]]) -> Sequence[int]:
    """Return the position of each image's map.

    Raises:
        ValueError: an image has no map.
    """
    position_of = {name: position for position, name in enumerate(maps.names)}
    found = [next((n for n in names_of(name) if n in position_of), None) for name in images.names]
    lost = [name for name, of_image in zip(images.names, found, strict=True) if of_image is None]
    if lost:
        expected = printable(" or ".join(names_of(lost[0])))
        raise ValueError(f"{len(lost)} images have no map, such as {printable(lost[0])}: {maps.path} has no {expected}")
    return [position_of[name] for name in found]


@dataclass
class Ade20kConfig(FilesConfig):
    root: str = setting("", "folder ADEChallengeData2016 with {images,annotations}/{training,validation}")


@SOURCES.register("ade20k", Ade20kConfig)
class Ade20k(MappedFiles):
    """ADE20K of the scene parsing challenge 2016 (arXiv 1608.05442): maps segmentation, of 150 classes.

    Number 0 of the annotations, everything else, is not a class: its pixels are ignored.
    """

    def __init__(self, config: Ade20kConfig, split: Split, channels: int = 3) -> None:
        if not config.root:
            raise ValueError("data=ade20k needs data.root=FOLDER, the unpacked ADEChallengeData2016")
        root, part = Path(config.root).expanduser(), "training" if split is Split.train else "validation"
        for kind in ("images", "annotations"):
            if not (root / kind / part).is_dir():
                error = ValueError if split is Split.train else MissingSplit
                raise error(f"data.root={root} has no {kind}/{part}; expected the unpacked ADEChallengeData2016")
        images, maps = (
            open_files(str(root / kind / part), max_unpacked_bytes=config.max_unpacked_bytes)
            for kind in ("images", "annotations")
        )
        kind = {"name": "segmentation", "map_set": MapSet(num_classes=_ADE_CLASSES)}
        super().__init__(config, split, images, channels, maps=maps, names_of=_annotation_names, **kind)

    def converted(self, numbers: numpy.ndarray) -> UInt8[Tensor, "H W"]:
        """Number the classes 1..150 from 0; 0 and numbers of no class are ignored."""
        is_class = (numbers >= 1) & (numbers <= _ADE_CLASSES)
        return torch.from_numpy(numpy.where(is_class, numbers.astype(numpy.int64) - 1, IGNORED).astype(numpy.uint8))


def _annotation_names(name: str) -> Sequence[str]:
    return [f"{name.rpartition('.')[0]}.png"]


@dataclass
class NyuDepthConfig(FilesConfig):
    root: str = setting("", "folder with train and test: rgb/ and depth/, or rgb_* beside sync_depth_*")
    depth_scale: float = setting(1000.0, "numbers of the 16-bit PNGs per metre; 0 is unknown", above=0)
    max_depth: float = setting(10.0, "metres; larger depths are unknown", above=0)


@SOURCES.register("nyu_depth", NyuDepthConfig)
class NyuDepth(MappedFiles):
    """NYU Depth v2, or other images with 16-bit PNGs of depths: maps depth.

    Below ``train`` and ``test`` the depth of ``.../rgb/NAME.jpg`` is ``.../depth/NAME.png``, or that of
    ``.../rgb_NAME.jpg`` is ``.../sync_depth_NAME.png`` (the layout of BTS, arXiv 1907.10326).
    """

    def __init__(self, config: NyuDepthConfig, split: Split, channels: int = 3) -> None:
        if not config.root:
            raise ValueError("data=nyu_depth needs data.root=FOLDER with the folders train and test")
        folder = Path(config.root).expanduser() / split.value
        if not folder.is_dir():
            error = ValueError if split is Split.train else MissingSplit
            raise error(f"data.root={config.root} has no folder {split.value}; expected train and test")
        files = open_files(str(folder), max_unpacked_bytes=config.max_unpacked_bytes)
        positions = [position for position, name in enumerate(files.names) if _depth_names(name)]
        if not positions:
            raise ValueError(f"{folder} has no image in a folder rgb and none whose name starts with rgb_")
        images = files.keep(positions)
        kind = {"name": "depth", "map_set": MapSet(max_depth=config.max_depth)}
        super().__init__(config, split, images, channels, maps=files, names_of=_depth_names, **kind)

    def converted(self, numbers: numpy.ndarray) -> Float[Tensor, "H W"]:
        depth = torch.from_numpy(numbers.astype(numpy.float32)) / self.config.depth_scale
        return depth.masked_fill_(depth > self.config.max_depth, 0)


def _depth_names(name: str) -> Sequence[str]:
    """Return where the depth of an image may be; empty for a file that is no image of a pair."""
    *folders, file = name.rpartition(".")[0].split("/")
    if file.startswith("rgb_"):
        return ["/".join([*folders, f"{depth}_{file.removeprefix('rgb_')}.png"]) for depth in ("sync_depth", "depth")]
    if "rgb" in folders:
        place = len(folders) - 1 - folders[::-1].index("rgb")
        return ["/".join([*folders[:place], "depth", *folders[place + 1 :], f"{file}.png"])]
    return []
