"""Weights of a vision transformer for images of another size than it was trained on.

Only tensors of positions depend on the grid of patches. Sin-cos tables are recomputed, learned tables and relative
position biases are interpolated, all other tensors stay the same.
"""

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.nn.pos_embed import interpolate_positions, sincos_positions
from ssl_zoo.nn.relative_position import relative_position_index
from ssl_zoo.nn.vit import Positions, ViTConfig

_POSITIONS = "pos_embed"
_BIAS, _INDEX = "rel_pos_bias.relative_position_bias_table", "rel_pos_bias.relative_position_index"


def resize_vit(
    state: Mapping[str, Tensor], source: tuple[int, int], config: ViTConfig, *, antialias: bool = False
) -> dict[str, Tensor]:
    """Return a ViT's state dict for the grid of ``config``; tensors that don't depend on it are the same objects.

    By default a learned table is interpolated as the ViT itself does for images of another size, such as local crops
    (bicubic, as in DINO's code, with ``backbone.position_offset``). The features are then those of the original network
    on larger images.

    Args:
        state: weights under the names of ``ViT``; other tensors are passed through.
        source: rows and columns of the grid of patches that ``state`` is for; ``source_grid`` finds them.
        config: of the network that the result is for. Its patch size is that of ``state``.
        antialias: interpolate learned tables with timm's bicubic kernel (a = -0.5), which also filters where the new
            grid is smaller.

    Raises:
        ValueError: a table has another number of rows than ``source`` needs.
    """
    resized, grid = dict(state), config.grid
    if source == grid:
        return resized
    if _POSITIONS in state:
        resized[_POSITIONS] = _positions(state[_POSITIONS], source, config, antialias)
    if _BIAS in state:
        resized[_BIAS] = resize_relative_bias(state[_BIAS], source, grid)
    if _INDEX in state:
        resized[_INDEX] = relative_position_index(grid, config.class_token).to(state[_INDEX].device)
    return resized


def resize_relative_bias(
    table: Float[Tensor, "R heads"], source: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "S heads"]:
    """Interpolate a table of relative position biases to another grid; rows of the class token stay the same.

    The table of a grid of h rows holds 2h - 1 vertical offsets, and the zero offset stays in its center. Interpolation
    is bicubic over offsets, as in the fine-tuning of SimMIM (arXiv 2111.09886, its code).
    # Differs from the reference: BEiT interpolates on a geometric sequence of offsets.

    Raises:
        ValueError: the table is not one of ``source``.
    """
    rows, columns = (2 * side - 1 for side in source)
    num_extra = len(table) - rows * columns
    if num_extra not in (0, 3):
        raise ValueError(
            f"{_BIAS} has {len(table)} rows, but a grid of {source[0]}x{source[1]} patches needs {rows * columns}, and "
            "3 more with a class token"
        )
    offsets, extra = table[: rows * columns], table[rows * columns :]
    image = offsets.unflatten(0, (rows, columns)).permute(2, 0, 1)[None]
    size = tuple(2 * side - 1 for side in grid)
    resized = F.interpolate(image.float(), size=size, mode="bicubic", align_corners=False)[0]
    return torch.cat([resized.flatten(1).T.to(table.dtype), extra])


def source_grid(state: Mapping[str, Tensor], config: ViTConfig) -> tuple[int, int] | None:
    """Return the grid that weights are for, from the rows of their tables; None where no tensor depends on it.

    It is the grid of ``config`` where that fits, otherwise a square.

    Raises:
        ValueError: the tables are of a grid that is not square.
    """
    if _POSITIONS in state:
        num_rows = state[_POSITIONS].shape[-2] - int(config.class_token)
        if num_rows == config.grid[0] * config.grid[1]:
            return config.grid
        side = isqrt(max(0, num_rows))
        if side and side * side == num_rows:
            return side, side
        raise ValueError(_not_square(_POSITIONS, state[_POSITIONS], config))
    if _BIAS in state:
        num_rows = len(state[_BIAS]) - 3 * int(config.class_token)
        if num_rows == (2 * config.grid[0] - 1) * (2 * config.grid[1] - 1):
            return config.grid
        width = isqrt(max(0, num_rows))
        if width % 2 and width * width == num_rows:
            return (width + 1) // 2, (width + 1) // 2
        raise ValueError(_not_square(_BIAS, state[_BIAS], config))
    return None


def _not_square(name: str, table: Tensor, config: ViTConfig) -> str:
    class_token = "a" if config.class_token else "no"
    return (
        f"{name} has shape {list(table.shape)}: with {class_token} class token neither the grid "
        f"{config.grid[0]}x{config.grid[1]} of backbone.image_size nor a square one has as many rows; set "
        "backbone.image_size, image_width, patch_size and class_token to those of the weights"
    )


def _positions(table: Tensor, source: tuple[int, int], config: ViTConfig, antialias: bool) -> Tensor:
    num_prefix, num_patches = int(config.class_token), source[0] * source[1]
    if table.shape[-2] != num_prefix + num_patches:
        raise ValueError(
            f"{_POSITIONS} has {table.shape[-2]} rows, but a grid of {source[0]}x{source[1]} patches with {num_prefix} "
            f"class tokens needs {num_prefix + num_patches}"
        )
    if config.positions is Positions.sincos:
        table_of_grid = sincos_positions(config.grid, table.shape[-1], config.sincos_layout, num_prefix=num_prefix)
        return table_of_grid.to(table)
    options = {"num_prefix": num_prefix, "offset": config.position_offset, "antialias": antialias}
    return interpolate_positions(table, source, config.grid, **options)
