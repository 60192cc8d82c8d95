"""TIFF files that Pillow can't read or would reduce: more than 8 bits, any number of bands, planar or interleaved.

tifffile parses the file; nothing in it can name other files or code. Compressed data are inflated only up to the size
that the header declares.
"""

import io
import logging
import zlib
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy
from jaxtyping import UInt8

from ssl_zoo.data.corrupt import CorruptImage, DecodeLimits, Refusal
from ssl_zoo.data.raster import Raster, check_channels, oriented

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEFLATE = (8, 32946)
# Compressions by their number that tifffile reads on its own, and those that need its companion package.
_BUILT_IN = {1: "none", 8: "deflate", 32946: "deflate", 32773: "PackBits"}
_IMAGECODECS = {5: "LZW"}
INSTALL_CODECS = "pip install 'ssl-zoo[tiff]'"
_GREY, _RGB, _CMYK = (0, 1), 2, 5  # photometric interpretations
_PREMULTIPLIED, _UNASSOCIATED = 1, 2  # kinds of extra samples that are alpha
_INFLATION = 1032  # deflate's largest ratio
_UNCHECKED_BYTES = 64 << 20  # what a file that can't inflate to more than that may take


def is_tiff(data: bytes) -> bool:
    return data[:4] in _MAGIC


def read_tiff(data: bytes, name: str, limits: DecodeLimits, channels: int) -> Raster | None:
    """Read the first image of a TIFF file, or its pages as channels; None for what Pillow reads without a loss.

    Args:
        channels: wanted by the user; pages of equal size are channels where they are exactly as many, more than three.

    Raises:
        CorruptImage: damaged, beyond a limit, of other channels, or compressed in a way that can't be read here.
    """
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
            page = file.pages[0]
            stack = _shape_of_stack(file, channels)
            if stack is not None:
                return _read_stack(file, stack, data, name, limits, channels)
            return None if _is_for_pillow(page, channels) else _read(page, data, name, limits, channels)
    except CorruptImage:
        raise
    except Exception as error:  # tifffile raises TiffFileError, struct.error, ValueError, zlib.error, ...
        raise Refusal.damaged.of(name, error=f"{type(error).__name__}: {error}") from None


def encode_tiff(pixels: UInt8[numpy.ndarray, "H W C"]) -> bytes:
    """Encode an image of any number of channels, deflated; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    _tifffile().imwrite(
        buffer, pixels, photometric="minisblack", planarconfig="contig", compression="zlib", metadata=None, software=""
    )
    return buffer.getvalue()


def _tifffile() -> ModuleType:
    """Import tifffile where it is needed; its log repeats in technical terms what is refused here anyway."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


def _is_for_pillow(page: Any, channels: int) -> bool:
    """Return whether Pillow reads all that is wanted, or at least reads a compression that is unknown here."""
    samples, bits, photometric = int(page.samplesperpixel), int(page.bitspersample), int(page.photometric or 0)
    is_photograph, is_foreign = channels in (1, 3), not _is_readable(page)
    if samples == 1:
        return (bits <= 8 and page.dtype is not None and page.dtype.kind in "ub") or is_foreign
    if photometric in _GREY:
        return samples == 2 and bits == 8 and _has_alpha(page) and is_photograph
    if bits == 8 and samples <= 4:
        return is_photograph or is_foreign or photometric != _RGB
    return bits == 16 and photometric == _RGB and is_foreign and is_photograph


def _is_readable(page: Any) -> bool:
    compression = int(page.compression)
    return compression in _BUILT_IN or (compression in _IMAGECODECS and find_spec("imagecodecs") is not None)


def _has_alpha(page: Any) -> bool:
    """Return whether the last sample is opacity; of several extra ones, which some programs all mark so, none is."""
    return len(page.extrasamples) == 1 and int(page.extrasamples[-1]) in (_PREMULTIPLIED, _UNASSOCIATED)


def _read(page: Any, data: bytes, name: str, limits: DecodeLimits, channels: int) -> Raster:
    photometric, samples = int(page.photometric or 0), int(page.samplesperpixel)
    has_alpha = _has_alpha(page)
    is_cmyk = photometric == _CMYK and samples >= 4 and channels in (1, 3)
    is_colour = is_cmyk or (photometric == _RGB and samples >= 3)
    limits.check_size(page.imagewidth, page.imagelength, name)
    check_channels(samples, is_colour, has_alpha, channels, name)
    values = _pixels(page, data, name)
    if samples > 1 and int(page.planarconfig) == 2:
        values = numpy.moveaxis(values, 0, 2)
    values = values.reshape(page.imagelength, page.imagewidth, samples)
    if photometric == 0:  # white is zero
        values = (_largest(page) or values.max()) - values
    if is_cmyk:
        values = _from_cmyk(values, _largest(page), has_alpha)
    if is_colour and has_alpha and int(page.extrasamples[-1]) == _PREMULTIPLIED and channels in (1, 3):
        values = _unmultiplied(values)
    return Raster(oriented(values, _orientation(page)), is_colour, has_alpha, _largest(page))


def _read_stack(
    file: Any, shape: tuple[int, int, int], data: bytes, name: str, limits: DecodeLimits, channels: int
) -> Raster:
    height, width, axis = shape
    limits.check_size(width, height, name)
    values = numpy.stack([_pixels(page, data, name) for page in file.pages])
    values = numpy.moveaxis(values, 0, 2) if axis == 0 else values.reshape(height, width, channels)
    return Raster(oriented(values, _orientation(file.pages[0])), largest=_largest(file.pages[0]))


def _shape_of_stack(file: Any, channels: int) -> tuple[int, int, int] | None:
    """Return height, width and channel axis of a file whose pages are its channels; None where they are not.

    tifffile writes an array of shape (height, width, 5) as ``height`` pages unless told otherwise, and notes the shape.
    """
    if channels < 2 or file.pages[0].samplesperpixel > 1:
        return None
    first, count = file.pages[0], len(file.pages)
    if count < 2 or any(part.shape != first.shape or part.dtype != first.dtype for part in file.pages):
        return None
    if count == channels and (channels > 3 or channels == 2):
        return first.imagelength, first.imagewidth, 0
    if file.is_shaped and first.imagewidth == channels:
        return count, first.imagelength, 2
    return None


def _pixels(page: Any, data: bytes, name: str) -> numpy.ndarray:
    compression = int(page.compression)
    if not _is_readable(page):
        known = _IMAGECODECS.get(compression)
        remedy = INSTALL_CODECS if known else "save the file uncompressed or with deflate"
        shown = known or getattr(page.compression, "name", compression)
        raise Refusal.no_codec.of(name, compression=shown, remedy=remedy)
    _check_complete(page, data, name)
    if compression in _DEFLATE and len(data) * _INFLATION > _UNCHECKED_BYTES:
        _check_inflation(page, data, name)
    values = page.asarray(maxworkers=1)
    return values * numpy.uint8(255) if values.dtype == bool else values


def _check_complete(page: Any, data: bytes, name: str) -> None:
    """Refuse files that end before their pixels; tifffile would fill missing parts with zeros."""
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    is_cut = any(size == 0 or offset + size > len(data) for offset, size in parts)
    if int(page.compression) == 1:
        is_cut = is_cut or sum(size for _, size in parts) * 8 < page.size * page.bitspersample
    if is_cut or len(parts) < int(numpy.prod(page.chunked)):
        raise Refusal.damaged.of(name, error="the file ends before its pixels")


def _check_inflation(page: Any, data: bytes, name: str) -> None:
    """Refuse compressed parts that inflate to more than a part can hold, before anything is inflated whole."""
    part_bytes = int(numpy.prod(page.chunks)) * page.dtype.itemsize
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        inflated = zlib.decompressobj().decompress(data[offset : offset + size], part_bytes + 1)
        if len(inflated) > part_bytes:
            raise Refusal.damaged.of(name, error="a part of the file inflates to more than its size in the header")


def _orientation(page: Any) -> int:
    tag = page.tags.get(274)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 1


def _largest(page: Any) -> int | None:
    if page.dtype.kind == "b":
        return 255
    return 2 ** int(page.bitspersample) - 1 if page.dtype.kind == "u" else None


def _from_cmyk(values: numpy.ndarray, largest: int | None, has_alpha: bool) -> numpy.ndarray:
    """Convert ink to RGB as Pillow does, without a colour profile; an alpha stays, other samples beside ink go."""
    inks = values[..., :4] / float(largest or 1)
    colours = numpy.rint((1 - inks[..., :3]) * (1 - inks[..., 3:]) * (largest or 1)).astype(values.dtype)
    return numpy.concatenate([colours, values[..., 4:5]], axis=2) if has_alpha else colours


def _unmultiplied(values: numpy.ndarray) -> numpy.ndarray:
    """Divide premultiplied colours by their alpha."""
    alpha = values[..., -1:].astype(numpy.float64)
    largest = numpy.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    colours = numpy.where(alpha > 0, values[..., :-1] * float(largest) / numpy.maximum(alpha, 1e-12), 0).clip(
        0, largest
    )
    if values.dtype.kind in "iu":
        colours = numpy.rint(colours)
    return numpy.concatenate([colours.astype(values.dtype), values[..., -1:]], axis=2)
