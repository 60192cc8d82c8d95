"""Pixels as a file stores them, and their conversion to 8 bits and to a number of channels.

The rule for depth: 8-bit files stay as they are. Deeper ones are scaled from ``data.intensity_range``, or without it
from the range of their own type if they use more than half of it, else from 0 to the largest number of as many bits as
the brightest pixel has (12-bit values in a 16-bit file: 0..4095). Values below zero, and floating-point ones that are
not in 0..1, are scaled from the file's own minimum and maximum. Nothing wraps, and the order of values stays.
"""

from dataclasses import dataclass

import numpy

from ssl_zoo.data.corrupt import Refusal

WHITE = (255, 255, 255)
_QUARTERS = {3: 2, 5: 1, 6: -1, 7: -1, 8: 1}  # by EXIF orientation: turns counter-clockwise, before a mirror
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 as Pillow's mode L has it, in 65536ths


@dataclass(frozen=True)
class PixelFormat:
    """What every image of a source becomes, whichever way its file stores it.

    Attributes:
        channels: of the result; 1 is grey, 3 is RGB, any other number must be stored in the file.
        intensity_range: the stored values that become 0 and 255, in files of more than 8 bits.
        background: RGB, 0..255, shown where an image is transparent.
    """

    channels: int = 3
    intensity_range: tuple[float, float] | None = None
    background: tuple[int, int, int] = WHITE


@dataclass(frozen=True)
class Raster:
    """The stored values of an image.

    Attributes:
        values: (height, width, channels) of any type, alpha last.
        is_colour: the first three channels are red, green and blue.
        has_alpha: the last channel is opacity.
        largest: largest value that the file could hold; None for signed and floating-point types.
    """

    values: numpy.ndarray
    is_colour: bool = False
    has_alpha: bool = False
    largest: int | None = 255

    @property
    def num_channels(self) -> int:
        return self.values.shape[2]

    @property
    def described(self) -> str:
        return described(self.num_channels, self.is_colour, self.has_alpha)


def described(num_channels: int, is_colour: bool, has_alpha: bool) -> str:
    """Name the channels of an image for a message."""
    names = {(1, False, False): "a grey image", (2, False, True): "a grey image with alpha"}
    names |= {(3, True, False): "an RGB image", (4, True, True): "an RGBA image"}
    plural = "channel" if num_channels == 1 else "channels"
    return names.get((num_channels, is_colour, has_alpha), f"an image of {num_channels} {plural}")


def check_channels(raster_channels: int, is_colour: bool, has_alpha: bool, wanted: int, name: str) -> None:
    """Refuse an image that can't become ``wanted`` channels.

    Grey and RGB become one another. Any number becomes itself; alpha is then one of the channels, which 1 and 3
    never mean.

    Raises:
        WrongChannels: a CorruptImage.
    """
    is_photograph = is_colour or raster_channels - has_alpha == 1
    is_possible = is_photograph if wanted in (1, 3) else raster_channels == wanted
    if wanted == 3 and raster_channels == 3 and not has_alpha:
        is_possible = True  # three bands are shown as red, green and blue
    if not is_possible:
        what = described(raster_channels, is_colour, has_alpha)
        raise Refusal.wrong_channels.of(name, found=what, channels=wanted)


def to_format(raster: Raster, wanted: PixelFormat, name: str, notices: list[str] | None = None) -> numpy.ndarray:
    """Convert to (height, width, channels) of uint8.

    Args:
        notices: receives a line where the intensity range had to be guessed.

    Raises:
        CorruptImage: pixels that are not finite, or channels that can't be converted.
    """
    check_channels(raster.num_channels, raster.is_colour, raster.has_alpha, wanted.channels, name)
    if wanted.channels not in (1, 3):
        return _scaled(raster.values, raster.values, raster.largest, wanted, name, notices)
    values, alpha = raster.values, None
    if raster.has_alpha:
        values, alpha = values[..., :-1], _opacity(values[..., -1:], raster.largest, name)
    if raster.is_colour:
        values = values[..., :3]  # a fourth channel without a meaning is padding
    seen = values
    if alpha is not None and values.dtype != numpy.uint8:  # what is hidden must not decide how the rest looks
        is_seen = alpha[..., 0] > 0
        seen = values[is_seen] if is_seen.any() else values[:1, :1] * 0
        values = numpy.where(is_seen[..., None], values, 0).astype(values.dtype)
    pixels = _scaled(values, seen, raster.largest, wanted, name, notices)
    if pixels.shape[2] != wanted.channels:
        pixels = luminance(pixels) if wanted.channels == 1 else numpy.repeat(pixels, 3, axis=2)
    return pixels if alpha is None else _composited(pixels, alpha, wanted)


def luminance(pixels: numpy.ndarray) -> numpy.ndarray:
    """Return (height, width, 1) of ITU-R 601-2, rounded exactly as Pillow's conversion to mode L."""
    red, green, blue = (pixels[..., channel : channel + 1].astype(numpy.uint32) for channel in range(3))
    return ((red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0x8000) >> 16).astype(numpy.uint8)


def default_range(values: numpy.ndarray, largest: int | None) -> tuple[float, float]:
    """Return the values that become 0 and 255 where no range was declared; the rule is this module's docstring."""
    low, high = values.min().item(), values.max().item()
    if values.dtype.kind == "f":
        return (0.0, 1.0) if low >= 0 and 0.5 < high <= 1 else (low, high)
    if low < 0:
        return low, high
    if largest is not None and (high > largest // 2 or largest <= 255):
        return 0, largest
    return 0, max(255, 2 ** int(high).bit_length() - 1)


def _scaled(
    values: numpy.ndarray,
    seen: numpy.ndarray,
    largest: int | None,
    wanted: PixelFormat,
    name: str,
    notices: list[str] | None,
) -> numpy.ndarray:
    """Map the intensity range to 0..255, clipped and rounded; without a declared one that of the ``seen`` values."""
    if values.dtype == numpy.uint8 and largest == 255:
        return values
    _check_numbers(seen, name)
    low, high = wanted.intensity_range or default_range(seen, largest)
    if wanted.intensity_range is None and notices is not None and (low, high) != (0, largest):
        notices.append(
            f"{name} has {values.dtype} pixels of {seen.min():g}..{seen.max():g}; without data.intensity_range "
            f"each such file is scaled by a range of its own, here {low:g}..{high:g}. Set "
            "data.intensity_range=[LOW,HIGH], so that files can be compared; tools/channel_stats.py measures it"
        )
    scale = 255.0 / (high - low) if high > low else 0.0
    # float32 is exact for 16 bits, and half the memory; a range of more bits needs float64 to keep its order.
    working = numpy.float32 if values.dtype.itemsize <= 2 else numpy.float64
    scaled = (values.astype(working) - working(low)) * working(scale)
    return numpy.rint(scaled, out=scaled).clip(0, 255).astype(numpy.uint8)


def _opacity(alpha: numpy.ndarray, largest: int | None, name: str) -> numpy.ndarray:
    if alpha.dtype == numpy.uint8:
        return alpha
    _check_numbers(alpha, name)
    return numpy.rint(alpha.clip(0, largest or 1) * (255.0 / (largest or 1))).astype(numpy.uint8)


def _composited(pixels: numpy.ndarray, alpha: numpy.ndarray, wanted: PixelFormat) -> numpy.ndarray:
    """Blend with the background, exactly rounded; under alpha 0 nothing is left of the stored colour."""
    background = background_of(wanted)
    opaque = alpha.astype(numpy.uint32)
    blended = pixels * opaque + background.astype(numpy.uint32) * (255 - opaque)
    return ((blended + 127) // 255).astype(numpy.uint8)


def background_of(wanted: PixelFormat) -> numpy.ndarray:
    """Return the background in the result's channels, 1 or 3."""
    background = numpy.array(wanted.background, dtype=numpy.uint8)[None, None]
    return luminance(background)[0, 0] if wanted.channels == 1 else background[0, 0]


def _check_numbers(values: numpy.ndarray, name: str) -> None:
    if values.dtype.kind not in "biuf":
        raise Refusal.no_numbers.of(name, dtype=values.dtype)
    if values.dtype.kind == "f" and not numpy.isfinite(values).all():
        raise Refusal.not_finite.of(name)


def oriented(values: numpy.ndarray, orientation: int) -> numpy.ndarray:
    """Turn an array (height, width, ...) upright; ``orientation`` is that of EXIF and TIFF, 1 to 8."""
    if not 1 <= orientation <= 8:
        return values
    turned = numpy.rot90(values, _QUARTERS.get(orientation, 0))
    if orientation == 2:
        return turned[:, ::-1]
    return turned[::-1] if orientation in (4, 5, 7) else turned
