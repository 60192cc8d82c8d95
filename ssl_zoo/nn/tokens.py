"""Indexing of tokens by patch, and conversion between images and patches.

Patch indices count 0..N-1 row-major on the grid; prefix tokens are never counted.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def take(tokens: Float[Tensor, "B N D"], index: Int[Tensor, "B *K"]) -> Float[Tensor, "B *K D"]:
    """Gather the tokens at ``index`` of shape (B, K), (B, M, T) or deeper."""
    batch, num_tokens, dim = tokens.shape
    first = torch.arange(0, batch * num_tokens, num_tokens, device=index.device)
    rows = index.flatten(1) + first[:, None]
    return tokens.reshape(-1, dim).index_select(0, rows.flatten()).view(*index.shape, dim)


def scatter_back(
    tokens: Float[Tensor, "B K D"], index: Int[Tensor, "B K"], fill: Float[Tensor, "#B N D"]
) -> Float[Tensor, "B N D"]:
    """Put tokens at their patches and ``fill`` at all others; with distinct indices the inverse of ``take``.

    Args:
        fill: e.g. a mask token expanded to (1, N, D).
    """
    batch, _, dim = tokens.shape
    canvas = fill.to(tokens.dtype).expand(batch, -1, -1)
    return canvas.scatter(1, index[..., None].expand(-1, -1, dim), tokens)


def mean_per_patch(
    tokens: Float[Tensor, "B K D"], index: Int[Tensor, "B K"], num_patches: int
) -> Float[Tensor, "B N D"]:
    """Average the tokens of each patch, which may occur several times in ``index``; zero where it never occurs."""
    batch, _, dim = tokens.shape
    sums = tokens.new_zeros(batch, num_patches, dim).scatter_add_(1, index[..., None].expand(-1, -1, dim), tokens)
    counts = tokens.new_zeros(batch, num_patches).scatter_add_(1, index, torch.ones_like(index, dtype=tokens.dtype))
    return sums / counts.clamp_min(1)[..., None]


def distance_to_nearest(
    patches: Int[Tensor, "*#B K"], others: Int[Tensor, "*#B T"], grid: tuple[int, int]
) -> Float[Tensor, "*B K"]:
    """Return the distance of each patch from the nearest one of ``others`` on the grid, in patches."""
    (rows, columns), (other_rows, other_columns) = (
        (index // grid[1], index % grid[1]) for index in (patches[..., :, None], others[..., None, :])
    )
    return ((rows - other_rows).square() + (columns - other_columns).square()).amin(dim=-1).float().sqrt()


def patchify(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B N P"]:
    """Return the pixels of each patch in the order (y, x, colour), colour fastest, as MAE predicts them."""
    batch, channels, height, width = images.shape
    rows, cols = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, cols, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * cols, patch_size * patch_size * channels)


def unpatchify(patches: Float[Tensor, "B N P"], grid: tuple[int, int], patch_size: int) -> Float[Tensor, "B C H W"]:
    """Invert ``patchify``; the number of colour channels follows from the number of pixels per patch."""
    batch, (rows, cols) = patches.shape[0], grid
    cut = patches.reshape(batch, rows, cols, patch_size, patch_size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, cols * patch_size)
