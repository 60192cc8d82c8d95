"""The contract between engine and methods, and the glossary of its terms.

*patch*: a square of pixels. *token*: the vector of a patch. *view*: one rendering of an image. *context*: patches that
the encoder sees. *target*: patches whose content is predicted. *step*: one optimizer step. *micro-batch*: the part of a
step's images that passes through the network at once. Letters in shapes: B images, V views, N patches, C context blocks
of K patches, M target blocks of T patches, D width, P pixels per patch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.masks import Masks
from ssl_zoo.nn import BACKBONES, BackboneConfig, ViT
from ssl_zoo.registry import Registry
from ssl_zoo.targets import TARGETS, Ema, Target, TargetConfig

__all__ = [
    "METHODS",
    "Batch",
    "Clip",
    "Ema",
    "Masks",
    "Method",
    "MethodConfig",
    "Output",
    "ParamGroup",
    "Progress",
    "Target",
    "ViT",
    "ViewSpec",
    "build_method",
]


@dataclass
class MethodConfig:
    """Base of every method's config."""


@dataclass(frozen=True)
class Progress:
    """Where the run stands when a step begins; schedules are functions of ``fraction`` alone."""

    step: int  # optimizer steps completed before this one
    num_steps: int
    samples: int  # images that all ranks together have consumed before this step

    @property
    def fraction(self) -> float:
        return self.step / self.num_steps


@dataclass(frozen=True)
class Output:
    """What one forward pass of a method returns.

    Attributes:
        loss: float32 mean over the images of the local (micro-)batch; the only tensor that is differentiated.
        metrics: detached scalars on the device; nobody reads their value between log steps. The collapse alarm knows
            ``target_cosine``, ``target_std``, ``teacher_entropy`` and ``prototype_entropy`` (``nn/diversity.py``).
        statistics: detached means over the images of the local (micro-)batch, which the method's ``after_step`` gets
            as means over all images of the step, e.g. for a center.
    """

    loss: Float[Tensor, ""]
    metrics: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


class Clip(Enum):
    """How the gradients of a parameter group are clipped; the norm limit is the engine's ``optim.clip_grad_norm``."""

    globally = "global"
    per_parameter = "per_parameter"
    none = "none"


@dataclass(frozen=True)
class ParamGroup:
    """Trainable parameters that share their treatment by the optimizer."""

    name: str
    params: Sequence[nn.Parameter]
    decay: bool
    lr_scale: float = 1.0
    clip: Clip = Clip.globally


class Method(nn.Module, ABC):
    """One self-supervised objective with every network that it trains or averages.

    ``forward`` is the only way in: the trainer wraps the instance in DDP or shards it, and a call around the wrapper
    silently skips the reduction of gradients.
    """

    default_masks: ClassVar[str | None] = (
        None  # options of the groups masks/ and targets/ unless the recipe names others
    )
    default_targets: ClassVar[str | None] = None

    encoder: ViT
    target: Target | None

    def __init__(self, config: MethodConfig, encoder: ViT, target: Target | None) -> None:
        super().__init__()
        self.config, self.encoder, self.target = config, encoder, target

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Output:
        """The loss of a batch; changes no state besides gradients' graph."""

    def weight(self, batch: Batch) -> Float[Tensor, ""] | None:
        """How much this (micro-)batch's loss counts in that of the whole step; None = as much as it has images.

        For losses that are means over something else than images, e.g. over hidden patches whose number differs: the
        step's loss is then the same however its images are divided among micro-batches and ranks.
        """
        return None

    def check_masks(self, masks: Masks | None) -> None:
        """Refuse masks of a kind that this method has no use for, before a run starts; called once per view.

        Args:
            masks: of one image, as the run's generator draws them; None for a view that gets none.

        Raises:
            ValueError: with the reason and what to change.
        """

    def averages(self) -> Sequence[Ema]:
        """Averaged networks; the engine updates each after every optimizer step."""
        return self.target.averages(self.encoder) if self.target is not None else ()

    def before_step(self, progress: Progress) -> None:
        """Called between backward and clipping: freeze a last layer, reduce gradients of one's own."""

    def after_step(self, progress: Progress, statistics: Mapping[str, Tensor]) -> None:
        """Called once per successful optimizer step, after the averages: centers, queues.

        Args:
            statistics: those of the step's outputs, averaged over its micro-batches and all ranks.
        """

    def param_groups(self) -> Sequence[ParamGroup]:
        """Trainable parameters, each in exactly one group. Default: decay for tensors of two or more dimensions."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return (
            ParamGroup("decay", [p for p in trainable if p.ndim > 1], decay=True),
            ParamGroup("no_decay", [p for p in trainable if p.ndim <= 1], decay=False),
        )

    def evaluated(self) -> ViT:
        """The network that probes, exports and users get."""
        return self.encoder

    def visualize(self, batch: Batch) -> Mapping[str, Float[Tensor, "3 H W"]]:
        """Images in 0..1 that show what the method does with a batch."""
        return {}

    @classmethod
    @abstractmethod
    def views(cls, config: MethodConfig, image_size: tuple[int, int]) -> Sequence[ViewSpec]:
        """The views that a batch holds; a class method, since the data side is built before the networks."""


METHODS = Registry("method", "method")


def build_method(
    method: MethodConfig,
    backbone: BackboneConfig,
    target: TargetConfig | None,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Method:
    """The method with its encoder and target, initialised as a function of ``seed`` alone.

    Args:
        device: "meta" builds without allocating or initialising a weight.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        encoder = BACKBONES.build(backbone)
        built_target = None if target is None else TARGETS.build(target, encoder)
        return METHODS.build(method, encoder, built_target)
