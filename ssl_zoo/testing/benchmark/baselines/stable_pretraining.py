"""Baselines on stable-pretraining's methods and backbones, outside of Lightning's trainer."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from loguru import logger
from stable_pretraining import methods
from stable_pretraining.backbone import FlexibleTransformer, MaskedEncoder, TeacherStudentWrapper
from stable_pretraining.backbone.patch_masking import MaskingOutput
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig
from ssl_zoo.testing.benchmark.baselines.base import Baseline, gather
from ssl_zoo.testing.benchmark.baselines.dino import DINOBaseline
from ssl_zoo.testing.benchmark.baselines.ijepa import IJEPABaseline
from ssl_zoo.testing.benchmark.baselines.mae import visible_patches_differ
from ssl_zoo.testing.benchmark.baselines.timm import vision_transformer

logger.disable("stable_pretraining")  # a notice for every module that is built


class GivenPatches(nn.Module):
    """A masking module that keeps the patches it was given."""

    keep: Int[Tensor, "B K"]

    def forward(self, patches: Float[Tensor, "B N D"], grid_h: int, grid_w: int) -> MaskingOutput:
        return MaskingOutput(visible=gather(patches, self.keep), ids_keep=self.keep)


class IJEPA(IJEPABaseline):
    """I-JEPA from the encoder and predictor of ``methods.IJEPA``.

    That class itself computes another objective: it predicts the union of all blocks in one sequence, and the blocks
    are the same for all images of a batch.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method, backbone = config.method, config.backbone
        self.wrapper = TeacherStudentWrapper(
            MaskedEncoder(vision_transformer(backbone)),
            base_ema_coefficient=self.momentum,
            final_ema_coefficient=self.momentum,
        )
        self.wrapper.student.masking = self.masking = GivenPatches()
        self.encoder = self.wrapper.student.vit
        self.predictor = FlexibleTransformer(
            input_dim=backbone.embed_dim,
            hidden_dim=method.predictor_dim,
            output_dim=backbone.embed_dim,
            num_patches=self.encoder.patch_embed.num_patches,
            depth=method.predictor_depth,
            num_heads=method.predictor_heads or backbone.num_heads,
            cross_attn=False,
            add_mask_token=True,
            use_adaln=False,
            num_prefix_tokens=0,
            zero_init_output=False,
        )
        self.differences.append("a second projection for mask tokens")
        if backbone.drop_path:
            self.differences.append("drop path in the teacher too")

    def predict(self, images: Tensor, keep: Int[Tensor, "B K"], blocks: Sequence[Int[Tensor, "B T"]]) -> Tensor:
        self.masking.keep = keep
        context = self.wrapper.forward_student(images).encoded[:, self.encoder.num_prefix_tokens :]
        context = context.repeat(len(blocks), 1, 1)
        wanted = torch.cat(list(blocks))
        return self.predictor(
            context=context,
            queries=context.new_zeros(*wanted.shape, context.shape[-1]),
            context_idx=keep.repeat(len(blocks), 1),
            query_idx=wanted,
            query_mask=torch.ones_like(wanted, dtype=torch.bool),
        )

    def target(self, images: Tensor) -> Float[Tensor, "B N D"]:
        return self.wrapper.forward_teacher(images).encoded[:, self.encoder.num_prefix_tokens :]

    def after_step(self) -> None:
        self.wrapper.update_teacher()


class MAE(Baseline):
    """``methods.MAE``, which samples its masks itself."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method, backbone = config.method, config.backbone
        if backbone.mlp_ratio != 4:
            raise ValueError(
                f"--baseline stable-pretraining has no backbone.mlp_ratio={backbone.mlp_ratio} in the decoder of MAE: "
                "set it to 4"
            )
        self.model = methods.MAE(
            vision_transformer(backbone),
            decoder_embed_dim=method.decoder_dim,
            decoder_depth=method.decoder_depth,
            decoder_num_heads=method.decoder_heads,
            mask_ratio=config.masks.mask_ratio,
            norm_pix_loss=config.targets.normalize,
        )
        self.encoder = self.model.encoder.vit
        num_patches = math.prod(backbone.grid)
        visible = num_patches - int(num_patches * config.masks.mask_ratio)
        self.differences += visible_patches_differ(config, visible)
        self.differences.append("a second projection for mask tokens")
        if backbone.class_token:
            self.differences.append("no class token in the decoder")

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch.views["image"]).loss


class DINO(DINOBaseline):
    """``methods.DINO``, with the teacher's temperature of its first epoch."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method, channels = config.method, config.backbone.in_channels
        if channels != 3:
            raise ValueError(
                f"--baseline stable-pretraining has no backbone.in_channels={channels} for DINO: set it to 3"
            )
        self.model = methods.DINO(
            vision_transformer(config.backbone, multi_crop=True),
            projector_hidden_dim=method.head_dim,
            projector_bottleneck_dim=method.bottleneck_dim,
            n_prototypes=method.num_prototypes,
            temperature_student=method.student_temp,
            temperature_teacher_warmup=self.teacher_temp,
            temperature_teacher=self.teacher_temp,
            center_momentum=method.center_momentum,
            ema_decay_start=self.momentum,
            ema_decay_end=self.momentum,
        )
        self.encoder = self.model.backbone.student
        self.differences.append("prototypes without weight normalisation")
        if config.backbone.drop_path:
            self.differences.append("drop path in the teacher too")

    def forward(self, batch: Batch) -> Tensor:
        return self.model(global_views=batch.group("global"), local_views=batch.group("local")).loss

    def after_backward(self) -> None:
        if self.freezes_last_layer:
            self.model.projector.student[-1].zero_grad()

    def after_step(self) -> None:
        self.model.backbone.update_teacher()
        self.model.projector.update_teacher()
