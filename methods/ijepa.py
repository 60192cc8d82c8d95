"""I-JEPA: predict the representations of several target blocks from one context block.

Paper: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
arXiv 2301.08243. Reference: facebookresearch/ijepa.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.collapse import feature_metrics
from ssl_zoo.losses.regression import Distance
from ssl_zoo.method import (
    METHODS,
    Batch,
    Masks,
    Method,
    MethodConfig,
    Output,
    Place,
    Schedule,
    Step,
    Target,
    ViewSpec,
    ViT,
)
from ssl_zoo.nn import NarrowViT, distance_to_nearest, take
from ssl_zoo.plotting import Figure
from ssl_zoo.refusals import refuse_masked_teacher, require_masked_image, require_target
from ssl_zoo.schedules import after_warmup
from ssl_zoo.seeding import normal_numbers
from ssl_zoo.settings import setting
from ssl_zoo.targets.visualize import show_predictions


@dataclass
class IJEPAConfig(MethodConfig):
    """I-JEPA: a narrow predictor and the loss in latent space."""

    predictor_dim: int = setting(384, "width of the predictor", at_least=4, multiple_of=4)
    predictor_depth: int = setting(12, "blocks of the predictor", at_least=1)
    predictor_heads: int | None = setting(None, "attention heads of the predictor; null: the encoder's", at_least=1)
    distance: Distance = setting(Distance.smooth_l1, "smooth_l1 as the reference code, l2 as the paper")
    smooth_l1_beta: float = setting(1.0, "difference at which smooth_l1 turns from quadratic to linear", above=0)
    position_noise_std: float = setting(
        0.0, "noise on the positions of mask tokens (StoP, arXiv 2308.00566; its code: 0.25)", at_least=0
    )
    context_loss_weight: float = setting(
        0.0, "weight of the loss at context patches, less far from a target block (V-JEPA 2.1: 0.5)", at_least=0
    )
    context_loss_warmup_epochs: float = setting(0.0, "epochs in which that weight rises linearly from 0", at_least=0)


@METHODS.register("ijepa", IJEPAConfig)
class IJEPA(Method):
    """Predict the features of target blocks from one context block, in latent space (arXiv 2301.08243)."""

    default_views = "ijepa"
    default_masks = "multiblock"
    default_targets = "teacher"
    regularizes = tuple(Place)

    config: IJEPAConfig
    target: Target

    def __init__(self, config: IJEPAConfig, encoder: ViT, target: Target | None) -> None:
        require_target("I-JEPA", target)
        if config.context_loss_weight:
            refuse_masked_teacher("I-JEPA's context loss", target)
        super().__init__(config, encoder, target)
        num_heads = config.predictor_heads or encoder.config.num_heads
        if config.predictor_dim % num_heads:
            raise ValueError(
                f"method.predictor_dim={config.predictor_dim} is no multiple of {num_heads} attention heads; set "
                "method.predictor_heads, which is by default the encoder's"
            )
        self.predictor = NarrowViT(
            dim_in=encoder.embed_dim,
            dim=config.predictor_dim,
            dim_out=target.dim,
            depth=config.predictor_depth,
            num_heads=num_heads,
            grid=encoder.grid,
        )
        self.distance = partial(config.distance, beta=config.smooth_l1_beta)

    def schedules(self) -> Mapping[str, Schedule]:
        config, schedules = self.config, {}
        if config.context_loss_weight:
            final, epochs = config.context_loss_weight, config.context_loss_warmup_epochs
            schedules["context_loss_weight"] = lambda progress: after_warmup(0.0, final, progress.epoch, epochs)
        if config.position_noise_std:
            schedules["step"] = lambda progress: progress.step  # seeds the noise
        return schedules

    def forward(self, batch: Batch, step: Step) -> Output:
        images, masks = batch.views["image"], batch.masks["image"]
        targets, context_targets = self.targets(batch)  # stop-gradient
        context, predictions, at_context = self.predict(images, masks, self.position_noise(batch, step))
        losses = {"prediction": self.distance(predictions, masks.paired(targets))}
        if context_targets is not None:
            context_loss = self.distance(at_context, context_targets, weights=self.context_weights(masks))
            losses["context"] = step.values["context_loss_weight"] * context_loss
        losses |= self.regularize(step, tokens=context, predictions=predictions)
        return Output(losses, feature_metrics(predictions, targets, masks, self.encoder.num_patches))

    def predict(
        self, images: Float[Tensor, "B _ H W"], masks: Masks, noise: Float[Tensor, "B C pairs T D"] | None = None
    ) -> tuple[Float[Tensor, "B C K D"], Float[Tensor, "B C pairs T target"], Float[Tensor, "B C pairs K target"]]:
        """Encode each context, and predict every target block from it, each in a predictor pass of its own.

        Returns:
            The context's features, the predictions of the T patches of each block and, for the context loss alone,
            those of the K context patches beside each block; without it that tensor has no patches.
        """
        context = self.encoder.patches(self.encoder(images, keep=masks.context))
        wanted, with_context = masks.paired(masks.targets), self.config.context_loss_weight > 0
        predicted = self.predictor(context, masks.context, wanted, noise=noise, with_context=with_context).float()
        at_context, predictions = predicted.tensor_split([-wanted.shape[-1]], dim=-2)
        return context, predictions, at_context

    def targets(self, batch: Batch) -> tuple[Float[Tensor, "B M T target"], Float[Tensor, "B C pairs K target"] | None]:
        """Return the targets of target blocks and, for the context loss, of context patches, from one pass."""
        masks = batch.masks["image"]
        if not self.config.context_loss_weight:
            return self.target(batch, masks, self.encoder), None
        features = self.target(batch, masks.everywhere(self.encoder.num_patches), self.encoder)[:, 0]
        pairs = masks.paired(masks.targets).shape[2]
        return take(features, masks.targets), take(features, masks.context)[:, :, None].expand(-1, -1, pairs, -1, -1)

    def context_weights(self, masks: Masks) -> Float[Tensor, "B C pairs K"]:
        """Weigh a context patch by 1 / sqrt(its distance from the target block) (V-JEPA 2.1)."""
        wanted = masks.paired(masks.targets)
        return distance_to_nearest(masks.context[:, :, None], wanted, self.encoder.grid).clamp_min(1).rsqrt()

    def position_noise(self, batch: Batch, step: Step) -> Float[Tensor, "B C pairs T D"] | None:
        """Sample noise for every mask token from the number of the step and the id of the image."""
        if not self.config.position_noise_std:
            return None
        masks = batch.masks["image"]
        wanted = masks.paired(masks.targets)
        shape = (*wanted.shape[1:], self.encoder.embed_dim)
        place = torch.arange(math.prod(shape), device=wanted.device)
        images = torch.arange(len(wanted), device=wanted.device) if batch.index is None else batch.index
        noise = normal_numbers(step.values["step"], images[:, None], place)
        return self.config.position_noise_std * noise.view(-1, *shape)

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_masked_image(self, views, masks)

    def predict_blocks(self, batch: Batch) -> Float[Tensor, "B C pairs T target"]:
        _, predictions, _ = self.predict(batch.views["image"], batch.masks["image"])
        return predictions

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        return show_predictions(self.target, self.predict_blocks(batch), batch, self.encoder)
