"""I-JEPA as baselines share it: its loss, and the predictor for libraries that have none."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig
from ssl_zoo.methods.ijepa import IJEPAConfig
from ssl_zoo.nn.vit import ViTConfig
from ssl_zoo.targets import Normalization
from ssl_zoo.testing.benchmark.baselines.base import Baseline, gather


class IJEPABaseline(Baseline):
    """I-JEPA's loss on the recipe's masks; libraries bring the networks."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.momentum = config.targets.ema.momentum
        self.distance = partial(config.method.distance, beta=config.method.smooth_l1_beta)

    @abstractmethod
    def predict(
        self, images: Tensor, keep: Int[Tensor, "B K"], blocks: Sequence[Int[Tensor, "B T"]]
    ) -> Float[Tensor, "blocks*B T D"]:
        """Predict the features of every target block from the context, each block in a sequence of its own."""

    @abstractmethod
    def target(self, images: Tensor) -> Float[Tensor, "B N D"]:
        """Encode all patches with the EMA weights."""

    def forward(self, batch: Batch) -> Tensor:
        masks = batch.masks["image"]
        return self.loss(batch.views["image"], masks.context[:, 0], list(masks.targets.unbind(1)))

    def loss(self, images: Tensor, keep: Int[Tensor, "B K"], blocks: Sequence[Int[Tensor, "B T"]]) -> Tensor:
        with torch.no_grad():
            features = self.normalize(self.target(images))
            targets = torch.cat([gather(features, block) for block in blocks])
        return self.distance(self.predict(images, keep, blocks), targets)

    def normalize(self, features: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if self.config.targets.normalization is Normalization.instance:
            centred = features.float() - features.float().mean(dim=1, keepdim=True)
            features = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        return F.layer_norm(features, features.shape[-1:])


class Predictor(nn.Module):
    """I-JEPA's predictor on the blocks of a library, after the reference code: the context repeated for every block."""

    def __init__(self, config: IJEPAConfig, encoder: ViTConfig, blocks: Callable[[int, int, int], nn.Module]) -> None:
        """Build a predictor.

        Args:
            blocks: width, heads, depth -> the blocks, called one after the other.
        """
        super().__init__()
        dim, num_heads = config.predictor_dim, config.predictor_heads or encoder.num_heads
        self.embed, self.proj = nn.Linear(encoder.embed_dim, dim), nn.Linear(dim, encoder.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, math.prod(encoder.grid), dim), requires_grad=False)
        self.blocks = blocks(dim, num_heads, config.predictor_depth)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, context: Tensor, keep: Int[Tensor, "B K"], targets: Sequence[Int[Tensor, "B T"]]) -> Tensor:
        positions = self.pos_embed.expand(len(context), -1, -1)
        known = (self.embed(context) + gather(positions, keep)).repeat(len(targets), 1, 1)
        queries = self.mask_token + torch.cat([gather(positions, block) for block in targets])
        x = torch.cat([known, queries], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x)[:, known.shape[1] :])
