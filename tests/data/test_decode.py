"""Image files of all common formats decode to RGB; all others are corrupt images with a name and a reason."""

import io
import struct
import zlib

import numpy
import pytest
import torch
from PIL import Image

from ssl_zoo.data.decode import CorruptImage, DecodeLimits, decode

LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=1_000_000, min_side=8)


def _encoded(image, format="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _image(width=24, height=16, mode="RGB"):
    x, y = numpy.meshgrid(numpy.linspace(0, 200, width), numpy.linspace(0, 200, height))
    return Image.fromarray(numpy.stack([x, y, 100 + 0 * x], axis=-1).astype(numpy.uint8)).convert(mode)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_formats_decode_as_in_pillow(format):
    data = _encoded(_image(), format)
    expected = torch.from_numpy(numpy.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    assert (decode(data, "a", LIMITS).int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("mode", "format"), [("L", "JPEG"), ("L", "PNG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG")]
)
def test_other_colour_modes_become_rgb(mode, format):
    data = _encoded(_image(mode=mode), format)
    expected = torch.from_numpy(numpy.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    assert (decode(data, "a", LIMITS).int() - expected.int()).abs().max() <= 2


def test_sixteen_bit_images_keep_their_range():
    grey = numpy.linspace(0, 65535, 16 * 16).astype(numpy.uint16).reshape(16, 16)
    image = decode(_encoded(Image.fromarray(grey), "PNG"), "a", LIMITS)
    assert image.min() == 0 and image.max() == 255 and image.float().mean().item() == pytest.approx(127, abs=2)


def test_images_are_upright_by_their_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    image = decode(_encoded(_image(24, 16), exif=exif), "a", LIMITS)
    assert image.shape == (3, 24, 16)
    assert image[1, :, -1].float().mean() < image[1, :, 0].float().mean()  # the top row came to the right


@pytest.mark.parametrize("before", [b"", b"\xff\xe2\x00\x06ICC_", b"\xff"], ids=["first", "second", "filled"])
def test_an_orientation_is_found_anywhere_before_the_pixels(before):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _encoded(_image(24, 16), exif=exif)
    assert decode(data[:2] + before + data[2:], "a", LIMITS).shape == (3, 24, 16)


def test_exif_data_without_a_rotation_changes_no_pixel():
    exif = Image.Exif()
    exif[0x010F] = "maker"
    image = _image(24, 16)
    assert torch.equal(decode(_encoded(image, exif=exif), "a", LIMITS), decode(_encoded(image), "a", LIMITS))


def _png_header(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _jpeg_header(width, height):
    data = bytearray(_encoded(_image()))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just some text in a file named .jpg", "not an image"),
        (_encoded(_image(200, 200))[:-600], "truncated"),
        (_encoded(_image(200, 200), "PNG")[:300], "truncated|Truncated"),
        (_encoded(_image(200, 200))[:40], "truncated|Truncated|not an image|OSError"),
        (_png_header(50_000, 50_000), "max_image_pixels=1000000"),
        (_png_header(5_000, 5_000), "max_image_pixels=1000000"),
        (_jpeg_header(60_000, 60_000), "max_image_pixels=1000000"),
        (bytes(2 << 20), "max_image_bytes=1048576"),
        (_encoded(_image(3, 3), "PNG"), "3x3 pixels are below data.min_image_side=8"),
        (_encoded(_image(3, 3)), "3x3 pixels are below data.min_image_side=8"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", "not an image"),
    ],
)
def test_unusable_files_are_corrupt_with_name_and_reason(data, reason):
    with pytest.raises(CorruptImage, match=reason) as caught:
        decode(data, "folder/name.jpg", LIMITS)
    assert caught.value.name == "folder/name.jpg"
