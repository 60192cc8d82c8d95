"""iBOT: DINO, and at masked patches of the large crops the same task once more, patch by patch.

Paper: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", arXiv 2111.07832. Reference: bytedance/ibot.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.masks import Masks
from ssl_zoo.method import METHODS, Batch, Output, Progress, Target, ViT
from ssl_zoo.plotting import on_grey, rows_of
from ssl_zoo.schedules import ScheduleShape, make_schedule
from ssl_zoo.self_distillation import (
    COLOURS,
    NUM_GLOBAL,
    SelfDistillation,
    SelfDistillationConfig,
    cross_entropy_across_views,
    image_features,
)
from ssl_zoo.settings import setting


@dataclass
class IBOTConfig(SelfDistillationConfig):
    """iBOT: DINO's settings, and those of the loss at patches. Defaults: the published ViT-S/16."""

    num_prototypes: int = setting(8192, "outputs of the head, which images and patches share")
    norm_last_layer: bool = setting(False, "prototypes keep length one; the reference does so for ViT-B and larger")
    teacher_patch_temperature: float = setting(0.04, "of the teacher's at patches, at the start of the run")
    final_teacher_patch_temperature: float = setting(0.07, "of the teacher's at patches, after the warm-up")
    image_weight: float = setting(1.0, "of the loss of whole crops")
    patch_weight: float = setting(1.0, "of the loss at masked patches")
    num_local_crops: int = setting(10, "small crops, which the student alone sees")
    frozen_last_layer: float = setting(1 / 800, "fraction of the run in which prototypes don't move")
    temperature_warmup: float = setting(
        30 / 800, "fraction of the run in which the teacher's temperatures rise linearly"
    )
    global_view: ViewConfig = setting(ViewConfig(crop_scale=[0.25, 1.0], blur=1.0, **COLOURS), "first large crop")
    second_global_view: ViewConfig = setting(
        ViewConfig(crop_scale=[0.25, 1.0], blur=0.1, solarize=0.2, **COLOURS), "second large crop"
    )
    local_view: ViewConfig = setting(ViewConfig(crop_scale=[0.05, 0.25], blur=0.5, **COLOURS), "small crops")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("teacher_patch_temperature", "final_teacher_patch_temperature"):
            if getattr(self, key) <= 0:
                raise ValueError(f"method.{key}={getattr(self, key)}: needs a positive number")
        for key in ("image_weight", "patch_weight"):
            if getattr(self, key) < 0:
                raise ValueError(f"method.{key}={getattr(self, key)} must not be negative")


@METHODS.register("ibot", IBOTConfig)
class IBOT(SelfDistillation):
    """Match an averaged teacher's distributions across crops and at the patches masked from them (arXiv 2111.07832)."""

    default_masks = "random_ratio"
    masked = True

    config: IBOTConfig
    patch_center: Float[Tensor, "K"]

    def __init__(self, config: IBOTConfig, encoder: ViT, target: Target | None) -> None:
        super().__init__(config, encoder, target)
        self.mask_token = nn.Parameter(torch.zeros(1, encoder.embed_dim))
        self.register_buffer("patch_center", torch.zeros(config.num_prototypes))
        self._patch_temperature = make_schedule(
            ScheduleShape.linear, config.teacher_patch_temperature, config.final_teacher_patch_temperature
        )

    def forward(self, batch: Batch, progress: Progress) -> Output:
        masked = self.masked_patches(batch)
        images, patches = self.outputs(batch, masked)
        teacher_images, teacher_patches = self.teacher_outputs(batch)
        probabilities = self.distributions(teacher_images, self.center, self.teacher_temperature(progress.fraction))
        patch_probabilities = self.distributions(
            teacher_patches, self.patch_center, self.teacher_patch_temperature(progress.fraction)
        )
        temperature = self.config.student_temperature
        image_loss = cross_entropy_across_views(images / temperature, probabilities)
        patch_loss = cross_entropy_at_patches(patches / temperature, patch_probabilities, masked)
        loss = self.config.image_weight * image_loss + self.config.patch_weight * patch_loss
        metrics = {"image_loss": image_loss.detach(), "patch_loss": patch_loss.detach()}
        hides = {"target_tokens": masked.sum(dim=1).float().mean()}
        statistics = {"center": teacher_images.mean(dim=(0, 1)), "patch_center": teacher_patches.mean(dim=(0, 1))}
        return Output(loss, {**self.metrics(probabilities), **metrics, **hides}, statistics)

    def masked_patches(self, batch: Batch) -> Bool[Tensor, "S N"]:
        """Hidden patches of all large crops, crop after crop.

        Raises:
            ValueError: the run has no masks.
        """
        if None in batch.masks[:NUM_GLOBAL]:
            raise ValueError(f"iBOT hides patches of its large crops: choose masks, e.g. masks={self.default_masks}")
        return torch.cat([masks.all_masked(self.encoder.num_patches) for masks in batch.masks[:NUM_GLOBAL]])

    def outputs(
        self, batch: Batch, masked: Bool[Tensor, "S N"]
    ) -> tuple[Float[Tensor, "views B K"], Float[Tensor, "S N K"]]:
        """The head's for all crops and for all patches of the large ones, whose masked patches are replaced."""
        large, small = torch.cat(batch.views[:NUM_GLOBAL]), batch.views[NUM_GLOBAL:]
        tokens = self.encoder(large, masked=masked, mask_token=self.mask_token)
        features = [image_features(self.encoder, tokens)]
        if small:
            features.append(image_features(self.encoder, self.encoder(torch.cat(small))))
        images = self.head(torch.cat(features)).float().unflatten(0, (len(batch.views), -1))
        return images, self.head(tokens[:, self.encoder.num_prefix_tokens :]).float()

    @torch.no_grad()
    def teacher_outputs(self, batch: Batch) -> tuple[Float[Tensor, "large B K"], Float[Tensor, "S N K"]]:
        """The head's for the large crops and all their patches, none of them masked."""
        tokens = self.teacher_encoder(torch.cat(batch.views[:NUM_GLOBAL]))
        images = self.teacher_head(image_features(self.teacher_encoder, tokens)).float()
        patches = self.teacher_head(tokens[:, self.encoder.num_prefix_tokens :]).float()
        return images.unflatten(0, (NUM_GLOBAL, -1)), patches

    def teacher_patch_temperature(self, fraction: float) -> float:
        """At a fraction of the run."""
        return self._patch_temperature(self.warmed_up(fraction))

    def after_step(self, progress: Progress, statistics: Mapping[str, Tensor]) -> None:
        super().after_step(progress, statistics)
        self.patch_center.lerp_(statistics["patch_center"], 1 - self.config.center_momentum)

    def check_masks(self, masks: Masks | None) -> None:
        if masks is not None and masks.context.shape[1] > 1:
            raise ValueError(
                f"iBOT hides one set of patches per crop, but these masks have {masks.context.shape[1]} contexts; set "
                f"masks.num_masks=1 or choose other masks, e.g. masks={self.default_masks}"
            )

    @torch.no_grad()
    def visualize(self, batch: Batch) -> Mapping[str, Float[Tensor, "3 rows columns"]]:
        """``crops``, and ``masks``: both large crops with their masked patches in grey."""
        seen = (~self.masked_patches(batch)).unflatten(0, (NUM_GLOBAL, -1))
        views = (self.config.global_view, self.config.second_global_view)
        shown = [view.unnormalize(images) for view, images in zip(views, batch.views, strict=False)]
        masked = [on_grey(image, patches, self.encoder.grid) for image, patches in zip(shown, seen, strict=True)]
        return {**super().visualize(batch), "masks": rows_of(masked)}


def cross_entropy_at_patches(
    logits: Float[Tensor, "S N K"], probabilities: Float[Tensor, "S N K"], masked: Bool[Tensor, "S N"]
) -> Float[Tensor, ""]:
    """Mean over crops of the mean over a crop's masked patches; a crop without any counts as zero."""
    losses = -(probabilities * F.log_softmax(logits, dim=-1)).sum(dim=-1)
    return ((losses * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)).mean()
