"""CAE: predict the representations of masked patches, and from these alone their tokens.

Paper: Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", arXiv 2202.03026. Reference:
Atten4Vis/CAE.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.collapse import Limit, feature_limits, feature_metrics
from ssl_zoo.method import METHODS, Batch, Masks, Method, MethodConfig, Output, Place, Step, Target, ViewSpec, ViT
from ssl_zoo.nn import CrossAttentionBlock, Initialization, ViTConfig, sincos_positions
from ssl_zoo.nn.blocks import transformer_blocks
from ssl_zoo.nn.initialization import initialize, initialize_token
from ssl_zoo.plotting import Figure
from ssl_zoo.refusals import require_masked_image, require_target
from ssl_zoo.settings import setting
from ssl_zoo.targets.visualize import show_predictions

# The reference overwrites BEiT's initialisation unless --fix_init_weight, which its scripts for ViT-B leave out.
INITIALIZATION = Initialization.xavier_uniform_normal_patch_embed


@dataclass
class CAEConfig(MethodConfig):
    """CAE: a latent regressor, a decoder and their losses. Defaults: the published ViT-B/16 (Atten4Vis/CAE)."""

    regressor_depth: int = setting(4, "cross-attention blocks of the latent regressor", at_least=1)
    decoder_depth: int = setting(4, "self-attention blocks of the decoder", at_least=1)
    decoder_dim: int | None = setting(
        None, "width of regressor and decoder; null: the encoder's, without projection", at_least=4, multiple_of=4
    )
    decoder_heads: int | None = setting(
        None, "attention heads of regressor and decoder; null: the encoder's", at_least=1
    )
    layer_scale: float | None = setting(
        0.1, "initial factor of LayerScale in regressor and decoder; null leaves LayerScale out"
    )
    alignment_weight: float = setting(2.0, "weight of the distance between latents", at_least=0)


@METHODS.register("cae", CAEConfig)
class CAE(Method):
    """Predict the latents of masked patches by cross-attention, and decode these to tokens (arXiv 2202.03026).

    The encoder sees visible patches alone, and the decoder predictions for masked patches alone, so that the encoder
    represents and the two others solve the pretext task. The latents that the predictions should equal are the
    encoder's own, of the masked patches without the visible ones. Targets that are categories, the tokens of the paper,
    get a cross entropy; others, such as pixels, a squared error.
    """

    default_views = "cae"
    default_masks = "blockwise"
    default_targets = "tokens"
    regularizes = tuple(Place)

    config: CAEConfig
    target: Target
    positions: Float[Tensor, "N dim"]

    def __init__(self, config: CAEConfig, encoder: ViT, target: Target | None) -> None:
        require_target("CAE", target, categories=True)
        super().__init__(config, encoder, target)
        dim, num_heads = config.decoder_dim or encoder.embed_dim, config.decoder_heads or encoder.config.num_heads
        if dim % num_heads:
            raise ValueError(
                f"method.decoder_dim={dim} is no multiple of {num_heads} attention heads; set method.decoder_heads, "
                "which is by default the encoder's"
            )
        is_projected = dim != encoder.embed_dim
        norm = nn.LayerNorm(dim, eps=encoder.config.norm_eps)
        self.project = nn.Sequential(nn.Linear(encoder.embed_dim, dim), norm) if is_projected else nn.Identity()
        self.regressor = LatentRegressor(config, encoder.config, dim, num_heads)
        self.decoder = LatentDecoder(config, encoder.config, dim, num_heads, target.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        positions = sincos_positions(encoder.grid, dim, encoder.config.sincos_layout)[0]
        self.register_buffer("positions", positions, persistent=False)  # a function of the grid alone
        for network in (self.project, self.regressor, self.decoder):
            initialize(network, INITIALIZATION)
        initialize_token(self.mask_token, INITIALIZATION)

    def forward(self, batch: Batch, step: Step) -> Output:
        images, masks = batch.views["image"], batch.masks["image"]
        targets = self.target(batch, masks, self.encoder)
        latents = self.latents(images, masks)  # stop-gradient
        visible, predicted_latents, predictions = self.predict(images, masks)
        distance = F.mse_loss(predicted_latents, masks.paired(latents))
        losses = {"alignment": self.config.alignment_weight * distance}
        if self.target.is_categorical:
            labels = masks.paired(targets)
            losses["tokens"] = F.cross_entropy(predictions.flatten(0, -2), labels.flatten())
            metrics = feature_metrics(predicted_latents, latents, masks, self.encoder.num_patches)
            metrics = {**metrics, "token_accuracy": (predictions.argmax(dim=-1) == labels).float().mean()}
        else:
            losses["reconstruction"] = F.mse_loss(predictions, masks.paired(targets))
            metrics = feature_metrics(predictions, targets, masks, self.encoder.num_patches)
        losses |= self.regularize(step, tokens=visible, predictions=predicted_latents)
        return Output(losses, metrics)

    @torch.no_grad()
    def latents(self, images: Float[Tensor, "B _ H W"], masks: Masks) -> Float[Tensor, "B M T dim"]:
        """Encode the masked patches of each target block without any other patch.

        The reference keeps a second encoder for this, whose storage is that of the first: the weights are the same.
        """
        return self.project(self.encoder.patches(self.encoder(images, keep=masks.targets))).float()

    def predict(
        self, images: Float[Tensor, "B _ H W"], masks: Masks
    ) -> tuple[Float[Tensor, "B C K D"], Float[Tensor, "B C pairs T dim"], Float[Tensor, "B C pairs T target"]]:
        """Encode the visible patches; predict the latents of each target block, and its targets from these."""
        visible, masked = self.encoder.patches(self.encoder(images, keep=masks.context)), masks.paired(masks.targets)
        blocks, num_pairs = masked.shape[:-1], masked.shape[2]
        known, at_known = (
            tokens[:, :, None].expand(-1, -1, num_pairs, -1, -1).flatten(0, 2)
            for tokens in (self.project(visible), F.embedding(masks.context, self.positions))
        )
        at_masked = F.embedding(masked, self.positions).flatten(0, 2)
        latents = self.regressor(self.mask_token.expand_as(at_masked), known, at_masked, at_known)
        predictions = self.decoder(latents, at_masked)
        return visible, latents.float().unflatten(0, blocks), predictions.float().unflatten(0, blocks)

    def collapse_limits(self) -> Sequence[Limit]:
        remedy = "Lower method.alignment_weight or optim.lr, or warm up longer"
        return feature_limits(remedy) if self.target.is_categorical else super().collapse_limits()

    def check_inputs(self, views: Mapping[str, ViewSpec], masks: Mapping[str, Masks]) -> None:
        require_masked_image(self, views, masks)

    def predict_blocks(self, batch: Batch) -> Float[Tensor, "B C pairs T dim"]:
        _, latents, _ = self.predict(batch.views["image"], batch.masks["image"])
        return latents

    def visualize(self, batch: Batch) -> Mapping[str, Figure]:
        *_, predictions = self.predict(batch.views["image"], batch.masks["image"])
        return show_predictions(self.target, predictions, batch, self.encoder)


class LatentRegressor(nn.Module):
    """Predicts the latents of masked patches: mask tokens attend to the visible patches and to themselves."""

    def __init__(self, config: CAEConfig, encoder: ViTConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        depth = config.regressor_depth
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(
                dim,
                num_heads,
                mlp_ratio=encoder.mlp_ratio,
                norm_eps=encoder.norm_eps,
                layer_scale=config.layer_scale,
                drop_path=encoder.drop_path * index / max(depth - 1, 1),
                attention_dropout=encoder.attention_dropout,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=encoder.norm_eps)

    def forward(
        self,
        masked: Float[Tensor, "S T dim"],
        visible: Float[Tensor, "S K dim"],
        at_masked: Float[Tensor, "S T dim"],
        at_visible: Float[Tensor, "S K dim"],
    ) -> Float[Tensor, "S T dim"]:
        positions = torch.cat([at_visible, at_masked], dim=1)
        for block in self.blocks:
            masked = block(masked, torch.cat([visible, masked], dim=1), at_masked, positions)
        return self.norm(masked)


class LatentDecoder(nn.Module):
    """Predicts the targets of masked patches from their predicted latents, which attend to each other."""

    def __init__(self, config: CAEConfig, encoder: ViTConfig, dim: int, num_heads: int, dim_out: int) -> None:
        super().__init__()
        self.blocks = transformer_blocks(
            dim,
            config.decoder_depth,
            num_heads,
            mlp_ratio=encoder.mlp_ratio,
            norm_eps=encoder.norm_eps,
            key_bias=False,
            layer_scale=config.layer_scale,
            drop_path=encoder.drop_path,
            attention_dropout=encoder.attention_dropout,
        )
        self.norm = nn.LayerNorm(dim, eps=encoder.norm_eps)
        self.head = nn.Linear(dim, dim_out)

    def forward(
        self, latents: Float[Tensor, "S T dim"], at_masked: Float[Tensor, "S T dim"]
    ) -> Float[Tensor, "S T target"]:
        x = latents + at_masked
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
