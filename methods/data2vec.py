"""data2vec 1.0: predict averaged features of the whole image where patches are replaced by a mask token.

Paper: Baevski et al., "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language",
arXiv 2202.03555. Reference: facebookresearch/data2vec_vision, folder beit.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.masked_method import MaskedMethodConfig, ReplacingMethod
from ssl_zoo.method import METHODS, ViT
from ssl_zoo.settings import setting


@dataclass
class Data2vecConfig(MaskedMethodConfig):
    """data2vec 1.0: a linear head and the loss in latent space. Defaults: the reference's ViT-B/16."""

    smooth_l1_beta: float = setting(2.0, "difference at which the loss turns from square to linear")
    view: ViewConfig = setting(
        ViewConfig(
            crop_scale=[0.08, 1.0],
            interpolation="bicubic",
            horizontal_flip=0.5,
            color_jitter=[0.4, 0.4, 0.4, 0.0],
            color_jitter_probability=1.0,
        ),
        "rendering of the one view",
    )

    def __post_init__(self) -> None:
        if self.smooth_l1_beta <= 0:
            raise ValueError(f"method.smooth_l1_beta={self.smooth_l1_beta}: needs a positive number")


@METHODS.register("data2vec", Data2vecConfig)
class Data2vec(ReplacingMethod):
    """Predict a teacher's averaged features at replaced patches with one linear map (arXiv 2202.03555)."""

    default_masks = "blockwise"
    default_targets = "topk_teacher"

    config: Data2vecConfig

    def evaluated(self) -> ViT:
        return self.encoder  # the reference fine-tunes the student, not its average

    def errors(self, predictions: Tensor, targets: Tensor) -> Float[Tensor, "B N target"]:
        return F.smooth_l1_loss(predictions, targets, beta=self.config.smooth_l1_beta, reduction="none")
