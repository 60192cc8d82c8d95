"""VISReg beside a method's loss: centered features of unit scale and Gaussian shape (arXiv 2606.02572)."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ssl_zoo.losses.directions import random_directions
from ssl_zoo.losses.visreg import visreg
from ssl_zoo.regularizers.base import REGULARIZERS, Regularizer, RegularizerConfig
from ssl_zoo.settings import setting
from ssl_zoo.world import World


@dataclass
class VISRegConfig(RegularizerConfig):
    """Weights of the terms, all 1 in the paper. Its weight beside a masked method's loss is not published."""

    num_directions: int = setting(256, "random directions, new in each step", at_least=1)
    center_weight: float = setting(1.0, "weight of the squared mean of each dimension", at_least=0)
    scale_weight: float = setting(1.0, "weight of each dimension's squared distance from unit scale", at_least=0)
    shape_weight: float = setting(1.0, "weight of the distance from a Gaussian along random directions", at_least=0)


@REGULARIZERS.register("visreg", VISRegConfig)
class VISReg(Regularizer):
    """Center features, bring them to unit scale, and their shape to a Gaussian's (arXiv 2606.02572)."""

    config: VISRegConfig

    def terms(
        self, samples: Float[Tensor, "S V D"], values: Mapping[str, Tensor], world: World
    ) -> Mapping[str, Float[Tensor, ""]]:
        config = self.config
        terms = visreg(samples, random_directions(values["step"], samples.shape[-1], config.num_directions), world)
        return {
            "visreg_center": config.center_weight * terms.center,
            "visreg_scale": config.scale_weight * terms.scale,
            "visreg_shape": config.shape_weight * terms.shape,
        }
