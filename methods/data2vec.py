"""data2vec 1.0: predict a teacher's features of the full image at patches that a mask token replaces.

Paper: Baevski et al., "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language",
arXiv 2202.03555. Reference: facebookresearch/data2vec_vision, folder beit.
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
from ssl_zoo.settings import setting
from ssl_zoo.targets.visualize import show_predictions


@dataclass
class Data2vecConfig(MethodConfig):
    """data2vec 1.0: a linear head and the loss in latent space. Defaults: the reference's ViT-B/16."""

    smooth_l1_beta: float = setting(2.0, "difference at which the loss turns from quadratic to linear", above=0)


@METHODS.register("data2vec", Data2vecConfig)
class Data2vec(Method):
    """Predict the mean of a teacher's last blocks at masked patches, with one linear layer (arXiv 2202.03555).

    The encoder sees a mask token in place of each masked patch, the teacher the full image. Images may have different
    numbers of masked patches; the loss is the mean over those of the batch.
    """

    default_views = "data2vec"
    default_masks = "blockwise"
    default_targets = "topk_teacher"
    regularizes = tuple(Place)

    config: Data2vecConfig
    target: Target

    def __init__(self, config: Data2vecConfig, encoder: ViT, target: Target | None) -> None:
        require_target("data2vec", target)
        refuse_masked_teacher("data2vec", target)
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
        errors = F.smooth_l1_loss(predictions, targets[:, 0], beta=self.config.smooth_l1_beta, reduction="none")
        regularization = self.regularize(step, tokens=tokens, predictions=predictions)
        metrics = feature_metrics(predictions[:, None, None], targets, everywhere, self.encoder.num_patches)
        counts = {"visible_patches": (~masked).sum() / len(images), "target_patches": masked.sum() / len(images)}
        return Output({"prediction": masked_mean(errors, masked), **regularization}, {**metrics, **counts})

    def loss_weight(self, batch: Batch) -> Float[Tensor, ""]:
        """Weigh (micro-)batches by their number of masked patches, over which the loss is a mean."""
        return batch.masks["image"].all_masked(self.encoder.num_patches).sum().float()

    def param_groups(self) -> Sequence[ParamGroup]:
        """Exempt the class token from weight decay, as BEiT's code and its descendants do."""
        return without_decay(super().param_groups(), self.encoder.cls_token)

    def eval_encoder(self) -> ViT:
        return self.encoder  # the reference fine-tunes the student, not its teacher

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
