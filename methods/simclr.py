"""SimCLR: find an image's other crop among the crops of all images of the batch.

Paper: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.
Reference: google-research/simclr. Vision transformer, projection head and frozen patch embedding are those of MoCo v3:
Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", arXiv 2104.02057.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.losses.info_nce import nt_xent_logits
from ssl_zoo.method import METHODS, Masks, Method, MethodConfig, Output, Place, Step
from ssl_zoo.nn import ViT
from ssl_zoo.nn.heads import ProjectionHead
from ssl_zoo.plotting import Figure, crop_columns
from ssl_zoo.refusals import refuse_target, require_global_crops
from ssl_zoo.settings import setting
from ssl_zoo.targets import Target


@dataclass
class SimCLRConfig(MethodConfig):
    """SimCLR: projection head and temperature. Defaults: MoCo v3's for vision transformers (arXiv 2104.02057)."""

    temperature: float = setting(0.2, "divisor of the cosine similarities; SimCLR's ResNets: 0.1", above=0)
    head_dim: int = setting(4096, "width of the projection head's hidden layers", at_least=1)
    head_layers: int = setting(3, "linear layers of the projection head", at_least=1)
    projection_dim: int = setting(256, "width of the compared projections", at_least=1)
    freeze_patch_embed: bool = setting(True, "keep the patch embedding random, against instability (MoCo v3, sec. 4)")


@METHODS.register("simclr", SimCLRConfig)
class SimCLR(Method):
    """Find an image's other crop among those of all images (arXiv 2002.05709), with a ViT (arXiv 2104.02057)."""

    default_views = "simclr"
    couples_images = True  # negatives and batch normalization
    regularizes = (Place.context,)

    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: ViT, target: Target | None) -> None:
        refuse_target("SimCLR", target)
        super().__init__(config, encoder, None)
        encoder.patch_embed.requires_grad_(not config.freeze_patch_embed)
        widths = [encoder.embed_dim, *[config.head_dim] * (config.head_layers - 1), config.projection_dim]
        self.head = ProjectionHead(widths, activation=nn.ReLU, batch_norm_output=True, bias=False)

    def forward(self, batch: Batch, step: Step) -> Output:
        crops = torch.cat([batch.views["global_0"], batch.views["global_1"]])
        features = self.encoder.pooled(self.encoder(crops))
        # Both crops share batch statistics, as in SimCLR. Differs from the reference: MoCo v3 has statistics per crop.
        first, second = self.head(features, step.world).chunk(2)
        logits, others = nt_xent_logits(first, second, self.config.temperature, step.world)
        # Differs from the reference: SimCLR's code adds the means of both directions, which is twice the paper's loss.
        losses = {"contrastive": F.cross_entropy(logits, others)}
        losses |= self.regularize(step, context=features.unflatten(0, (2, -1)).transpose(0, 1))
        return Output(losses, {"contrastive_accuracy": (logits.argmax(dim=1) == others).float().mean()})

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_global_crops(self, views, self.encoder, kind="two_crops")
        if len(views) > 2:
            raise ValueError(
                f"SimCLR compares two crops of an image and would leave {len(views) - 2} of {len(views)} out: choose "
                f"views={self.default_views} or views=two_crops, or set views.num_local_crops=0"
            )
        if masks:
            raise ValueError("SimCLR's crops are not masked: set masks=null, or choose method=msn")

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        """Show ``crops``: the two crops of each image."""
        title = "Crops: the network must find an image's other crop among those of all images of the batch"
        return {"crops": Figure(title, crop_columns({name: batch.pixels(name) for name in batch.views}))}
