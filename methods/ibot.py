"""iBOT: DINO on crops, and the same task at the masked patches of the global crops.

Paper: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", arXiv 2111.07832. Reference: bytedance/ibot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_zoo.collapse import DISTRIBUTION_LIMITS, Limit, distribution_metrics
from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.ema import Ema, EmaConfig, EmaCopy
from ssl_zoo.losses.koleo import koleo
from ssl_zoo.losses.self_distillation import (
    center_and_sharpen,
    cross_entropy_across_views,
    cross_entropy_at_patches,
    sinkhorn,
)
from ssl_zoo.method import METHODS, Clip, Masks, Method, MethodConfig, Output, ParamGroup, Place, Schedule, Step
from ssl_zoo.nn import ViT
from ssl_zoo.nn.heads import PrototypeHead, PrototypeHeadConfig
from ssl_zoo.plotting import Figure, Swatch, crop_columns, on_grey
from ssl_zoo.refusals import refuse_target, require_global_crops
from ssl_zoo.schedules import ScheduleShape, after_warmup
from ssl_zoo.settings import setting
from ssl_zoo.targets import Target


@dataclass
class IBOTConfig(PrototypeHeadConfig, MethodConfig):
    """iBOT: DINO's settings and those of the loss at patches. Defaults: the published ViT-S/16, 800 epochs."""

    num_prototypes: int = setting(8192, "outputs of the head, which images and patches share", at_least=1)
    norm_last_layer: bool = setting(False, "prototypes keep length one; the reference does so for ViT-B and larger")
    student_temp: float = setting(0.1, "temperature of the student's distributions", above=0)
    warmup_teacher_temp: float = setting(0.04, "temperature of the teacher's distributions at the start", above=0)
    teacher_temp: float = setting(0.07, "temperature of the teacher's distributions after its warm-up", above=0)
    warmup_teacher_patch_temp: float = setting(0.04, "the same at patches, at the start", above=0)
    teacher_patch_temp: float = setting(0.07, "the same at patches, after the warm-up", above=0)
    teacher_temp_warmup_epochs: float = setting(30.0, "epochs of both teacher temperatures' linear warm-up", at_least=0)
    image_weight: float = setting(1.0, "weight of the loss of crops", at_least=0)
    patch_weight: float = setting(1.0, "weight of the loss at masked patches", at_least=0)
    mask_start_epoch: float = setting(
        0.0, "epoch before which nothing is masked; the warm-up of the patch temperature begins there", at_least=0
    )
    ema: EmaConfig = setting(EmaConfig(schedule=ScheduleShape.cosine), "EMA weights of the teacher, head included")
    center_momentum: float = setting(0.9, "momentum of the mean outputs that center the teacher", at_least=0, at_most=1)
    sinkhorn_iterations: int = setting(
        0, "iterations of Sinkhorn-Knopp that balance the teacher instead of the center; DINOv2: 3", at_least=0
    )
    koleo_weight: float = setting(0.0, "weight of KoLeo on features of global crops; DINOv2: 0.1", at_least=0)
    freeze_last_layer_epochs: float = setting(1.0, "epochs in which the prototypes are not trained", at_least=0)


@METHODS.register("ibot", IBOTConfig)
class IBOT(Method):
    """Match an EMA teacher's distributions across crops and at masked patches of global crops (arXiv 2111.07832)."""

    default_views = "ibot"
    default_masks = "random_ratio"
    regularizes = (Place.context, Place.tokens)

    config: IBOTConfig
    center: Float[Tensor, "K"]
    patch_center: Float[Tensor, "K"]

    def __init__(self, config: IBOTConfig, encoder: ViT, target: Target | None) -> None:
        refuse_target("iBOT", target)
        super().__init__(config, encoder, None)
        self.couples_images = config.sinkhorn_iterations > 0 or config.koleo_weight > 0
        self.head = PrototypeHead(config, encoder.embed_dim)
        self.teacher_encoder, self.teacher_head = EmaCopy(encoder), EmaCopy(self.head)
        self.mask_token = nn.Parameter(torch.zeros(1, encoder.embed_dim))
        self.register_buffer("center", torch.zeros(config.num_prototypes))
        self.register_buffer("patch_center", torch.zeros(config.num_prototypes))

    def schedules(self) -> Mapping[str, Schedule]:
        config = self.config
        epochs, start = config.teacher_temp_warmup_epochs, config.mask_start_epoch
        image = config.warmup_teacher_temp, config.teacher_temp
        patch = config.warmup_teacher_patch_temp, config.teacher_patch_temp
        return {
            "teacher_temp": lambda progress: after_warmup(*image, progress.epoch, epochs),
            "teacher_patch_temp": lambda progress: after_warmup(*patch, progress.epoch - start, epochs),
            "is_masking": lambda progress: float(progress.epoch >= start),
        }

    def forward(self, batch: Batch, step: Step) -> Output:
        global_crops, local_crops = batch.group("global"), batch.group("local")
        masked = self.masked_patches(batch) & step.values["is_masking"].bool()
        tokens = self.encoder(torch.cat(global_crops), masked=masked, mask_token=self.mask_token)
        features = [self.encoder.pooled(tokens)]
        if local_crops:
            features.append(self.encoder.pooled(self.encoder(torch.cat(local_crops))))
        features = torch.cat(features)
        student = self.head(features).float().unflatten(0, (len(batch.views), -1))
        patches = self.encoder.patches(tokens)
        student_patches = self.head(patches).float()
        with torch.no_grad():  # the teacher sees global crops, none of their patches masked
            tokens = self.teacher_encoder(torch.cat(global_crops))
            teacher = self.teacher_head(self.encoder.pooled(tokens)).float().unflatten(0, (len(global_crops), -1))
            teacher_patches = self.teacher_head(self.encoder.patches(tokens)).float()
        teacher_temp, patch_temp = step.values["teacher_temp"], step.values["teacher_patch_temp"]
        if iterations := self.config.sinkhorn_iterations:
            probabilities = sinkhorn(teacher / teacher_temp, step.world, iterations)
            # DINOv2 balances the prototypes over the masked patches alone, whose targets are used.
            patch_probabilities = sinkhorn(teacher_patches / patch_temp, step.world, iterations, counted=masked)
        else:
            probabilities = center_and_sharpen(teacher, self.center, teacher_temp)
            patch_probabilities = center_and_sharpen(teacher_patches, self.patch_center, patch_temp)
        temperature = self.config.student_temp
        image_loss = cross_entropy_across_views(student / temperature, probabilities)
        patch_loss = cross_entropy_at_patches(student_patches / temperature, patch_probabilities, masked)
        losses = {"image": self.config.image_weight * image_loss, "patch": self.config.patch_weight * patch_loss}
        if self.config.koleo_weight:
            spread = [koleo(crop, step.world) for crop in features.chunk(len(batch.views))[: len(global_crops)]]
            losses["koleo"] = self.config.koleo_weight * sum(spread)
        losses |= self.regularize(
            step,
            context=features.unflatten(0, (len(batch.views), -1)).transpose(0, 1),
            tokens=patches.unflatten(0, (len(global_crops), -1)).transpose(0, 1),
        )
        metrics = {**distribution_metrics(probabilities), "target_patches": masked.sum(dim=1).float().mean()}
        statistics = {"center": teacher.mean(dim=(0, 1)), "patch_center": teacher_patches.mean(dim=(0, 1))}
        return Output(losses, metrics, statistics)

    def masked_patches(self, batch: Batch) -> Bool[Tensor, "S N"]:
        """Return the masks of all global crops, crop after crop; True = masked."""
        return torch.cat([masks.all_masked(self.encoder.num_patches) for masks in batch.masks.values()])

    def emas(self) -> Sequence[Ema]:
        networks = ((self.encoder, self.teacher_encoder), (self.head, self.teacher_head))
        return [Ema(online, teacher, self.config.ema.momentum_at) for online, teacher in networks]

    def after_backward(self, step: Step) -> None:
        if step.progress.epoch < self.config.freeze_last_layer_epochs:
            self.head.last_layer.zero_grad()  # to None: the optimizer then skips it, neither decay nor moments

    def after_step(self, step: Step, statistics: Mapping[str, Tensor]) -> None:
        for name in ("center", "patch_center"):
            getattr(self, name).lerp_(statistics[name], 1 - self.config.center_momentum)

    def param_groups(self) -> Sequence[ParamGroup]:
        """Clip each parameter's gradient on its own, as the reference does."""
        return [replace(group, clip=Clip.per_parameter) for group in super().param_groups()]

    def eval_encoder(self) -> ViT:
        return self.teacher_encoder.module

    def collapse_limits(self) -> Sequence[Limit]:
        return DISTRIBUTION_LIMITS

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_global_crops(self, views, self.encoder)
        if set(masks) != {"global_0", "global_1"}:
            raise ValueError(
                f"iBOT masks patches of both global crops: choose masks, e.g. masks={self.default_masks}, and views "
                f"whose global crops alone are masked, e.g. views={self.default_views}"
            )
        num_contexts = masks["global_0"].context.shape[1]
        if num_contexts > 1:
            raise ValueError(
                f"iBOT masks one set of patches per crop, but these masks have {num_contexts} contexts; set "
                f"masks.num_masks=1 or choose other masks, e.g. masks={self.default_masks}"
            )

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        """Show ``crops``, and ``masks``: the global crops with masked patches in grey."""
        crops = {name: batch.pixels(name) for name in batch.views}
        visible = {name: ~masks.all_masked(self.encoder.num_patches) for name, masks in batch.masks.items()}
        masked = {name: on_grey(crops[name], patches, self.encoder.grid) for name, patches in visible.items()}
        title = "Crops: the student's assignment of every crop must match the teacher's of the other global crops"
        keys = [Swatch("masked patches: the student predicts the teacher's assignment of each")]
        return {
            "crops": Figure(title, crop_columns(crops)),
            "masks": Figure(
                "Masks: which patches of the global crops the student does not see", crop_columns(masked), keys
            ),
        }
