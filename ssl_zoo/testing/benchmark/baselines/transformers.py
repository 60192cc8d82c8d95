"""Baselines on the models of Hugging Face transformers; it has no predictor of I-JEPA and no DINO to pre-train."""

import math
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import IJepaConfig, IJepaModel, ViTMAEConfig, ViTMAEForPreTraining

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig
from ssl_zoo.nn.pos_embed import sincos_positions
from ssl_zoo.nn.vit import Positions, ViTConfig
from ssl_zoo.testing.benchmark.baselines.base import Baseline, gather
from ssl_zoo.testing.benchmark.baselines.ijepa import IJEPABaseline, Predictor
from ssl_zoo.testing.benchmark.baselines.mae import visible_patches_differ


def _sizes(config: ViTConfig) -> dict[str, float]:
    if config.drop_path:
        raise ValueError(f"--baseline transformers has no backbone.drop_path={config.drop_path}: set it to 0")
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": round(config.embed_dim * config.mlp_ratio),
        "layer_norm_eps": config.norm_eps,
    }


def _blocks(dim: int, num_heads: int, depth: int) -> nn.ModuleList:
    """Return the layers of a narrow model."""
    sizes = {"hidden_size": dim, "num_attention_heads": num_heads, "num_hidden_layers": depth}
    return IJepaModel(IJepaConfig(**sizes, intermediate_size=4 * dim, layer_norm_eps=1e-6)).layers


class IJEPA(IJEPABaseline):
    """I-JEPA with IJepaModel as the encoder, and a predictor by hand on its layers."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        backbone = config.backbone
        self.encoder = IJepaModel(IJepaConfig(**_sizes(backbone)))
        if backbone.positions is Positions.sincos:
            table = sincos_positions(backbone.grid, backbone.embed_dim, backbone.sincos_layout)
            self.encoder.embeddings.position_embeddings = nn.Parameter(table, requires_grad=False)
        average = get_ema_multi_avg_fn(self.momentum)
        self.teacher = AveragedModel(self.encoder, multi_avg_fn=average).requires_grad_(False).eval()
        self.predictor = Predictor(config.method, backbone, _blocks)
        if backbone.class_token:
            self.differences.append("no class token")

    def predict(self, images: Tensor, keep: Int[Tensor, "B K"], blocks: Sequence[Int[Tensor, "B T"]]) -> Tensor:
        """Run the layers one by one, since the model's own forward pass always encodes all patches."""
        context = gather(self.encoder.embeddings(images), keep)
        for layer in self.encoder.layers:
            context = layer(context)
        return self.predictor(self.encoder.layernorm(context), keep, blocks)

    def target(self, images: Tensor) -> Float[Tensor, "B N D"]:
        return self.teacher(images).last_hidden_state

    def after_step(self) -> None:
        self.teacher.update_parameters(self.encoder)


class MAE(Baseline):
    """ViTMAEForPreTraining, which samples its masks itself."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        method, backbone = config.method, config.backbone
        if backbone.positions is not Positions.sincos:
            raise ValueError(
                "--baseline transformers has no other backbone.positions than sincos for MAE: set it to that"
            )
        self.model = ViTMAEForPreTraining(
            ViTMAEConfig(
                **_sizes(backbone),
                decoder_hidden_size=method.decoder_dim,
                decoder_num_hidden_layers=method.decoder_depth,
                decoder_num_attention_heads=method.decoder_heads,
                decoder_intermediate_size=round(method.decoder_dim * backbone.mlp_ratio),
                mask_ratio=config.masks.mask_ratio,
                norm_pix_loss=config.targets.normalize,
            )
        )
        self.encoder = self.model.vit
        visible = int(math.prod(backbone.grid) * (1 - config.masks.mask_ratio))
        self.differences += visible_patches_differ(config, visible)
        if not backbone.class_token:
            self.differences.append("1 more token: its class token")

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch.views["image"]).loss
