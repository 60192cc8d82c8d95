"""A figure as pixels, with its title, the columns' titles, the rows' names, legend and note as text."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssl_zoo.plotting.colours import as_rgb, map_colours
from ssl_zoo.plotting.figure import Column, Figure, Ramp, Swatch

_MIN_PANEL, _MAX_ENLARGED = 128, 224  # pixels of height to which panels are enlarged, a whole number of times
_MIN_WIDTH = 560  # pixels of a figure, so that its title and note have room
_GAP, _MARGIN = 6, 12
_TEXT, _INK, _FAINT = 13, (20, 20, 20), (95, 95, 95)
_SMOOTH = 64  # images of at least this many pixels are enlarged smoothly, smaller ones pixel by pixel
_RAMP_WIDTH = 120


def draw(figure: Figure, rows: Sequence[str]) -> UInt8[Tensor, "3 H W"]:
    """Draw a figure.

    Args:
        rows: the name of each row's image, which is printed above the row with its number.
    """
    width, height = _panel_size(figure)
    columns = len(figure.columns)
    inner = max(_MIN_WIDTH, columns * (width + _GAP) - _GAP)
    sheet = _Sheet(inner + 2 * _MARGIN)
    sheet.paragraph(figure.title, inner, _font(_TEXT + 2, bold=True))
    if figure.legend:
        sheet.space(4)
        _draw_legend(sheet, figure.legend, inner)
    if figure.note:
        sheet.paragraph(figure.note, inner, _font(_TEXT), _FAINT)
    sheet.space(8)
    sheet.texts([column.title for column in figure.columns], width, _font(_TEXT, bold=True), bottom=True)
    panels = [_pixels(column, width, height) for column in figure.columns]
    for number, name in enumerate(rows):
        sheet.space(4)
        sheet.line(f"{number + 1}  {name}", inner, _font(_TEXT))
        sheet.images([images[number] for images in panels], width)
        if any(column.captions for column in figure.columns):
            captions = [column.captions[number] if column.captions else "" for column in figure.columns]
            sheet.texts(captions, width, _font(_TEXT - 1))
    return sheet.finish()


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, between words and within words that are longer."""
    lines, line = [], ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        lines += [line] if line else []
        while font.getlength(word) > width and len(word) > 1:
            fitting = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fitting])
            word = word[fitting:]
        line = word
    return [*lines, line] if line else lines


def _panel_size(figure: Figure) -> tuple[int, int]:
    """Return width and height of a panel: those of the first column's images, times a whole number if small.

    Few columns of small images are enlarged further, up to the width of the sheet.
    """
    height, width = figure.columns[0].images.shape[-2:]
    fitting = min(_MAX_ENLARGED // height, _MIN_WIDTH // (len(figure.columns) * (width + _GAP)))
    factor = max(1, -(-_MIN_PANEL // height), fitting)
    return factor * width, factor * height


def _pixels(column: Column, width: int, height: int) -> list[Image.Image]:
    images = to_bytes(column.images).permute(0, 2, 3, 1).numpy()
    smooth = min(images.shape[1:3]) >= _SMOOTH
    resample = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return [Image.fromarray(image).resize((width, height), resample) for image in images]


def to_bytes(images: Float[Tensor, "B _ H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Return images in 0..1, of any number of channels, as RGB bytes on the CPU."""
    return (as_rgb(images).float().clamp(0, 1) * 255).round().byte().cpu()


def ramp_bytes(width: int) -> UInt8[Tensor, "3 1 width"]:
    """Return one row of pixels with the colours of ``Ramp``, from low to high."""
    return to_bytes(map_colours(torch.linspace(0, 1, width)).T[None, :, None])[0]


def _draw_legend(sheet: "_Sheet", legend: Sequence[Swatch | Ramp], width: int) -> None:
    font = _font(_TEXT)
    for entry in legend:
        if isinstance(entry, Swatch):
            colour = tuple(round(255 * value) for value in entry.colour)
            key, text = Image.new("RGB", (2 * _TEXT, _TEXT), colour), entry.meaning
        else:
            ramp = Image.fromarray(ramp_bytes(_RAMP_WIDTH).permute(1, 2, 0).numpy())
            key, text = ramp.resize((_RAMP_WIDTH, _TEXT)), f"{entry.meaning}, from {entry.low} to {entry.high}"
        sheet.key(key, text, width, font)


@functools.cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu Sans knows Latin, Greek and Cyrillic letters; Pillow's own font is Latin alone

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


class _Sheet:
    """A white sheet of a fixed width that is filled from top to bottom."""

    def __init__(self, width: int) -> None:
        self._width, self._y = width, _MARGIN
        self._image = Image.new("RGB", (width, 1024), "white")
        self._draw = ImageDraw.Draw(self._image)

    def _reserve(self, height: int) -> int:
        """Return the current y and move below ``height`` pixels, for which there is room then."""
        top, self._y = self._y, self._y + height
        if self._y + _MARGIN > self._image.height:
            larger = Image.new("RGB", (self._width, 2 * (self._y + _MARGIN)), "white")
            larger.paste(self._image)
            self._image, self._draw = larger, ImageDraw.Draw(larger)
        return top

    def space(self, pixels: int) -> None:
        self._reserve(pixels)

    def paragraph(self, text: str, width: int, font: ImageFont.FreeTypeFont, ink: tuple = _INK) -> None:
        for line in wrapped(text, width, font):
            top = self._reserve(_line_height(font))
            self._draw.text((_MARGIN, top), line, ink, font)

    def line(self, text: str, width: int, font: ImageFont.FreeTypeFont) -> None:
        """Write one line; of a longer text the end, which tells files of one folder apart."""
        if font.getlength(text) > width:
            number, _, name = text.partition("  ")
            while name and font.getlength(f"{number}  …{name}") > width:
                name = name[1:]
            text = f"{number}  …{name}"
        self._draw_line(text, font)

    def _draw_line(self, text: str, font: ImageFont.FreeTypeFont) -> None:
        top = self._reserve(_line_height(font))
        self._draw.text((_MARGIN, top), text, _INK, font)

    def texts(self, texts: Sequence[str], width: int, font: ImageFont.FreeTypeFont, *, bottom: bool = False) -> None:
        """Write a text above or below each panel, aligned at its top, or at its bottom."""
        blocks = [wrapped(text, width, font) for text in texts]
        most, height = max(map(len, blocks)), _line_height(font)
        top = self._reserve(most * height)
        for number, lines in enumerate(blocks):
            start = top + (most - len(lines)) * height * bottom
            for row, line in enumerate(lines):
                self._draw.text((_MARGIN + number * (width + _GAP), start + row * height), line, _INK, font)

    def images(self, images: Sequence[Image.Image], width: int) -> None:
        top = self._reserve(images[0].height + 2)
        for number, image in enumerate(images):
            self._image.paste(image, (_MARGIN + number * (width + _GAP), top))

    def key(self, key: Image.Image, text: str, width: int, font: ImageFont.FreeTypeFont) -> None:
        """Paste a key of the legend with its meaning to the right."""
        indent = key.width + _GAP
        lines = wrapped(text, width - indent, font)
        height = _line_height(font)
        top = self._reserve(height * len(lines) + 2)
        self._image.paste(key, (_MARGIN, top + 2))
        for row, line in enumerate(lines):
            self._draw.text((_MARGIN + indent, top + row * height), line, _INK, font)

    def finish(self) -> UInt8[Tensor, "3 H W"]:
        cut = self._image.crop((0, 0, self._width, self._y + _MARGIN))
        return (
            torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8)
            .view(cut.height, cut.width, 3)
            .permute(2, 0, 1)
        )


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return font.size + 4
