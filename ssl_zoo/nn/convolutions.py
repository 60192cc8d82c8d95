"""The convolutional decoder of data2vec 2.0 (arXiv 2212.07525, sec. 3.2)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvolutionalDecoder(nn.Module):
    """Predicts every patch of a grid from the tokens of the full grid.

    Each layer is a grouped convolution, a layer norm over channels without weights, and GELU, with a residual
    connection where input and output have the same width.

    Args:
        dim_in: width of a token.
        dim: channels of the layers.
        dim_out: width of a prediction.
        kernel_size: odd side of the convolutions in patches.

    Raises:
        ValueError: ``groups`` does not divide both ``dim_in`` and ``dim``, or ``kernel_size`` is even.
    """

    def __init__(
        self,
        *,
        dim_in: int,
        dim: int,
        dim_out: int,
        depth: int,
        kernel_size: int,
        groups: int,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        if dim_in % groups or dim % groups:
            raise ValueError(f"{groups} convolution groups must divide the token width {dim_in} and the {dim} channels")
        if kernel_size % 2 == 0:
            raise ValueError(f"a convolution of kernel size {kernel_size} has no centre; use an odd size")
        self.grid = grid
        self.layers = nn.ModuleList(
            nn.Conv2d(dim if layer else dim_in, dim, kernel_size, padding=kernel_size // 2, groups=groups)
            for layer in range(depth)
        )
        self.proj_out = nn.Linear(dim, dim_out)

    def forward(self, tokens: Float[Tensor, "S N D"]) -> Float[Tensor, "S N dim_out"]:
        """Predict all patches, row-major as the tokens."""
        x = tokens.unflatten(1, self.grid)
        for layer in self.layers:
            y = layer(x.movedim(-1, 1)).movedim(1, -1)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if x.shape == y.shape else y
        return self.proj_out(x.flatten(1, 2))
