"""Why an image can't be used: every reason, its wording, and the limits that are checked before decoding."""

from dataclasses import dataclass
from enum import Enum


class CorruptImage(Exception):
    """A sample that can't be used; the loader replaces it, reports it and counts it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both arguments are needed to unpickle the exception in another process
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class WrongChannels(CorruptImage):
    """An image whose channels can't be converted to ``backbone.in_channels``."""


class Refusal(Enum):
    """Every reason for which a decoder refuses an image; docs/reliability.md has a remedy for each."""

    empty = "the file is empty"
    unreadable = "it can't be read: {error}"
    not_regular = "it is no regular file"
    too_many_bytes = "{bytes} bytes are more than data.max_image_bytes={limit}"
    too_many_pixels = "{width}x{height} pixels are more than data.max_image_pixels={limit}"
    far_too_many_pixels = "more pixels than data.max_image_pixels={limit}"
    too_small = "{width}x{height} pixels are below data.min_image_side={limit}"
    unknown_format = "not an image of a known format ({formats})"
    damaged = "damaged or truncated: {error}"
    wrong_channels = "{found} can't be converted to backbone.in_channels={channels}"
    not_finite = "some pixels are NaN or infinite"
    no_numbers = "pixels of type {dtype} are no real numbers"
    not_of_the_shards = "{found} pixels instead of the manifest's {expected}"
    map_size = "the map has {found} pixels, its image {expected}"
    map_numbers = "a map has one number per pixel, not {found}"
    no_codec = "TIFF compression {compression} can't be read here; {remedy}"

    def of(self, name: str, **values: object) -> CorruptImage:
        """Return the exception for the image ``name``, the reason's values filled in."""
        kind = WrongChannels if self is Refusal.wrong_channels else CorruptImage
        return kind(name, self.value.format(**values))


@dataclass(frozen=True)
class DecodeLimits:
    """Limits on an image file, checked before decoding."""

    max_bytes: int
    max_pixels: int
    min_side: int  # pixels of the shorter side

    def check_bytes(self, size: int, name: str) -> None:
        """Refuse files of no byte and of too many."""
        if size == 0:
            raise Refusal.empty.of(name)
        if size > self.max_bytes:
            raise Refusal.too_many_bytes.of(name, bytes=size, limit=self.max_bytes)

    def check_size(self, width: int, height: int, name: str) -> None:
        """Refuse images of too many pixels, and those with too short a side."""
        if width * height > self.max_pixels:
            raise Refusal.too_many_pixels.of(name, width=width, height=height, limit=self.max_pixels)
        if min(width, height) < self.min_side:
            raise Refusal.too_small.of(name, width=width, height=height, limit=self.min_side)
