"""The contract between engine and methods, and the glossary of its terms.

*patch*: a square of pixels. *token*: the vector of a patch. *view*: one rendering of an image. *context*: patches that
the encoder sees. *target*: patches whose content is predicted. *masked*: hidden from the encoder. *step*: one optimizer
step. *micro-batch*: the part of a step's images that passes through the network at once. *rank*: a process of the run.
Letters in shapes: B images, V views, N patches, C context blocks of K visible patches, M target blocks of T patches, D
width, P pixels per patch.
"""

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.collapse import Limit
from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.ema import Ema, EmaConfig, EmaCopy
from ssl_zoo.masks import Masks
from ssl_zoo.nn import BACKBONES, BackboneConfig, ViT
from ssl_zoo.plotting import Figure
from ssl_zoo.progress import Progress, Schedule
from ssl_zoo.registry import Registry
from ssl_zoo.regularizers import REGULARIZERS, Place, Regularizer, RegularizerConfig
from ssl_zoo.settings import Settings
from ssl_zoo.targets import TARGETS, Target, TargetConfig
from ssl_zoo.world import World

__all__ = [
    "METHODS",
    "Batch",
    "Clip",
    "Ema",
    "EmaConfig",
    "EmaCopy",
    "Figure",
    "Limit",
    "Masks",
    "Method",
    "MethodConfig",
    "Output",
    "ParamGroup",
    "Place",
    "Progress",
    "Schedule",
    "Step",
    "Target",
    "ViT",
    "ViewSpec",
    "World",
    "build_method",
    "without_decay",
]


@dataclass
class MethodConfig(Settings):
    """Base of every method's config."""

    section = "method"


_REGULARIZER = "regularizer."  # prefix of its values among those of the step


@dataclass(frozen=True)
class Step:
    """What a method may know of the run; ``forward``, ``after_backward`` and ``after_step`` get the same object.

    Attributes:
        progress: for ``after_backward`` and ``after_step``. ``forward`` may be captured once as a CUDA graph and
            replayed in other steps, so a captured one can't read it.
        values: what ``Method.schedules`` declares, at this step, as tensors on the device; replays see their values.
            Those of the regularizer are here as well, as ``regularizer.NAME``.
        world: the collectives that a method may use.
    """

    progress: Progress
    values: Mapping[str, Tensor] = field(default_factory=dict)
    world: World = field(default_factory=World)

    @classmethod
    def of(
        cls, method: "Method", progress: Progress, device: torch.device | str = "cpu", world: World | None = None
    ) -> "Step":
        """Evaluate the schedules of a method and of its regularizer at ``progress``."""
        schedules = dict(method.schedules())
        if method.regularizer is not None:
            schedules |= {f"{_REGULARIZER}{name}": value for name, value in method.regularizer.schedules().items()}
        values = {
            name: torch.as_tensor(schedule(progress), dtype=torch.float32).to(device, non_blocking=True)
            for name, schedule in schedules.items()
        }
        return cls(progress, values, world or World())


@dataclass(frozen=True)
class Output:
    """What one forward pass of a method returns.

    Attributes:
        losses: weighted loss terms, float32 means over the images of the local (micro-)batch. The engine differentiates
            their sum and logs every term.
        metrics: detached scalars on the device; nobody reads their value between log steps.
        statistics: detached means over the images of the local (micro-)batch. The engine averages them over
            micro-batches and ranks and hands them to ``Method.after_step``, e.g. for a center.
    """

    losses: Mapping[str, Float[Tensor, ""]]
    metrics: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The sum of all terms."""
        return functools.reduce(operator.add, self.losses.values())


class Clip(Enum):
    """How the gradients of a parameter group are clipped; ``optim.clip_grad_norm`` is the limit of the norm."""

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
    """One self-supervised objective with every network that it trains or keeps an EMA of.

    ``forward`` is the only way in: the trainer wraps the instance in DDP or shards it, and a call around the wrapper
    silently skips the reduction of gradients.

    Attributes:
        default_views, default_masks, default_targets: options of the config groups, unless the recipe names others.
        couples_images: the loss is no mean over images, e.g. a contrastive one or one of batch statistics. Gradient
            accumulation, which would change it, is refused; ranks meet in ``step.world``.
        metric_groups: groups in which loggers show metrics of ``Output``, for those that belong to another than
            ``train``; the metrics of ``collapse.py`` and those of ``collapse_limits`` have theirs.
        regularizes: the features that ``forward`` hands to ``regularize``; none refuses every regularizer.
        regularizer: the run's regularizer, which ``regularize`` calls; set by ``build_method``.
    """

    default_views: ClassVar[str] = "single_crop"
    default_masks: ClassVar[str | None] = None
    default_targets: ClassVar[str | None] = None
    couples_images: ClassVar[bool] = False
    metric_groups: ClassVar[Mapping[str, str]] = {}
    regularizes: ClassVar[Sequence[Place]] = ()

    encoder: ViT
    target: Target | None
    regularizer: Regularizer | None

    def __init__(self, config: MethodConfig, encoder: ViT, target: Target | None) -> None:
        super().__init__()
        self.config, self.encoder, self.target, self.regularizer = config, encoder, target, None

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> Output:
        """Compute the losses of a batch; changes no state besides the graph of gradients."""

    def schedules(self) -> Mapping[str, Schedule]:
        """Declare values that change from step to step and that ``forward`` reads as ``step.values``."""
        return {}

    def emas(self) -> Sequence[Ema]:
        """List the EMA weights; the engine updates each after every optimizer step."""
        return self.target.emas(self.encoder) if self.target is not None else ()

    def regularize(self, step: Step, **features: Float[Tensor, "B *V L D"]) -> Mapping[str, Float[Tensor, ""]]:
        """Return the loss terms of the run's regularizer; none without a regularizer.

        Args:
            features: with gradient, images first. ``tokens`` of the encoder at patches (B, *V, N, D), V views or
                contexts per image; ``predictions`` (B, *V, T, D) of V blocks; ``context`` (B, *V, D), one vector per
                view or context, where it is not the mean over ``tokens``.
        """
        if self.regularizer is None:
            return {}
        values = {name.removeprefix(_REGULARIZER): value for name, value in step.values.items()}
        return self.regularizer(features, values, step.world)

    def after_backward(self, step: Step) -> None:
        """Change gradients between backward and clipping: freeze a last layer, reduce gradients of one's own."""

    def after_step(self, step: Step, statistics: Mapping[str, Tensor]) -> None:
        """Update state once per successful optimizer step, after the EMAs: centers, queues.

        Args:
            statistics: those of the step's outputs, averaged over its micro-batches and all ranks.
        """

    def loss_weight(self, batch: Batch) -> Float[Tensor, ""] | None:
        """Return how much this (micro-)batch's loss counts in that of the step; None = by its number of images.

        For losses that are means over something else than images, e.g. over masked patches whose number differs: the
        step's loss is then the same for any split of its images into micro-batches and ranks.
        """
        return None

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        """Refuse views or masks that this method can't use, before a run starts.

        Args:
            views: of the run, by name.
            masks: of one image, by name of the view, as the run's generator samples them.

        Raises:
            ValueError: with the reason and what to change.
        """

    def param_groups(self) -> Sequence[ParamGroup]:
        """Put each trainable parameter in exactly one group. Default: decay for tensors of two or more dimensions."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return (
            ParamGroup("decay", [p for p in trainable if p.ndim > 1], decay=True),
            ParamGroup("no_decay", [p for p in trainable if p.ndim <= 1], decay=False),
        )

    def eval_encoder(self) -> ViT:
        """Return the network that probes, exports and users get."""
        return self.encoder if self.target is None else self.target.eval_encoder(self.encoder)

    def predict_blocks(self, batch: Batch) -> Float[Tensor, "B C pairs T D"]:
        """Return what each context predicts at the patches of its target blocks, in the order of ``Masks.paired``.

        Defined by methods that predict patches. ``visualize`` shows it, and a decoder of predictions is trained on it.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts no target blocks")

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        """Return figures by name, with a row per image, that show what the method does with a batch."""
        return {}

    def collapse_limits(self) -> Sequence[Limit]:
        """List the metrics that show a collapse; the engine's alarm watches them."""
        return () if self.target is None else self.target.collapse_limits()


def without_decay(groups: Sequence[ParamGroup], exempt: nn.Parameter | None) -> Sequence[ParamGroup]:
    """Move a parameter from the first group of ``Method.param_groups`` to the second, which has no weight decay."""
    decay, no_decay = groups
    moved = [p for p in decay.params if p is exempt]
    return (
        replace(decay, params=[p for p in decay.params if p is not exempt]),
        replace(no_decay, params=[*no_decay.params, *moved]),
    )


METHODS = Registry("method", "method")


def build_method(
    method: MethodConfig,
    backbone: BackboneConfig,
    target: TargetConfig | None,
    regularizer: RegularizerConfig | None = None,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Method:
    """Build a method with its encoder, target and regularizer, initialised as a function of ``seed`` alone.

    Args:
        device: "meta" builds without allocating or initialising a weight.

    Raises:
        ValueError: parts that don't go together.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        encoder = BACKBONES.build(backbone)
        built_target = None if target is None else TARGETS.build(target, encoder)
        built = METHODS.build(method, encoder, built_target)
        if regularizer is not None:
            _check_place(regularizer, built)
            built.regularizer = REGULARIZERS.build(regularizer)
    return built


def _check_place(config: RegularizerConfig, method: Method) -> None:
    name, places = type(method).__name__, [place.value for place in method.regularizes]
    if not places:
        raise ValueError(f"{name} hands no features to a regularizer: set regularizer=null")
    if config.apply_to.value not in places:
        raise ValueError(
            f"regularizer.apply_to={config.apply_to.value}: {name} has no such features; it has {', '.join(places)}"
        )
