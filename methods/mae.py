"""MAE: reconstruct the masked patches of an image from a quarter of them.

Paper: He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377. Reference: facebookresearch/mae.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.masked_method import MaskedMethod, MaskedMethodConfig
from ssl_zoo.masks import Masks
from ssl_zoo.method import METHODS, Target, ViT
from ssl_zoo.nn import Initialization, NarrowViT
from ssl_zoo.settings import setting


@dataclass
class MAEConfig(MaskedMethodConfig):
    """MAE: a narrow decoder and the loss in pixel space. Defaults: arXiv 2111.06377, table 1 and appendix A.1."""

    decoder_dim: int = setting(512, "width of the decoder")
    decoder_depth: int = setting(8, "blocks of the decoder")
    decoder_heads: int = setting(16, "attention heads of the decoder")
    view: ViewConfig = setting(
        ViewConfig(crop_scale=[0.2, 1.0], interpolation="bicubic", horizontal_flip=0.5), "rendering of the one view"
    )

    def __post_init__(self) -> None:
        for key in ("decoder_dim", "decoder_depth", "decoder_heads"):
            if getattr(self, key) < 1:
                raise ValueError(f"method.{key}={getattr(self, key)}: needs 1 or more")
        if self.decoder_dim % 4:
            raise ValueError(f"method.decoder_dim={self.decoder_dim} must be a multiple of 4, for its positions")
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(
                f"method.decoder_dim={self.decoder_dim} is no multiple of method.decoder_heads={self.decoder_heads}"
            )


@METHODS.register("mae", MAEConfig)
class MAE(MaskedMethod):
    """Reconstruct masked patches from an encoding of the visible ones, in pixel space (arXiv 2111.06377).

    The encoder never sees a mask token: it runs over the visible patches alone, and over its class token where
    ``backbone.class_token`` asks for one, which the decoder gets as well.
    """

    default_masks = "random"
    default_targets = "pixels"

    config: MAEConfig

    def __init__(self, config: MAEConfig, encoder: ViT, target: Target | None) -> None:
        super().__init__(config, encoder, target)
        self.decoder = NarrowViT(
            dim_in=encoder.embed_dim,
            dim=config.decoder_dim,
            dim_out=self.target.dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            grid=encoder.grid,
            # The reference has one MLP ratio and one kind of layer norm for both networks.
            mlp_ratio=encoder.config.mlp_ratio,
            norm_eps=encoder.config.norm_eps,
            num_prefix_tokens=encoder.num_prefix_tokens,
            initialization=Initialization.xavier_uniform,  # appendix A.1; the encoder's is backbone.initialization
        )

    def predict(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B C pairs T target"]:
        """Hidden patches from visible ones; what the decoder makes of the visible ones enters no loss.

        Patches go in as they stand in the masks, visible before masked, and not in raster order as in the reference:
        their positions are added to them, and attention does not ask for their order.
        """
        visible = self.encoder(images, keep=masks.context)
        return self.decoder(visible, masks.context, masks.paired(masks.targets))

    def loss(self, predictions: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """Mean over the pixels of masked patches; every image has equally many of those."""
        return F.mse_loss(predictions, targets)
