"""MAE against its formulas."""

import dataclasses
import re

import pytest
import torch
from tiny_methods import PROGRESS, TINY_BACKBONE, step_of, tiny_batch, tiny_method

from ssl_zoo.data.batch import Batch
from ssl_zoo.masks import Masks, Pairing
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.nn import Initialization, ViTConfig
from ssl_zoo.targets import PixelsConfig, TargetConfig, TeacherConfig


def mae(target: TargetConfig | None = None, **backbone: object) -> Method:
    config = METHODS.config_of("mae")(decoder_dim=32, decoder_depth=1, decoder_heads=4)
    backbone = {"initialization": Initialization.xavier_uniform, **backbone}
    return build_method(config, dataclasses.replace(TINY_BACKBONE, **backbone), target or PixelsConfig(), seed=0)


def normalised(patch: torch.Tensor) -> torch.Tensor:
    mean = sum(patch.tolist()) / len(patch)
    variance = sum((value - mean) ** 2 for value in patch.tolist()) / (len(patch) - 1)
    return (patch - mean) / (variance + 1e-6) ** 0.5


def reference_loss(method: Method, batch: Batch, *, normalize: bool) -> torch.Tensor:
    """Image by image: all tokens through the decoder in raster order, as in the reference, then patch by patch."""
    images, masks, decoder = batch.views["image"], batch.masks["image"], method.decoder
    prefix, losses = method.encoder.num_prefix_tokens, []
    for b in range(len(images)):
        visible, masked = masks.context[b, 0], masks.targets[b, 0].tolist()
        tokens = method.encoder(images[b : b + 1], keep=visible[None])[0]
        tokens = tokens @ decoder.embed_in.weight.T + decoder.embed_in.bias
        raster = decoder.mask_token[0].repeat(16, 1)
        raster = raster.index_copy(0, visible, tokens[prefix:])
        x = torch.cat([tokens[:prefix], raster])[None] + decoder.pos_embed
        for block in decoder.blocks:
            x = block(x)
        predictions = decoder.proj_out(decoder.norm(x))[0, prefix:]
        for i in masked:
            row, column = divmod(i, 4)
            patch = images[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            losses.append(((predictions[i] - (normalised(patch) if normalize else patch)) ** 2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
def test_the_loss_equals_an_independent_loop(class_token: bool, normalize: bool) -> None:
    method = mae(PixelsConfig(normalize), class_token=class_token)
    batch = tiny_batch(method, "mae", num_images=3)
    expected = reference_loss(method, batch, normalize=normalize)
    torch.testing.assert_close(method(batch, step_of(method)).loss, expected, atol=1e-6, rtol=1e-5)


def test_a_zero_prediction_of_normalised_16_pixel_patches_costs_767_of_768() -> None:
    backbone = {"image_size": 64, "patch_size": 16}
    method = mae(**backbone)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    index = torch.arange(16).expand(4, 1, 16)
    for parameter in (method.decoder.proj_out.weight, method.decoder.proj_out.bias):
        torch.nn.init.zeros_(parameter)
    batch = Batch({"image": images}, {"image": Masks(index[:, :, :4], index[:, :, 4:])})
    assert method(batch, step_of(method)).loss.item() == pytest.approx(0.99870, abs=5e-6)


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "patch_size", "total"),
    [
        (768, 12, 12, 16, 111_907_840),
        (1024, 24, 16, 16, 329_541_888),
        (1280, 32, 16, 14, 657_074_508),
    ],
)
def test_whole_models_have_the_references_parameter_counts(dim, depth, heads, patch_size, total) -> None:
    backbone = ViTConfig(embed_dim=dim, depth=depth, num_heads=heads, patch_size=patch_size, class_token=True)
    method = build_method(METHODS.config_of("mae")(), backbone, PixelsConfig(), seed=0, device="meta")
    assert sum(p.numel() for p in method.parameters()) == total


def test_the_encoder_sees_nothing_of_hidden_patches() -> None:
    method = mae(PixelsConfig(normalize=False))
    batch = tiny_batch(method, "mae")
    images, masks = batch.views["image"].requires_grad_(True), batch.masks["image"]
    method.predict(images, masks)[1].square().sum().backward()
    seen = torch.zeros(8, 16, dtype=torch.bool).scatter_(1, masks.context[:, 0], True)
    touched = images.grad.abs().sum(1).unflatten(2, (4, 4)).unflatten(1, (4, 4)).sum((2, 4)).flatten(1) > 0
    assert torch.equal(touched, seen)


def test_weights_start_as_the_references() -> None:
    method = build_method(METHODS.config_of("mae")(), ViTConfig(depth=1, class_token=True), PixelsConfig(), seed=0)
    for linear in (method.decoder.embed_in, method.decoder.blocks[0].mlp.fc1):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.99 * bound < linear.weight.abs().max() <= bound and not linear.bias.any()
    assert method.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert not method.decoder.pos_embed[0, 0].any() and not method.encoder.pos_embed[0, 0].any()


def test_the_class_token_is_trained_through_the_decoder() -> None:
    method = mae(class_token=True)
    method(tiny_batch(method, "mae"), PROGRESS).loss.backward()
    assert method.encoder.cls_token.grad.any()


def test_the_order_of_patches_in_the_masks_does_not_matter() -> None:
    method = mae()
    batch = tiny_batch(method, "mae")
    masks = batch.masks["image"]
    turned = dataclasses.replace(batch, masks={"image": Masks(masks.context.flip(-1), masks.targets.flip(-1))})
    torch.testing.assert_close(method(turned, step_of(method)).loss, method(batch, step_of(method)).loss)


def test_teacher_features_as_targets_bring_the_average_that_is_evaluated() -> None:
    method = mae(TeacherConfig())
    batch = tiny_batch(method, "mae")
    assert method.decoder.proj_out.out_features == 48
    [ema] = method.emas()
    assert ema.online is method.encoder and method.eval_encoder() is ema.copy.module
    masks = batch.masks["image"]
    _, predictions = method.predict(batch.views["image"], masks)
    expected = ((predictions[:, 0] - method.target(batch, masks, method.encoder)) ** 2).mean()
    torch.testing.assert_close(method(batch, step_of(method)).loss, expected)


def test_paired_contexts_predict_the_target_block_of_their_own_index() -> None:
    method = mae()
    images = tiny_batch(method, "mae", num_images=2).views["image"]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).expand(2, 16)
    contexts, targets = order[:, :6].unflatten(1, (2, 3)), order[:, 6:].unflatten(1, (2, 5))
    step = step_of(method)
    loss = method(Batch({"image": images}, {"image": Masks(contexts, targets, Pairing.zip)}), step).loss
    alone = [
        method(Batch({"image": images}, {"image": Masks(contexts[:, i : i + 1], targets[:, i : i + 1])}), PROGRESS).loss
        for i in (0, 1)
    ]
    torch.testing.assert_close(loss, torch.stack(alone).mean())


def test_multiblock_masks_are_predicted_block_by_block() -> None:
    method, ijepa = mae(), tiny_method("ijepa")
    batch = tiny_batch(ijepa, "ijepa")
    masks = batch.masks["image"]
    _, predictions = method.predict(batch.views["image"], masks)
    assert predictions.shape == (8, 1, *masks.targets.shape[1:], 48)
    _, first = method.predict(batch.views["image"], Masks(masks.context, masks.targets[:, :1]))
    torch.testing.assert_close(predictions[:, :, :1], first)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_prediction_reconstructs_the_image(normalize: bool) -> None:
    method = mae(PixelsConfig(normalize))
    batch = tiny_batch(method, "mae", num_images=2)
    batch = dataclasses.replace(batch, views={"image": 0.1 * batch.views["image"]})
    masks = batch.masks["image"]
    perfect = method.target(batch, masks, method.encoder)
    plot = method.target.visualize(perfect, batch, masks, method.encoder)["reconstructions"]
    image, masked, filled = (column.images for column in plot.columns)
    torch.testing.assert_close(image, batch.pixels("image"))
    torch.testing.assert_close(filled, image, atol=1e-5, rtol=0)
    assert (masked == 0.5).all(1).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert ("borrowed from the image" in plot.note) == normalize


def test_reconstructions_are_drawn_for_pixel_targets_and_features_for_a_teacher() -> None:
    batch = tiny_batch(mae(), "mae")
    assert mae().visualize(batch).keys() == {"masks", "reconstructions"}
    assert mae(TeacherConfig()).visualize(batch).keys() == {"masks", "features"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_dim": 30}, "method.decoder_dim=30 must be at least 4 and a multiple of 4"),
        ({"decoder_dim": 32, "decoder_heads": 5}, "method.decoder_dim=32 is no multiple of method.decoder_heads=5"),
        ({"decoder_depth": 0}, "method.decoder_depth=0"),
    ],
)
def test_widths_and_heads_that_do_not_fit_name_their_keys(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        METHODS.config_of("mae")(**settings)


def test_without_a_target_the_build_says_what_to_choose() -> None:
    with pytest.raises(ValueError, match="targets=pixels"):
        build_method(METHODS.config_of("mae")(), TINY_BACKBONE, None, seed=0)


def test_the_groups_decay_class_and_mask_tokens_as_the_reference_does() -> None:
    method = mae(class_token=True)
    decayed = {id(p) for p in method.param_groups()[0].params}
    assert {id(method.encoder.cls_token), id(method.decoder.mask_token)} <= decayed
