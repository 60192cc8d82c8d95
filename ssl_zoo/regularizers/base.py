"""The contract of regularizers, and the places at which they act."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.precision import full_precision
from ssl_zoo.progress import Schedule
from ssl_zoo.registry import Registry
from ssl_zoo.schedules import ScheduleShape, make_schedule
from ssl_zoo.settings import Settings, setting
from ssl_zoo.world import World


class Place(Enum):
    """The features that a regularizer acts on."""

    context = "context"  # one vector per context or view: the mean over its tokens, or what the method pools
    predictions = "predictions"  # one vector per predicted block: the mean over its patches
    tokens = "tokens"  # every token of the encoder is a sample of its own


@dataclass
class RegularizerConfig(Settings):
    """Base of every regularizer's config: weight and place."""

    section = "regularizer"

    weight: float = setting(1.0, "weight of the regularizer's terms at the start of the run", at_least=0)
    final_weight: float | None = setting(None, "weight at the end of the run; null keeps it", at_least=0)
    weight_schedule: ScheduleShape = setting(ScheduleShape.linear, "how the weight changes: constant, linear or cosine")
    apply_to: Place = setting(
        Place.context, "context (mean over each context's tokens), predictions (mean over each block's), or tokens"
    )


class Regularizer(nn.Module, ABC):
    """Loss terms that keep a method's features from collapsing."""

    couples_images: ClassVar[bool] = True  # the terms are no means over images; see ``Method.couples_images``

    def __init__(self, config: RegularizerConfig) -> None:
        super().__init__()
        self.config = config

    def schedules(self) -> Mapping[str, Schedule]:
        """Declare values that change from step to step and that ``terms`` reads, as ``Method.schedules`` does."""
        config = self.config
        final = config.weight if config.final_weight is None else config.final_weight
        weight = make_schedule(config.weight_schedule, config.weight, final)
        return {"weight": lambda progress: weight(progress.fraction), "step": lambda progress: progress.step}

    def forward(
        self, features: Mapping[str, Float[Tensor, "B *V L D"]], values: Mapping[str, Tensor], world: World
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Return weighted loss terms by name.

        Args:
            features: what the method hands to ``Method.regularize``.
            values: of ``schedules``, at this step.
            world: collectives with gradient, for statistics over the images of all ranks.

        Raises:
            ValueError: a statistic of a single sample.
        """
        samples = self._samples(features)
        if len(samples) * world.size < 2:
            raise ValueError("a regularizer needs statistics over several images: raise trainer.batch_size above 1")
        with full_precision(samples.device):
            terms = self.terms(samples.float(), values, world)
        return {name: values["weight"] * term for name, term in terms.items()}

    @abstractmethod
    def terms(
        self, samples: Float[Tensor, "S V D"], values: Mapping[str, Tensor], world: World
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Return loss terms by name, without the weight of the regularizer.

        Args:
            samples: float32, of this rank, for V contexts, views or blocks of each image; statistics are those over S
                and all ranks, for each of the V, and the terms are means over V. S are images, or all tokens.
        """

    def _samples(self, features: Mapping[str, Float[Tensor, "B *V L D"]]) -> Float[Tensor, "S V D"]:
        """Bring the features of the configured place to one shape."""
        place = self.config.apply_to
        if place is Place.tokens:
            return features["tokens"].flatten(0, -2)[:, None]
        if place is Place.context and "context" in features:
            pooled = features["context"]
        else:
            pooled = features["predictions" if place is Place.predictions else "tokens"].mean(
                dim=-2, dtype=torch.float32
            )
        return pooled.reshape(len(pooled), -1, pooled.shape[-1])


REGULARIZERS = Registry("regularizer", "regularizer")
