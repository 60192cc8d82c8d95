"""iBOT against its formulas."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import PROGRESS, TINY_BACKBONE, step_of, tiny_batch, tiny_method

from ssl_zoo.data.batch import Batch
from ssl_zoo.masks import MASKS
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.methods.ibot import cross_entropy_at_patches
from ssl_zoo.nn import Positions
from ssl_zoo.self_distillation import cross_entropy_across_views


@pytest.fixture
def method() -> Method:
    backbone = replace(TINY_BACKBONE, class_token=True, positions=Positions.learned)
    built = build_method(tiny_method("ibot").config, backbone, None, seed=0)
    torch.nn.init.normal_(built.mask_token)
    return built


@pytest.fixture
def batch(method: Method) -> Batch:
    return tiny_batch(method, "ibot")


def with_hidden(batch: Batch, first: torch.Tensor, second: torch.Tensor) -> Batch:
    masks = tuple(replace(m, masked=h) for m, h in zip(batch.masks[:2], (first, second), strict=True))
    return replace(batch, masks=(*masks, *batch.masks[2:]))


def nothing() -> torch.Tensor:
    return torch.zeros(8, 16, dtype=torch.bool)


def test_the_patch_loss_is_the_mean_over_crops_of_means_over_hidden_patches() -> None:
    logits, probabilities = torch.randn(4, 6, 5), torch.randn(4, 6, 5).softmax(-1)
    masked = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6, [1] * 6], dtype=torch.bool)
    crops = []
    for crop in range(4):
        losses = [F.cross_entropy(logits[crop, i], probabilities[crop, i]) for i in range(6) if masked[crop, i]]
        crops.append(sum(losses) / max(1, len(losses)))
    torch.testing.assert_close(cross_entropy_at_patches(logits, probabilities, masked), sum(crops) / 4)


def test_each_large_crop_has_a_mask_of_its_own_and_small_ones_have_none(batch: Batch) -> None:
    first, second, *small = batch.masks
    assert not torch.equal(first.masked, second.masked) and small == [None, None]


def test_the_loss_is_dinos_with_hidden_patches_and_that_at_the_patches(method: Method, batch: Batch) -> None:
    method.center.copy_(torch.randn(32))
    method.patch_center.copy_(torch.randn(32))
    masked = torch.cat([masks.masked for masks in batch.masks[:2]])
    tokens = method.encoder(torch.cat(batch.views[:2]), masked=masked, mask_token=method.mask_token)
    small = method.encoder(torch.cat(batch.views[2:]))
    images = method.head(torch.cat([tokens[:, 0], small[:, 0]])).unflatten(0, (4, 8))
    taught = method.teacher_encoder(torch.cat(batch.views[:2]))
    teacher_images = method.teacher_head(taught[:, 0]).unflatten(0, (2, 8))
    first = method.teacher_temperature(PROGRESS.fraction)
    second = method.teacher_patch_temperature(PROGRESS.fraction)
    image_loss = cross_entropy_across_views(images / 0.1, ((teacher_images - method.center) / first).softmax(-1))
    patch_targets = ((method.teacher_head(taught[:, 1:]) - method.patch_center) / second).softmax(-1)
    patch_loss = cross_entropy_at_patches(method.head(tokens[:, 1:]) / 0.1, patch_targets, masked)
    output = method(batch, step_of(method))
    torch.testing.assert_close(output.losses["image"], image_loss.detach())
    torch.testing.assert_close(output.losses["patch"], patch_loss.detach())
    torch.testing.assert_close(output.loss, image_loss + patch_loss)
    config = replace(method.config, image_weight=0.5, patch_weight=2.0)
    weighted = build_method(config, method.encoder.config, None, seed=0)
    weighted.load_state_dict(method.state_dict())
    torch.testing.assert_close(weighted(batch, step_of(weighted)).loss, 0.5 * image_loss + 2 * patch_loss)


def test_without_any_hidden_patch_the_patch_loss_is_zero_and_finite(method: Method, batch: Batch) -> None:
    output = method(with_hidden(batch, nothing(), nothing()), PROGRESS)
    assert output.losses["patch"] == 0 and output.loss.isfinite()
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_the_patch_center_is_of_all_patches_of_the_teacher(method: Method, batch: Batch) -> None:
    output = method(with_hidden(batch, nothing(), nothing()), PROGRESS)
    method.after_step(step_of(method), output.statistics)
    tokens = method.teacher_encoder(torch.cat(batch.views[:2]))
    torch.testing.assert_close(method.patch_center, 0.1 * method.teacher_head(tokens[:, 1:]).mean((0, 1)))
    torch.testing.assert_close(method.center, 0.1 * method.teacher_head(tokens[:, 0]).mean(0))


def test_the_student_alone_has_a_mask_token_and_sees_no_hidden_pixel(method: Method, batch: Batch) -> None:
    assert not any("mask_token" in name for ema in method.emas() for name in ema.copy.module.state_dict())
    masked = torch.cat([masks.masked for masks in batch.masks[:2]])
    pixels = masked.unflatten(1, (4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    first, second = torch.where(pixels, torch.randn(16, 3, 16, 16), torch.cat(batch.views[:2])).chunk(2)
    other = replace(batch, views=(first, second, *batch.views[2:]))
    for ours, theirs in zip(method.outputs(batch, masked), method.outputs(other, masked), strict=True):
        assert torch.equal(ours, theirs)


def test_pictures_show_the_crops_and_what_is_hidden_of_the_large_ones(method: Method, batch: Batch) -> None:
    pictures = method.visualize(batch)
    assert pictures.keys() == {"crops", "masks"}
    assert pictures["masks"].shape[2] == 2 * (16 * 6 + 2) + 2


@pytest.mark.parametrize("generator", ["blockwise", "random", "multiblock", "cells"])
def test_masks_of_other_kinds_serve_as_well(generator: str) -> None:
    settings = {"multiblock": {"min_patches": 1, "target_scale": [0.2, 0.3]}, "blockwise": {"min_block_area": 2}}
    masks = MASKS.build(MASKS.config_of(generator)(**settings.get(generator, {})), (4, 4))
    method = tiny_method("ibot")
    drawn = [masks(8, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    for one in drawn:
        method.check_masks(one)
    batch = replace(tiny_batch(method, "ibot"), masks=(*drawn, None, None))
    assert method(batch, step_of(method)).losses["patch"] > 0


def test_several_masks_per_crop_and_none_at_all_are_refused(method: Method, batch: Batch) -> None:
    masks = MASKS.build(MASKS.config_of("inverse_block")(num_masks=3, block_patches=1), (4, 4))
    with pytest.raises(ValueError, match=r"masks\.num_masks=1"):
        method.check_masks(masks(1, torch.Generator()))
    with pytest.raises(ValueError, match="masks=random_ratio"):
        method(replace(batch, masks={"image": None} * 4), PROGRESS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_weight": -1.0}, "method.patch_weight=-1.0"),
        ({"teacher_patch_temperature": 0.0}, "method.teacher_patch_temperature=0.0"),
        ({"num_prototypes": 0}, "method.num_prototypes=0"),
    ],
)
def test_settings_that_make_no_sense_name_their_keys(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        METHODS.config_of("ibot")(**settings)
