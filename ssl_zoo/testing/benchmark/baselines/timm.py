"""Baselines on timm's vision transformer and blocks; timm has no method, so that the rest is written by hand."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block, VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig
from ssl_zoo.nn.pos_embed import sincos_positions
from ssl_zoo.nn.vit import Positions, ViTConfig
from ssl_zoo.testing.benchmark.baselines.base import Baseline, gather, with_prefix
from ssl_zoo.testing.benchmark.baselines.dino import DINOBaseline, Head, Loss
from ssl_zoo.testing.benchmark.baselines.ijepa import IJEPABaseline, Predictor
from ssl_zoo.testing.benchmark.baselines.mae import Decoder, normalize_patches, patchify


def vision_transformer(config: ViTConfig, *, multi_crop: bool = False) -> VisionTransformer:
    """Build timm's ViT at the sizes of a recipe, without head, on which other libraries build as well.

    Called with images it returns the class token, or the mean over patches where there is none.

    Args:
        multi_crop: accept images of other sizes, for which learned positions are resampled in every call.
    """
    vit = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.in_channels,
        num_classes=0,
        global_pool="token" if config.class_token else "avg",
        fc_norm=False,  # the norm before the mean
        class_token=config.class_token,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path,
        norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
        dynamic_img_size=multi_crop,
    )
    if config.positions is Positions.sincos:
        table = sincos_positions(config.grid, config.embed_dim, config.sincos_layout, num_prefix=vit.num_prefix_tokens)
        vit.pos_embed = nn.Parameter(table, requires_grad=False)
    return vit


def encode(vit: VisionTransformer, images: Tensor, keep: Int[Tensor, "B K"] | None = None) -> Float[Tensor, "B L D"]:
    """Encode all patches or those of ``keep``, and the class token where there is one."""
    x = vit._pos_embed(vit.patch_embed(images))
    if keep is not None:
        x = gather(x, with_prefix(keep, vit.num_prefix_tokens))
    return vit.norm(vit.blocks(vit.norm_pre(vit.patch_drop(x))))


def blocks(dim: int, num_heads: int, depth: int, *, mlp_ratio: float = 4.0, norm_eps: float = 1e-6) -> nn.Sequential:
    norm = partial(nn.LayerNorm, eps=norm_eps)
    return nn.Sequential(*(Block(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)))


class IJEPA(IJEPABaseline):
    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.encoder = vision_transformer(config.backbone)
        self.teacher = ModelEmaV3(self.encoder, decay=self.momentum).requires_grad_(False)
        self.predictor = Predictor(config.method, config.backbone, blocks)

    def predict(self, images: Tensor, keep: Int[Tensor, "B K"], blocks: Sequence[Int[Tensor, "B T"]]) -> Tensor:
        context = encode(self.encoder, images, keep)[:, self.encoder.num_prefix_tokens :]
        return self.predictor(context, keep, blocks)

    def target(self, images: Tensor) -> Float[Tensor, "B N D"]:
        return encode(self.teacher.module, images)[:, self.encoder.num_prefix_tokens :]

    def after_step(self) -> None:
        self.teacher.update(self.encoder)


class MAE(Baseline):
    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method, backbone = config.method, config.backbone
        self.encoder = vision_transformer(backbone)
        decoder_blocks = blocks(
            method.decoder_dim,
            method.decoder_heads,
            method.decoder_depth,
            mlp_ratio=backbone.mlp_ratio,
            norm_eps=backbone.norm_eps,
        )
        self.decoder = Decoder(method, backbone, decoder_blocks)

    def forward(self, batch: Batch) -> Tensor:
        images, masks = batch.views["image"], batch.masks["image"]
        keep, masked = masks.context[:, 0], masks.targets[:, 0]
        predictions = self.decoder(encode(self.encoder, images, keep), keep, masked)
        targets = patchify(images, self.config.backbone.patch_size)
        if self.config.targets.normalize:
            targets = normalize_patches(targets)
        errors = ((predictions - targets) ** 2).mean(dim=-1)
        return errors.gather(1, masked).mean()


class DINO(DINOBaseline):
    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.encoder = vision_transformer(config.backbone, multi_crop=True)
        self.student = nn.Sequential(self.encoder, Head(config.method, config.backbone.embed_dim))
        self.teacher = ModelEmaV3(self.student, decay=self.momentum).requires_grad_(False)
        self.criterion = Loss(config.method)

    def forward(self, batch: Batch) -> Tensor:
        """Encode the crops of each size together, as the reference code does."""
        crops = [torch.cat(group) for group in (batch.group("global"), batch.group("local")) if group]
        encoder, head = self.student
        student = head(torch.cat([encoder(images) for images in crops]))
        with torch.no_grad():
            teacher = self.teacher.module(crops[0])
        student, teacher = (outputs.unflatten(0, (-1, batch.num_images)) for outputs in (student, teacher))
        return self.criterion(student.float(), teacher.float(), self.teacher_temp)

    def after_backward(self) -> None:
        if self.freezes_last_layer:
            self.student[1].last_layer.zero_grad()

    def after_step(self) -> None:
        self.teacher.update(self.student)
