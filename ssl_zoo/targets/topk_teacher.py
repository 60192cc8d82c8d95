"""Averaged teacher features: the mean over the last blocks of an averaged copy of the encoder (data2vec)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.nn import LayerOutput, ViT
from ssl_zoo.schedules import ScheduleShape
from ssl_zoo.settings import setting
from ssl_zoo.targets.base import TARGETS
from ssl_zoo.targets.teacher import Normalization, Teacher, TeacherConfig


@dataclass
class TopKTeacherConfig(TeacherConfig):
    """Defaults: data2vec 1.0, ViT-B/16 (facebookresearch/data2vec_vision, beit/README.md)."""

    average_top_k_layers: int | None = setting(
        None,
        "the last so many blocks are averaged, without the encoder's final norm; null: half of its blocks, at most 6",
    )
    layer_output: LayerOutput = setting(
        LayerOutput.block, "block averages the blocks' outputs, ffn those of their MLP branches (data2vec 2.0)"
    )
    momentum: float = setting(0.9998, "EMA momentum at the start of the run")
    final_momentum: float = setting(0.9998, "EMA momentum at its end")
    momentum_shape: ScheduleShape = setting(ScheduleShape.linear, "course of the momentum: constant, linear or cosine")
    normalization: Normalization = setting(
        Normalization.layer, "of each block before averaging: layer as data2vec 1.0, instance as data2vec 2.0"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average_top_k_layers is not None and self.average_top_k_layers < 1:
            raise ValueError(f"targets.average_top_k_layers={self.average_top_k_layers}: needs at least 1")


@TARGETS.register("topk_teacher", TopKTeacherConfig)
class TopKTeacher(Teacher):
    """The mean of the normalised features of the teacher's last blocks, layer-normed (arXiv 2202.03555, sec. 3.3)."""

    config: TopKTeacherConfig

    def __init__(self, config: TopKTeacherConfig, encoder: ViT) -> None:
        depth = len(encoder.blocks)
        # The reference's 6 of 12 and of 24 blocks; a shallower encoder has as many late ones in proportion.
        average_top_k_layers = config.average_top_k_layers or min(6, -(-depth // 2))
        if average_top_k_layers > depth:
            raise ValueError(
                f"targets.average_top_k_layers={average_top_k_layers}: the encoder has {depth} blocks (backbone.depth)"
            )
        super().__init__(config, encoder)
        self.average_top_k_layers = average_top_k_layers

    def _features(self, images: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B M T"] | None) -> Float[Tensor, "B *N D"]:
        layers: Sequence[int] = range(-self.average_top_k_layers, 0)
        outputs = self.encoder(images, keep=keep, layers=layers, layer_output=self.config.layer_output)
        return torch.stack([self._normalized(self._patches(output)) for output in outputs]).mean(dim=0)

    def _normalized(self, tokens: Float[Tensor, "*B N D"]) -> Float[Tensor, "*B N D"]:
        if self.config.normalization is Normalization.layer:
            return F.layer_norm(tokens, (self.dim,))
        return super()._normalized(tokens)
