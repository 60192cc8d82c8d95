"""The contract of regularizers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.registry import Registry
from ssl_zoo.settings import Settings
from ssl_zoo.world import World


@dataclass
class RegularizerConfig(Settings):
    """Base of every regularizer's config."""

    section = "regularizer"


class Regularizer(nn.Module, ABC):
    """Loss terms that keep a method's features from collapsing."""

    couples_images: ClassVar[bool] = True  # the terms are no means over images; see ``Method.couples_images``

    def __init__(self, config: RegularizerConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, features: Mapping[str, Float[Tensor, "S *L D"]], world: World) -> Mapping[str, Float[Tensor, ""]]:
        """Return weighted loss terms by name.

        Args:
            features: what the method hands over, with gradient: ``tokens`` of the encoder, and ``predictions`` where
                the method makes any.
            world: collectives with gradient, for statistics over the images of all ranks.
        """


REGULARIZERS = Registry("regularizer", "regularizer")
