"""The baseline of ``--baseline plain``: an I-JEPA step as a straightforward research code computes it.

It is slow on purpose: attention as a matmul, a softmax and another matmul; a predictor input that repeats the context
for every target block; an unfused optimizer; an EMA that updates parameters one by one; masks sampled image by image.
The computation is I-JEPA's step at the same sizes.
"""

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig
from ssl_zoo.nn.vit import ViTConfig
from ssl_zoo.testing.benchmark.baselines.base import gather
from ssl_zoo.testing.benchmark.baselines.ijepa import IJEPABaseline, Predictor


class PlainBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads, mlp_dim = num_heads, round(dim * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.act, self.fc2 = nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (dim // self.num_heads) ** -0.5).softmax(dim=-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(batch, length, dim))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


def _blocks(dim: int, num_heads: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(PlainBlock(dim, num_heads, 4.0) for _ in range(depth))


class PlainEncoder(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.patch_embed = nn.Conv2d(config.in_channels, dim, config.patch_size, config.patch_size)
        self.pos_embed = nn.Parameter(torch.randn(1, math.prod(config.grid), dim), requires_grad=False)
        self.blocks = nn.ModuleList(PlainBlock(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Tensor, keep: Int[Tensor, "B K"] | None = None) -> Float[Tensor, "B L D"]:
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        if keep is not None:
            x = gather(x, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class PlainIJEPA(IJEPABaseline):
    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.encoder = PlainEncoder(config.backbone)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(config.method, config.backbone, _blocks)
        self.differences += ["target blocks of one size", "masks sampled within the step"]
        if config.backbone.class_token:
            self.differences.append("no class token")
        if config.backbone.drop_path:
            self.differences.append("no drop path")

    def forward(self, batch: Batch) -> Tensor:
        images = batch.views["image"]
        return self.loss(images, *self._masks(len(images), images.device))

    def predict(self, images: Tensor, keep: Int[Tensor, "B K"], blocks: Sequence[Int[Tensor, "B T"]]) -> Tensor:
        return self.predictor(self.encoder(images, keep), keep, blocks)

    def target(self, images: Tensor) -> Float[Tensor, "B N D"]:
        return self.teacher(images)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained(), lr=1e-4, foreach=False, fused=False)

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the EMA parameter by parameter."""
        for online, ema in zip(self.encoder.parameters(), self.teacher.parameters(), strict=True):
            ema.mul_(self.momentum).add_(online, alpha=1 - self.momentum)

    def _masks(self, num_images: int, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """Sample per image a context of the recipe's length, and target blocks of one medium size at random places."""
        masks, (rows, columns) = self.config.masks, self.config.backbone.grid
        area = sum(masks.target_scale) / 2 * rows * columns
        height = min(rows, round(math.sqrt(area)))
        width = min(columns, round(area / height))
        contexts, targets = [], [[] for _ in range(masks.num_targets)]
        for _ in range(num_images):
            free = torch.ones(rows, columns, dtype=torch.bool)
            for block in targets:
                top, left = (int(torch.randint(0, n, ())) for n in (rows - height + 1, columns - width + 1))
                index = torch.arange(rows * columns).view(rows, columns)[top : top + height, left : left + width]
                block.append(index.flatten())
                free.view(-1)[block[-1]] = False
            context = torch.cat([free.flatten().nonzero()[:, 0], torch.arange(rows * columns)])
            contexts.append(context[: round(masks.context_fraction * rows * columns)])
        stacked = [torch.stack(block).to(device) for block in targets]
        return torch.stack(contexts).to(device), stacked
