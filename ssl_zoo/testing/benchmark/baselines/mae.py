"""MAE's parts by hand, after the paper's reference code, for libraries that have none."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.engine.build import RunConfig
from ssl_zoo.masks.subsets import floor_fraction
from ssl_zoo.methods.mae import MAEConfig
from ssl_zoo.nn.vit import ViTConfig
from ssl_zoo.testing.benchmark.baselines.base import gather


class Decoder(nn.Module):
    """Decodes visible tokens and mask tokens in the order of the grid, and predicts the pixels of every patch.

    Args:
        blocks: of width ``config.decoder_dim``, called one after the other.
    """

    def __init__(self, config: MAEConfig, encoder: ViTConfig, blocks: nn.Module) -> None:
        super().__init__()
        dim, self.num_prefix = config.decoder_dim, int(encoder.class_token)
        num_tokens = self.num_prefix + math.prod(encoder.grid)
        self.embed = nn.Linear(encoder.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, num_tokens, dim), requires_grad=False)
        self.blocks = blocks
        self.norm = nn.LayerNorm(dim, eps=encoder.norm_eps)
        self.predict = nn.Linear(dim, encoder.in_channels * encoder.patch_size**2)

    def forward(
        self, tokens: Float[Tensor, "B L D"], keep: Int[Tensor, "B K"], masked: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B N P"]:
        tokens = self.embed(tokens)
        prefix, visible = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        mask_tokens = self.mask_token.expand(*masked.shape, -1).to(visible.dtype)
        restore = torch.cat([keep, masked], dim=1).argsort(dim=1)
        patches = gather(torch.cat([visible, mask_tokens], dim=1), restore)
        x = torch.cat([prefix, patches], dim=1) + self.pos_embed
        return self.predict(self.norm(self.blocks(x))[:, self.num_prefix :])


def patchify(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B N P"]:
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return torch.einsum("nchpwq->nhwpqc", cut).reshape(batch, rows * columns, -1)


def normalize_patches(patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
    mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def visible_patches_differ(config: RunConfig, visible: int) -> list[str]:
    """Name the difference where a model that samples its masks itself rounds to another number of visible patches."""
    ours = floor_fraction(math.prod(config.backbone.grid), 1 - config.masks.mask_ratio)
    return [] if visible == ours else [f"{visible} instead of {ours} visible patches"]
