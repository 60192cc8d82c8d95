"""A small U-Net that estimates the velocity of a flow, given a vector per image.

Residual blocks with scale and shift of their norms, as in ADM (Dhariwal and Nichol, arXiv 2105.05233, sec. 3), the
network of RCDM (arXiv 2112.09164).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.settings import Settings, setting

_NUM_GROUPS = 16
_TIME_SCALE = 1000.0  # times 0..1 become the 0..1000 that sinusoidal embeddings of diffusion models are made for


@dataclass
class UNetConfig(Settings):
    """Sizes of the generator; the defaults train in minutes on two CPU cores."""

    section = "network"

    patch_size: int = setting(2, "pixels per side that the first layer folds into channels", at_least=1)
    dim: int = setting(64, "channels at the first level", at_least=16, multiple_of=_NUM_GROUPS)
    dim_multipliers: list[int] = setting(
        [1, 2], "channels of each level over dim; each level halves the size", at_least=1
    )
    blocks_per_level: int = setting(1, "residual blocks per level and direction", at_least=1)
    num_heads: int = setting(4, "attention heads at the last level", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dim_multipliers:
            raise ValueError("network.dim_multipliers=[]: needs at least one level, e.g. [1,2]")
        width = self.dim * self.dim_multipliers[-1]
        if width % self.num_heads:
            raise ValueError(f"network.num_heads={self.num_heads} does not divide the last level's width, {width}")

    @property
    def reduction(self) -> int:
        """Pixels per side of the last level's cells."""
        return self.patch_size * 2 ** (len(self.dim_multipliers) - 1)


class UNet(nn.Module):
    """Maps noisy images, their times in 0..1 and a condition to a velocity of the shape of the images.

    Args:
        channels: of the images.
        condition_dim: width of the conditions.
    """

    def __init__(self, config: UNetConfig, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.config = config
        widths = [config.dim * multiplier for multiplier in config.dim_multipliers]
        embed_dim = 4 * config.dim
        self.time = nn.Sequential(nn.Linear(config.dim, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))
        self.condition = nn.Sequential(nn.Linear(condition_dim, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))
        pixels = channels * config.patch_size**2
        self.stem = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            for _ in range(config.blocks_per_level):
                self.down.append(ResidualBlock(width, out, embed_dim))
                width = out
                skips.append(width)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(width, width, embed_dim),
                Attention(width, config.num_heads),
                ResidualBlock(width, width, embed_dim),
            ]
        )
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.blocks_per_level + 1):
                self.up.append(ResidualBlock(width + skips.pop(), out, embed_dim))
                width = out
            if level:
                self.up.append(Upsample(width))
        self.norm = nn.GroupNorm(_NUM_GROUPS, width)
        self.out = nn.Conv2d(width, pixels, 3, padding=1)
        _zero(self.out)

    def forward(
        self, images: Float[Tensor, "S C H W"], time: Float[Tensor, "S"], condition: Float[Tensor, "S D"]
    ) -> Float[Tensor, "S C H W"]:
        embedding = F.silu(self.time(_sinusoids(time, self.config.dim)) + self.condition(condition))
        x = self.stem(F.pixel_unshuffle(images, self.config.patch_size).contiguous(memory_format=torch.channels_last))
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        for layer in self.up:
            x = layer(torch.cat([x, skips.pop()], dim=1), embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return F.pixel_shuffle(self.out(F.silu(self.norm(x))).float(), self.config.patch_size)


class ResidualBlock(nn.Module):
    """Two convolutions whose second norm is scaled and shifted by the embedding of time and condition."""

    def __init__(self, width: int, out: int, embed_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(_NUM_GROUPS, width), nn.GroupNorm(_NUM_GROUPS, out)
        self.conv1, self.conv2 = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.modulation = nn.Linear(embed_dim, 2 * out)
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        _zero(self.conv2)

    def forward(self, x: Float[Tensor, "S C H W"], embedding: Float[Tensor, "S E"]) -> Float[Tensor, "S O H W"]:
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.modulation(embedding)[..., None, None].chunk(2, dim=1)
        return self.skip(x) + self.conv2(F.silu(hidden * (1 + scale) + shift))


class Attention(nn.Module):
    """Self-attention over the cells of the last level."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(_NUM_GROUPS, width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        _zero(self.proj)

    def forward(self, x: Float[Tensor, "S C H W"]) -> Float[Tensor, "S C H W"]:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.proj(attended).transpose(1, 2).unflatten(2, x.shape[-2:])


class Upsample(nn.Module):
    """Doubles height and width, then convolves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "S C H W"]) -> Float[Tensor, "S C H2 W2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _sinusoids(time: Float[Tensor, "S"], dim: int) -> Float[Tensor, "S {dim}"]:
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(dim // 2, device=time.device) / (dim // 2))
    angles = _TIME_SCALE * time[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _zero(layer: nn.Module) -> None:
    """Start a residual branch, or the network, at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
