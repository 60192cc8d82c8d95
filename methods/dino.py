"""DINO: a student matches its EMA teacher's distribution over prototypes across global and local crops.

Paper: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294. Reference:
facebookresearch/dino.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.collapse import DISTRIBUTION_LIMITS, Limit, distribution_metrics
from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.ema import Ema, EmaConfig, EmaCopy
from ssl_zoo.losses.koleo import koleo
from ssl_zoo.losses.self_distillation import center_and_sharpen, cross_entropy_across_views, sinkhorn
from ssl_zoo.method import METHODS, Clip, Masks, Method, MethodConfig, Output, ParamGroup, Place, Schedule, Step
from ssl_zoo.nn import ViT
from ssl_zoo.nn.heads import PrototypeHead, PrototypeHeadConfig
from ssl_zoo.plotting import Figure, crop_columns
from ssl_zoo.refusals import refuse_target, require_global_crops
from ssl_zoo.schedules import ScheduleShape, after_warmup
from ssl_zoo.settings import setting
from ssl_zoo.targets import Target


@dataclass
class DINOConfig(PrototypeHeadConfig, MethodConfig):
    """DINO: a head over prototypes, temperatures, the teacher. Defaults: the reference's ViT-S/16, 300 epochs."""

    student_temp: float = setting(0.1, "temperature of the student's distributions", above=0)
    warmup_teacher_temp: float = setting(0.04, "temperature of the teacher's distributions at the start", above=0)
    teacher_temp: float = setting(0.07, "temperature of the teacher's distributions after its warm-up", above=0)
    teacher_temp_warmup_epochs: float = setting(30.0, "epochs of the teacher temperature's linear warm-up", at_least=0)
    ema: EmaConfig = setting(EmaConfig(schedule=ScheduleShape.cosine), "EMA weights of the teacher, head included")
    center_momentum: float = setting(0.9, "momentum of the mean output that centers the teacher", at_least=0, at_most=1)
    sinkhorn_iterations: int = setting(
        0, "iterations of Sinkhorn-Knopp that balance the teacher instead of the center; DINOv2: 3", at_least=0
    )
    koleo_weight: float = setting(0.0, "weight of KoLeo on features of global crops; DINOv2: 0.1", at_least=0)
    freeze_last_layer_epochs: float = setting(1.0, "epochs in which the prototypes are not trained", at_least=0)


@METHODS.register("dino", DINOConfig)
class DINO(Method):
    """Match an EMA teacher's sharpened, centered distributions across crops of an image (arXiv 2104.14294)."""

    default_views = "dino"
    regularizes = (Place.context, Place.tokens)

    config: DINOConfig
    center: Float[Tensor, "K"]

    def __init__(self, config: DINOConfig, encoder: ViT, target: Target | None) -> None:
        refuse_target("DINO", target)
        super().__init__(config, encoder, None)
        self.couples_images = config.sinkhorn_iterations > 0 or config.koleo_weight > 0
        self.head = PrototypeHead(config, encoder.embed_dim)
        self.teacher_encoder, self.teacher_head = EmaCopy(encoder), EmaCopy(self.head)
        self.register_buffer("center", torch.zeros(config.num_prototypes))

    def schedules(self) -> Mapping[str, Schedule]:
        config = self.config
        first, last, epochs = config.warmup_teacher_temp, config.teacher_temp, config.teacher_temp_warmup_epochs
        return {"teacher_temp": lambda progress: after_warmup(first, last, progress.epoch, epochs)}

    def forward(self, batch: Batch, step: Step) -> Output:
        global_crops, local_crops = batch.group("global"), batch.group("local")
        tokens = self.encoder(torch.cat(global_crops))
        student_features = [self.encoder.pooled(tokens)]
        if local_crops:
            student_features.append(self.encoder.pooled(self.encoder(torch.cat(local_crops))))
        student_features = torch.cat(student_features)
        student = self.head(student_features).unflatten(0, (len(batch.views), -1)).float()
        with torch.no_grad():
            teacher_features = self.encoder.pooled(self.teacher_encoder(torch.cat(global_crops)))
            teacher = self.teacher_head(teacher_features).unflatten(0, (len(global_crops), -1)).float()
        if self.config.sinkhorn_iterations:
            scores = teacher / step.values["teacher_temp"]
            probabilities = sinkhorn(scores, step.world, self.config.sinkhorn_iterations)
        else:
            probabilities = center_and_sharpen(teacher, self.center, step.values["teacher_temp"])
        losses = {"self_distillation": cross_entropy_across_views(student / self.config.student_temp, probabilities)}
        if self.config.koleo_weight:
            spread = [koleo(crop, step.world) for crop in student_features.chunk(len(batch.views))[: len(global_crops)]]
            losses["koleo"] = self.config.koleo_weight * sum(spread)
        patches = self.encoder.patches(tokens)
        losses |= self.regularize(
            step,
            context=student_features.unflatten(0, (len(batch.views), -1)).transpose(0, 1),
            tokens=patches.unflatten(0, (len(global_crops), -1)).transpose(0, 1),
        )
        statistics = {"center": teacher.mean(dim=(0, 1))}
        return Output(losses, distribution_metrics(probabilities), statistics)

    def emas(self) -> Sequence[Ema]:
        networks = ((self.encoder, self.teacher_encoder), (self.head, self.teacher_head))
        return [Ema(online, teacher, self.config.ema.momentum_at) for online, teacher in networks]

    def after_backward(self, step: Step) -> None:
        if step.progress.epoch < self.config.freeze_last_layer_epochs:
            self.head.last_layer.zero_grad()  # to None: the optimizer then skips it, neither decay nor moments

    def after_step(self, step: Step, statistics: Mapping[str, Tensor]) -> None:
        self.center.lerp_(statistics["center"], 1 - self.config.center_momentum)

    def param_groups(self) -> Sequence[ParamGroup]:
        """Clip each parameter's gradient on its own, as the reference does."""
        return [replace(group, clip=Clip.per_parameter) for group in super().param_groups()]

    def eval_encoder(self) -> ViT:
        return self.teacher_encoder.module

    def collapse_limits(self) -> Sequence[Limit]:
        return DISTRIBUTION_LIMITS

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_global_crops(self, views, self.encoder)
        if masks:
            raise ValueError("DINO's crops are not masked: set masks=null, or choose method=ibot")

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        """Show ``crops``: each image's global and local crops."""
        title = "Crops: the student's assignment of every crop must match the teacher's of the other global crops"
        return {"crops": Figure(title, crop_columns({name: batch.pixels(name) for name in batch.views}))}
