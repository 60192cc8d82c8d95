"""Golden fixtures of MAE (facebookresearch/mae): one forward and backward pass of a tiny model, recomputed by ours."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.interop.official import MAE_DECODER, MAE_ENCODER, load_official, split_mae
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, Progress, Step
from ssl_zoo.methods.mae import MAE, MAEConfig
from ssl_zoo.nn import NarrowViT, ViTConfig, take
from ssl_zoo.targets import PixelsConfig
from ssl_zoo.testing.golden.fixture import (
    FEATURES,
    INDICES,
    LOSSES,
    Comparison,
    Finding,
    Fixture,
    FixtureError,
    blame,
    outputs,
)
from ssl_zoo.testing.golden.training import official_gradients, reference_method


def recognises(fixture: Fixture) -> bool:
    # The files name no method; only this decoder has this table.
    return "init.decoder_pos_embed" in fixture.tensors


def verify(fixture: Fixture) -> list[Finding]:
    """Recompute everything that the file stores from its weights, its images and its order of the patches."""
    method, comparison = _method(fixture), Comparison(fixture)
    comparison.add("init.pos_embed", method.encoder.pos_embed, FEATURES)
    comparison.add("init.decoder_pos_embed", method.decoder.pos_embed, FEATURES)
    for module, weights, names in zip(
        (method.encoder, method.decoder), split_mae(fixture.group("init.")), (MAE_ENCODER, MAE_DECODER), strict=True
    ):
        with blame(fixture, "init"):
            load_official(module, weights, names)
    shuffle = _shuffle(fixture, method.encoder.num_patches)
    comparison.add("ids_keep", shuffle.visible, INDICES)
    comparison.add("mask", (shuffle.restore >= shuffle.visible.shape[1]).float(), INDICES)

    masks = Masks(shuffle.visible[:, None], shuffle.masked[:, None])
    with outputs(latent=method.encoder) as seen:
        batch = Batch({"image": _images(fixture)}, {"image": masks})
        loss = method(batch, Step(Progress(step=0, num_steps=1, samples=0))).loss
    loss.backward()
    latent = seen["latent"][:, 0]
    comparison.add("latent", latent, FEATURES)
    comparison.add("pred", _predictions_of_all(method.decoder, latent, shuffle), FEATURES)
    comparison.add("loss", loss, LOSSES)
    for module, names in ((method.encoder, MAE_ENCODER), (method.decoder, MAE_DECODER)):
        comparison.add_gradients("", official_gradients(module, names))
    return comparison.findings()


def _method(fixture: Fixture) -> MAE:
    normalize = fixture.config.get("norm_pix_loss")
    if not isinstance(normalize, bool):
        raise FixtureError(f"{fixture.path}: config.norm_pix_loss={normalize!r} must be true or false")
    with blame(fixture, "config"):
        return reference_method(
            MAEConfig(
                decoder_dim=fixture.count("decoder_embed_dim"),
                decoder_depth=fixture.count("decoder_depth"),
                decoder_heads=fixture.count("decoder_num_heads"),
            ),
            ViTConfig(
                image_size=fixture.count("img_size"),
                patch_size=fixture.count("patch_size"),
                embed_dim=fixture.count("embed_dim"),
                depth=fixture.count("depth"),
                num_heads=fixture.count("num_heads"),
                mlp_ratio=fixture.number("mlp_ratio") if "mlp_ratio" in fixture.config else 4.0,
                class_token="init.cls_token" in fixture.tensors,
            ),
            PixelsConfig(normalize),
        )


@dataclass(frozen=True)
class _Shuffle:
    """The reference's random order of the patches: the first ones are visible."""

    restore: Int[Tensor, "B N"]  # place of each patch in that order
    visible: Int[Tensor, "B K"]
    masked: Int[Tensor, "B T"]


def _shuffle(fixture: Fixture, num_patches: int) -> _Shuffle:
    restore = fixture.tensor("ids_restore")
    every = torch.arange(num_patches)
    if restore.ndim != 2 or restore.is_floating_point() or not restore.sort().values.equal(every.expand_as(restore)):
        raise FixtureError(f"{fixture.path}: ids_restore: needs a permutation of 0..{num_patches - 1} for every image")
    num_visible = int(num_patches * (1 - fixture.number("mask_ratio")))  # rounded as in the reference
    if not 0 < num_visible < num_patches:
        raise FixtureError(
            f"{fixture.path}: config.mask_ratio={fixture.config['mask_ratio']} leaves {num_visible} of {num_patches} "
            "patches visible"
        )
    order = restore.argsort(dim=1)
    return _Shuffle(restore, order[:, :num_visible], order[:, num_visible:])


def _images(fixture: Fixture) -> Float[Tensor, "B 3 H W"]:
    images, size, num_images = fixture.tensor("images"), fixture.count("img_size"), len(fixture.tensor("ids_restore"))
    if images.shape != (num_images, 3, size, size):
        raise FixtureError(
            f"{fixture.path}: images has shape {list(images.shape)}; img_size={size}, {num_images} rows of ids_restore"
        )
    return images


@torch.no_grad()
def _predictions_of_all(
    decoder: NarrowViT, latent: Float[Tensor, "B L D"], shuffle: _Shuffle
) -> Float[Tensor, "B N pixels"]:
    """Predictions in raster order, those of visible patches included, which the method has no use for."""
    x = torch.cat([decoder.embed(latent, shuffle.visible), decoder.queries(shuffle.masked)], dim=1)
    for block in decoder.blocks:
        x = block(x)
    return take(decoder.proj_out(decoder.norm(x[:, decoder.num_prefix_tokens :])), shuffle.restore)
