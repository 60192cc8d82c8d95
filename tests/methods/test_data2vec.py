"""data2vec 1 and 2: targets, losses, and how they deal with masks of all kinds."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import PROGRESS, TINY_BACKBONE, step_of, tiny_batch, tiny_method

from ssl_zoo.data.batch import Batch
from ssl_zoo.masks import MASKS, Masks, Pairing
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.targets import MaskTeacher, PixelsConfig, TopKTeacherConfig
from ssl_zoo.targets.teacher import Normalization


def averaged(method: Method, images: torch.Tensor) -> torch.Tensor:
    """LN of the mean of the LN'd outputs of both blocks, from the formula."""
    outputs = method.target.encoder(images, layers=[0, 1])
    return F.layer_norm(torch.stack([F.layer_norm(o, o.shape[-1:]) for o in outputs]).mean(0), (48,))


def test_target_is_the_normed_mean_of_normed_blocks_and_ignores_the_final_norm() -> None:
    method = tiny_method("data2vec")
    images = tiny_batch(method, "data2vec").views["image"]
    everywhere = Masks(torch.zeros(8, 1, 1, dtype=torch.long), torch.zeros(8, 1, 1, dtype=torch.long)).everywhere(16)
    before = method.target(images, everywhere)[:, 0]
    torch.testing.assert_close(before, averaged(method, images), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        method.target.encoder.norm.weight.mul_(3).add_(1)
    assert torch.equal(method.target(images, everywhere)[:, 0], before)


def test_instance_normalisation_leaves_each_feature_without_mean_over_the_image() -> None:
    config = TopKTeacherConfig(average_top_k_layers=1, normalization=Normalization.instance)
    method = build_method(METHODS.config_of("data2vec")(), TINY_BACKBONE, config, seed=0)
    tokens = torch.randn(4, 16, 48)
    normalized = method.target._normalized(tokens)
    assert normalized.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(normalized.var(1, correction=0), torch.ones(4, 48), atol=1e-3, rtol=1e-3)


def test_the_average_leaves_the_integer_index_of_the_bias_table_alone() -> None:
    backbone = replace(TINY_BACKBONE, relative_position_bias=True, class_token=True)
    target = TopKTeacherConfig(average_top_k_layers=1, momentum=0.9999, final_momentum=0.9999)
    method = build_method(METHODS.config_of("data2vec")(), backbone, target, seed=0)
    index = method.encoder.rel_pos_bias.relative_position_index
    truncated = (0.9999 * index + (1 - 0.9999) * index).long()  # as the reference averages it
    [average] = method.emas()
    for _ in range(1000):
        average.update(0.5)
    assert torch.equal(method.target.encoder.rel_pos_bias.relative_position_index, index)
    assert not torch.equal(truncated, index)


def test_loss_is_the_mean_over_all_hidden_patches_of_a_ragged_batch() -> None:
    method = tiny_method("data2vec")
    batch = tiny_batch(method, "data2vec")
    ragged = torch.zeros(8, 16, dtype=torch.bool)
    for image in range(8):
        ragged[image, : image + 1] = True
    batch = replace(batch, masks={"image": replace(batch.masks["image"], masked=ragged)})
    predictions = method.predict_all(batch.views["image"], ragged)[ragged]
    expected = F.smooth_l1_loss(predictions, averaged(method, batch.views["image"])[ragged], beta=2.0)
    torch.testing.assert_close(method(batch, step_of(method)).loss, expected)
    parts = batch.micro_batches(4)
    weights = torch.stack([method.loss_weight(part) for part in parts])
    losses = torch.stack([method(part, step_of(method)).loss for part in parts])
    torch.testing.assert_close((losses * weights).sum() / weights.sum(), expected)


def test_without_hidden_the_union_of_the_target_blocks_is_hidden() -> None:
    targets = torch.tensor([[[0, 1], [1, 2]]])
    masks = Masks(torch.tensor([[[5]]]), targets)
    assert masks.all_masked(16).nonzero()[:, 1].tolist() == [0, 1, 2]


def test_the_class_token_is_spared_of_decay() -> None:
    backbone = replace(TINY_BACKBONE, class_token=True)
    method = build_method(METHODS.config_of("data2vec")(), backbone, TopKTeacherConfig(average_top_k_layers=2), seed=0)
    decay, no_decay = method.param_groups()
    assert any(p is method.encoder.cls_token for p in no_decay.params)
    assert not any(p is method.encoder.cls_token for p in decay.params)


def test_replacing_refuses_several_masks_per_image() -> None:
    masks = MASKS.build(MASKS.config_of("inverse_block")(num_masks=3, block_patches=1), (4, 4))
    with pytest.raises(ValueError, match=r"masks\.num_masks=1"):
        tiny_method("data2vec").check_masks(masks(1, torch.Generator()))


@pytest.mark.parametrize("name", ["data2vec", "data2vec2"])
def test_a_teacher_that_sees_target_blocks_alone_is_refused(name: str) -> None:
    target = TopKTeacherConfig(average_top_k_layers=2, mask=MaskTeacher.input)
    config = METHODS.config_of(name)(**({"decoder_dim": 32} if name == "data2vec2" else {}))
    with pytest.raises(ValueError, match=r"targets\.mask=output"):
        build_method(config, TINY_BACKBONE, target, seed=0)


@pytest.mark.parametrize("name", ["data2vec", "data2vec2"])
@pytest.mark.parametrize("generator", ["multiblock", "random", "rasterized", "blockwise", "cells"])
def test_other_masks_and_pixels_work(name: str, generator: str) -> None:
    settings = {"multiblock": {"min_patches": 1, "target_scale": [0.2, 0.3]}, "blockwise": {"min_block_area": 2}}
    settings["cells"] = {"mask_patch_size": 1}
    masks = MASKS.build(MASKS.config_of(generator)(**settings.get(generator, {})), (4, 4))
    config = METHODS.config_of(name)(**({"decoder_dim": 32} if name == "data2vec2" else {}))
    for target in (TopKTeacherConfig(average_top_k_layers=2), PixelsConfig()):
        method = build_method(config, TINY_BACKBONE, target, seed=0)
        batch = tiny_batch(tiny_method("data2vec"), "data2vec")
        batch = replace(batch, masks={"image": masks(8, torch.Generator().manual_seed(0))})
        method.check_masks(batch.masks["image"])
        loss = method(batch, step_of(method)).loss
        loss.backward()
        assert loss.isfinite()


@pytest.mark.parametrize("name", ["data2vec", "data2vec2"])
def test_the_student_is_evaluated(name: str) -> None:
    method = tiny_method(name)
    assert method.eval_encoder() is method.encoder is not method.target.encoder


def test_more_blocks_than_the_encoder_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets.average_top_k_layers=9: the encoder has 2 blocks"):
        build_method(METHODS.config_of("data2vec")(), TINY_BACKBONE, TopKTeacherConfig(average_top_k_layers=9), seed=0)


@pytest.mark.parametrize(("depth", "averaged"), [(1, 1), (4, 2), (6, 3), (12, 6), (24, 6)])
def test_half_of_the_blocks_and_at_most_six_are_averaged_unless_told_otherwise(depth: int, averaged: int) -> None:
    backbone = replace(TINY_BACKBONE, depth=depth)
    method = build_method(METHODS.config_of("data2vec")(), backbone, TopKTeacherConfig(), seed=0)
    images = torch.randn(1, 3, 16, 16)
    outputs = method.target.encoder(images, layers=range(-averaged, 0))
    expected = F.layer_norm(torch.stack([F.layer_norm(o, (48,)) for o in outputs]).mean(0), (48,))
    unused = torch.zeros(1, 1, 1, dtype=torch.long)
    targets = method.target(images, Masks(unused, unused).everywhere(16))[:, 0]
    torch.testing.assert_close(targets, expected, atol=1e-5, rtol=1e-5)


def test_metrics_count_what_replacing_sees_and_not_the_context_of_the_masks() -> None:
    masks = Masks(torch.tensor([[[5]]]), torch.tensor([[[0, 1], [1, 2]]]))
    metrics = tiny_method("data2vec")(Batch({"image": torch.randn(1, 3, 16, 16)}, {"image": masks}), PROGRESS).metrics
    assert (metrics["visible_patches"], metrics["target_patches"]) == (13, 3)


def test_data2vec2_runs_its_teacher_once_and_its_loss_is_the_mean_of_its_masks() -> None:
    method = tiny_method("data2vec2")
    batch = tiny_batch(method, "data2vec2")
    calls = []
    method.target.encoder.register_forward_hook(lambda *_: calls.append(1))
    together = method(batch, step_of(method)).loss
    assert len(calls) == 1
    masks = batch.masks["image"]
    assert masks.pairing is Pairing.zip and masks.context.shape[1] == 3
    alone = []
    for number in range(3):
        part = slice(number, number + 1)
        one = Masks(masks.context[:, part], masks.targets[:, part], Pairing.zip)
        alone.append(method(replace(batch, masks={"image": one}), PROGRESS).loss)
    torch.testing.assert_close(torch.stack(alone).mean(), together)


def test_data2vec2_loses_sqrt_of_the_width_on_a_prediction_of_zeros() -> None:
    targets = F.layer_norm(torch.randn(4, 1, 1, 9, 48), (48,))
    loss = tiny_method("data2vec2").loss(torch.zeros_like(targets), targets)
    assert loss.item() == pytest.approx(48**0.5, rel=1e-3)


def test_data2vec2_class_loss_has_an_explicit_weight_and_needs_the_token() -> None:
    target = TopKTeacherConfig(average_top_k_layers=2)
    config = METHODS.config_of("data2vec2")(decoder_dim=32, class_loss_weight=0.5)
    with pytest.raises(ValueError, match=r"backbone\.class_token=true"):
        build_method(config, TINY_BACKBONE, target, seed=0)
    batch = tiny_batch(tiny_method("data2vec2"), "data2vec2")
    backbone = replace(TINY_BACKBONE, class_token=True)
    outputs = [
        build_method(replace(config, class_loss_weight=weight), backbone, target, seed=0)(batch, PROGRESS)
        for weight in (0.0, 0.5)
    ]
    extra = outputs[1].loss - outputs[0].loss
    torch.testing.assert_close(extra, 0.5 * outputs[1].metrics["class_loss"], atol=1e-5, rtol=1e-5)
