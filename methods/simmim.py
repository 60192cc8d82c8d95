"""SimMIM: regress the raw pixels of masked cells with one linear map.

Paper: Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", arXiv 2111.09886. Reference:
microsoft/SimMIM.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.masked_method import MaskedMethodConfig, ReplacingMethod
from ssl_zoo.method import METHODS
from ssl_zoo.settings import setting


@dataclass
class SimMIMConfig(MaskedMethodConfig):
    """SimMIM: a linear head and the loss in pixel space. Defaults: the reference's ViT-B/16."""

    view: ViewConfig = setting(ViewConfig(crop_scale=[0.67, 1.0], horizontal_flip=0.5), "rendering of the one view")


@METHODS.register("simmim", SimMIMConfig)
class SimMIM(ReplacingMethod):
    """Regress the pixels of masked cells from an encoding of all patches, with one linear map (arXiv 2111.09886).

    The paper's targets are raw pixels: ``targets.normalize=false``, as its recipes say.
    """

    default_masks = "cells"
    default_targets = "pixels"

    config: SimMIMConfig

    def errors(self, predictions: Tensor, targets: Tensor) -> Float[Tensor, "B N target"]:
        return F.l1_loss(predictions, targets, reduction="none")
