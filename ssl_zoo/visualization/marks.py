"""The frame around a chosen patch."""

from jaxtyping import Float
from torch import Tensor

from ssl_zoo.plotting import as_rgb

_RED = (1.0, 0.1, 0.1)


def check_patch(patch: tuple[int, int], grid: tuple[int, int]) -> None:
    """Refuse a patch outside of the grid.

    Raises:
        ValueError: with the bounds.
    """
    row, column = patch
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise ValueError(
            f"--patch {row},{column}: the images have {grid[0]} x {grid[1]} patches, rows 0..{grid[0] - 1} and columns "
            f"0..{grid[1] - 1}"
        )


def framed(
    images: Float[Tensor, "B C H W"], patch: tuple[int, int] | None, grid: tuple[int, int]
) -> Float[Tensor, "B 3 H W"]:
    """Return images with a red frame around a patch, or unchanged ones."""
    marked = as_rgb(images).clone()
    if patch is None:
        return marked
    height, width = images.shape[-2] // grid[0], images.shape[-1] // grid[1]
    cell = marked[..., patch[0] * height :, patch[1] * width :][..., :height, :width]
    inside, line = cell.clone(), max(1, height // 8)
    cell[:] = cell.new_tensor(_RED)[:, None, None]
    if min(height, width) > 2 * line:
        cell[..., line:-line, line:-line] = inside[..., line:-line, line:-line]
    return marked
