"""Embeddings of patches: one linear layer, or convolutions inside each patch."""

import itertools
from enum import Enum

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn


class PatchStem(Enum):
    """The layers that turn the pixels of a patch into a token."""

    linear = "linear"  # ViT (arXiv 2010.11929)
    convolutional = "convolutional"  # 3x3 convolutions of stride 2 (arXiv 2106.14881), which do not leave the patch


class PatchEmbedding(PatchEmbed):
    """timm's patch embedding, computed as one matmul over patches instead of a convolution.

    Function and parameters are the same. On a CPU the convolution takes six times as long at 32 px and patch 4, and it
    can't skip masked patches.
    """

    def cut(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        """Return the pixels of each patch in the order of the convolution's weight: (colour, y, x)."""
        batch, channels, height, width = images.shape
        (tall, wide), rows, cols = self.patch_size, height // self.patch_size[0], width // self.patch_size[1]
        cells = images.reshape(batch, channels, rows, tall, cols, wide)
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * cols, channels * tall * wide)

    def project(self, patches: Float[Tensor, "B *N P"]) -> Float[Tensor, "B *N D"]:
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        return self.project(self.cut(images))


class ConvolutionalPatchEmbedding(nn.Module):
    """Convolutions that halve a patch until one token is left, each with a norm and GELU, and a linear layer.

    Differs from the reference (Xiao et al., "Early Convolutions Help Transformers See Better", arXiv 2106.14881): each
    patch is padded with zeros and normalised on its own. Convolutions across patches would show the encoder pixels of
    masked ones, and batch normalization would couple the images.

    Args:
        patch_size: side of a patch; the number of convolutions is its base-2 logarithm, rounded up.
    """

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size, self.in_channels = (patch_size, patch_size), in_channels
        depth = max(1, (patch_size - 1).bit_length())
        widths = [in_channels, *(max(1, dim >> (depth - 1 - layer)) for layer in range(depth))]
        layers = (
            (nn.Conv2d(width_in, width, 3, stride=2, padding=1), nn.GroupNorm(1, width), nn.GELU())
            for width_in, width in itertools.pairwise(widths)
        )
        self.convolutions = nn.Sequential(*itertools.chain.from_iterable(layers))
        self.proj = nn.Linear(dim, dim)

    cut = PatchEmbedding.cut

    def project(self, patches: Float[Tensor, "B *N P"]) -> Float[Tensor, "B *N D"]:
        leading = patches.shape[:-1]
        pixels = patches.reshape(-1, self.in_channels, *self.patch_size)
        return self.proj(self.convolutions(pixels).flatten(1)).unflatten(0, leading)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        return self.project(self.cut(images))
