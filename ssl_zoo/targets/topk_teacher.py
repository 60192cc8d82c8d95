"""Top-K teacher: the mean over the last K blocks of an encoder with EMA weights (data2vec, arXiv 2202.03555)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.ema import EmaConfig
from ssl_zoo.nn import LayerOutput, ViT
from ssl_zoo.settings import setting
from ssl_zoo.targets.base import TARGETS
from ssl_zoo.targets.features import Normalization
from ssl_zoo.targets.teacher import Teacher, TeacherConfig


@dataclass
class TopKTeacherConfig(TeacherConfig):
    """Defaults: data2vec 1.0, ViT-B/16 (facebookresearch/data2vec_vision, beit/README.md)."""

    ema: EmaConfig = setting(EmaConfig(0.9998, 0.9998), "EMA weights of the teacher")
    average_top_k_layers: int | None = setting(
        None, "last K blocks averaged, before the final norm; null: half, at most 6", at_least=1
    )
    layers: list[int] = setting([], "blocks averaged instead of the last K, from 0; [] is the last K", at_least=0)
    layer_output: LayerOutput = setting(LayerOutput.block, "block: blocks' outputs; ffn: their MLPs' (data2vec 2.0)")
    normalization: Normalization = setting(
        Normalization.layer, "of each block: layer (data2vec 1.0), instance (2.0), dyntanh, or none, which averages raw"
    )


@TARGETS.register("topk_teacher", TopKTeacherConfig)
class TopKTeacher(Teacher):
    """The mean of the normalised features of the teacher's last K blocks, layer-normed (arXiv 2202.03555, sec. 3.3)."""

    config: TopKTeacherConfig

    def __init__(self, config: TopKTeacherConfig, encoder: ViT) -> None:
        depth = len(encoder.blocks)
        # The reference's 6 of 12 and of 24 blocks; in a shallower encoder the same proportion.
        top_k = config.average_top_k_layers or min(6, -(-depth // 2))
        if top_k > depth:
            raise ValueError(f"targets.average_top_k_layers={top_k}: the encoder has {depth} blocks (backbone.depth)")
        if config.layers and max(config.layers) >= depth:
            raise ValueError(f"targets.layers={config.layers}: the encoder has blocks 0..{depth - 1} (backbone.depth)")
        super().__init__(config, encoder)
        self.layers = config.layers or list(range(depth - top_k, depth))

    def _features(
        self, images: Float[Tensor, "B _ H W"], keep: Int[Tensor, "B M T"] | None, encoder: ViT
    ) -> Float[Tensor, "B *N D"]:
        outputs = self.encoder(images, keep=keep, layers=self.layers, layer_output=self.config.layer_output)
        return torch.stack([self._normalized(encoder.patches(output).float()) for output in outputs]).mean(dim=0)

    def _normalized(self, tokens: Float[Tensor, "*B N D"]) -> Float[Tensor, "*B N D"]:
        if self.config.normalization is Normalization.layer:
            return F.layer_norm(tokens, (self.dim,))
        return super()._normalized(tokens)
