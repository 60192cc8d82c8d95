"""Baselines on lightly's modules, after its examples/pytorch and benchmarks/imagenet/vitb16."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from lightly.loss import DINOLoss
from lightly.models import utils
from lightly.models.modules import (
    DINOProjectionHead,
    IJEPAPredictorTIMM,
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
)
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig
from ssl_zoo.nn.vit import Positions
from ssl_zoo.testing.benchmark.baselines.base import Baseline, with_prefix
from ssl_zoo.testing.benchmark.baselines.dino import DINOBaseline
from ssl_zoo.testing.benchmark.baselines.ijepa import IJEPABaseline
from ssl_zoo.testing.benchmark.baselines.timm import vision_transformer


def _backbone(config: RunConfig, *, multi_crop: bool = False) -> MaskedVisionTransformerTIMM:
    positions = "sincos" if config.backbone.positions is Positions.sincos else "learn"
    vit = vision_transformer(config.backbone, multi_crop=multi_crop)
    return MaskedVisionTransformerTIMM(vit=vit, pos_embed_initialization=positions)


class IJEPA(IJEPABaseline):
    """lightly's I-JEPA, on its modules for timm: those of its example have the example's sizes built in."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method, backbone = config.method, config.backbone
        self.backbone = _backbone(config)
        self.teacher = copy.deepcopy(self.backbone).eval()
        utils.deactivate_requires_grad(self.teacher)
        self.encoder = self.backbone.vit
        self.predictor = IJEPAPredictorTIMM(
            num_patches=self.encoder.patch_embed.num_patches,
            depth=method.predictor_depth,
            mlp_dim=backbone.embed_dim,
            predictor_embed_dim=method.predictor_dim,
            num_heads=method.predictor_heads or backbone.num_heads,
        )

    def predict(self, images: Tensor, keep: Int[Tensor, "B K"], blocks: Sequence[Int[Tensor, "B T"]]) -> Tensor:
        num_prefix = self.encoder.num_prefix_tokens
        context = self.backbone.encode(images, idx_keep=with_prefix(keep, num_prefix))
        return self.predictor(context[:, num_prefix:], [keep], list(blocks))

    def target(self, images: Tensor) -> Float[Tensor, "B N D"]:
        return self.teacher.encode(images)[:, self.encoder.num_prefix_tokens :]

    def after_step(self) -> None:
        utils.update_momentum(self.backbone, self.teacher, m=self.momentum)


class MAE(Baseline):
    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method, backbone = config.method, config.backbone
        self.backbone = _backbone(config)
        self.encoder = self.backbone.vit
        self.decoder_embed = nn.Linear(backbone.embed_dim, method.decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=self.encoder.patch_embed.num_patches,
            embed_dim=method.decoder_dim,
            depth=method.decoder_depth,
            num_heads=method.decoder_heads,
            num_prefix_tokens=self.encoder.num_prefix_tokens,
            mlp_ratio=backbone.mlp_ratio,
        )
        self.prediction_head = nn.Linear(method.decoder_dim, backbone.patch_size**2 * backbone.in_channels)
        self.decoder_embed.apply(init_weights)
        self.prediction_head.apply(init_weights)

    def forward(self, batch: Batch) -> Tensor:
        images, masks = batch.views["image"], batch.masks["image"]
        num_prefix, masked = self.encoder.num_prefix_tokens, masks.targets[:, 0]
        keep = with_prefix(masks.context[:, 0], num_prefix)
        encoded = self.decoder_embed(self.backbone.encode(images, idx_keep=keep))
        tokens = encoded.new_zeros(len(images), self.backbone.sequence_length, encoded.shape[-1])
        tokens = utils.set_at_index(tokens, keep, encoded)
        decoded = self.decoder(tokens, idx_mask=masked + num_prefix)
        predictions = self.prediction_head(utils.get_at_index(decoded, masked + num_prefix))
        targets = utils.get_at_index(utils.patchify(images, self.config.backbone.patch_size), masked)
        if self.config.targets.normalize:
            targets = utils.normalize_mean_var(targets)
        return nn.functional.mse_loss(predictions, targets)


class DINO(DINOBaseline):
    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method = config.method
        self.student_backbone, self.teacher_backbone = (_backbone(config, multi_crop=True) for _ in range(2))
        self.student_head, self.teacher_head = (
            DINOProjectionHead(
                config.backbone.embed_dim,
                method.head_dim,
                method.bottleneck_dim,
                method.num_prototypes,
                freeze_last_layer=int(self.freezes_last_layer),
                norm_last_layer=method.norm_last_layer,
            )
            for _ in range(2)
        )
        self.encoder = self.student_backbone.vit
        self._update_teacher(0.0)
        for network in (self.teacher_backbone, self.teacher_head):
            utils.deactivate_requires_grad(network.eval())
        self.criterion = DINOLoss(
            output_dim=method.num_prototypes,
            student_temp=method.student_temp,
            center_momentum=method.center_momentum,
        )

    def forward(self, batch: Batch) -> Tensor:
        crops = [torch.cat(group) for group in (batch.group("global"), batch.group("local")) if group]
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher_backbone(crops[0]))
        student = torch.cat([self.student_head(self.student_backbone(images)) for images in crops])
        return self.criterion(
            teacher_out=teacher.chunk(len(batch.group("global"))),
            student_out=student.chunk(len(batch.views)),
            teacher_temp=self.teacher_temp,
        )

    def after_backward(self) -> None:
        self.student_head.cancel_last_layer_gradients(current_epoch=0)

    def after_step(self) -> None:
        self._update_teacher(self.momentum)

    def _update_teacher(self, momentum: float) -> None:
        utils.update_momentum(self.student_backbone, self.teacher_backbone, m=momentum)
        utils.update_momentum(self.student_head, self.teacher_head, m=momentum)
