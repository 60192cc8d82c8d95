"""Image decoding, with every limit checked on the header before pixels are decoded.

JPEGs are decoded by libjpeg-turbo (simplejpeg), which took 26 us for a CIFAR-sized and 2.1 ms for an ImageNet-sized
file; torchvision took 127 us and 2.3 ms, Pillow 276 us and 3.8 ms (one core, AVX2). Pillow decodes most other formats;
it would reduce 16-bit colour to 8 bits and can't read TIFF of many bands, which torchvision's libpng and tifffile do.
An image that can't be decoded completely is a ``CorruptImage``: nothing is padded with grey or cut silently.
"""

import io
import re
import warnings

import numpy
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageCms, ImageOps
from torch import Tensor

from ssl_zoo.data.corrupt import CorruptImage, DecodeLimits, Refusal, WrongChannels
from ssl_zoo.data.raster import PixelFormat, Raster, oriented, to_format
from ssl_zoo.data.tiff import INSTALL_CODECS, is_tiff, read_tiff

__all__ = ["EXTENSIONS", "FORMATS", "CorruptImage", "DecodeLimits", "PixelFormat", "WrongChannels", "decode"]

# Pillow reads more formats, among them one that starts other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff")
EXTENSIONS += (".ppm", ".pgm", ".pbm", ".pnm", ".gif")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNM_HEADER = re.compile(rb"P([2356])" + rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" * 3 + rb"(?:#[^\r\n]*[\r\n])?\s")
_LARGEST = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": None, "F": None}  # of Pillow's modes


def decode(
    data: bytes,
    name: str,
    limits: DecodeLimits,
    pixels: PixelFormat | None = None,
    notices: list[str] | None = None,
) -> UInt8[Tensor, "C H W"]:
    """Decode an image to 8 bits and a number of channels, rotated as its EXIF orientation says.

    Every mode of Pillow is read. Transparent images are composited on a background, and values of more than 8 bits are
    scaled: ``PixelFormat`` and ``raster`` have the rules. The tensor is a view of interleaved memory (channels last),
    the fastest layout to resize.

    Args:
        pixels: what the image becomes; by default RGB.
        notices: receives a line where the range of a deep image had to be guessed.

    Raises:
        CorruptImage: the file is empty, truncated, not an image, or beyond a limit.
        WrongChannels: a CorruptImage whose channels can't become those wanted.
    """
    wanted = pixels or PixelFormat()
    limits.check_bytes(len(data), name)
    found = None
    if data[:3] == b"\xff\xd8\xff" and wanted.channels in (1, 3):
        found = _decode_jpeg(data, name, limits, wanted.channels)
    if found is None:
        found = to_format(read_raster(data, name, limits, wanted), wanted, name, notices)
    return torch.from_numpy(numpy.require(found, requirements=("C", "W"))).permute(2, 0, 1)


def read_raster(data: bytes, name: str, limits: DecodeLimits, wanted: PixelFormat) -> Raster:
    """Read the values that an image file stores, upright.

    Raises:
        CorruptImage: as ``decode``.
    """
    limits.check_bytes(len(data), name)
    if is_tiff(data) and (raster := read_tiff(data, name, limits, wanted.channels)) is not None:
        return raster
    if (pnm := _PNM_HEADER.match(data)) and int(pnm[4]) > 255:
        return _read_pnm(data, pnm, name, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limits below are stricter than Pillow's warning about size
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                limits.check_size(*image.size, name)
                if data[:8] == _PNG and data[24] == 16 and image.mode not in _LARGEST:
                    return _read_deep_png(data, image, name)
                return _read_pillow(image, name, wanted)
    except CorruptImage:
        raise
    except Image.DecompressionBombError:
        raise Refusal.far_too_many_pixels.of(name, limit=limits.max_pixels) from None
    except Image.UnidentifiedImageError:
        raise Refusal.unknown_format.of(name, formats=", ".join(FORMATS)) from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError, zlib.error, ...
        raise Refusal.damaged.of(name, error=f"{type(error).__name__}: {error}") from None


def raster_of(image: Image.Image) -> Raster:
    """Return the values of a Pillow image of any mode; transparency of every kind becomes an alpha channel."""
    mode, transparent = image.mode, image.info.get("transparency")
    if mode in _LARGEST:
        values = numpy.asarray(image)[:, :, None]
        if isinstance(transparent, int):
            alpha = numpy.where(values == transparent, 0, 65535).astype(values.dtype)
            return Raster(numpy.concatenate([values, alpha], axis=2), has_alpha=True, largest=_LARGEST[mode])
        return Raster(values, largest=_LARGEST[mode])
    if mode in ("RGBA", "RGBa", "PA") or (mode in ("P", "RGB") and transparent is not None):
        return Raster(numpy.asarray(_straight(image, "RGBA")), is_colour=True, has_alpha=True)
    if mode in ("LA", "La") or (mode in ("L", "1") and transparent is not None):
        return Raster(numpy.asarray(_straight(image, "LA")), has_alpha=True)
    if mode in ("L", "1"):
        return Raster(numpy.asarray(image.convert("L"))[:, :, None])
    if mode == "RGBX":
        return Raster(numpy.asarray(image), is_colour=True)
    return Raster(numpy.asarray(_from_lab(image) if mode == "LAB" else image.convert("RGB")), is_colour=True)


def _straight(image: Image.Image, mode: str) -> Image.Image:
    """Convert to LA or RGBA with colours that are not multiplied by alpha."""
    return image if image.mode == mode else image.convert(mode)


def _from_lab(image: Image.Image) -> Image.Image:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")  # Image.convert has no way out of LAB


def _read_pillow(image: Image.Image, name: str, wanted: PixelFormat) -> Raster:
    is_reduced = image.format == "TIFF" and image.mode not in _LARGEST and max(image.tag_v2.get(258, (8,))) > 8
    ImageOps.exif_transpose(image, in_place=True)
    raster = raster_of(image)
    if image.format == "BMP" and raster.has_alpha and not raster.values[..., -1].any():
        raster = Raster(
            raster.values[..., :-1], is_colour=True
        )  # Windows ignores the fourth byte, and so do its programs
    # Pillow keeps the upper 8 of 16 bits, which is enough where they hold the whole range.
    if is_reduced and (wanted.intensity_range is not None or raster.values[..., :3].max() < 128):
        raise Refusal.no_codec.of(name, compression=image.info.get("compression"), remedy=INSTALL_CODECS)
    return raster


def _read_deep_png(data: bytes, image: Image.Image, name: str) -> Raster:
    """Read 16-bit colour and 16-bit grey with alpha, of which Pillow keeps 8 bits."""
    from torchvision.io import ImageReadMode, decode_png

    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    values = decode_png(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    has_alpha = values.shape[2] in (2, 4)
    transparent = image.info.get("transparency")
    if not has_alpha and isinstance(transparent, tuple):
        alpha = numpy.where((values == transparent).all(axis=2, keepdims=True), 0, 65535).astype(values.dtype)
        values, has_alpha = numpy.concatenate([values, alpha], axis=2), True
    return Raster(oriented(values, orientation), values.shape[2] > 2, has_alpha, 65535)


def _read_pnm(data: bytes, header: re.Match, name: str, limits: DecodeLimits) -> Raster:
    """Read PGM and PPM of more than 8 bits, which Pillow rescales; the header has the largest value."""
    kind, width, height, largest = map(int, header.groups())
    limits.check_size(width, height, name)
    channels = 3 if kind in (3, 6) else 1
    count = width * height * channels
    if largest > 65535:
        raise Refusal.damaged.of(name, error=f"a largest value of {largest}")
    if kind in (5, 6):
        values = numpy.frombuffer(data[header.end() :][: 2 * count // 2 * 2], dtype=">u2")
    else:
        words = re.sub(rb"#[^\r\n]*", b"", data[header.end() - 1 :]).split()
        if not all(word.isdigit() and len(word) < 6 for word in words[:count]):
            raise Refusal.damaged.of(name, error="a pixel is no number")
        values = numpy.array(words[:count], dtype=numpy.uint32)
    if len(values) < count:
        raise Refusal.damaged.of(name, error=f"the file is truncated: {len(values)} of {count} values")
    if values.max() > largest:
        raise Refusal.damaged.of(name, error=f"a value is above the header's largest, {largest}")
    return Raster(values.astype(numpy.uint16).reshape(height, width, channels), channels == 3, largest=largest)


def _decode_jpeg(data: bytes, name: str, limits: DecodeLimits, channels: int) -> numpy.ndarray | None:
    """Decode to an array (H, W, 1 or 3); None leaves rotated, CMYK and damaged images to Pillow."""
    if _has_exif(data) and not _is_upright(data):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB"):
            return None
        limits.check_size(width, height, name)
        # A JPEG stores the luminance of ITU-R 601, so that grey needs no conversion.
        return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", strict=True)
    except ValueError:  # strict also refuses harmless oddities; Pillow distinguishes them from truncation
        return None


def _has_exif(data: bytes) -> bool:
    """Return whether an EXIF segment precedes, or may precede, the pixels; reads only the headers of segments."""
    position = 2
    while data[position : position + 2] != b"\xff\xda":  # start of scan
        head = data[position : position + 10]
        if len(head) < 10 or head[0] != 0xFF or head[1] == 0xFF or head[4:] == b"Exif\x00\x00":
            return True
        position += 2 + int.from_bytes(head[2:4], "big")
    return False


def _is_upright(data: bytes) -> bool:
    """Return whether the EXIF data of a JPEG can be read and doesn't rotate it; pixels are not decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # read_raster raises the error with its reason
        return False
