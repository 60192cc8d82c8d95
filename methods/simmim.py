"""SimMIM: regress the raw pixels of masked patches with one linear layer.

Paper: Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", arXiv 2111.09886. Reference:
microsoft/SimMIM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.collapse import feature_metrics
from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.losses.regression import masked_mean
from ssl_zoo.method import METHODS, Masks, Method, MethodConfig, Output, ParamGroup, Place, Step, Target, without_decay
from ssl_zoo.nn import ViT, take
from ssl_zoo.nn.initialization import initialize, initialize_token
from ssl_zoo.plotting import Figure
from ssl_zoo.refusals import refuse_masked_teacher, require_masked_image, require_one_mask, require_target
from ssl_zoo.targets.visualize import show_predictions


@dataclass
class SimMIMConfig(MethodConfig):
    """SimMIM has no settings of its own: its head is linear and its loss L1."""


@METHODS.register("simmim", SimMIMConfig)
class SimMIM(Method):
    """Regress the pixels of masked patches from an encoding of all patches, with one linear layer (arXiv 2111.09886).

    The encoder sees a mask token in place of each masked patch. The paper's targets are raw pixels:
    ``targets.normalize=false``, as its recipes have it. Images may have different numbers of masked patches; the loss
    is the mean over those of the batch.
    """

    default_views = "simmim"
    default_masks = "cells"
    default_targets = "pixels"
    regularizes = tuple(Place)

    config: SimMIMConfig
    target: Target

    def __init__(self, config: SimMIMConfig, encoder: ViT, target: Target | None) -> None:
        require_target("SimMIM", target)
        refuse_masked_teacher("SimMIM", target)
        super().__init__(config, encoder, target)
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.embed_dim))
        self.head = nn.Linear(encoder.embed_dim, target.dim)
        initialize(self.head, encoder.config.initialization)
        initialize_token(self.mask_token, encoder.config.initialization)

    def forward(self, batch: Batch, step: Step) -> Output:
        images, masks = batch.views["image"], batch.masks["image"]
        masked, everywhere = masks.all_masked(self.encoder.num_patches), masks.everywhere(self.encoder.num_patches)
        targets = self.target(batch, everywhere, self.encoder)
        tokens = self.encoder(images, masked=masked, mask_token=self.mask_token)
        tokens = self.encoder.patches(tokens)
        predictions = self.head(tokens).float()
        errors = F.l1_loss(predictions, targets[:, 0], reduction="none")
        regularization = self.regularize(step, tokens=tokens, predictions=predictions)
        metrics = feature_metrics(predictions[:, None, None], targets, everywhere, self.encoder.num_patches)
        counts = {"visible_patches": (~masked).sum() / len(images), "target_patches": masked.sum() / len(images)}
        return Output({"reconstruction": masked_mean(errors, masked), **regularization}, {**metrics, **counts})

    def loss_weight(self, batch: Batch) -> Float[Tensor, ""]:
        """Weigh (micro-)batches by their number of masked patches, over which the loss is a mean."""
        return batch.masks["image"].all_masked(self.encoder.num_patches).sum().float()

    def param_groups(self) -> Sequence[ParamGroup]:
        """Exempt the class token from weight decay, as BEiT's code and its descendants do."""
        return without_decay(super().param_groups(), self.encoder.cls_token)

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_masked_image(self, views, masks)
        require_one_mask(self, masks["image"])

    def predict_blocks(self, batch: Batch) -> Float[Tensor, "B C pairs T target"]:
        masks = batch.masks["image"]
        masked = masks.all_masked(self.encoder.num_patches)
        tokens = self.encoder(batch.views["image"], masked=masked, mask_token=self.mask_token)
        return take(self.head(self.encoder.patches(tokens)), masks.targets)[:, None].float()

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        return show_predictions(self.target, self.predict_blocks(batch), batch, self.encoder)
