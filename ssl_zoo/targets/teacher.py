"""Teacher features: the output of an encoder with EMA weights for the full image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.collapse import FEATURE_LIMITS, Limit
from ssl_zoo.data.batch import Batch
from ssl_zoo.ema import Ema, EmaConfig, EmaCopy
from ssl_zoo.masks.base import Masks
from ssl_zoo.nn import ViT
from ssl_zoo.settings import setting
from ssl_zoo.targets.base import TARGETS
from ssl_zoo.targets.features import FeatureConfig, FeatureTarget


@dataclass
class TeacherConfig(FeatureConfig):
    """The target encoder of I-JEPA and the teacher of data2vec."""

    ema: EmaConfig = setting(EmaConfig(), "EMA weights of the teacher")


@TARGETS.register("teacher", TeacherConfig)
class Teacher(FeatureTarget):
    """Layer-normed features of an encoder with EMA weights."""

    config: TeacherConfig

    def __init__(self, config: TeacherConfig, encoder: ViT) -> None:
        super().__init__(config, encoder)
        self.encoder = EmaCopy(encoder)

    @torch.no_grad()
    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Float[Tensor, "B M T dim"]:
        return super().forward(batch, masks, encoder)

    def _outputs(
        self,
        images: Float[Tensor, "B _ H W"],
        keep: Int[Tensor, "B M T"] | None,
        layers: list[int] | None,
        encoder: ViT,
    ) -> Float[Tensor, "B *L D"] | list[Float[Tensor, "B *L D"]]:
        return self.encoder(images, keep=keep, layers=layers)

    def emas(self, encoder: ViT) -> Sequence[Ema]:
        return (Ema(encoder, self.encoder, self.config.ema.momentum_at),)

    def eval_encoder(self, encoder: ViT) -> ViT:
        return self.encoder.module

    def collapse_limits(self) -> Sequence[Limit]:
        return FEATURE_LIMITS
