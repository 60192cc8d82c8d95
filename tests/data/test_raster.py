"""Deep, transparent and unusual images become 8 bits, one or three channels, by one documented rule."""

import io
import struct
import zlib

import numpy
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from ssl_zoo.data.decode import CorruptImage, DecodeLimits, PixelFormat, WrongChannels, decode
from ssl_zoo.data.raster import oriented

LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=1_000_000, min_side=4)
RAMP = numpy.tile(numpy.linspace(0, 1, 64), (48, 1))


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiff(pixels: numpy.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def deep_png(pixels: numpy.ndarray) -> bytes:
    """Encode 16-bit grey with alpha, RGB or RGBA, which Pillow can't write."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pgm(largest: int) -> bytes:
    values = numpy.rint(RAMP * largest).astype(">u2")
    return b"P5\n# by hand\n64 48\n%d\n" % largest + values.tobytes()


def row_of(data: bytes, **wanted: object) -> list[int]:
    image = decode(data, "a", LIMITS, PixelFormat(**{"channels": 1, **wanted}))
    assert (image == image[:, :1]).all()
    return image[0, 0].tolist()


FULL_RAMP = numpy.rint(RAMP[0] * 255).astype(int).tolist()
DEEP = {
    **{f"png of {b} bits": encoded(Image.fromarray((RAMP * (2**b - 1)).astype("u2"))) for b in (16, 12, 10, 9)},
    **{f"rgb png of {b} bits": deep_png(numpy.stack([RAMP * (2**b - 1)] * 3, -1)) for b in (16, 12)},
    **{f"pgm up to {largest}": pgm(largest) for largest in (65535, 4095, 1000)},
    "plain pgm": b"P2 64 48 4095 " + b" ".join(b"%d" % v for v in numpy.rint(RAMP * 4095).astype(int).ravel()),
    "int32 tiff": tiff((RAMP * 4000 - 1000).astype("i4")),
    "int16 tiff": tiff((RAMP * 4000 - 1000).astype("i2")),
    "int8 tiff": tiff(numpy.rint(RAMP * 255 - 128).astype("i1")),
    "uint32 tiff": tiff((RAMP * 4095).astype("u4")),
    "big-endian tiff": tiff((RAMP * 4095).astype(">u2"), byteorder=">"),
    "pillow's tiff": encoded(Image.fromarray((RAMP * 4095).astype("u2")), "TIFF"),
    "lzw tiff": encoded(Image.fromarray((RAMP * 4095).astype("u2")), "TIFF", compression="tiff_lzw"),
    "float tiff of 0..1": tiff(RAMP.astype("f4")),
    "half float tiff": tiff(RAMP.astype("f2")),
    "float tiff of -3..2": tiff((RAMP * 5 - 3).astype("f4")),
    "double tiff": tiff(RAMP * 1e6),
    "inverted tiff": tiff((65535 - RAMP * 65535).astype("u2"), photometric="miniswhite"),
    "rgb tiff": tiff(numpy.stack([(RAMP * 4095).astype("u2")] * 3, -1), photometric="rgb"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_a_ramp_of_any_depth_fills_the_range_in_order(kind):
    row = row_of(DEEP[kind])
    assert row == sorted(row)
    assert numpy.abs(numpy.array(row) - FULL_RAMP).max() <= 2


def test_a_dark_image_is_no_black_one():
    assert max(row_of(encoded(Image.fromarray((RAMP * 300).astype("u2"))))) == round(300 / 511 * 255)


@pytest.mark.parametrize("kind", ["png of 16 bits", "rgb png of 16 bits", "pgm up to 65535"])
def test_a_declared_range_is_cut_and_never_wraps(kind):
    row = row_of(DEEP[kind], intensity_range=(16384, 49152))
    assert row == sorted(row) and row[:16] == [0] * 16 and row[-16:] == [255] * 16
    assert row[32] == pytest.approx(131, abs=2)


def test_a_declared_range_holds_for_stored_values_of_a_pgm_and_not_for_8_bits():
    assert row_of(pgm(1000), intensity_range=(0, 500))[-1] == 255
    eight = encoded(Image.fromarray((RAMP * 255).astype("u1")))
    assert row_of(eight, intensity_range=(0, 4095)) == row_of(eight)


def test_guessed_ranges_are_noticed_with_file_range_and_key():
    notices: list[str] = []
    decode(DEEP["png of 12 bits"], "scan.png", LIMITS, PixelFormat(1), notices)
    decode(DEEP["png of 16 bits"], "full.png", LIMITS, PixelFormat(1), notices)
    [notice] = notices
    for part in ("scan.png", "0..4095", "data.intensity_range"):
        assert part in notice


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
def test_pixels_that_are_no_numbers_make_a_corrupt_image(value):
    pixels = RAMP.astype("f4").copy()
    pixels[3, 3] = value
    with pytest.raises(CorruptImage, match="NaN or infinite"):
        decode(tiff(pixels), "a.tif", LIMITS)


def _transparent(noise: int) -> dict[str, bytes]:
    """The same picture in every way to store transparency; ``noise`` is the colour under transparent pixels."""
    rgba = numpy.zeros((32, 32, 4), "u1")
    rgba[..., :3] = noise
    rgba[8:24, 8:24] = [190, 190, 190, 255]
    grey_alpha = rgba[..., [0, 3]]
    key = numpy.where(rgba[..., 3:] > 0, rgba[..., :3], numpy.uint8(noise))
    palette = Image.fromarray(rgba[..., 3] // 255, "P")
    palette.putpalette([noise] * 3 + [190] * 3)
    deep_key = Image.fromarray(key[..., 0].astype("u2") * 257)
    return {
        "RGBA": encoded(Image.fromarray(rgba)),
        "LA": encoded(Image.fromarray(grey_alpha, "LA")),
        "RGB and a transparent colour": encoded(Image.fromarray(key), transparency=(noise,) * 3),
        "L and a transparent value": encoded(Image.fromarray(key[..., 0]), transparency=noise),
        "I;16 and a transparent value": encoded(deep_key, transparency=noise * 257),
        "P and a transparent entry": encoded(palette, transparency=0),
        "P and alphas": encoded(palette, transparency=bytes([0, 255])),
        "GIF": encoded(palette, "GIF", transparency=0),
        "WEBP": encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
        "RGBA TIFF": encoded(Image.fromarray(rgba), "TIFF"),
        "PA TIFF": encoded(Image.fromarray(rgba).convert("PA"), "TIFF"),
        "RGBA of 16 bits": deep_png(rgba.astype("u2") * 257),
        "LA of 16 bits": deep_png(grey_alpha.astype("u2") * 257),
        "RGBA TIFF of 16 bits": tiff(rgba.astype("u2") * 257, photometric="rgb", extrasamples=["unassalpha"]),
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 10, 10)])
def test_images_that_look_alike_are_equal_however_transparency_is_stored(background, channels):
    wanted = PixelFormat(channels, background=background)
    expected = torch.full((channels, 32, 32), background[0], dtype=torch.uint8)
    expected[:, 8:24, 8:24] = 190
    for noise in (0, 7, 200):
        for kind, data in _transparent(noise).items():
            assert torch.equal(decode(data, "a", LIMITS, wanted), expected), (kind, noise)


def test_values_under_transparent_pixels_do_not_decide_the_range_of_a_deep_image():
    pixels = numpy.zeros((16, 16, 4), "u2")
    pixels[4:12, 4:12] = [1000, 2000, 3000, 65535]
    noisy = pixels.copy()
    noisy[0, 0, :3] = 60_000
    floating = pixels.astype("f4")
    floating[..., 3] = floating[..., 3] > 0
    poisoned = floating.copy()
    poisoned[0, 0, :3] = numpy.nan
    assert torch.equal(decode(deep_png(pixels), "a", LIMITS), decode(deep_png(noisy), "a", LIMITS))
    images = [
        decode(tiff(p, photometric="rgb", extrasamples=["unassalpha"]), "a", LIMITS) for p in (floating, poisoned)
    ]
    assert torch.equal(*images)


def test_a_bmp_whose_fourth_byte_is_unused_is_not_transparent():
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, 256, 0, 0, 0, 0) + masks + bytes(108 - 40 - 16)
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 256, 0, 0, 14 + 108) + header + bytes([30, 20, 10, 0]) * 64
    assert decode(data, "a.bmp", LIMITS)[:, 0, 0].tolist() == [10, 20, 30]


def test_half_transparent_pixels_are_blended_and_premultiplied_ones_divided_first():
    straight = numpy.full((16, 16, 4), [200, 100, 0, 128], "u1")
    multiplied = numpy.full((16, 16, 4), [100, 50, 0, 128], "u1")
    as_stored = decode(encoded(Image.fromarray(straight)), "a", LIMITS)
    assert as_stored[:, 0, 0].tolist() == [round((128 * c + 127 * 255) / 255) for c in (200, 100, 0)]
    for pixels in (multiplied, multiplied.astype("u2") * 257):
        premultiplied = decode(tiff(pixels, photometric="rgb", extrasamples=["assocalpha"]), "a", LIMITS)
        assert (premultiplied.int() - as_stored.int()).abs().max() <= 2


def test_the_background_is_a_colour_of_its_own():
    empty = encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 0)))
    assert decode(empty, "a", LIMITS, PixelFormat(background=(9, 8, 7)))[:, 0, 0].tolist() == [9, 8, 7]


def _of_mode(mode: str) -> Image.Image:
    grey = Image.fromarray((RAMP * 255).astype("u1"))
    if mode.startswith("I;16"):
        return Image.fromarray((RAMP * 65535).astype(">u2" if mode == "I;16B" else "<u2"))
    if mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(grey.convert("RGB"), rgb, lab, outputMode="LAB")
    if mode in ("P", "PA"):
        return grey.convert("P").convert(mode)
    return grey.convert("RGBA").convert("RGBa") if mode == "RGBa" else grey.convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", sorted(set(Image.MODES) - {"1"}))
def test_every_mode_of_pillow_that_a_file_can_have_shows_the_same_picture(mode):
    stored = 0
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        try:
            data = encoded(_of_mode(mode), format)
        except (OSError, ValueError):  # the format has no such mode
            continue
        stored += 1
        for channels in (1, 3):
            image = decode(data, "a", LIMITS, PixelFormat(channels))
            assert image.shape == (channels, 48, 64)
            assert (image[:, 0] - torch.tensor(FULL_RAMP)).abs().max() <= 4, format
    assert stored or mode in ("HSV", "La", "RGBa")


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_colour_becomes_grey_by_its_luminance(format):
    image = Image.fromarray(numpy.full((16, 16, 3), [200, 100, 50], "u1"))
    data = encoded(image, format)
    expected = Image.open(io.BytesIO(data)).convert("L").getpixel((3, 3))
    tolerance = 1 if format == "JPEG" else 0
    assert abs(decode(data, "a", LIMITS, PixelFormat(1))[0, 3, 3].item() - expected) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["8 bit", "deep", "tiff"])
def test_every_orientation_is_turned_upright(orientation, kind):
    pixels = numpy.arange(6 * 9).reshape(6, 9)
    upright = numpy.rint(pixels * (255 / 53))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "8 bit":
        data = encoded(Image.fromarray(upright.astype("u1")), exif=exif)
    elif kind == "deep":
        data = encoded(Image.fromarray((upright * 257).astype("u2")), exif=exif)
    else:
        data = tiff((upright * 257).astype("u2"), extratags=[(274, 3, 1, orientation, True)])
    image = decode(data, "a", LIMITS, PixelFormat(1))[0].numpy()
    assert numpy.array_equal(image, oriented(upright, orientation))


def _photoshop(samples: int, photometric: str, extrasamples: list[str]) -> bytes:
    """Encode (0.2, 0.4, 0.6) of 16 bits, or the ink for it, and a full value in each further sample."""
    first = {"rgb": [0.2, 0.4, 0.6], "separated": [0.8, 0.6, 0.4, 0.0], "minisblack": [0.4]}[photometric]
    values = [*first, *[1.0] * (samples - len(first))]
    pixels = numpy.full((16, 16, samples), numpy.array(values) * 65535).astype("u2")
    options = {"photometric": photometric, "planarconfig": "contig", "extrasamples": extrasamples}
    return tiff(pixels, **{name: value for name, value in options.items() if value})


@pytest.mark.parametrize(
    "data",
    [
        _photoshop(4, "separated", []),
        _photoshop(5, "separated", ["unassalpha"]),  # Pillow can't open it: python-pillow/Pillow issue 7007
        _photoshop(5, "separated", ["assocalpha"]),
        _photoshop(6, "rgb", ["unspecified"] * 3),  # Pillow reads it with 8 bits alone: its pull request 2938
        _photoshop(7, "rgb", ["unassalpha"] * 4),  # as libvips saves seven bands
        tiff(numpy.full((2, 16, 16, 3), [0.2, 0.4, 0.6]), photometric="rgb"),  # pages of float64: Pillow issue 2485
    ],
)
def test_colour_images_with_samples_of_their_own_are_still_colour_images(data):
    assert decode(data, "a.tif", LIMITS)[:, 3, 3].tolist() == [51, 102, 153]
    assert decode(data, "a.tif", LIMITS, PixelFormat(1))[:, 3, 3].tolist() == [93]


def test_grey_of_16_bits_with_alpha_is_read():  # Pillow issue 1602
    assert decode(_photoshop(2, "minisblack", ["unassalpha"]), "a.tif", LIMITS)[:, 3, 3].tolist() == [204] * 3


# --- channels ---------------------------------------------------------------------------------------------------------

_LAYOUTS = {
    "interleaved": {"planarconfig": "contig"},
    "planar": {"planarconfig": "separate"},
    "tiles": {"planarconfig": "contig", "tile": (16, 16)},
    "planar tiles": {"planarconfig": "separate", "tile": (16, 16)},
    "strips, deflated": {"planarconfig": "contig", "rowsperstrip": 8, "compression": "zlib", "predictor": True},
    "a page per channel": {"as_pages": True},
}


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
@pytest.mark.parametrize("layout", _LAYOUTS)
def test_bands_of_a_tiff_are_channels_in_every_layout(layout, channels):
    options = dict(_LAYOUTS[layout])
    bands = numpy.random.default_rng(0).integers(0, 256, (channels, 32, 40), dtype=numpy.uint8)
    is_planar = options.pop("as_pages", False) or options["planarconfig"] == "separate"
    data = tiff(bands if is_planar else numpy.moveaxis(bands, 0, 2), **options)
    assert numpy.array_equal(decode(data, "a.tif", LIMITS, PixelFormat(channels)).numpy(), bands)
    deep = tiff((bands if is_planar else numpy.moveaxis(bands, 0, 2)).astype("u2") * 257, **options)
    assert numpy.array_equal(decode(deep, "a.tif", LIMITS, PixelFormat(channels)).numpy(), bands)


@pytest.mark.parametrize(
    ("data", "channels", "found"),
    [
        (encoded(Image.new("RGB", (8, 8))), 4, "an RGB image"),
        (encoded(Image.new("RGB", (8, 8)), "JPEG"), 4, "an RGB image"),
        (encoded(Image.new("L", (8, 8))), 2, "a grey image"),
        (encoded(Image.new("CMYK", (8, 8)), "TIFF"), 4, "an RGB image"),
        (tiff(numpy.zeros((8, 9, 5), "u1"), planarconfig="contig"), 3, "an image of 5 channels"),
        (tiff(numpy.zeros((8, 9, 2), "u2"), planarconfig="contig"), 1, "an image of 2 channels"),
    ],
)
def test_channels_that_do_not_fit_are_named_with_the_key(data, channels, found):
    with pytest.raises(WrongChannels, match=rf"^a: {found} can't .*backbone.in_channels={channels}"):
        decode(data, "a", LIMITS, PixelFormat(channels))


def test_four_channels_of_an_rgba_image_are_taken_as_they_are():
    pixels = numpy.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=numpy.uint8)
    for data in (encoded(Image.fromarray(pixels)), tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])):
        assert numpy.array_equal(decode(data, "a", LIMITS, PixelFormat(4)).permute(1, 2, 0).numpy(), pixels)


def _of_many_bands(**options: object) -> bytes:
    bands = numpy.random.default_rng(0).integers(0, 256, (32, 40, 5), dtype=numpy.uint8)
    return tiff(bands, planarconfig="contig", **options)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_of_many_bands()[:-300], "damaged or truncated"),
        (_of_many_bands(compression="zlib")[:-300], "damaged or truncated"),
        (_of_many_bands()[:60], "damaged or truncated|not an image"),
        (b"II*\0" + b"\xff" * 60, "damaged or truncated|not an image"),
        (pgm(4095)[:-100], "truncated"),
        (deep_png(numpy.random.default_rng(0).integers(0, 9999, (16, 16, 3)))[:800], "damaged or truncated"),
        (b"P5 64 48 70000 " + bytes(9999), "damaged"),
    ],
)
def test_damaged_deep_files_are_corrupt_images(data, reason):
    with pytest.raises(CorruptImage, match=reason):
        decode(data, "a.tif", LIMITS, PixelFormat(5 if data[:2] == b"II" else 3))


def test_limits_hold_for_tiff_before_its_pixels_are_read():
    small = DecodeLimits(max_bytes=1 << 20, max_pixels=100, min_side=4)
    with pytest.raises(CorruptImage, match=r"40x32 pixels are more than data.max_image_pixels=100"):
        decode(_of_many_bands(), "a.tif", small, PixelFormat(5))
    with pytest.raises(CorruptImage, match=r"40x32 pixels are below data.min_image_side=64"):
        decode(_of_many_bands(), "a.tif", DecodeLimits(1 << 20, 10**6, 64), PixelFormat(5))


def test_a_part_that_inflates_to_more_than_its_size_is_refused():
    data = bytearray(tiff(numpy.zeros((16, 16, 5), "u1"), planarconfig="contig", compression="zlib"))
    bomb = zlib.compress(bytes(100 << 20), 9)
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages[0].tags
        offsets, counts = tags["StripOffsets"].valueoffset, tags["StripByteCounts"].valueoffset
        widths = tags["StripOffsets"].dtype.name, tags["StripByteCounts"].dtype.name
    for place, value, width in ((offsets, len(data), widths[0]), (counts, len(bomb), widths[1])):
        size = 2 if width == "SHORT" else 4
        data[place : place + size] = value.to_bytes(size, "little")
    with pytest.raises(CorruptImage, match="inflates to more"):
        decode(bytes(data) + bomb, "bomb.tif", LIMITS, PixelFormat(5))


def test_a_missing_codec_is_named_with_the_extra_that_has_it():
    pytest.importorskip("tifffile")
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        page = bytearray(_of_many_bands())
        with tifffile.TiffFile(io.BytesIO(bytes(page))) as file:
            place = file.pages[0].tags["Compression"].valueoffset
        page[place : place + 2] = (5).to_bytes(2, "little")
        with pytest.raises(CorruptImage, match=r"LZW can't be read here; pip install 'ssl-zoo\[tiff\]'"):
            decode(bytes(page), "a.tif", LIMITS, PixelFormat(5))
