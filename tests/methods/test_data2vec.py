"""data2vec 1 and 2: targets, losses, and how they deal with masks of all kinds."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import TINY_BACKBONE, step_of, tiny_batch, tiny_method, tiny_views

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import build_views
from ssl_zoo.masks import MASKS, Masks, Pairing
from ssl_zoo.method import METHODS, EmaConfig, Method, build_method
from ssl_zoo.methods.data2vec2 import scaled_l2
from ssl_zoo.targets import MaskTeacher, PixelsConfig, TopKTeacherConfig
from ssl_zoo.targets.features import Normalization

VIEWS = {spec.name: spec for spec in build_views(tiny_views("data2vec"), TINY_BACKBONE)}


def averaged(method: Method, images: torch.Tensor, layers: Sequence[int] = (0, 1)) -> torch.Tensor:
    """LN of the mean of the LN'd outputs of some blocks, from the formula."""
    outputs = method.target.encoder(images, layers=layers)
    return F.layer_norm(torch.stack([F.layer_norm(o, o.shape[-1:]) for o in outputs]).mean(0), (48,))


def targets_everywhere(method: Method, images: torch.Tensor) -> torch.Tensor:
    unused = torch.zeros(len(images), 1, 1, dtype=torch.long)
    return method.target(Batch({"image": images}), Masks(unused, unused).everywhere(16), method.encoder)[:, 0]


def test_target_is_the_normed_mean_of_normed_blocks_and_ignores_the_final_norm() -> None:
    method = tiny_method("data2vec")
    images = tiny_batch(method, "data2vec").views["image"]
    before = targets_everywhere(method, images)
    torch.testing.assert_close(before, averaged(method, images), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        method.target.encoder.module.norm.weight.mul_(3).add_(1)
    assert torch.equal(targets_everywhere(method, images), before)


def test_instance_normalisation_leaves_each_feature_without_mean_over_the_image() -> None:
    config = TopKTeacherConfig(average_top_k_layers=1, normalization=Normalization.instance)
    method = build_method(METHODS.config_of("data2vec")(), TINY_BACKBONE, config, seed=0)
    tokens = torch.randn(4, 16, 48)
    normalized = method.target._normalized(tokens)
    assert normalized.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(normalized.var(1, correction=0), torch.ones(4, 48), atol=1e-3, rtol=1e-3)


def test_the_average_leaves_the_integer_index_of_the_bias_table_alone() -> None:
    backbone = replace(TINY_BACKBONE, relative_position_bias=True, class_token=True)
    target = TopKTeacherConfig(ema=EmaConfig(0.9999, 0.9999), average_top_k_layers=1)
    method = build_method(METHODS.config_of("data2vec")(), backbone, target, seed=0)
    index = method.encoder.rel_pos_bias.relative_position_index
    truncated = (0.9999 * index + (1 - 0.9999) * index).long()  # as the reference averages it
    [ema] = method.emas()
    for _ in range(1000):
        ema.update(0.5)
    assert torch.equal(method.target.encoder.module.rel_pos_bias.relative_position_index, index)
    assert not torch.equal(truncated, index)


def test_loss_is_the_mean_over_all_hidden_patches_of_a_ragged_batch() -> None:
    method = tiny_method("data2vec")
    batch = tiny_batch(method, "data2vec")
    ragged = torch.zeros(8, 16, dtype=torch.bool)
    for image in range(8):
        ragged[image, : image + 1] = True
    batch = replace(batch, masks={"image": replace(batch.masks["image"], masked=ragged)})
    tokens = method.encoder(batch.views["image"], masked=ragged, mask_token=method.mask_token)
    predictions = method.head(tokens)[ragged]
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
    masks = MASKS.build(MASKS.config_of("inverse_block")(num_masks=3, block_side=1), (4, 4))
    with pytest.raises(ValueError, match=r"masks\.num_masks=1"):
        tiny_method("data2vec").check_inputs(VIEWS, {"image": masks(1, torch.Generator())})


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
        method.check_inputs(VIEWS, batch.masks)
        loss = method(batch, step_of(method)).loss
        loss.backward()
        assert loss.isfinite()


@pytest.mark.parametrize("name", ["data2vec", "data2vec2"])
def test_the_student_is_evaluated(name: str) -> None:
    method = tiny_method(name)
    assert method.eval_encoder() is method.encoder is not method.target.encoder.module


def test_more_blocks_than_the_encoder_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets.average_top_k_layers=9: the encoder has 2 blocks"):
        build_method(METHODS.config_of("data2vec")(), TINY_BACKBONE, TopKTeacherConfig(average_top_k_layers=9), seed=0)


@pytest.mark.parametrize(("depth", "top_k"), [(1, 1), (4, 2), (6, 3), (12, 6), (24, 6)])
def test_half_of_the_blocks_and_at_most_six_are_averaged_by_default(depth: int, top_k: int) -> None:
    backbone = replace(TINY_BACKBONE, depth=depth)
    method = build_method(METHODS.config_of("data2vec")(), backbone, TopKTeacherConfig(), seed=0)
    images = torch.randn(1, 3, 16, 16)
    expected = averaged(method, images, range(-top_k, 0))
    torch.testing.assert_close(targets_everywhere(method, images), expected, atol=1e-5, rtol=1e-5)


def test_any_set_of_blocks_can_be_averaged() -> None:
    backbone, images = replace(TINY_BACKBONE, depth=3), torch.randn(1, 3, 16, 16)
    method = build_method(METHODS.config_of("data2vec")(), backbone, TopKTeacherConfig(layers=[0, 2]), seed=0)
    torch.testing.assert_close(targets_everywhere(method, images), averaged(method, images, [0, 2]))
    with pytest.raises(ValueError, match=r"targets\.layers=\[3\]: the encoder has blocks 0\.\.2"):
        build_method(method.config, backbone, TopKTeacherConfig(layers=[3]), seed=0)


def test_metrics_count_what_replacing_sees_and_not_the_context_of_the_masks() -> None:
    masks = Masks(torch.tensor([[[5]]]), torch.tensor([[[0, 1], [1, 2]]]))
    method = tiny_method("data2vec")
    metrics = method(Batch({"image": torch.randn(1, 3, 16, 16)}, {"image": masks}), step_of(method)).metrics
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
        alone.append(method(replace(batch, masks={"image": one}), step_of(method)).loss)
    torch.testing.assert_close(torch.stack(alone).mean(), together)


def test_data2vec2_loses_sqrt_of_the_width_on_a_prediction_of_zeros() -> None:
    targets = F.layer_norm(torch.randn(4, 1, 1, 9, 48), (48,))
    loss = scaled_l2(torch.zeros_like(targets), targets)
    assert loss.item() == pytest.approx(48**0.5, rel=1e-3)


def test_data2vec2_class_loss_has_an_explicit_weight_and_needs_the_token() -> None:
    target = TopKTeacherConfig(average_top_k_layers=2)
    config = METHODS.config_of("data2vec2")(decoder_dim=32, class_loss_weight=0.5)
    with pytest.raises(ValueError, match=r"backbone\.class_token=true"):
        build_method(config, TINY_BACKBONE, target, seed=0)
    batch = tiny_batch(tiny_method("data2vec2"), "data2vec2")
    backbone = replace(TINY_BACKBONE, class_token=True)
    outputs = []
    for weight in (0.25, 0.5):
        method = build_method(replace(config, class_loss_weight=weight), backbone, target, seed=0)
        outputs.append(method(batch, step_of(method)).losses)
    assert torch.equal(outputs[0]["prediction"], outputs[1]["prediction"])
    torch.testing.assert_close(2 * outputs[0]["class_token"], outputs[1]["class_token"])
    features = targets_everywhere(method, batch.views["image"]).mean(dim=1)[:, None].expand(-1, 3, -1)
    class_tokens = method.encoder(batch.views["image"], keep=batch.masks["image"].context)[:, :, 0]
    torch.testing.assert_close(outputs[1]["class_token"], 0.5 * scaled_l2(class_tokens, features))
