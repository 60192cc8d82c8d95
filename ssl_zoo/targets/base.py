"""What is predicted: the contract of targets."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.collapse import Limit
from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.ema import Ema
from ssl_zoo.masks.base import Masks
from ssl_zoo.nn.vit import ViT
from ssl_zoo.plotting import Figure
from ssl_zoo.registry import Registry
from ssl_zoo.settings import Settings


@dataclass
class TargetConfig(Settings):
    """Base of every target's config."""

    section = "targets"


class Target(nn.Module, ABC):
    """What a masked method predicts for each target patch.

    Attributes:
        dim: width of a prediction: that of a patch's target, or the number of categories.
        is_categorical: each patch has one of ``dim`` categories; a method predicts their logits.
    """

    dim: int
    is_categorical: ClassVar[bool] = False

    @abstractmethod
    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Float[Tensor, "B M T dim"] | Int[Tensor, "B M T"]:
        """Return the targets of the patches ``masks.targets``: float32, or categories as int64.

        Args:
            batch: with the view ``image`` that the method sees, and any other view that a target needs.
            encoder: the encoder that is trained, for targets that it computes itself.
        """

    def check_views(self, views: Mapping[str, ViewSpec], encoder: ViT) -> None:
        """Refuse views from which these targets can't be computed, before a run starts.

        Raises:
            ValueError: with the reason and what to change.
        """

    def visualize(
        self, predictions: Float[Tensor, "B M T dim"], batch: Batch, masks: Masks, encoder: ViT
    ) -> Mapping[str, Figure]:
        """Return figures by name that show predictions of this target, one row per image of the batch.

        Args:
            masks: one context block and the target blocks that it predicts.
        """
        return {}

    def emas(self, encoder: ViT) -> Sequence[Ema]:
        """List the EMA weights that this target brings; ``encoder`` is the one being trained."""
        return ()

    def eval_encoder(self, encoder: ViT) -> ViT:
        """Return the better encoder to evaluate: the one with EMA weights where there is one."""
        return encoder

    def collapse_limits(self) -> Sequence[Limit]:
        """List the limits of targets that a network computes; targets that the data alone decide have none."""
        return ()


TARGETS = Registry("target", "targets")
