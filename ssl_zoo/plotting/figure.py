"""What a figure consists of, before it becomes pixels: titled columns, a legend, a note."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ssl_zoo.plotting.colours import GREY


@dataclass(frozen=True)
class Swatch:
    """A legend's entry of one colour.

    Attributes:
        colour: red, green and blue in 0..1.
    """

    meaning: str
    colour: tuple[float, float, float] = (GREY, GREY, GREY)


@dataclass(frozen=True)
class Ramp:
    """A legend's entry of the colour map of ``map_colours``, with what its two ends stand for."""

    meaning: str
    low: str
    high: str


@dataclass(frozen=True)
class Column:
    """A panel for each image.

    Attributes:
        images: values in 0..1, of any size; small ones are enlarged to that of the figure's first column.
        captions: a text under each panel; none where empty.
    """

    title: str
    images: Float[Tensor, "B _ H W"]
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A row per image and a column per kind of panel.

    Attributes:
        title: what is shown, in a sentence that needs no knowledge of the project.
        note: what a reader must know to judge the panels.
    """

    title: str
    columns: Sequence[Column]
    legend: Sequence[Swatch | Ramp] = ()
    note: str = ""

    @property
    def num_rows(self) -> int:
        return len(self.columns[0].images)


def crop_columns(crops: Mapping[str, Float[Tensor, "B _ _ _"]]) -> list[Column]:
    """Return a column for each view of several: ``local_0`` becomes "local crop 1"."""
    return [Column(_crop_title(name), pixels) for name, pixels in crops.items()]


def _crop_title(view: str) -> str:
    kind, _, number = view.rpartition("_")
    return f"{kind} crop {int(number) + 1}" if kind and number.isdecimal() else view
