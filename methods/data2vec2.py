"""data2vec 2.0: many masks per image share one teacher pass, and convolutions predict masked patches from visible ones.

Paper: Baevski et al., "Efficient Self-supervised Learning with Contextualized Target Representations for Vision, Speech
and Language", arXiv 2212.07525. Reference: facebookresearch/fairseq, examples/data2vec.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.collapse import feature_metrics
from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.method import METHODS, Masks, Method, MethodConfig, Output, Place, Progress, Schedule, Step, Target, ViT
from ssl_zoo.nn import ConvolutionalDecoder, scatter_back, take
from ssl_zoo.plotting import Figure
from ssl_zoo.refusals import refuse_masked_teacher, require_masked_image, require_target
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting
from ssl_zoo.targets import Pixels
from ssl_zoo.targets.visualize import show_predictions

NOISE_STD = 0.01  # of the tokens that stand for masked patches


@dataclass
class Data2vec2Config(MethodConfig):
    """data2vec 2.0: a convolutional decoder and the loss in latent space. Defaults: the reference's ViT-B/16."""

    decoder_dim: int = setting(768, "channels of the decoder", at_least=1)
    decoder_depth: int = setting(6, "convolutions of the decoder", at_least=1)
    decoder_kernel: int = setting(3, "side of a convolution in patches, odd", at_least=1)
    decoder_groups: int = setting(16, "groups of a convolution's channels", at_least=1)
    class_loss_weight: float = setting(
        0.0, "weight of the class token's loss; the reference's grows with its local batch", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_kernel % 2 == 0:
            raise ValueError(f"method.decoder_kernel={self.decoder_kernel} must be odd")
        if self.decoder_dim % self.decoder_groups:
            raise ValueError(
                f"method.decoder_dim={self.decoder_dim} is no multiple of method.decoder_groups={self.decoder_groups}"
            )


@METHODS.register("data2vec2", Data2vec2Config)
class Data2vec2(Method):
    """Predict the mean of a teacher's last blocks at masked patches from visible ones (arXiv 2212.07525)."""

    default_views = "mae"
    default_masks = "inverse_block"
    default_targets = "topk_teacher"
    regularizes = tuple(Place)

    config: Data2vec2Config
    target: Target

    def __init__(self, config: Data2vec2Config, encoder: ViT, target: Target | None) -> None:
        require_target("data2vec 2.0", target)
        refuse_masked_teacher("data2vec 2.0", target)
        super().__init__(config, encoder, target)
        self._check_class_loss()
        if encoder.embed_dim % config.decoder_groups:
            raise ValueError(
                f"method.decoder_groups={config.decoder_groups} does not divide backbone.embed_dim={encoder.embed_dim}"
            )
        self.decoder = ConvolutionalDecoder(
            dim_in=encoder.embed_dim,
            dim=config.decoder_dim,
            dim_out=target.dim,
            depth=config.decoder_depth,
            kernel_size=config.decoder_kernel,
            groups=config.decoder_groups,
            grid=encoder.grid,
        )

    def schedules(self) -> Mapping[str, Schedule]:
        return {"noise": self._noise}

    def forward(self, batch: Batch, step: Step) -> Output:
        images, masks = batch.views["image"], batch.masks["image"]
        features = self.target(batch, masks.everywhere(self.encoder.num_patches), self.encoder)[:, 0]  # one pass
        targets = take(features, masks.targets)
        tokens = self.encoder(images, keep=masks.context)
        predictions = self.decode(tokens, masks, step.values["noise"]).float()
        losses = {"prediction": scaled_l2(predictions, masks.paired(targets))}
        if self.config.class_loss_weight:
            class_tokens = tokens[:, :, 0].float()
            class_loss = scaled_l2(class_tokens, features.mean(dim=1, keepdim=True).expand_as(class_tokens))
            losses["class_token"] = self.config.class_loss_weight * class_loss
        losses |= self.regularize(step, tokens=self.encoder.patches(tokens), predictions=predictions)
        return Output(losses, feature_metrics(predictions, targets, masks, self.encoder.num_patches))

    def decode(
        self, tokens: Float[Tensor, "B C L D"], masks: Masks, noise: Float[Tensor, "1 N D"]
    ) -> Float[Tensor, "B C pairs T target"]:
        """Put visible tokens in their places, noise in all others, and predict the masked patches by convolutions."""
        visible = self.encoder.patches(tokens).flatten(0, 1)
        canvas = scatter_back(visible, masks.context.flatten(0, 1), noise.expand(len(visible), -1, -1))
        wanted = masks.paired(masks.targets)
        return take(self.decoder(canvas), wanted.flatten(0, 1)).unflatten(0, wanted.shape[:2])

    def eval_encoder(self) -> ViT:
        return self.encoder  # the reference fine-tunes the student, not its teacher

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_masked_image(self, views, masks)

    def predict_blocks(self, batch: Batch) -> Float[Tensor, "B C pairs T target"]:
        images, masks = batch.views["image"], batch.masks["image"]
        noise = self._noise(Progress(step=0, num_steps=1, samples=0)).to(images.device)
        return self.decode(self.encoder(images, keep=masks.context), masks, noise).float()

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        return show_predictions(self.target, self.predict_blocks(batch), batch, self.encoder)

    def _noise(self, progress: Progress) -> Float[Tensor, "1 N D"]:
        """Sample noise from the number of the step: new in each step, and the same for all its images and masks.

        Differs from the reference: there each rank and each micro-batch samples its own.
        """
        shape = (1, self.encoder.num_patches, self.encoder.embed_dim)
        return NOISE_STD * torch.randn(shape, generator=generator_for("noise", progress.step))

    def _check_class_loss(self) -> None:
        weight, encoder = self.config.class_loss_weight, self.encoder
        if weight and not encoder.config.class_token:
            raise ValueError(f"method.class_loss_weight={weight} trains the class token: set backbone.class_token=true")
        if weight and (isinstance(self.target, Pixels) or self.target.dim != encoder.embed_dim):
            raise ValueError(
                f"method.class_loss_weight={weight} compares the class token with the mean of an image's target "
                "features, which these targets don't have: choose targets=topk_teacher, or set "
                "method.class_loss_weight=0"
            )


def scaled_l2(predictions: Float[Tensor, "*S D"], targets: Float[Tensor, "*S D"]) -> Float[Tensor, ""]:
    """Average the squared distances of tokens, divided by sqrt(D): about sqrt(D) for a prediction of zeros."""
    return F.mse_loss(predictions, targets) * predictions.shape[-1] ** 0.5
