"""SIGReg beside a method's loss: features of a standard Gaussian distribution (LeJEPA, arXiv 2511.08544)."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ssl_zoo.losses.directions import random_directions
from ssl_zoo.losses.sigreg import sigreg
from ssl_zoo.regularizers.base import REGULARIZERS, Regularizer, RegularizerConfig
from ssl_zoo.settings import setting
from ssl_zoo.world import World


@dataclass
class SIGRegConfig(RegularizerConfig):
    """Defaults: LeJEPA's weight and number of directions, and the integral of its code."""

    weight: float = setting(0.05, "weight of the regularizer's terms at the start of the run", at_least=0)
    num_directions: int = setting(1024, "random directions, new in each step", at_least=1)
    max_frequency: float = setting(3.0, "frequency at which the integral is cut off", above=0)
    num_knots: int = setting(17, "points of the integral from 0 to max_frequency", at_least=2)


@REGULARIZERS.register("sigreg", SIGRegConfig)
class SIGReg(Regularizer):
    """Bring the distribution of features to a standard Gaussian, along random directions (arXiv 2511.08544)."""

    config: SIGRegConfig

    def terms(
        self, samples: Float[Tensor, "S V D"], values: Mapping[str, Tensor], world: World
    ) -> Mapping[str, Float[Tensor, ""]]:
        config = self.config
        directions = random_directions(values["step"], samples.shape[-1], config.num_directions)
        return {
            "sigreg": sigreg(samples, directions, world, max_frequency=config.max_frequency, num_knots=config.num_knots)
        }
