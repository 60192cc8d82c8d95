"""data2vec 2.0: many masks per image share one teacher pass, and convolutions predict masked patches from visible ones.

Paper: Baevski et al., "Efficient Self-supervised Learning with Contextualized Target Representations for Vision, Speech
and Language", arXiv 2212.07525. Reference: facebookresearch/fairseq, examples/data2vec.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.masked_method import MaskedMethod, MaskedMethodConfig, refuse_masked_teacher
from ssl_zoo.masks import Masks
from ssl_zoo.method import METHODS, Batch, Output, Progress, Target, ViT
from ssl_zoo.nn import ConvolutionalDecoder, scatter_back, take
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting
from ssl_zoo.targets import Pixels

NOISE_STD = 0.01  # of the tokens that stand for masked patches


@dataclass
class Data2vec2Config(MaskedMethodConfig):
    """data2vec 2.0: a convolutional decoder and the loss in latent space. Defaults: the reference's ViT-B/16."""

    decoder_dim: int = setting(768, "channels of the decoder")
    decoder_depth: int = setting(6, "convolutions of the decoder")
    decoder_kernel: int = setting(3, "side of a convolution in patches, odd")
    decoder_groups: int = setting(16, "groups of a convolution's channels")
    class_loss_weight: float = setting(
        0.0, "weight of the class token's distance to the mean target; the reference's grows with its local batch"
    )
    view: ViewConfig = setting(
        ViewConfig(crop_scale=[0.2, 1.0], interpolation="bicubic", horizontal_flip=0.5), "rendering of the one view"
    )

    def __post_init__(self) -> None:
        for key in ("decoder_dim", "decoder_depth", "decoder_kernel", "decoder_groups"):
            if getattr(self, key) < 1:
                raise ValueError(f"method.{key}={getattr(self, key)}: needs 1 or more")
        if self.decoder_kernel % 2 == 0:
            raise ValueError(f"method.decoder_kernel={self.decoder_kernel}: needs an odd number")
        if self.decoder_dim % self.decoder_groups:
            raise ValueError(
                f"method.decoder_dim={self.decoder_dim} is no multiple of method.decoder_groups={self.decoder_groups}"
            )
        if self.class_loss_weight < 0:
            raise ValueError(f"method.class_loss_weight={self.class_loss_weight} must not be negative")


@METHODS.register("data2vec2", Data2vec2Config)
class Data2vec2(MaskedMethod):
    """Predict a teacher's averaged features of masked patches from visible ones by convolutions (arXiv 2212.07525)."""

    default_masks = "inverse_block"
    default_targets = "topk_teacher"

    config: Data2vec2Config

    def __init__(self, config: Data2vec2Config, encoder: ViT, target: Target | None) -> None:
        super().__init__(config, encoder, target)
        refuse_masked_teacher("Data2vec2", self.target)
        if config.class_loss_weight and not encoder.config.class_token:
            raise ValueError(
                f"method.class_loss_weight={config.class_loss_weight} needs backbone.class_token=true: the class token "
                "is what it trains"
            )
        if config.class_loss_weight and (isinstance(self.target, Pixels) or self.target.dim != encoder.embed_dim):
            raise ValueError(
                f"method.class_loss_weight={config.class_loss_weight} compares the class token with the mean of an "
                "image's target features, which these targets don't have: choose targets=topk_teacher, or set "
                "method.class_loss_weight=0"
            )
        if encoder.embed_dim % config.decoder_groups:
            raise ValueError(
                f"method.decoder_groups={config.decoder_groups} does not divide backbone.embed_dim={encoder.embed_dim}"
            )
        self.decoder = ConvolutionalDecoder(
            dim_in=encoder.embed_dim,
            dim=config.decoder_dim,
            dim_out=self.target.dim,
            depth=config.decoder_depth,
            kernel_size=config.decoder_kernel,
            groups=config.decoder_groups,
            grid=encoder.grid,
        )

    def evaluated(self) -> ViT:
        return self.encoder  # the reference fine-tunes the student, not its average

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, masks = batch.views[0], batch.masks[0]
        features = self.target(images, masks.everywhere(self.encoder.num_patches))[:, 0]
        targets = take(features, masks.targets)
        tokens = self.encoder(images, keep=masks.context)
        predictions = self._decoded(tokens, masks, progress.step).float()
        loss = self.loss(predictions, masks.paired(targets))
        metrics = dict(self.metrics(predictions, targets, masks))
        if self.config.class_loss_weight:
            class_tokens = tokens[:, :, 0].float()
            class_loss = self.loss(class_tokens, features.mean(dim=1, keepdim=True).expand_as(class_tokens))
            metrics["class_loss"] = class_loss.detach()
            loss = loss + self.config.class_loss_weight * class_loss
        return Output(loss, metrics)

    def predict(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B C pairs T target"]:
        """The masked patches of every context from its visible ones."""
        return self._decoded(self.encoder(images, keep=masks.context), masks, step=0)

    def loss(self, predictions: Float[Tensor, "*S D"], targets: Float[Tensor, "*S D"]) -> Float[Tensor, ""]:
        """Squared distances of tokens over sqrt(D), averaged: sqrt(D) for a prediction of zeros."""
        return F.mse_loss(predictions, targets) * predictions.shape[-1] ** 0.5

    def _decoded(
        self, tokens: Float[Tensor, "B C L D"], masks: Masks, step: int
    ) -> Float[Tensor, "B C pairs T target"]:
        visible = tokens[:, :, self.encoder.num_prefix_tokens :].flatten(0, 1)
        # Fresh in each step and the same for all images and masks of it: a function of the step alone, whatever the
        # rank and the micro-batch. The reference draws it for each of them.
        noise = torch.randn(1, self.encoder.num_patches, visible.shape[-1], generator=generator_for("noise", step))
        noise = (NOISE_STD * noise).to(visible.device, non_blocking=True)
        canvas = scatter_back(visible, masks.context.flatten(0, 1), noise.expand(len(visible), -1, -1))
        wanted = masks.paired(masks.targets)
        return take(self.decoder(canvas), wanted.flatten(0, 1)).unflatten(0, wanted.shape[:2])
