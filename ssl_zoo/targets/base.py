"""What is predicted: the contract of targets, and the averaged copies that some of them bring."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.masks.base import Masks
from ssl_zoo.nn.vit import ViT
from ssl_zoo.registry import Registry


@dataclass(frozen=True)
class Ema:
    """An exponential moving average of one module's parameters kept in another.

    Knows the places of both modules' tensors, never the tensors: ``fully_shard`` replaces parameters, and an older list
    would leave the average standing still without any error.

    Attributes:
        momentum: fraction of the run -> m in ``average = m * average + (1 - m) * online``.
    """

    online: nn.Module
    average: nn.Module
    momentum: Callable[[float], float]

    @torch.no_grad()
    def update(self, fraction: float) -> float:
        """Move the average by (1 - m) of the difference; copy integer buffers. Returns m."""
        momentum = self.momentum(fraction)
        pairs = [(average[name], online[name]) for average, online, name in self._places]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floating], [online for _, online in floating], 1.0 - momentum)
        for average, online in pairs:
            if not average.is_floating_point():
                average.copy_(online)
        return momentum

    @cached_property
    def _places(self) -> Sequence[tuple[dict[str, Tensor], dict[str, Tensor], str]]:
        """The dictionaries of both modules that hold a tensor, and its name there; walking the modules takes longer."""
        online_modules, places, seen = dict(self.online.named_modules()), [], set()
        for path, module in self.average.named_modules():
            for kind in ("_parameters", "_buffers"):
                average, online = getattr(module, kind), getattr(online_modules[path], kind)
                for name, tensor in average.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))  # of a tensor with two names once
                        places.append((average, online, name))
        return places


@dataclass
class TargetConfig:
    """Base of every target's config."""


class Target(nn.Module, ABC):
    """What a masked method predicts for each target patch; computed without gradient."""

    learned: ClassVar[bool] = True  # made by a network, so that it may collapse; False for what the data alone decide
    dim: int  # width of one patch's target

    @abstractmethod
    def forward(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B M T dim"]:
        """Targets of the patches ``masks.targets``, float32."""

    def visualize(
        self,
        predictions: Float[Tensor, "B M T dim"],
        images: Float[Tensor, "B 3 H W"],
        masks: Masks,
        unnormalize: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B 3 H W"]],
    ) -> Mapping[str, Float[Tensor, "3 rows columns"]]:
        """Images in 0..1 that show predictions of this target, one row per image of the batch.

        Args:
            masks: one context block and the target blocks that it predicts.
            unnormalize: from the values that the encoder gets to 0..1.
        """
        return {}

    def averages(self, encoder: ViT) -> Sequence[Ema]:
        """The averaged networks that this target brings; ``encoder`` is the one being trained."""
        return ()

    def evaluated(self, encoder: ViT) -> ViT:
        """The better encoder to evaluate: the averaged one where there is one."""
        return encoder


TARGETS = Registry("target", "targets")
