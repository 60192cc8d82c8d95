"""Online features: the output of the encoder that is trained, for the full image, without EMA weights.

With a stop-gradient the targets are those of SimSiam (arXiv 2011.10566). Without one, equal features for all images
minimise the loss, and a regularizer must exclude them (LeJEPA, arXiv 2511.08544).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.collapse import ONLINE_FEATURE_LIMITS, Limit
from ssl_zoo.data.batch import Batch
from ssl_zoo.masks.base import Masks
from ssl_zoo.nn import ViT
from ssl_zoo.settings import setting
from ssl_zoo.targets.base import TARGETS
from ssl_zoo.targets.features import FeatureConfig, FeatureTarget


@dataclass
class OnlineConfig(FeatureConfig):
    """The trained encoder as its own target encoder."""

    stop_gradient: bool = setting(True, "no gradient reaches the encoder through its targets")


@TARGETS.register("online", OnlineConfig)
class Online(FeatureTarget):
    """Layer-normed features of the trained encoder itself, with or without a stop-gradient.

    The encoder drops paths in its targets too, where ``backbone.drop_path`` asks for that.
    """

    config: OnlineConfig

    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Float[Tensor, "B M T dim"]:
        with torch.no_grad() if self.config.stop_gradient else nullcontext():
            return super().forward(batch, masks, encoder)

    def _outputs(
        self,
        images: Float[Tensor, "B _ H W"],
        keep: Int[Tensor, "B M T"] | None,
        layers: list[int] | None,
        encoder: ViT,
    ) -> Float[Tensor, "B *L D"] | list[Float[Tensor, "B *L D"]]:
        return encoder(images, keep=keep, layers=layers)

    def collapse_limits(self) -> Sequence[Limit]:
        return ONLINE_FEATURE_LIMITS
