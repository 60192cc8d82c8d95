"""Picking tokens by patch index, and cutting images into patches and back.

Patch indices count 0..N-1 row-major on the grid; prefix tokens are never counted.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def take(tokens: Float[Tensor, "B N D"], index: Int[Tensor, "B *K"]) -> Float[Tensor, "B *K D"]:
    """The tokens at ``index``, of shape (B, K), (B, M, T) or deeper, in one gather."""
    batch, num_tokens, dim = tokens.shape
    first = torch.arange(0, batch * num_tokens, num_tokens, device=index.device)
    rows = index.flatten(1) + first[:, None]
    return tokens.reshape(-1, dim).index_select(0, rows.flatten()).view(*index.shape, dim)


def scatter_back(
    tokens: Float[Tensor, "B K D"], index: Int[Tensor, "B K"], fill: Float[Tensor, "#B N D"]
) -> Float[Tensor, "B N D"]:
    """The tokens at their places on the grid, ``fill`` everywhere else; with distinct indices the inverse of ``take``.

    Args:
        fill: what stands at all other places, e.g. a mask token expanded to (1, N, D).
    """
    batch, _, dim = tokens.shape
    canvas = fill.to(tokens.dtype).expand(batch, -1, -1)
    return canvas.scatter(1, index[..., None].expand(-1, -1, dim), tokens)


def mean_per_patch(
    tokens: Float[Tensor, "B K D"], index: Int[Tensor, "B K"], num_patches: int
) -> Float[Tensor, "B N D"]:
    """The mean of each patch's tokens, where ``index`` may name a patch several times; zero where it never does."""
    batch, _, dim = tokens.shape
    sums = tokens.new_zeros(batch, num_patches, dim).scatter_add_(1, index[..., None].expand(-1, -1, dim), tokens)
    counts = tokens.new_zeros(batch, num_patches).scatter_add_(1, index, torch.ones_like(index, dtype=tokens.dtype))
    return sums / counts.clamp_min(1)[..., None]


def patchify(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B N P"]:
    """Pixels of each patch in the order (y, x, colour), colour fastest, as MAE predicts them."""
    batch, channels, height, width = images.shape
    rows, cols = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, cols, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * cols, patch_size * patch_size * channels)


def unpatchify(patches: Float[Tensor, "B N P"], grid: tuple[int, int], patch_size: int) -> Float[Tensor, "B C H W"]:
    """The images that ``patchify`` cut; the number of colour channels follows from the width of a patch."""
    batch, (rows, cols) = patches.shape[0], grid
    cut = patches.reshape(batch, rows, cols, patch_size, patch_size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, cols * patch_size)
