"""Golden fixtures of CAE (Atten4Vis/CAE): a tiny model's run, recomputed by ours."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from ssl_zoo.interop.official import BEIT_ENCODER, CAE_DECODER, CAE_REGRESSOR, NameMap, load_official, to_official
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, Output
from ssl_zoo.methods.cae import CAE, CAEConfig
from ssl_zoo.nn import SincosLayout, ViT, ViTConfig
from ssl_zoo.targets import Target, TokensConfig
from ssl_zoo.testing.golden.beit import load_mask_token, masked_batch
from ssl_zoo.testing.golden.fixture import FEATURES, FINAL_WEIGHTS, Comparison, Finding, Fixture, FixtureError, blame
from ssl_zoo.testing.golden.training import Replay, adamw, official_gradients, reference_method, reference_rates

_PARTS: Mapping[str, tuple[str, NameMap]] = {  # of the official state dict: our module and its names
    "encoder": ("encoder", BEIT_ENCODER),
    "regresser": ("regressor", CAE_REGRESSOR),  # spelled so in the reference
    "decoder": ("decoder", CAE_DECODER),
}


def recognises(fixture: Fixture) -> bool:
    return fixture.config.get("method") == "CAE"


def verify(fixture: Fixture) -> list[Finding]:
    """Recompute everything that the file stores from its weights and inputs."""
    method = _method(fixture)
    replay = _Replay(fixture, method)
    replay.comparison.add("init.encoder.pos_embed", method.encoder.pos_embed, FEATURES)
    replay.comparison.add("init.rd_pos_embed", _with_class_position(method), FEATURES)
    _load(fixture, method)
    replay.train()
    for part, (module, names) in _PARTS.items():
        weights = to_official(getattr(method, module), names)
        replay.comparison.add_weights(f"final.{part}", weights, weights, FINAL_WEIGHTS)
    replay.comparison.add("final.mask_token", method.mask_token, FINAL_WEIGHTS)
    replay.comparison.add("final.rd_pos_embed", _with_class_position(method), FEATURES)
    return replay.comparison.findings()


def _method(fixture: Fixture) -> CAE:
    is_scaled = "init.encoder.blocks.0.gamma_1" in fixture.tensors
    with blame(fixture, "config"):
        backbone = ViTConfig(
            **fixture.vit_sizes(),
            sincos_layout=SincosLayout.row_first,
            class_token=True,
            key_bias=False,
            layer_scale=0.1 if is_scaled else None,
        )
        config = CAEConfig(
            regressor_depth=fixture.count("regressor_depth"),
            decoder_depth=fixture.count("decoder_depth"),
            decoder_heads=fixture.count("decoder_heads"),
            alignment_weight=fixture.number("align_weight"),
        )
        method = reference_method(config, backbone, TokensConfig(num_tokens=fixture.count("vocabulary")))
    method.target = _StoredTokens(fixture)
    return method


def _load(fixture: Fixture, method: CAE) -> None:
    with blame(fixture, "init"):
        for part, (module, names) in _PARTS.items():
            load_official(getattr(method, module), fixture.group(f"init.{part}."), names)
    load_mask_token(fixture, "init.mask_token", fixture.tensor("init.mask_token"), method.mask_token)


def _with_class_position(method: CAE) -> Tensor:
    return F.pad(method.positions, (0, 0, 1, 0))[None]


class _StoredTokens(Target):
    """The tokens of the file, where the reference has a tokenizer."""

    is_categorical = True

    def __init__(self, fixture: Fixture) -> None:
        super().__init__()
        self.fixture, self.dim, self.number = fixture, fixture.count("vocabulary"), 0

    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Int[Tensor, "B M T"]:
        name = f"step{self.number}.token_labels"
        labels = self.fixture.tensor(name)
        shape = (batch.num_images, encoder.num_patches)
        if labels.shape != shape or labels.dtype != torch.int64 or not 0 <= labels.min() <= labels.max() < self.dim:
            raise FixtureError(f"{self.fixture.path}: {name}: needs {list(shape)} int64 in 0..{self.dim - 1}")
        return labels.gather(1, masks.targets[:, 0])[:, None]


class _Replay(Replay):
    method: CAE

    def __init__(self, fixture: Fixture, method: CAE) -> None:
        constant = fixture.config.setdefault("wd_end", fixture.number("wd"))
        if constant != fixture.number("wd"):
            raise FixtureError(f"{fixture.path}: config.wd_end={constant}: the weight decay of CAE is constant")
        super().__init__(fixture, method, Comparison(fixture), adamw(fixture), reference_rates(fixture))

    def batch(self, number: int) -> Batch:
        """Return the images of a step, with visible and masked patches in raster order."""
        self.method.target.number = number
        batch = masked_batch(self.fixture, number, self.method.encoder.grid)
        masked = batch.masks["image"].masked
        counts = masked.sum(dim=1)
        count = int(counts[0])
        if counts.ne(count).any() or count in (0, masked.shape[1]):
            raise FixtureError(
                f"{self.fixture.path}: step{number}.mask: needs equally many masked patches in all images, and some "
                f"visible ones, not {counts.tolist()} of {masked.shape[1]}"
            )
        order = masked.long().argsort(dim=1, stable=True)[:, None]
        masks = Masks(order[..., : masked.shape[1] - count], order[..., masked.shape[1] - count :], masked=masked)
        return replace(batch, masks={"image": masks})

    def watched(self) -> Mapping[str, nn.Module]:
        # The encoder runs twice, over visible patches last.
        return {"encoded": self.method.encoder, "latents": self.method.regressor, "logits": self.method.decoder}

    def compare_forward(self, number: int, batch: Batch, loss: Tensor, seen: Mapping[str, Tensor]) -> None:
        if number > 0:
            return
        latents = self.method.latents(batch.views["image"], batch.masks["image"])
        self.comparison.add("step0.encoder_output", seen["encoded"][:, 0], FEATURES)
        self.comparison.add("step0.latent_target", latents[:, 0], FEATURES)
        self.comparison.add("step0.latent_prediction", seen["latents"], FEATURES)
        self.comparison.add("step0.logits", seen["logits"].flatten(0, 1), FEATURES)

    def gradients(self) -> dict[str, Tensor]:
        gradients = {"mask_token": self.method.mask_token.grad}
        for part, (module, names) in _PARTS.items():
            gradients |= official_gradients(getattr(self.method, module), names, f"{part}.")
        return gradients

    def end_of_step(self, number: int, output: Output) -> Mapping[str, float]:
        return {"loss_main": output.losses["tokens"].item(), "loss_align": output.losses["alignment"].item()}
