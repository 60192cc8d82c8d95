"""VICReg's variance and covariance, and the invariance of means, beside a method's loss (C-JEPA, arXiv 2410.19560)."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ssl_zoo.losses.vicreg import covariance_loss, covariance_of, invariance_loss, variance_loss
from ssl_zoo.regularizers.base import REGULARIZERS, Regularizer, RegularizerConfig
from ssl_zoo.settings import setting
from ssl_zoo.world import World


@dataclass
class VICRegConfig(RegularizerConfig):
    """Weights of the terms. Defaults: C-JEPA, which has 25 for the invariance where it uses one."""

    weight: float = setting(0.001, "weight of the regularizer's terms at the start of the run", at_least=0)
    variance_weight: float = setting(25.0, "weight of the hinge on each dimension's standard deviation", at_least=0)
    covariance_weight: float = setting(1.0, "weight of the covariances of different dimensions", at_least=0)
    invariance_weight: float = setting(
        0.0, "weight of the differences between an image's contexts, views or predicted blocks; C-JEPA: 25", at_least=0
    )
    target_std: float = setting(1.0, "standard deviation below which the hinge acts", above=0)


@REGULARIZERS.register("vicreg", VICRegConfig)
class VICReg(Regularizer):
    """Keep the variance of each dimension up and the covariances of dimensions down (arXiv 2105.04906, 2410.19560)."""

    config: VICRegConfig

    def terms(
        self, samples: Float[Tensor, "S V D"], values: Mapping[str, Tensor], world: World
    ) -> Mapping[str, Float[Tensor, ""]]:
        config, covariance = self.config, covariance_of(samples, world)
        terms = {
            "vicreg_variance": config.variance_weight * variance_loss(covariance, config.target_std),
            "vicreg_covariance": config.covariance_weight * covariance_loss(covariance),
        }
        if config.invariance_weight:
            if samples.shape[1] < 2:
                raise ValueError(
                    f"regularizer.invariance_weight={config.invariance_weight:g} compares several vectors of an image, "
                    f"and regularizer.apply_to={config.apply_to.value} gives one; choose "
                    "regularizer.apply_to=predictions and masks with several target blocks, or set it to 0"
                )
            terms["vicreg_invariance"] = config.invariance_weight * invariance_loss(samples)
        return terms
