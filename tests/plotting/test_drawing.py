"""Drawn figures: where panels lie, what is written, and what happens to long texts and other sizes."""

import pytest
import torch
from PIL import Image

from ssl_zoo.plotting import Column, Figure, Ramp, Swatch, crop_columns, draw
from ssl_zoo.plotting.drawing import _font, wrapped
from ssl_zoo.seeding import generator_for


def figure(*, size: int = 32, columns: int = 3, **more: object) -> Figure:
    images = torch.rand(2, columns, 3, size, size, generator=generator_for("drawing", size))
    titles = [Column(f"column {number}", images[:, number]) for number in range(columns)]
    return Figure("a title", titles, **more)


def found(drawn: torch.Tensor, panel: torch.Tensor) -> bool:
    """Return whether the first row of pixels of ``panel`` occurs in the drawing."""
    wanted = (panel * 255).round().byte()
    height, width = wanted.shape[1:]
    windows = drawn.unfold(2, width, 1)  # (3, H, W', width)
    rows = (windows == wanted[:, :1, None, :]).all(dim=3).all(dim=0).nonzero()
    return any(torch.equal(drawn[:, y : y + height, x : x + width], wanted) for y, x in rows.tolist())


@pytest.mark.parametrize("size", [32, 224])
def test_every_panel_is_drawn_and_small_ones_are_enlarged_pixel_by_pixel(size: int) -> None:
    shown, factor = figure(size=size), max(1, 128 // size)
    drawn = draw(shown, ["one", "two"])
    for column in shown.columns:
        for image in column.images:
            assert found(drawn, image.repeat_interleave(factor, 1).repeat_interleave(factor, 2))


def test_a_smaller_crop_is_enlarged_to_the_first_column() -> None:
    columns = crop_columns({"global_0": torch.zeros(1, 3, 224, 224), "local_0": torch.ones(1, 3, 96, 96)})
    drawn = draw(Figure("crops", [*columns, Column("grey", torch.full((1, 1, 14, 14), 0.25))]), ["one"])
    assert found(drawn, torch.zeros(3, 224, 224)) and found(drawn, torch.full((3, 224, 224), 0.25))


@pytest.mark.parametrize(
    "more",
    [
        {"legend": [Swatch("hidden", (1.0, 0.0, 0.0))]},
        {"legend": [Ramp("similarity", "0", "1")]},
        {"note": "what must be known"},
    ],
)
def test_legend_and_note_take_room_above_the_panels(more: dict) -> None:
    plain, with_more = (draw(figure(**settings), ["one", "two"]) for settings in ({}, more))
    assert with_more.shape[1] > plain.shape[1] and with_more.shape[2] == plain.shape[2]


def test_rows_are_named() -> None:
    assert not torch.equal(draw(figure(), ["one", "two"]), draw(figure(), ["one", "three"]))


def test_captions_stand_under_their_panels() -> None:
    column = Column("neighbour", torch.zeros(2, 3, 32, 32), ["0.93", "0.91"])
    without = draw(Figure("a title", [Column("neighbour", column.images)]), ["one", "two"])
    assert draw(Figure("a title", [column]), ["one", "two"]).shape[1] > without.shape[1]


def test_long_texts_stay_within_the_sheet() -> None:
    name = "a folder with a long name/" * 20 + "\N{GREEK SMALL LETTER ALPHA}.jpg"
    drawn = draw(Figure("title " * 60, figure().columns, note="x" * 500), [name, name])
    assert (drawn[:, :, -8:] == 255).all() and (drawn[:, :, :8] == 255).all()


def test_words_wider_than_a_line_are_broken_and_no_letter_is_lost() -> None:
    font = _font(12)
    lines = wrapped("a " + "w" * 50 + " b", 100, font)
    assert all(font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == "a" + "w" * 50 + "b"


def test_a_drawing_can_be_saved(tmp_path) -> None:
    Image.fromarray(draw(figure(), ["one", "two"]).permute(1, 2, 0).numpy()).save(tmp_path / "figure.png")
