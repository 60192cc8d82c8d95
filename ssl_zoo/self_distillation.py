"""Base of the methods in which a student learns to say of an image's crops what its average says of the large ones.

DINO (arXiv 2104.14294) and what was built on it: a teacher's distributions over prototypes, centered and sharpened.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.method import (
    Batch,
    Clip,
    Ema,
    Method,
    MethodConfig,
    ParamGroup,
    Progress,
    Target,
    ViewSpec,
    ViT,
)
from ssl_zoo.nn import normalized_entropy
from ssl_zoo.nn.heads import PrototypeHead
from ssl_zoo.plotting import rows_of
from ssl_zoo.schedules import ScheduleShape, make_schedule
from ssl_zoo.settings import setting

NUM_GLOBAL = 2  # large crops, which both networks see

COLOURS = {
    "interpolation": "bicubic",
    "horizontal_flip": 0.5,
    "color_jitter": [0.4, 0.4, 0.2, 0.1],
    "color_jitter_probability": 0.8,
    "grayscale": 0.2,
}


@dataclass
class SelfDistillationConfig(MethodConfig):
    """A head over prototypes, temperatures, and the crops. Defaults: DINO's ViT-S/16, 300 epochs."""

    num_prototypes: int = setting(65536, "outputs of the head")
    head_dim: int = setting(2048, "width of the head's hidden layers")
    head_layers: int = setting(3, "linear maps of the head before the prototypes")
    bottleneck_dim: int = setting(256, "width in which prototypes live, on the unit sphere")
    norm_last_layer: bool = setting(True, "prototypes keep length one; the reference lets ViT-S learn their lengths")
    student_temperature: float = setting(0.1, "of the student's distributions")
    teacher_temperature: float = setting(0.04, "of the teacher's at the start of the run")
    final_teacher_temperature: float = setting(0.07, "of the teacher's after the warm-up")
    temperature_warmup: float = setting(0.1, "fraction of the run in which the teacher's temperature rises linearly")
    momentum: float = setting(0.996, "EMA momentum of the teacher at the start of the run")
    final_momentum: float = setting(1.0, "EMA momentum at its end")
    center_momentum: float = setting(0.9, "of the mean output that is subtracted from the teacher's")
    frozen_last_layer: float = setting(1 / 300, "fraction of the run in which prototypes don't move")
    num_local_crops: int = setting(8, "small crops, which the student alone sees")
    local_size: int = setting(96, "side of a small crop in pixels")
    global_view: ViewConfig = setting(ViewConfig(crop_scale=[0.4, 1.0], blur=1.0, **COLOURS), "first large crop")
    second_global_view: ViewConfig = setting(
        ViewConfig(crop_scale=[0.4, 1.0], blur=0.1, solarize=0.2, **COLOURS), "second large crop"
    )
    local_view: ViewConfig = setting(ViewConfig(crop_scale=[0.05, 0.4], blur=0.5, **COLOURS), "small crops")

    def __post_init__(self) -> None:
        for key in ("num_prototypes", "head_dim", "head_layers", "bottleneck_dim", "local_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"method.{key}={getattr(self, key)}: needs 1 or more")
        if self.num_local_crops < 0:
            raise ValueError(f"method.num_local_crops={self.num_local_crops}: needs 0 or more")
        for key in ("student_temperature", "teacher_temperature", "final_teacher_temperature"):
            if getattr(self, key) <= 0:
                raise ValueError(f"method.{key}={getattr(self, key)}: needs a positive number")
        for key in ("momentum", "final_momentum", "center_momentum", "temperature_warmup", "frozen_last_layer"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"method.{key}={getattr(self, key)}: needs a value in 0..1")


class SelfDistillation(Method):
    """Match an averaged teacher's sharpened, centered distributions across crops of an image."""

    masked: ClassVar[bool] = False  # whether the large crops get masks

    config: SelfDistillationConfig
    center: Float[Tensor, "K"]

    def __init__(self, config: SelfDistillationConfig, encoder: ViT, target: Target | None) -> None:
        if target is not None:
            name = type(self).__name__
            raise ValueError(f"{name}'s targets are its own teacher's: leave the group targets out (targets=null)")
        super().__init__(config, encoder, None)
        _check_local_size(config, encoder)
        self.head = PrototypeHead(
            encoder.embed_dim,
            hidden_dim=config.head_dim,
            bottleneck_dim=config.bottleneck_dim,
            num_prototypes=config.num_prototypes,
            num_layers=config.head_layers,
            unit_length=config.norm_last_layer,
        )
        self.teacher_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(config.num_prototypes))
        self._temperature = make_schedule(
            ScheduleShape.linear, config.teacher_temperature, config.final_teacher_temperature
        )
        self._momentum = make_schedule(ScheduleShape.cosine, config.momentum, config.final_momentum)

    def teacher_temperature(self, fraction: float) -> float:
        """At a fraction of the run."""
        return self._temperature(self.warmed_up(fraction))

    def warmed_up(self, fraction: float) -> float:
        """How much of the temperature's warm-up is over at a fraction of the run."""
        warmup = self.config.temperature_warmup
        return min(1.0, fraction / warmup) if warmup else 1.0

    @torch.no_grad()
    def distributions(
        self, outputs: Float[Tensor, "*S K"], center: Float[Tensor, "K"], temperature: float
    ) -> Float[Tensor, "*S K"]:
        """The teacher's, from its head's outputs."""
        return ((outputs - center) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def metrics(self, probabilities: Float[Tensor, "V B K"]) -> Mapping[str, Float[Tensor, ""]]:
        """Entropies of the teacher's distributions and of their mean over the batch, which collapse in two ways."""
        return {
            "teacher_entropy": normalized_entropy(probabilities),
            "prototype_entropy": normalized_entropy(probabilities.mean(dim=(0, 1))),
        }

    def averages(self) -> Sequence[Ema]:
        networks = ((self.encoder, self.teacher_encoder), (self.head, self.teacher_head))
        return [Ema(online, average, self._momentum) for online, average in networks]

    def before_step(self, progress: Progress) -> None:
        if progress.fraction < self.config.frozen_last_layer:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None  # the optimizer then passes it by: neither decay nor moments

    def after_step(self, progress: Progress, statistics: Mapping[str, Tensor]) -> None:
        self.center.lerp_(statistics["center"], 1 - self.config.center_momentum)

    def param_groups(self) -> Sequence[ParamGroup]:
        """Each parameter's gradient is clipped on its own, as in the reference."""
        return [replace(group, clip=Clip.per_parameter) for group in super().param_groups()]

    def evaluated(self) -> ViT:
        return self.teacher_encoder

    def train(self, mode: bool = True) -> "SelfDistillation":
        """The teacher drops no path, also while the student trains."""
        super().train(mode)
        self.teacher_encoder.eval()
        return self

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Mapping[str, Float[Tensor, "3 rows columns"]]:
        """``crops``: each image's large and small crops, the small ones enlarged."""
        size, views = batch.views[0].shape[-2:], self._view_configs()
        shown = [config.unnormalize(view) for config, view in zip(views, batch.views, strict=True)]
        return {"crops": rows_of([F.interpolate(view, size) for view in shown])}

    def _view_configs(self) -> Sequence[ViewConfig]:
        config = self.config
        return [config.global_view, config.second_global_view, *[config.local_view] * config.num_local_crops]

    @classmethod
    def views(cls, config: SelfDistillationConfig, image_size: tuple[int, int]) -> Sequence[ViewSpec]:
        large = (("global", config.global_view), ("second global", config.second_global_view))
        specs = [ViewSpec(name, image_size, view, masked=cls.masked) for name, view in large]
        if config.num_local_crops:
            size = (config.local_size, config.local_size)
            specs.append(ViewSpec("local", size, config.local_view, config.num_local_crops, masked=False))
        return specs


def project(encoder: ViT, head: PrototypeHead, views: Sequence[Float[Tensor, "B 3 _ _"]]) -> Float[Tensor, "views B K"]:
    """The head's outputs for all views; the encoder runs once per size of image."""
    sides = (views[:NUM_GLOBAL], views[NUM_GLOBAL:])
    features = [image_features(encoder, encoder(torch.cat(tuple(same)))) for same in sides if same]
    return head(torch.cat(features)).unflatten(0, (len(views), -1))


def image_features(encoder: ViT, tokens: Float[Tensor, "S L D"]) -> Float[Tensor, "S D"]:
    """The class token, or the mean of the tokens of an encoder without."""
    return tokens.mean(dim=1) if encoder.cls_token is None else tokens[:, 0]


def cross_entropy_across_views(
    logits: Float[Tensor, "V B K"], probabilities: Float[Tensor, "large B K"]
) -> Float[Tensor, ""]:
    """Mean over images and pairs of a teacher's and another student's view; the first views of both are the same."""
    num_large, (num_views, num_images, _) = len(probabilities), logits.shape
    log_probabilities = F.log_softmax(logits, dim=-1)
    everything = probabilities.sum(dim=0)
    # Each student's view meets the sum of the distributions that it is compared with: all but its own.
    agreement = (log_probabilities[:num_large] * (everything - probabilities)).sum()
    agreement = agreement + (log_probabilities[num_large:] * everything).sum()
    return -agreement / (num_images * num_large * (num_views - 1))


def _check_local_size(config: SelfDistillationConfig, encoder: ViT) -> None:
    if not config.num_local_crops:
        return
    try:
        encoder.config.grid_of((config.local_size, config.local_size))
    except ValueError as error:
        raise ValueError(f"method.local_size={config.local_size}: {error}") from error
    if encoder.rel_pos_bias is not None:
        raise ValueError(
            "backbone.relative_position_bias holds for one size of images: set it to false, or method.num_local_crops=0"
        )
