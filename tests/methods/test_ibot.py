"""iBOT against its formulas."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import TINY_BACKBONE, step_of, tiny_batch, tiny_method, tiny_views

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import build_views
from ssl_zoo.losses.self_distillation import cross_entropy_across_views, cross_entropy_at_patches, sinkhorn
from ssl_zoo.masks import MASKS
from ssl_zoo.method import METHODS, Method, Progress, build_method
from ssl_zoo.nn import Positions
from ssl_zoo.world import World

VIEWS = {spec.name: spec for spec in build_views(tiny_views("ibot"), TINY_BACKBONE)}


@pytest.fixture
def method() -> Method:
    backbone = replace(TINY_BACKBONE, class_token=True, positions=Positions.learned)
    built = build_method(tiny_method("ibot").config, backbone, None, seed=0)
    torch.nn.init.normal_(built.mask_token)
    return built


@pytest.fixture
def batch(method: Method) -> Batch:
    return tiny_batch(method, "ibot")


def with_masked(batch: Batch, first: torch.Tensor, second: torch.Tensor) -> Batch:
    masks = zip(batch.masks.items(), (first, second), strict=True)
    return replace(batch, masks={name: replace(of_crop, masked=masked) for (name, of_crop), masked in masks})


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
    assert batch.masks.keys() == {"global_0", "global_1"}
    assert not torch.equal(batch.masks["global_0"].masked, batch.masks["global_1"].masked)


def test_the_loss_is_dinos_with_hidden_patches_and_that_at_the_patches(method: Method, batch: Batch) -> None:
    method.center.copy_(torch.randn(32))
    method.patch_center.copy_(torch.randn(32))
    global_crops, masked = torch.cat(batch.group("global")), method.masked_patches(batch)
    tokens = method.encoder(global_crops, masked=masked, mask_token=method.mask_token)
    local_tokens = method.encoder(torch.cat(batch.group("local")))
    images = method.head(torch.cat([tokens[:, 0], local_tokens[:, 0]])).unflatten(0, (4, 8))
    taught = method.teacher_encoder(global_crops)
    teacher_images = method.teacher_head(taught[:, 0]).unflatten(0, (2, 8))
    first, second = (step_of(method).values[name] for name in ("teacher_temp", "teacher_patch_temp"))
    image_loss = cross_entropy_across_views(images / 0.1, ((teacher_images - method.center) / first).softmax(-1))
    patch_targets = ((method.teacher_head(taught[:, 1:]) - method.patch_center) / second).softmax(-1)
    patch_loss = cross_entropy_at_patches(method.head(tokens[:, 1:]) / 0.1, patch_targets, masked)
    output = method(batch, step_of(method))
    torch.testing.assert_close(output.losses["image"], image_loss)
    torch.testing.assert_close(output.losses["patch"], patch_loss)
    torch.testing.assert_close(output.loss, image_loss + patch_loss)
    config = replace(method.config, image_weight=0.5, patch_weight=2.0)
    weighted = build_method(config, method.encoder.config, None, seed=0)
    weighted.load_state_dict(method.state_dict())
    torch.testing.assert_close(weighted(batch, step_of(weighted)).loss, 0.5 * image_loss + 2 * patch_loss)


def test_without_any_hidden_patch_the_patch_loss_is_zero_and_finite(method: Method, batch: Batch) -> None:
    output = method(with_masked(batch, nothing(), nothing()), step_of(method))
    assert output.losses["patch"] == 0 and output.loss.isfinite()
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_sinkhorn_balances_masked_patches_alone(batch: Batch, method: Method) -> None:
    balanced = build_method(replace(method.config, sinkhorn_iterations=3), method.encoder.config, None, seed=0)
    balanced.load_state_dict(method.state_dict())
    step, masked = step_of(balanced), method.masked_patches(batch)
    global_crops = torch.cat(batch.group("global"))
    taught = method.teacher_head(method.teacher_encoder(global_crops)[:, 1:])
    targets = torch.zeros_like(taught)
    targets[masked] = sinkhorn(taught[masked] / step.values["teacher_patch_temp"], World(), 3)
    student = method.head(method.encoder(global_crops, masked=masked, mask_token=method.mask_token)[:, 1:])
    expected = cross_entropy_at_patches(student / 0.1, targets, masked)
    torch.testing.assert_close(balanced(batch, step).losses["patch"], expected)
    output = balanced(with_masked(batch, nothing(), nothing()), step)
    assert output.losses["patch"] == 0 and output.loss.isfinite()


def test_the_patch_center_is_of_all_patches_of_the_teacher(method: Method, batch: Batch) -> None:
    output = method(with_masked(batch, nothing(), nothing()), step_of(method))
    method.after_step(step_of(method), output.statistics)
    tokens = method.teacher_encoder(torch.cat(batch.group("global")))
    torch.testing.assert_close(method.patch_center, 0.1 * method.teacher_head(tokens[:, 1:]).mean((0, 1)))
    torch.testing.assert_close(method.center, 0.1 * method.teacher_head(tokens[:, 0]).mean(0))


def test_the_student_alone_has_a_mask_token_and_sees_no_masked_pixel(method: Method, batch: Batch) -> None:
    assert not any("mask_token" in name for ema in method.emas() for name in ema.copy.state_dict())
    changed = {}
    for name, masks in batch.masks.items():
        pixels = masks.masked.unflatten(1, (4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        changed[name] = torch.where(pixels, torch.randn(8, 3, 16, 16), batch.views[name])
    seen = []
    method.encoder.norm.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    for views in (batch.views, {**batch.views, **changed}):
        method(replace(batch, views=views), step_of(method))
    assert all(torch.equal(*of_both) for of_both in zip(seen[:2], seen[2:], strict=True))


def test_before_masking_starts_nothing_is_masked_and_the_patch_temperature_waits(method: Method, batch: Batch) -> None:
    late = tiny_method("ibot", mask_start_epoch=10.0, teacher_temp_warmup_epochs=10.0)
    temperature = late.schedules()["teacher_patch_temp"]
    progress = [Progress(step, 100, 0, steps_per_epoch=2) for step in (0, 18, 30, 50)]
    assert [temperature(at) for at in progress] == pytest.approx([0.04, 0.04, 0.055, 0.07])
    outputs = [late(batch, step_of(late, at)) for at in progress]
    assert [bool(output.losses["patch"]) for output in outputs] == [False, False, True, True]
    assert outputs[0].metrics["target_patches"] == 0 < outputs[3].metrics["target_patches"]


def test_visualizations_show_the_crops_and_the_masked_patches_of_the_global_ones(method: Method, batch: Batch) -> None:
    images = method.visualize(batch)
    assert images.keys() == {"crops", "masks"}
    assert [column.title for column in images["masks"].columns] == ["global crop 1", "global crop 2"]


@pytest.mark.parametrize("generator", ["blockwise", "random", "multiblock", "cells"])
def test_masks_of_other_kinds_serve_as_well(generator: str) -> None:
    settings = {"multiblock": {"min_patches": 1, "target_scale": [0.2, 0.3]}, "blockwise": {"min_block_area": 2}}
    generate = MASKS.build(MASKS.config_of(generator)(**settings.get(generator, {})), (4, 4))
    method = tiny_method("ibot")
    masks = {f"global_{seed}": generate(8, torch.Generator().manual_seed(seed)) for seed in (0, 1)}
    method.check_inputs(VIEWS, masks)
    batch = replace(tiny_batch(method, "ibot"), masks=masks)
    assert method(batch, step_of(method)).losses["patch"] > 0


def test_several_masks_per_crop_and_none_at_all_are_refused(method: Method, batch: Batch) -> None:
    masks = MASKS.build(MASKS.config_of("inverse_block")(num_masks=3, block_side=1), (4, 4))
    several = {f"global_{number}": masks(1, torch.Generator()) for number in (0, 1)}
    with pytest.raises(ValueError, match=r"masks\.num_masks=1"):
        method.check_inputs(VIEWS, several)
    with pytest.raises(ValueError, match="masks=random_ratio"):
        method.check_inputs(VIEWS, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_weight": -1.0}, "method.patch_weight=-1.0"),
        ({"teacher_patch_temp": 0.0}, "method.teacher_patch_temp=0.0"),
        ({"num_prototypes": 0}, "method.num_prototypes=0"),
    ],
)
def test_settings_that_make_no_sense_name_their_keys(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        METHODS.config_of("ibot")(**settings)
