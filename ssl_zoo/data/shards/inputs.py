"""The input of shards: samples of any source, converted to the members of a shard."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping

import numpy
import simplejpeg
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from ssl_zoo.data.files import open_files
from ssl_zoo.data.listing import Reason
from ssl_zoo.data.resample import resize_crop
from ssl_zoo.data.sources.base import Source, Split
from ssl_zoo.data.sources.imagefolder import (
    FilesSource,
    ImageFolderConfig,
    Labelled,
    leave_out,
    loose,
    without_wrapper,
)
from ssl_zoo.data.tiff import encode_tiff, is_tiff

_MAX_KEY_BYTES = 800  # of the 1,024 bytes of a name, with room for a hash, a number and the extension
_JPEG_QUALITY = 95  # of resized photographs, without subsampling of colours


class AllImages(FilesSource):
    """Every image of a folder or archive in one split, with classes as ``ImageFolder`` finds them.

    Args:
        channels: of images that are decoded.
        check: whether images of other channels are an error; files that are copied may have any.
    """

    def __init__(self, path: str, channels: int = 3, check: bool = True) -> None:
        config = ImageFolderConfig(path=path)
        files = open_files(path, max_unpacked_bytes=config.max_unpacked_bytes)
        names = without_wrapper(files.names)
        is_loose, labelled = loose(names, [Split.train] * len(names)), None
        if is_loose is not None:
            files, kept = leave_out(files, Reason.no_class, is_loose)
            classes = [names[row].partition("/")[0] for row in kept]
            labelled = Labelled.of(classes, classes)
        super().__init__(config, Split.train, files, channels, check, labelled)


def unique_keys(names: Iterable[str]) -> list[str]:
    """Make a key for every sample: its name without the extension, as in webdataset's convention.

    A dot in the file name would end the key, webdataset skips folders like ``__x__``, and a name from an archive may be
    absolute or contain ``..``.
    """
    keys: dict[str, None] = {}
    for number, name in enumerate(names):
        folder, _, base = name.rpartition("/")
        parts = [part.strip("_") or "_" for part in folder.split("/") if part not in ("", ".", "..")]
        stem = "/".join([*parts, (base.rpartition(".")[0] or base).replace(".", "_").lstrip("_") or "_"])
        key = stem = _short(stem)
        while key in keys:  # cat.jpg beside cat.png
            key = f"{key}-{number}"
        keys[key] = None
    return list(keys)


def _short(key: str) -> str:
    """Shorten a key whose member would have a longer name than shards may contain; a hash keeps it unique."""
    encoded = key.encode()
    if len(encoded) <= _MAX_KEY_BYTES:
        return key
    return encoded[:_MAX_KEY_BYTES].decode(errors="ignore") + f"-{hashlib.sha256(encoded).hexdigest()[:16]}"


def members_of(
    source: Source, sample: int, label_sets: Mapping[str, Int[Tensor, "n"]], resize_short: int | None
) -> dict[str, bytes]:
    """Return a sample's members by extension: the image, ``cls`` with the default label, ``json`` with several labels.

    Raises:
        CorruptImage: the image can't be decoded.
    """
    members = dict([_image(source, sample, resize_short)])
    labels = {name: int(values[sample]) for name, values in label_sets.items()}
    if labels:
        members["cls"] = str(next(iter(labels.values()))).encode()
    if len(labels) > 1:
        members["json"] = json.dumps(labels).encode()
    return members


def _image(source: Source, sample: int, resize_short: int | None) -> tuple[str, bytes]:
    """Keep the stored file if possible; otherwise encode the pixels: as JPEG if the original was lossy, else as PNG.

    Pixels of other than 1 or 3 channels become TIFF. Pixels are those that training would see: transparent images are
    on their background before they are resized, deep ones have 8 bits.
    """
    data = source.encoded(sample)
    kind = None if data is None else _kind(data)
    if kind is not None and resize_short is None:
        return kind, data
    image = source.image(sample)
    short = min(image.shape[1:])
    if resize_short is None or short <= resize_short:
        return (kind, data) if kind is not None else _lossless(image)
    size = tuple(max(1, round(side * resize_short / short)) for side in image.shape[1:])
    image = resize_crop(image, (0, 0, *image.shape[1:]), size, "bicubic")
    is_lossy = kind in ("jpg", "webp") and len(image) in (1, 3)
    return ("jpg", _jpeg(image)) if is_lossy else _lossless(image)


def _kind(data: bytes) -> str | None:
    """Return the extension of an image by its first bytes; None for formats that shards may not contain."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if is_tiff(data):
        return "tif"
    return "bmp" if data[:2] == b"BM" else None


def _jpeg(image: UInt8[Tensor, "C H W"]) -> bytes:
    colours = {"colorspace": "GRAY"} if len(image) == 1 else {"colorspace": "RGB", "colorsubsampling": "444"}
    if len(image) == 1:
        colours["colorsubsampling"] = "Gray"
    return simplejpeg.encode_jpeg(_interleaved(image), _JPEG_QUALITY, **colours)


def _lossless(image: UInt8[Tensor, "C H W"]) -> tuple[str, bytes]:
    if len(image) not in (1, 3):
        return "tif", encode_tiff(_interleaved(image))
    buffer, pixels = io.BytesIO(), _interleaved(image)
    Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels).save(buffer, "PNG")
    return "png", buffer.getvalue()


def _interleaved(image: UInt8[Tensor, "C H W"]) -> numpy.ndarray:
    return image.permute(1, 2, 0).contiguous().numpy()
