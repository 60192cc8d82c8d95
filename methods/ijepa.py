"""I-JEPA: predict the representations of several target blocks from one context block.

Paper: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
arXiv 2301.08243. Reference: facebookresearch/ijepa.
"""

from dataclasses import dataclass
from enum import Enum

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.masked_method import MaskedMethod, MaskedMethodConfig
from ssl_zoo.masks import Masks
from ssl_zoo.method import METHODS, Target, ViT
from ssl_zoo.nn import NarrowViT
from ssl_zoo.settings import setting


class Loss(Enum):
    """Distance between prediction and target."""

    smooth_l1 = "smooth_l1"  # the reference code
    l2 = "l2"  # the paper, eq. 1; its sum over elements is a mean here, a constant factor that AdamW ignores


@dataclass
class IJEPAConfig(MaskedMethodConfig):
    """I-JEPA: a narrow predictor and the loss in latent space."""

    predictor_dim: int = setting(384, "width of the predictor")
    predictor_depth: int = setting(12, "blocks of the predictor")
    predictor_heads: int | None = setting(None, "attention heads of the predictor; null takes the encoder's")
    loss: Loss = setting(Loss.smooth_l1, "smooth_l1 as the reference code, l2 as the paper")
    smooth_l1_beta: float = setting(1.0, "difference at which smooth_l1 turns from square to linear")
    view: ViewConfig = setting(ViewConfig(crop_scale=[0.3, 1.0]), "rendering of the one view")

    def __post_init__(self) -> None:
        if self.predictor_depth < 1:
            raise ValueError(f"method.predictor_depth={self.predictor_depth}: needs 1 or more")
        if self.predictor_dim % 4:
            raise ValueError(f"method.predictor_dim={self.predictor_dim} must be a multiple of 4, for its positions")
        if self.predictor_heads is not None and self.predictor_dim % self.predictor_heads:
            raise ValueError(
                f"method.predictor_dim={self.predictor_dim} is no multiple of "
                f"method.predictor_heads={self.predictor_heads}"
            )
        if self.smooth_l1_beta <= 0:
            raise ValueError(f"method.smooth_l1_beta={self.smooth_l1_beta}: needs a positive number")


@METHODS.register("ijepa", IJEPAConfig)
class IJEPA(MaskedMethod):
    """Predict the features of target blocks from one context block, in latent space (arXiv 2301.08243)."""

    default_masks = "multiblock"
    default_targets = "teacher"

    config: IJEPAConfig

    def __init__(self, config: IJEPAConfig, encoder: ViT, target: Target | None) -> None:
        super().__init__(config, encoder, target)
        num_heads = config.predictor_heads or encoder.config.num_heads
        if config.predictor_dim % num_heads:
            raise ValueError(
                f"method.predictor_dim={config.predictor_dim} is no multiple of the encoder's {num_heads} heads; "
                "set method.predictor_heads"
            )
        self.predictor = NarrowViT(
            dim_in=encoder.embed_dim,
            dim=config.predictor_dim,
            dim_out=self.target.dim,
            depth=config.predictor_depth,
            num_heads=num_heads,
            grid=encoder.grid,
        )

    def predict(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B C pairs T target"]:
        """Every target block from every context block, each pair in a predictor pass of its own."""
        context = self.encoder(images, keep=masks.context)[:, :, self.encoder.num_prefix_tokens :]
        return self.predictor(context, masks.context, masks.paired(masks.targets))

    def loss(self, predictions: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """Mean over every element."""
        if self.config.loss is Loss.l2:
            return F.mse_loss(predictions, targets)
        return F.smooth_l1_loss(predictions, targets, beta=self.config.smooth_l1_beta)
