"""Learned attention biases that depend on the offset between two patches (BEiT, arXiv 2106.08254)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class RelativePositionBias(nn.Module):
    """A table, shared by all blocks, with a bias per head and per row and column offset between query and key patch.

    With a class token three further rows hold class-to-patch, patch-to-class and class-to-class. Names and layout are
    BEiT's, so that the official tables load without conversion.
    """

    def __init__(self, grid: tuple[int, int], num_heads: int, class_token: bool) -> None:
        super().__init__()
        self.num_prefix_tokens = int(class_token)
        num_rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * int(class_token)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_rows, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(grid, class_token))

    def forward(self, keep: Int[Tensor, "S K"] | None = None) -> Float[Tensor, "#S heads L L"]:
        """Return the biases [query, key] between all tokens, or between the prefix token and the visible patches."""
        index = self.relative_position_index
        if keep is None:
            return self._biases(index)[None]
        kept = F.pad(keep + self.num_prefix_tokens, (self.num_prefix_tokens, 0))  # the class token is token 0
        return self._biases(index[kept[:, :, None], kept[:, None, :]])

    def _biases(self, index: Int[Tensor, "*S L L"]) -> Float[Tensor, "*S heads L L"]:
        # CUDA's memory-efficient kernel needs a contiguous bias; otherwise torch runs unfused matmuls.
        return F.embedding(index, self.relative_position_bias_table).movedim(-1, -3).contiguous()


def relative_position_index(grid: tuple[int, int], class_token: bool) -> Int[Tensor, "L L"]:
    """Return the table's row for every query and key token."""
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"))
    down = rows[:, None] - rows[None] + grid[0] - 1
    right = columns[:, None] - columns[None] + grid[1] - 1
    index = down * (2 * grid[1] - 1) + right
    if not class_token:
        return index
    last = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    index = F.pad(index, (1, 0, 1, 0))
    index[0, :], index[:, 0], index[0, 0] = last, last + 1, last + 2
    return index
