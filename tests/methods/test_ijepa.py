"""I-JEPA against its formulas."""

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import PROGRESS, TINY_BACKBONE, step_of, tiny_batch, tiny_method

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.graphs import unreadable_progress
from ssl_zoo.losses.regression import Distance
from ssl_zoo.masks import Masks
from ssl_zoo.method import METHODS, Step, build_method
from ssl_zoo.nn import ViTConfig
from ssl_zoo.targets import MaskTeacher, Normalization, PixelsConfig, TeacherConfig


def reference_loss(method, batch) -> torch.Tensor:
    """The loss of the paper's algorithm, image by image and block by block."""
    images, masks = batch.views["image"], batch.masks["image"]
    losses = []
    for b in range(images.shape[0]):
        teacher = F.layer_norm(method.target.encoder(images[b : b + 1])[0], (48,))
        for context in masks.context[b]:
            encoded = method.encoder(images[b : b + 1], keep=context[None])
            for block in masks.targets[b]:
                prediction = method.predictor(encoded, context[None], block[None, None])[0, 0]
                difference = (prediction - teacher[block]).abs()
                losses.append(torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("num_contexts", [1, 2])
def test_the_loss_equals_an_independent_loop(num_contexts: int) -> None:
    method = tiny_method("ijepa")
    batch = tiny_batch(method, "ijepa", num_images=3, num_contexts=num_contexts)
    torch.testing.assert_close(method(batch, step_of(method)).loss, reference_loss(method, batch), atol=1e-6, rtol=1e-6)


def test_a_zero_prediction_of_normalised_features_costs_as_the_closed_form() -> None:
    # E[smooth_l1(N(0,1))] = 0.42466 for standard normal targets.
    targets = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    loss = Distance.smooth_l1(torch.zeros_like(targets), targets, beta=1.0)
    assert loss.item() == pytest.approx(0.42466, abs=0.002)


def test_the_loss_at_initialisation_lies_where_the_reference_starts() -> None:
    method = tiny_method("ijepa")
    assert 0.35 < method(tiny_batch(method, "ijepa", num_images=32), PROGRESS).loss.item() < 0.55


def test_l2_is_the_mean_square_of_the_paper() -> None:
    method = tiny_method("ijepa", distance=Distance.l2)
    batch = tiny_batch(method, "ijepa")
    masks = batch.masks["image"]
    _, predictions, _ = method.predict(batch.views["image"], masks)
    squares = (predictions - masks.paired(method.target(batch, masks, method.encoder))) ** 2
    torch.testing.assert_close(method(batch, step_of(method)).loss, squares.mean())


def test_the_indices_of_one_block_do_not_change_the_prediction_of_another() -> None:
    method = tiny_method("ijepa")
    masks = tiny_batch(method, "ijepa").masks["image"]
    context = torch.randn(8, 1, masks.context.shape[-1], 48, generator=torch.Generator().manual_seed(0))
    moved = masks.targets.clone()
    moved[:, 1] = 15 - moved[:, 1]
    before = method.predictor(context, masks.context, masks.paired(masks.targets))
    after = method.predictor(context, masks.context, masks.paired(moved))
    assert torch.equal(before[:, :, 0], after[:, :, 0]) and not torch.allclose(before[:, :, 1], after[:, :, 1])


def test_the_teacher_is_evaluated() -> None:
    method = tiny_method("ijepa")
    assert method.eval_encoder() is method.target.encoder.module


def test_the_teacher_drops_no_path_while_the_method_trains() -> None:
    backbone = dataclasses.replace(TINY_BACKBONE, drop_path=0.5)
    config = METHODS.config_of("ijepa")(predictor_dim=32, predictor_depth=1, predictor_heads=4)
    method = build_method(config, backbone, TeacherConfig(), seed=0).train()
    batch = tiny_batch(method, "ijepa")
    once, again = (method.target(batch, batch.masks["image"], method.encoder) for _ in range(2))
    assert torch.equal(once, again) and method.encoder.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"predictor_depth": 0}, "method.predictor_depth=0 must be at least 1"),
        ({"predictor_dim": 30}, "method.predictor_dim=30 must be at least 4 and a multiple of 4"),
        ({"predictor_dim": 32, "predictor_heads": 5}, "method.predictor_dim=32 is no multiple of 5 attention heads"),
        (
            {"predictor_dim": 36, "predictor_heads": None},
            "no multiple of 8 attention heads; set method.predictor_heads",
        ),
    ],
)
def test_widths_and_heads_that_do_not_fit_name_their_keys(settings: dict[str, int | None], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        backbone = dataclasses.replace(TINY_BACKBONE, num_heads=8)
        build_method(
            METHODS.config_of("ijepa")(**{"predictor_depth": 1, **settings}), backbone, TeacherConfig(), seed=0
        )


def test_targets_have_zero_mean_and_unit_variance_per_token() -> None:
    method = tiny_method("ijepa")
    batch = tiny_batch(method, "ijepa")
    targets = method.target(batch, batch.masks["image"], method.encoder)
    torch.testing.assert_close(targets.mean(-1), torch.zeros(targets.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(-1, unbiased=False), torch.ones(targets.shape[:-1]), atol=1e-3, rtol=0)


def test_instance_normalisation_removes_what_all_tokens_of_an_image_share() -> None:
    method = tiny_method("ijepa")
    tokens = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0))
    shift = torch.randn(2, 1, 48, generator=torch.Generator().manual_seed(1))
    method.target.config = dataclasses.replace(method.target.config, normalization=Normalization.instance)
    normalised, shifted = method.target._normalized(tokens), method.target._normalized(tokens + shift)
    torch.testing.assert_close(normalised, shifted, atol=1e-4, rtol=1e-4)


def test_masking_the_teachers_input_hides_the_rest_of_the_image_from_it() -> None:
    method = tiny_method("ijepa")
    batch = tiny_batch(method, "ijepa")
    images, masks = batch.views["image"], batch.masks["image"]
    visible = torch.zeros(8, 16, dtype=torch.bool).scatter_(1, masks.targets[:, 0], True)
    pixels = visible.view(8, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    cut = torch.where(pixels, images, torch.zeros_like(images))
    first_block = Masks(masks.context, masks.targets[:, :1])
    for where, same in ((MaskTeacher.input, True), (MaskTeacher.output, False)):
        method.target.config = dataclasses.replace(method.target.config, mask=where)
        seen, of_cut = (method.target(Batch({"image": view}), first_block, method.encoder) for view in (images, cut))
        equal = torch.allclose(seen, of_cut, atol=1e-5)
        assert equal is same


def test_pixel_targets_make_the_predictor_predict_pixels() -> None:
    config = METHODS.config_of("ijepa")(predictor_dim=32, predictor_depth=1, predictor_heads=4)
    method = build_method(config, TINY_BACKBONE, PixelsConfig(), seed=0)
    batch = tiny_batch(method, "ijepa")
    assert method.predictor.proj_out.out_features == 3 * 4 * 4
    assert method(batch, step_of(method)).loss.isfinite() and method.emas() == ()
    assert method.eval_encoder() is method.encoder


def test_without_a_target_the_build_says_what_to_choose() -> None:
    with pytest.raises(ValueError, match="targets=teacher"):
        build_method(METHODS.config_of("ijepa")(), TINY_BACKBONE, None, seed=0)


def test_the_groups_of_vit_small_with_six_predictor_blocks_have_the_references_counts() -> None:
    # 50 + 28 decayed tensors (encoder + predictor) and 99 + 52 others; fixed positions, counted there, are not trained.
    small = ViTConfig(embed_dim=384, depth=12, num_heads=6)
    method = build_method(METHODS.config_of("ijepa")(predictor_depth=6), small, TeacherConfig(), seed=0, device="meta")
    decayed, others = method.param_groups()
    assert len(decayed.params) == (50 - 1) + (28 - 1) and len(others.params) == 99 + 52
    assert any(p is method.predictor.mask_token for p in decayed.params)


def test_position_noise_is_a_function_of_step_and_image_and_the_same_in_any_micro_batch() -> None:
    method = tiny_method("ijepa", position_noise_std=0.25)
    batch = tiny_batch(method, "ijepa")
    noise = method.position_noise(batch, step_of(method))
    assert noise.shape == (8, 1, *batch.masks["image"].targets.shape[1:], 48)
    assert noise.std().item() == pytest.approx(0.25, rel=0.02) and noise.mean().abs() < 0.01
    [first, second] = (method.position_noise(part, step_of(method)) for part in batch.micro_batches(2))
    assert torch.equal(torch.cat([first, second]), noise)
    later = method.position_noise(batch, step_of(method, dataclasses.replace(PROGRESS, step=11)))
    assert not torch.equal(later, noise)


def test_position_noise_reaches_mask_tokens_through_the_projection_of_encoded_tokens() -> None:
    method = tiny_method("ijepa", position_noise_std=0.25)
    batch = tiny_batch(method, "ijepa")
    masks, predictor = batch.masks["image"], method.predictor
    noise = method.position_noise(batch, step_of(method))
    context = torch.randn(8, 1, masks.context.shape[-1], 48, generator=torch.Generator().manual_seed(0))
    got = predictor(context, masks.context, masks.paired(masks.targets), noise=noise)
    block = masks.targets[:, 1]
    queries = predictor.queries(block) + predictor.embed_in(noise[:, 0, 1])
    x = torch.cat([predictor.embed(context[:, 0], masks.context[:, 0]), queries], dim=1)
    for layer in predictor.blocks:
        x = layer(x)
    expected = predictor.proj_out(predictor.norm(x))[:, -block.shape[1] :]
    torch.testing.assert_close(got[:, 0, 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_contexts", [1, 2])
def test_the_context_loss_equals_a_loop_over_context_patches_weighted_by_their_distance(num_contexts: int) -> None:
    method = tiny_method("ijepa", context_loss_weight=0.5, distance=Distance.l2)
    batch = tiny_batch(method, "ijepa", num_images=3, num_contexts=num_contexts)
    images, masks = batch.views["image"], batch.masks["image"]
    plain = tiny_method("ijepa", distance=Distance.l2)(batch, step_of(method))
    features = F.layer_norm(method.target.encoder(images), (48,))
    losses = []
    for b in range(3):
        for context in masks.context[b]:
            encoded = method.encoder(images[b : b + 1], keep=context[None])
            for block in masks.targets[b]:
                outputs = method.predictor(encoded, context[None], block[None, None], with_context=True)[0, 0]
                for prediction, patch in zip(outputs, context.tolist(), strict=False):
                    rows, columns = block // 4 - patch // 4, block % 4 - patch % 4
                    distance = (rows**2 + columns**2).float().sqrt().min()
                    losses.append((prediction - features[b, patch]).square().mean() / distance.sqrt())
    output = method(batch, step_of(method))
    torch.testing.assert_close(output.losses["prediction"], plain.losses["prediction"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.losses["context"], 0.5 * torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


def test_the_context_loss_runs_the_teacher_once_and_its_weight_rises_over_its_warmup() -> None:
    method = tiny_method("ijepa", context_loss_weight=0.5, context_loss_warmup_epochs=10.0)
    calls = []
    method.target.encoder.register_forward_hook(lambda *_: calls.append(1))
    batch = tiny_batch(method, "ijepa")
    method(batch, step_of(method))
    assert len(calls) == 1
    # Epoch 5 of 10, then after the warm-up.
    values = [
        step_of(method, dataclasses.replace(PROGRESS, step=s)).values["context_loss_weight"].item() for s in (10, 99)
    ]
    assert values == pytest.approx([0.25, 0.5])


def test_the_context_loss_refuses_a_teacher_that_sees_target_blocks_alone() -> None:
    with pytest.raises(ValueError, match=r"targets\.mask=input: I-JEPA's context loss"):
        tiny_method("ijepa", context_loss_weight=0.5, target_overrides={"mask": MaskTeacher.input})


@pytest.mark.parametrize("options", [{"position_noise_std": 0.25}, {"context_loss_weight": 0.5}])
def test_options_read_no_progress_in_the_forward_pass(options: dict[str, float]) -> None:
    method = tiny_method("ijepa", **options)
    step = step_of(method)
    output = method(tiny_batch(method, "ijepa"), Step(unreadable_progress(method), step.values))
    assert output.loss.isfinite() and method.visualize(tiny_batch(method, "ijepa"))
