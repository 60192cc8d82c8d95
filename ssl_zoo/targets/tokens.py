"""Tokens as targets: a frozen tokenizer gives each patch one of several thousand categories (BEiT, CAE)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.masks.base import Masks
from ssl_zoo.nn import ViT
from ssl_zoo.precision import full_precision
from ssl_zoo.seeding import seed_for
from ssl_zoo.settings import setting
from ssl_zoo.targets.base import TARGETS, Target, TargetConfig
from ssl_zoo.targets.dalle import DALLE_STRIDE, DalleEncoder, load_dalle
from ssl_zoo.targets.pixels import Pixels, PixelsConfig

RENDERING = "tokenizer"  # the view that a tokenizer of images sees


class Tokenizer(Enum):
    """What gives a patch its token."""

    rpq = "rpq"  # a random-projection quantizer of its pixels (BEST-RQ, arXiv 2202.01855); needs no file
    dalle = "dalle"  # the encoder of DALL-E's discrete VAE, from a file of weights (BEiT, CAE)


@dataclass
class TokensConfig(TargetConfig):
    """Tokenizers. The default needs no download; BEiT and CAE have DALL-E's."""

    tokenizer: Tokenizer = setting(
        Tokenizer.rpq, "rpq (random projection of a patch, nearest of random codes) or dalle (needs weights)"
    )
    num_tokens: int = setting(8192, "size of the vocabulary", at_least=2)
    code_dim: int = setting(16, "width of the random codes of rpq", at_least=1)
    seed: int = setting(0, "seed of the random projection and codes of rpq; independent of the run's seed", at_least=0)
    weights: str | None = setting(None, "safetensors file with the weights of dalle")
    sha256: str | None = setting(None, "SHA-256 that the file of weights must have, 64 hex digits; null: any file")
    dalle_width: int = setting(256, "channels of dalle's first layer", at_least=4, multiple_of=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        is_digest = self.sha256 is None or (
            len(self.sha256) == 64 and not set(self.sha256.lower()) - set("0123456789abcdef")
        )
        if not is_digest:
            raise ValueError(f"targets.sha256={self.sha256!r} is no SHA-256: it has 64 hex digits, as sha256sum prints")
        if self.tokenizer is Tokenizer.dalle and self.weights is None:
            raise ValueError(
                "targets.tokenizer=dalle needs targets.weights, a safetensors file of DALL-E's encoder; "
                "targets.tokenizer=rpq needs no file"
            )
        if self.tokenizer is not Tokenizer.dalle and self.weights is not None:
            raise ValueError(
                f"targets.weights={self.weights} belongs to targets.tokenizer=dalle, not to {self.tokenizer.value}"
            )


@TARGETS.register("tokens", TokensConfig)
class Tokens(Target):
    """The token that a frozen tokenizer gives each target patch: a random-projection quantizer's, or DALL-E's."""

    is_categorical = True

    def __init__(self, config: TokensConfig, encoder: ViT) -> None:
        super().__init__()
        self.config, self.dim = config, config.num_tokens
        if config.tokenizer is Tokenizer.rpq:
            self.tokenizer = RandomProjection(config, encoder)
        else:
            self.tokenizer = DalleEncoder(config.num_tokens, config.dalle_width)
            load_dalle(self.tokenizer, config.weights, config.sha256)

    @torch.no_grad()
    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Int[Tensor, "B M T"]:
        if self.config.tokenizer is Tokenizer.rpq:
            return self.tokenizer(batch, masks, encoder)
        tokens = self.tokenizer(batch.views[RENDERING])
        return tokens.gather(1, masks.targets.flatten(1)).view_as(masks.targets)

    def check_views(self, views: Mapping[str, ViewSpec], encoder: ViT) -> None:
        """Refuse a run without the rendering that DALL-E's encoder sees, or with one of another size."""
        if self.config.tokenizer is not Tokenizer.dalle:
            return
        if RENDERING not in views:
            raise ValueError(
                f"targets.tokenizer=dalle sees a second rendering of each crop, the view {RENDERING}, beside "
                f"{', '.join(views)}: choose views=cae_dalle or views=two_renderings"
            )
        spec, needed = views[RENDERING], tuple(DALLE_STRIDE * side for side in encoder.grid)
        if tuple(spec.size) != needed:
            raise ValueError(
                f"targets.tokenizer=dalle has one token per {DALLE_STRIDE}x{DALLE_STRIDE} pixels: the view {RENDERING} "
                f"of {spec.size[0]}x{spec.size[1]} pixels must be {needed[0]}x{needed[1]} for {encoder.grid[0]}x"
                f"{encoder.grid[1]} patches; set views.rendering_scale={DALLE_STRIDE / encoder.patch_size:g}"
            )
        if set(spec.mean) != {0.0} or set(spec.std) != {1.0}:
            raise ValueError(
                f"targets.tokenizer=dalle needs pixels in 0..1, but the view {RENDERING} is normalised with "
                f"mean={list(spec.mean)}, std={list(spec.std)}; choose views=two_renderings"
            )
        if spec.channels != 3:
            raise ValueError(
                f"targets.tokenizer=dalle knows RGB images, but backbone.in_channels={spec.channels}; "
                "targets.tokenizer=rpq takes any number of channels"
            )


class RandomProjection(nn.Module):
    """Quantizes a patch: the random code nearest to a random projection of its normalised pixels is its token.

    Projection (Xavier) and codes (normal, of length one) are sampled once and never trained (BEST-RQ, arXiv 2202.01855,
    sec. 3.1). Scaling the projection to length one, as there, does not change which code is nearest.
    """

    projection: Float[Tensor, "P code"]
    codes: Float[Tensor, "K code"]

    def __init__(self, config: TokensConfig, encoder: ViT) -> None:
        super().__init__()
        self.pixels = Pixels(PixelsConfig(normalize=True), encoder)
        projection, codes = (torch.empty(rows, config.code_dim) for rows in (self.pixels.dim, config.num_tokens))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config.seed, "rpq"))
            nn.init.xavier_normal_(projection)
            nn.init.normal_(codes)
        self.register_buffer("projection", projection)
        self.register_buffer("codes", nn.functional.normalize(codes, dim=1))

    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Int[Tensor, "B M T"]:
        patches = self.pixels(batch, masks, encoder)
        with full_precision(patches.device):  # bf16 can't tell thousands of codes apart
            return (patches @ self.projection @ self.codes.T).argmax(dim=-1)
