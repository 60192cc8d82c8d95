"""MAE: reconstruct the masked patches of an image from a quarter of them.

Paper: He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377. Reference: facebookresearch/mae.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.collapse import feature_metrics
from ssl_zoo.method import METHODS, Batch, Masks, Method, MethodConfig, Output, Place, Step, Target, ViewSpec, ViT
from ssl_zoo.nn import Initialization, NarrowViT
from ssl_zoo.plotting import Figure
from ssl_zoo.refusals import require_masked_image, require_target
from ssl_zoo.settings import setting
from ssl_zoo.targets.visualize import show_predictions


@dataclass
class MAEConfig(MethodConfig):
    """MAE: a narrow decoder and the loss in pixel space. Defaults: arXiv 2111.06377, table 1 and appendix A.1."""

    decoder_dim: int = setting(512, "width of the decoder", at_least=4, multiple_of=4)
    decoder_depth: int = setting(8, "blocks of the decoder", at_least=1)
    decoder_heads: int = setting(16, "attention heads of the decoder", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(
                f"method.decoder_dim={self.decoder_dim} is no multiple of method.decoder_heads={self.decoder_heads}"
            )


@METHODS.register("mae", MAEConfig)
class MAE(Method):
    """Reconstruct masked patches from an encoding of the visible ones, in pixel space (arXiv 2111.06377).

    The encoder never sees a mask token: it runs over the visible patches alone, and over its class token where
    ``backbone.class_token`` asks for one, which the decoder gets as well.
    """

    default_views = "mae"
    default_masks = "random"
    default_targets = "pixels"
    regularizes = tuple(Place)

    config: MAEConfig
    target: Target

    def __init__(self, config: MAEConfig, encoder: ViT, target: Target | None) -> None:
        require_target("MAE", target)
        super().__init__(config, encoder, target)
        self.decoder = NarrowViT(
            dim_in=encoder.embed_dim,
            dim=config.decoder_dim,
            dim_out=target.dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            grid=encoder.grid,
            # The reference has one MLP ratio and one kind of layer norm for both networks.
            mlp_ratio=encoder.config.mlp_ratio,
            norm_eps=encoder.config.norm_eps,
            num_prefix_tokens=encoder.num_prefix_tokens,
            initialization=Initialization.xavier_uniform,  # appendix A.1; the encoder's is backbone.initialization
        )

    def forward(self, batch: Batch, step: Step) -> Output:
        images, masks = batch.views["image"], batch.masks["image"]
        targets = self.target(batch, masks, self.encoder)
        visible, predictions = self.predict(images, masks)
        # The mean over the pixels of masked patches; every image has equally many of those.
        reconstruction = F.mse_loss(predictions, masks.paired(targets))
        regularization = self.regularize(step, tokens=self.encoder.patches(visible), predictions=predictions)
        metrics = feature_metrics(predictions, targets, masks, self.encoder.num_patches)
        return Output({"reconstruction": reconstruction, **regularization}, metrics)

    def predict(
        self, images: Float[Tensor, "B _ H W"], masks: Masks
    ) -> tuple[Float[Tensor, "B C L D"], Float[Tensor, "B C pairs T target"]]:
        """Encode the visible patches, and decode the masked ones; predictions of visible patches enter no loss.

        The decoder gets visible patches before masked ones and not, as in the reference, in raster order: attention
        does not depend on the order of tokens, whose positions are added to them.
        """
        visible = self.encoder(images, keep=masks.context)
        return visible, self.decoder(visible, masks.context, masks.paired(masks.targets)).float()

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_masked_image(self, views, masks)

    def predict_blocks(self, batch: Batch) -> Float[Tensor, "B C pairs T target"]:
        _, predictions = self.predict(batch.views["image"], batch.masks["image"])
        return predictions

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        return show_predictions(self.target, self.predict_blocks(batch), batch, self.encoder)
