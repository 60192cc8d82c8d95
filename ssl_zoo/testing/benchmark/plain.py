"""The baseline of ``--baseline plain``: an I-JEPA step as a straightforward research code computes it.

It is slow on purpose: attention as a matmul, a softmax and another matmul; a predictor input that repeats the context
for every target block; an unfused optimizer; an EMA that updates parameters one by one; masks sampled image by image.
The computation is I-JEPA's step at the same sizes.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.engine.build import RunConfig
from ssl_zoo.masks.multiblock import MultiblockConfig
from ssl_zoo.methods.ijepa import IJEPAConfig
from ssl_zoo.nn.vit import ViTConfig


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


class PlainPredictor(nn.Module):
    def __init__(self, config: IJEPAConfig, encoder: ViTConfig) -> None:
        super().__init__()
        dim, num_heads = config.predictor_dim, config.predictor_heads or encoder.num_heads
        self.embed, self.proj = nn.Linear(encoder.embed_dim, dim), nn.Linear(dim, encoder.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, math.prod(encoder.grid), dim), requires_grad=False)
        self.blocks = nn.ModuleList(PlainBlock(dim, num_heads, 4.0) for _ in range(config.predictor_depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, context: Tensor, keep: Int[Tensor, "B K"], targets: Sequence[Int[Tensor, "B T"]]) -> Tensor:
        positions = self.pos_embed.expand(len(context), -1, -1)
        known = (self.embed(context) + gather(positions, keep)).repeat(len(targets), 1, 1)
        queries = self.mask_token + torch.cat([gather(positions, block) for block in targets])
        x = torch.cat([known, queries], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x)[:, known.shape[1] :])


def gather(tokens: Float[Tensor, "B N D"], index: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    return torch.gather(tokens, 1, index[..., None].expand(-1, -1, tokens.shape[-1]))


class PlainIJEPA:
    """Trains I-JEPA on one batch of random images of the recipe's size.

    Raises:
        ValueError: the recipe does not train I-JEPA.
    """

    def __init__(self, config: RunConfig, device: torch.device, precision: torch.dtype) -> None:
        if not (isinstance(config.method, IJEPAConfig) and isinstance(config.masks, MultiblockConfig)):
            raise ValueError("--baseline plain implements I-JEPA alone: the first recipe must have method=ijepa")
        self.config, self.device, self.precision = config, device, precision
        self.encoder = PlainEncoder(config.backbone).to(device)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = PlainPredictor(config.method, config.backbone).to(device)
        self.trained = [*self.encoder.parameters(), *self.predictor.parameters()]
        trained = [p for p in self.trained if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False, fused=False)
        count, size = config.trainer.batch_size, config.backbone.image_shape
        self.images = torch.randn(count, config.backbone.in_channels, *size, device=device)

    def step(self) -> None:
        """Run one step: masks, loss, gradients, AdamW, and the EMA parameter by parameter."""
        keep, targets = self._masks()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision is torch.bfloat16):
            with torch.no_grad():
                features = self.teacher(self.images)
                features = F.layer_norm(features, features.shape[-1:])
                expected = torch.cat([gather(features, block) for block in targets])
            predicted = self.predictor(self.encoder(self.images, keep), keep, targets)
            loss = F.smooth_l1_loss(predicted, expected)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for online, ema in zip(self.encoder.parameters(), self.teacher.parameters(), strict=True):
                ema.mul_(0.996).add_(online, alpha=0.004)

    def _masks(self) -> tuple[Tensor, list[Tensor]]:
        """Sample per image a context of the recipe's length, and target blocks of one medium size at random places."""
        masks, (rows, columns) = self.config.masks, self.config.backbone.grid
        area = sum(masks.target_scale) / 2 * rows * columns
        height = min(rows, round(math.sqrt(area)))
        width = min(columns, round(area / height))
        contexts, targets = [], [[] for _ in range(masks.num_targets)]
        for _ in range(len(self.images)):
            free = torch.ones(rows, columns, dtype=torch.bool)
            for block in targets:
                top, left = (int(torch.randint(0, n, ())) for n in (rows - height + 1, columns - width + 1))
                index = torch.arange(rows * columns).view(rows, columns)[top : top + height, left : left + width]
                block.append(index.flatten())
                free.view(-1)[block[-1]] = False
            context = torch.cat([free.flatten().nonzero()[:, 0], torch.arange(rows * columns)])
            contexts.append(context[: round(masks.context_fraction * rows * columns)])
        stacked = [torch.stack(block).to(self.device) for block in targets]
        return torch.stack(contexts).to(self.device), stacked
