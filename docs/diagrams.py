"""Draw the diagrams of the documentation: ``python docs/diagrams.py`` writes docs/images/*.svg.

A diagram has two rows, the trained networks above and what gives their targets below, and a loss at the right.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parent / "images"

# fill and stroke
TRAINED, EMA = ("#dbe7fb", "#3564b5"), ("#fdeacc", "#c27a10")
FIXED, TARGET, LOSS = ("#eef0f3", "#6b7280"), ("#dff3e3", "#2f8f4e"), ("#fbdcdc", "#b83232")
BLOCKS = {"a": "#e4572e", "b": "#8e44ad", "c": "#17a398", "d": "#d9a404"}
SKY, SUN, HILL, TREE, TRUNK = "#a9d3f5", "#f7c948", "#8cbf5a", "#3d7d3a", "#8a5a34"
PICTURE = [
    [SKY, SUN, SKY, SKY, SKY, SKY],
    [SKY, SKY, SKY, TREE, TREE, SKY],
    [SKY, SKY, TREE, TREE, TREE, SKY],
    [SKY, SKY, SKY, TREE, TREE, HILL],
    [SKY, HILL, HILL, TRUNK, HILL, HILL],
    [HILL, HILL, HILL, HILL, HILL, HILL],
]

CELL, GAP, BOX_HEIGHT, FONT, SMALL = 15, 34, 54, 16, 13
TOP, BOTTOM = 70, 218  # vertical centres of the rows
MARGIN = 14
FULL = ["######"] * 6


@dataclass(frozen=True)
class Grid:
    """Patches of one or more views. In a row of text: ``#`` visible, ``.`` left out, ``m`` mask token, a to d blocks.

    ``beside`` leaves out the arrow from the item at the left.
    """

    patches: Sequence[str]
    caption: str
    copies: int = 1
    beside: bool = False

    @property
    def width(self) -> float:
        return max(len(self.patches[0]) * CELL + 6 * (self.copies - 1), 6.4 * len(self.caption))


@dataclass(frozen=True)
class Box:
    """A network or a computation; ``|`` separates lines."""

    text: str
    kind: tuple[str, str]
    beside: bool = False

    @property
    def width(self) -> float:
        return max(8.6 * len(line) for line in self.text.split("|")) + 18


@dataclass(frozen=True)
class Diagram:
    """Two rows of equal columns; None leaves a column out. ``links`` join the rows in a column."""

    top: Sequence[Grid | Box | None]
    bottom: Sequence[Grid | Box | None]
    loss: str
    links: Sequence[tuple[int, str]] = ()
    title: str = ""


def draw(diagram: Diagram) -> str:
    """Return the SVG of a diagram."""
    widths = [max(item.width for item in column if item) for column in zip(diagram.top, diagram.bottom, strict=True)]
    centres, x = [], MARGIN
    for width in widths:
        centres.append(x + width / 2)
        x += width + GAP
    loss = Box(diagram.loss, LOSS)
    has_bottom = any(diagram.bottom)
    height = (BOTTOM if has_bottom else TOP) + 76
    loss_x, loss_y = x + loss.width / 2, (TOP + BOTTOM) / 2 if has_bottom else TOP
    parts = [_row(diagram.top, centres, TOP), _row(diagram.bottom, centres, BOTTOM)]
    parts += [_link(centres[column], label) for column, label in diagram.links]
    for row, y in ((diagram.top, TOP), (diagram.bottom, BOTTOM)):
        ends = [(centre, item) for centre, item in zip(centres, row, strict=True) if item]
        if ends:
            centre, item = ends[-1]
            parts.append(_to_loss(centre + item.width / 2, y, loss_x, loss_y, loss.width))
    parts.append(_item(loss, loss_x, loss_y))
    return _document(x + loss.width + MARGIN, height, parts, diagram.title)


def _row(row: Sequence[Grid | Box | None], centres: Sequence[float], y: float) -> str:
    present = [(item, centre) for item, centre in zip(row, centres, strict=True) if item]
    parts = [_item(item, centre, y) for item, centre in present]
    for (left, x), (right, next_x) in itertools.pairwise(present):
        if not right.beside:
            parts.append(arrow([(x + left.width / 2 + 4, y), (next_x - right.width / 2 - 4, y)]))
    return "".join(parts)


def _item(item: Grid | Box, x: float, y: float) -> str:
    if isinstance(item, Box):
        return box(item.text, x - item.width / 2, y - BOX_HEIGHT / 2, item.width, BOX_HEIGHT, item.kind)
    return _grid(item, x, y)


def _grid(grid: Grid, x: float, y: float) -> str:
    rows, columns = len(grid.patches), len(grid.patches[0])
    left, top = x - (columns * CELL + 6 * (grid.copies - 1)) / 2, y - rows * CELL / 2
    parts = []
    for copy in reversed(range(grid.copies)):
        dx, dy = left + 6 * copy, top - 5 * copy
        parts.append(f'<rect x="{dx - 1:g}" y="{dy - 1:g}" width="{columns * CELL + 2}" height="{rows * CELL + 2}" '
                     'fill="#fff" stroke="#9aa1ab"/>')  # fmt: skip
        for row, line in enumerate(grid.patches):
            for column, patch in enumerate(line):
                colour = _colour(patch, row, column)
                if colour:
                    place = f'x="{dx + column * CELL + 0.5:g}" y="{dy + row * CELL + 0.5:g}"'
                    parts.append(f'<rect {place} width="{CELL - 1}" height="{CELL - 1}" fill="{colour}"/>')
    parts.append(text(grid.caption, x, top + rows * CELL + 17, SMALL))
    return "".join(parts)


def _colour(patch: str, row: int, column: int) -> str | None:
    if patch == ".":
        return None
    if patch == "m":
        return "#4b5563"
    return BLOCKS.get(patch) or PICTURE[row][column]


def _link(x: float, label: str) -> str:
    top, bottom = TOP + BOX_HEIGHT / 2 + 4, BOTTOM - BOX_HEIGHT / 2 - 4
    return arrow([(x, top), (x, bottom)], dashed=True) + text(label, x + 8, (top + bottom) / 2 + 5, SMALL, "start")


def _to_loss(x: float, y: float, loss_x: float, loss_y: float, width: float) -> str:
    if y == loss_y:
        return arrow([(x + 4, y), (loss_x - width / 2 - 4, y)])
    edge = loss_y + (BOX_HEIGHT / 2 + 4) * (1 if y > loss_y else -1)
    return arrow([(x + 4, y), (loss_x, y), (loss_x, edge)])


def box(label: str, x: float, y: float, width: float, height: float, kind: tuple[str, str]) -> str:
    """Return a box with one line of text for each part of the label between ``|``; EMA weights are dashed."""
    fill, stroke = kind
    dash = ' stroke-dasharray="6 4"' if kind == EMA else ""
    lines = label.split("|")
    first = y + height / 2 + FONT * 0.35 - (len(lines) - 1) * 10
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{fill}" stroke="{stroke}" '
    texts = [text(line, x + width / 2, first + 20 * number, FONT) for number, line in enumerate(lines)]
    return shape + f'stroke-width="1.6"{dash}/>' + "".join(texts)


def arrow(points: Sequence[tuple[float, float]], *, dashed: bool = False) -> str:
    """Return a line through the points with a head at its end."""
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<path d="M {path}" fill="none" stroke="#374151" stroke-width="1.6" marker-end="url(#head)"{dash}/>'


def text(content: str, x: float, y: float, size: int, anchor: str = "middle", *, mono: bool = False) -> str:
    """Return one line of text."""
    family = ' font-family="monospace"' if mono else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{family}>{escape(content)}</text>'


def _document(width: float, height: float, parts: Sequence[str], title: str) -> str:
    head = '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'font-family="Helvetica, Arial, sans-serif" fill="#1f2937">\n<title>{escape(title)}</title>\n'
        f'<defs>{head}<path d="M0 0 L10 5 L0 10 z" fill="#374151"/></marker></defs>\n'
        f'<rect width="100%" height="100%" rx="10" fill="#ffffff"/>\n' + "\n".join(filter(None, parts)) + "\n</svg>\n"
    )


CONTEXT = ["##....", "####..", "####..", "###...", "######", "######"]
TARGETS = ["..aabb", "..aabb", "......", "...ddd", "cccddd", "ccc..."]
QUARTER = [".#....", "....#.", "#..#..", ".....#", ".#.#..", "#....#"]
REST = ["#.####", "####.#", ".##.##", "#####.", "#.#.##", ".####."]
TOKENS = [row.replace(".", "m") for row in QUARTER]
CELLS = ["##mm##", "##mm##", "mmmm##", "mmmm##", "##mmmm", "##mmmm"]
BLOCKWISE = ["####mm", "#mmmmm", "#mmmmm", "#mmm##", "#mmm##", "######"]
VISIBLE = [row.replace("m", ".") for row in BLOCKWISE]
HIDDEN = ["....##", ".#####", ".#####", ".###..", ".###..", "......"]
INVERSE = [".###..", ".###..", ".###..", "...###", "...###", "...###"]
DROPPED = ["##.###", "######", "###.##", ".#####", "####.#", "#####."]
SMALL_CROP = ["###", "###", "###"]

DIAGRAMS = {
    "ijepa": Diagram(
        [Grid(CONTEXT, "context"), Box("encoder", TRAINED), Box("predictor", TRAINED), Grid(TARGETS, "predictions")],
        [Grid(FULL, "image"), Box("target|encoder", EMA), None, Grid(TARGETS, "target blocks")],
        "distance",
        [(1, "EMA")],
        "I-JEPA predicts the target encoder's features of four blocks from a context.",
    ),
    "mae": Diagram(
        [Grid(QUARTER, "visible"), Box("encoder", TRAINED), Box("decoder", TRAINED), Grid(REST, "predictions")],
        [Grid(FULL, "image"), None, Box("normalise|patches", FIXED), Grid(REST, "masked patches")],
        "squared|error",
        title="MAE reconstructs the pixels of masked patches from the visible ones.",
    ),
    "simmim": Diagram(
        [Grid(CELLS, "mask tokens"), Box("encoder", TRAINED), Box("linear", TRAINED)],
        [Grid(FULL, "image"), None, Grid([row.replace("#", ".").replace("m", "#") for row in CELLS], "masked pixels")],
        "L1",
        title="SimMIM regresses the pixels of masked patches with one linear layer.",
    ),
    "cae": Diagram(
        [
            Grid(VISIBLE, "visible"),
            Box("encoder", TRAINED),
            Box("latent|regressor", TRAINED),
            Box("decoder", TRAINED),
        ],
        [
            Grid(HIDDEN, "masked"),
            Box("encoder", FIXED),
            Box("latents", TARGET),
            Box("+ tokens|of pixels", TARGET, True),
        ],
        "tokens|+ latents",
        [(1, "same weights")],
        "CAE predicts the latents of masked patches and decodes their tokens from these.",
    ),
    "data2vec": Diagram(
        [Grid(BLOCKWISE, "mask tokens"), Box("encoder", TRAINED), Box("linear", TRAINED)],
        [Grid(FULL, "image"), Box("teacher", EMA), Box("mean of|last blocks", TARGET)],
        "smooth L1",
        [(1, "EMA")],
        "data2vec predicts the mean of a teacher's last blocks at masked patches.",
    ),
    "data2vec2": Diagram(
        [Grid(INVERSE, "16 masks", copies=3), Box("encoder", TRAINED), Box("convolutional|decoder", TRAINED)],
        [Grid(FULL, "image, once"), Box("teacher", EMA), Box("mean of|last blocks", TARGET)],
        "squared|error",
        [(1, "EMA")],
        "data2vec 2.0 shares one teacher pass among many masks of an image.",
    ),
    "dino": Diagram(
        [
            Grid(FULL, "2 global", copies=2),
            Grid(SMALL_CROP, "8 local", copies=3, beside=True),
            Box("encoder|+ head", TRAINED),
            Box("softmax", FIXED),
        ],
        [Grid(FULL, "2 global", copies=2), None, Box("teacher|+ head", EMA), Box("center,|sharpen", TARGET)],
        "cross|entropy",
        [(2, "EMA")],
        "DINO matches a teacher's distribution over prototypes across crops.",
    ),
    "ibot": Diagram(
        [
            Grid(BLOCKWISE, "2 global, masked", copies=2),
            Grid(SMALL_CROP, "10 local", copies=3, beside=True),
            Box("encoder|+ head", TRAINED),
            Box("softmax", FIXED),
        ],
        [Grid(FULL, "2 global", copies=2), None, Box("teacher|+ head", EMA), Box("center,|sharpen", TARGET)],
        "crops +|patches",
        [(2, "EMA")],
        "iBOT adds DINO's task at the masked patches of the global crops.",
    ),
    "msn": Diagram(
        [
            Grid(DROPPED, "masked crop"),
            Grid(SMALL_CROP, "10 focal", copies=3, beside=True),
            Box("encoder|+ head", TRAINED),
            Box("prototypes", TRAINED),
        ],
        [Grid(FULL, "other crop"), None, Box("target enc.|+ head", EMA), Box("sharpen", TARGET)],
        "cross entropy|+ me-max",
        [(2, "EMA")],
        "MSN assigns a masked crop and focal crops to the prototypes of another crop.",
    ),
    "simclr": Diagram(
        [Grid(FULL, "first crops", copies=3), Box("encoder|+ head", TRAINED), Box("projections", FIXED)],
        [Grid(FULL, "second crops", copies=3), Box("encoder|+ head", TRAINED), Box("projections", FIXED)],
        "NT-Xent",
        [(1, "same weights")],
        "SimCLR finds an image's other crop among the crops of the batch.",
    ),
    "lejepa": Diagram(
        [
            Grid(FULL, "2 global", copies=2),
            Grid(SMALL_CROP, "6 local", copies=3, beside=True),
            Box("encoder|+ projector", TRAINED),
            Box("mean of the|global ones", TARGET),
        ],
        [None, None, Box("all images'|projections", FIXED), Box("standard|Gaussian", TARGET)],
        "invariance|+ SIGReg",
        [(2, "")],
        "LeJEPA compares projections of crops with their mean, and their distribution with a Gaussian.",
    ),
}


# One box per part of a run: label, config group that swaps it, left edge, top edge, kind.
PARTS = [
    ("images", "data", 20, 20, FIXED),
    ("views", "views", 190, 20, FIXED),
    ("masks", "masks", 360, 20, FIXED),
    ("batch", "", 530, 20, FIXED),
    ("context", "", 20, 150, FIXED),
    ("encoder", "backbone", 190, 150, TRAINED),
    ("predictor", "method", 360, 150, TRAINED),
    ("full view", "", 20, 280, FIXED),
    ("target encoder", "targets", 190, 280, EMA),
    ("targets", "", 360, 280, TARGET),
    ("loss", "method", 530, 215, LOSS),
    ("probes", "probe", 20, 410, FIXED),
    ("EMA update", "targets.ema", 190, 410, FIXED),
    ("optimizer", "optim", 360, 410, FIXED),
    ("+ regularizer", "regularizer", 530, 410, LOSS),
]
WIDTH, TALL = 130, 54
FLOWS = [
    [(150, 47), (186, 47)],
    [(320, 47), (356, 47)],
    [(490, 47), (526, 47)],
    [(595, 78), (595, 112), (85, 112), (85, 146)],
    [(85, 112), (6, 112), (6, 307), (16, 307)],
    [(150, 177), (186, 177)],
    [(320, 177), (356, 177)],
    [(490, 177), (595, 177), (595, 211)],
    [(150, 307), (186, 307)],
    [(320, 307), (356, 307)],
    [(490, 307), (595, 307), (595, 292)],
    [(660, 242), (680, 242), (680, 437), (664, 437)],
    [(526, 437), (494, 437)],
    [(356, 437), (324, 437)],
    [(186, 437), (154, 437)],
]


def concepts() -> str:
    """Return the diagram of a run, from an image to the update of the weights."""
    parts = [arrow(points) for points in FLOWS]
    parts.append(arrow([(255, 406), (255, 358)], dashed=True))
    for label, group, x, y, kind in PARTS:
        parts.append(box(label, x, y, WIDTH, TALL, kind))
        if group:
            parts.append(text(group, x + WIDTH / 2, y + TALL + 16, SMALL, mono=True))
    title = "A training step; below each box the config group that swaps it."
    return _document(694, 500, parts, title)


def main() -> None:
    for name, diagram in DIAGRAMS.items():
        (IMAGES / f"{name}.svg").write_text(draw(diagram))
    (IMAGES / "concepts.svg").write_text(concepts())


if __name__ == "__main__":
    main()
