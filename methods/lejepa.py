"""LeJEPA: projections of an image's crops agree, and those of all images have a standard Gaussian distribution.

Paper: Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", arXiv
2511.08544. VISReg (arXiv 2606.02572) has the same loss with another distance from the Gaussian.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.collapse import Limit
from ssl_zoo.losses.directions import random_directions
from ssl_zoo.losses.sigreg import sigreg
from ssl_zoo.losses.visreg import visreg
from ssl_zoo.method import METHODS, Batch, Masks, Method, MethodConfig, Output, Place, Schedule, Step, ViewSpec, ViT
from ssl_zoo.nn import mean_std
from ssl_zoo.nn.heads import ProjectionHead
from ssl_zoo.plotting import Figure, crop_columns
from ssl_zoo.precision import full_precision
from ssl_zoo.refusals import refuse_target, require_global_crops
from ssl_zoo.settings import setting
from ssl_zoo.targets import Target
from ssl_zoo.world import World


class Distribution(Enum):
    """The distance of the distribution of projections from a standard Gaussian."""

    sigreg = "sigreg"  # LeJEPA: Epps-Pulley statistic along random directions
    visreg = "visreg"  # VISReg: mean, scale, and sorted values along random directions


@dataclass
class LeJEPAConfig(MethodConfig):
    """LeJEPA: projector and weights. Defaults: arXiv 2511.08544, sec. 6, and the integral of its code."""

    distribution: Distribution = setting(Distribution.sigreg, "sigreg (LeJEPA), or visreg (arXiv 2606.02572)")
    distribution_weight: float = setting(
        0.05, "its weight w in w * distribution + (1 - w) * invariance; VISReg: 0.6 to 0.9", at_least=0, at_most=1
    )
    num_directions: int = setting(1024, "random directions, new in each step", at_least=1)
    max_frequency: float = setting(3.0, "frequency at which sigreg's integral is cut off", above=0)
    num_knots: int = setting(17, "points of sigreg's integral from 0 to max_frequency", at_least=2)
    head_dim: int = setting(2048, "width of the projector's hidden layers", at_least=1)
    head_layers: int = setting(3, "linear layers of the projector", at_least=1)
    projection_dim: int = setting(64, "width of a projection", at_least=1)


@METHODS.register("lejepa", LeJEPAConfig)
class LeJEPA(Method):
    """Predict one vector from every crop of an image, without teacher or predictor (arXiv 2511.08544).

    Every crop's projection is compared with the mean over the image's global crops, and the gradient reaches both. What
    excludes collapse is the distribution of projections over images, which each crop compares with a Gaussian.
    """

    default_views = "lejepa"
    couples_images = True  # the distribution of projections, and batch normalization
    metric_groups: ClassVar[Mapping[str, str]] = {"scaled_loss": "health"}
    regularizes = (Place.context, Place.tokens)

    config: LeJEPAConfig

    def __init__(self, config: LeJEPAConfig, encoder: ViT, target: Target | None) -> None:
        refuse_target("LeJEPA", target)
        super().__init__(config, encoder, None)
        widths = [encoder.embed_dim, *[config.head_dim] * (config.head_layers - 1), config.projection_dim]
        self.head = ProjectionHead(widths, activation=nn.ReLU)

    def schedules(self) -> Mapping[str, Schedule]:
        return {"step": lambda progress: progress.step}  # seeds the random directions

    def forward(self, batch: Batch, step: Step) -> Output:
        global_crops, local_crops = batch.group("global"), batch.group("local")
        tokens = self.encoder(torch.cat(global_crops))
        features = [self.encoder.pooled(tokens)]
        if local_crops:
            features.append(self.encoder.pooled(self.encoder(torch.cat(local_crops))))
        features = torch.cat(features)
        projections = self.head(features, step.world).float().unflatten(0, (len(batch.views), -1)).transpose(0, 1)
        center = projections[:, : len(global_crops)].mean(dim=1, keepdim=True)
        # Differs from the paper: a mean over dimensions instead of a sum, as in its code, which the weight is for.
        invariance = F.mse_loss(projections, center.expand_as(projections))
        weight = self.config.distribution_weight
        losses = {
            "invariance": (1 - weight) * invariance,
            "distribution": weight * self.distance_from_gaussian(projections, step.values["step"], step.world),
        }
        metrics = self.scaled_loss(losses)
        losses |= self.regularize(
            step,
            context=features.unflatten(0, (len(batch.views), -1)).transpose(0, 1),
            tokens=self.encoder.patches(tokens).unflatten(0, (len(global_crops), -1)).transpose(0, 1),
        )
        with torch.no_grad():
            metrics["projection_std"] = mean_std(projections)
        return Output(losses, metrics)

    def scaled_loss(self, losses: Mapping[str, Float[Tensor, ""]]) -> dict[str, Float[Tensor, ""]]:
        """Return the loss over weight^0.4, by which trainings of different weights can be ordered without labels.

        The paper reports a rank correlation with accuracy of about 0.99, and 0.85 without the factor, for SIGReg.
        """
        weight = self.config.distribution_weight
        if self.config.distribution is not Distribution.sigreg or weight == 0:
            return {}
        return {"scaled_loss": sum(losses.values()).detach() / weight**0.4}

    def distance_from_gaussian(
        self, projections: Float[Tensor, "B V D"], step: Float[Tensor, ""], world: World
    ) -> Float[Tensor, ""]:
        """Compare the projections of each crop with a standard Gaussian, over the images of all ranks."""
        config = self.config
        with full_precision(projections.device):
            directions = random_directions(step, config.projection_dim, config.num_directions)
            if config.distribution is Distribution.visreg:
                terms = visreg(projections, directions, world)
                return terms.center + terms.scale + terms.shape
            knots = {"max_frequency": config.max_frequency, "num_knots": config.num_knots}
            return sigreg(projections, directions, world, **knots)

    def collapse_limits(self) -> Sequence[Limit]:
        remedy = "Raise method.distribution_weight or trainer.batch_size, lower optim.lr, or warm up longer"
        return [Limit("projection_std", 0.01, False, "all projections are nearly the same", remedy)]

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_global_crops(self, views, self.encoder)
        if masks:
            raise ValueError("LeJEPA's crops are not masked: set masks=null, or choose method=ijepa regularizer=sigreg")

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        """Show ``crops``: each image's global and local crops."""
        title = "Crops: the projections of all crops of an image must equal the mean of its global crops"
        return {"crops": Figure(title, crop_columns({name: batch.pixels(name) for name in batch.views}))}
