"""Similarity of one patch to all others of its image."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.plotting import Column, Figure, Ramp, map_colours, patch_colours
from ssl_zoo.visualization.marks import check_patch, framed
from ssl_zoo.visualization.subject import Subject

SIMILARITY_NOTE = (
    "Cosine similarity of the encoder's features. A network that knows objects gives patches of one object like "
    "features, wherever they are."
)


def patch_similarities(subject: Subject) -> Float[Tensor, "B N N"]:
    """Return the cosine similarity of every patch to every other patch of its image."""
    unit = F.normalize(subject.patch_features(), dim=-1)
    return (unit @ unit.transpose(1, 2)).clamp(-1, 1)


def plot_similarity(subject: Subject, patch: tuple[int, int] | None = None) -> Figure:
    """Return a figure of the similarity of one patch to all others of its image.

    Args:
        patch: row and column; by default the one in the middle.

    Raises:
        ValueError: the patch does not exist; the message has the bounds.
    """
    grid = subject.grid
    row, column = patch or (grid[0] // 2, grid[1] // 2)
    check_patch((row, column), grid)
    similarity = patch_similarities(subject)[:, row * grid[1] + column]
    low = similarity.min().item()
    colours = map_colours(scaled(similarity, low))
    columns = [
        Column("image and patch", framed(subject.pixels, (row, column), grid)),
        Column("similarity to the framed patch", patch_colours(colours, grid, subject.rendering.size)),
    ]
    title = f"Similarity: which patches are represented like the framed one (row {row}, column {column})"
    return Figure(title, columns, [Ramp("cosine similarity", f"{low:.2f}", "1")], SIMILARITY_NOTE)


def scaled(similarity: Float[Tensor, "*S"], low: float) -> Float[Tensor, "*S"]:
    """Map similarities from ``low`` to 1 to values from 0 to 1."""
    return ((similarity - low) / max(1 - low, 1e-6)).clamp(0, 1)
