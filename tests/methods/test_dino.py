"""DINO against its formulas."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_methods import TINY_BACKBONE, step_of, tiny_batch, tiny_method, tiny_views
from tiny_runs import tiny_trainer
from torch import nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import build_views
from ssl_zoo.engine.checkpoint.state import list_checkpoints
from ssl_zoo.engine.optim import AdamWConfig
from ssl_zoo.engine.settings import Precision
from ssl_zoo.losses.koleo import koleo
from ssl_zoo.losses.self_distillation import cross_entropy_across_views, sinkhorn
from ssl_zoo.method import METHODS, Clip, Method, Output, Progress, build_method
from ssl_zoo.nn import Positions
from ssl_zoo.targets import TeacherConfig
from ssl_zoo.world import World


@pytest.fixture
def method() -> Method:
    return tiny_method("dino")


@pytest.fixture
def batch(method: Method) -> Batch:
    return tiny_batch(method, "dino")


@pytest.mark.parametrize("num_local", [0, 1, 8])
def test_the_loss_is_the_mean_over_pairs_of_different_views(num_local: int) -> None:
    logits, probabilities = torch.randn(2 + num_local, 5, 7), torch.randn(2, 5, 7).softmax(-1)
    pairs = [(q, v) for q, v in itertools.product(range(2), range(2 + num_local)) if q != v]
    losses = [F.cross_entropy(logits[v], probabilities[q]) for q, v in pairs]
    torch.testing.assert_close(cross_entropy_across_views(logits, probabilities), torch.stack(losses).mean())


def outputs(encoder: nn.Module, head: nn.Module, views: list[torch.Tensor]) -> torch.Tensor:
    """Head outputs of each view, of the mean of its tokens."""
    return torch.stack([head(encoder(view).mean(dim=1)) for view in views])


def test_teacher_distributions_are_centered_and_sharpened(method: Method, batch: Batch) -> None:
    method.center.copy_(torch.randn(32))
    student = outputs(method.encoder, method.head, list(batch.views.values()))
    teacher = outputs(method.teacher_encoder, method.teacher_head, batch.group("global"))
    temperature = step_of(method).values["teacher_temp"]
    expected = cross_entropy_across_views(student / 0.1, ((teacher - method.center) / temperature).softmax(-1))
    torch.testing.assert_close(method(batch, step_of(method)).loss, expected)


def test_a_network_that_says_nothing_loses_the_logarithm_of_the_prototypes(method: Method, batch: Batch) -> None:
    torch.nn.init.zeros_(method.head.last_layer.weight_g)
    assert method(batch, step_of(method)).loss.item() == pytest.approx(math.log(32), rel=1e-5)


def test_global_crops_pass_through_the_encoder_together_and_so_do_local_ones(method: Method, batch: Batch) -> None:
    seen = []
    method.encoder.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    method(batch, step_of(method))
    assert seen == [(16, 3, 16, 16), (16, 3, 8, 8)]


def test_the_loss_does_not_depend_on_the_order_of_local_crops(method: Method, batch: Batch) -> None:
    views = batch.views
    swapped = replace(batch, views={**views, "local_0": views["local_1"], "local_1": views["local_0"]})
    torch.testing.assert_close(method(swapped, step_of(method)).loss, method(batch, step_of(method)).loss)


def test_the_center_moves_to_the_teachers_mean_output_after_it_was_used(method: Method, batch: Batch) -> None:
    output = method(batch, step_of(method))
    assert not method.center.any()
    method.after_step(step_of(method), output.statistics)
    mean = outputs(method.teacher_encoder, method.teacher_head, batch.group("global")).mean((0, 1))
    torch.testing.assert_close(method.center, 0.1 * mean)


@pytest.mark.parametrize("gradient_accumulation_steps", [2, 4])
def test_the_center_is_of_all_images_of_a_step_for_any_split_into_micro_batches(
    tmp_path: Path, gradient_accumulation_steps: int
) -> None:
    centers = []
    for count in (1, gradient_accumulation_steps):
        run, optim = tmp_path / str(count), AdamWConfig(warmup_epochs=0.2, clip_grad_norm=0.5)
        settings = {"gradient_accumulation_steps": count, "num_steps": 1, "precision": Precision.fp32}
        tiny_trainer(run, method=tiny_method("dino"), masks=None, optim=optim, **settings).train()
        centers.append(load_file(list_checkpoints(run)[-1] / "method.safetensors")["center"])
    assert centers[0].any()
    torch.testing.assert_close(centers[1], centers[0])


def test_temperature_and_momentum_follow_the_paper() -> None:
    method = tiny_method("dino")
    # 300 epochs of two steps; the warm-up takes 30 of them.
    progress = [Progress(step, 600, 0, steps_per_epoch=2) for step in (0, 30, 60, 300, 600)]
    temperatures = [method.schedules()["teacher_temp"](at) for at in progress]
    assert temperatures == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    constant = tiny_method("dino", teacher_temp_warmup_epochs=0.0)
    assert constant.schedules()["teacher_temp"](progress[0]) == pytest.approx(0.07)
    # facebookresearch/dino, ViT-S/16 of 800 epochs: half way.
    assert [ema.momentum(0.5) for ema in method.emas()] == pytest.approx([0.998, 0.998])


def test_prototypes_do_not_move_at_first(tmp_path: Path) -> None:
    # Batches of 8 of 40 images: five steps an epoch.
    frozen, moving = (tiny_method("dino", freeze_last_layer_epochs=epochs) for epochs in (1.2, 0.0))
    for method in (frozen, moving):
        before = method.head.last_layer.weight_v.clone()
        trainer = tiny_trainer(tmp_path / str(method is frozen), method=method, masks=None, num_steps=6)
        trainer.num_steps, trainer.step = 12, 0
        for hook in trainer.hooks:
            hook.after_step = lambda trainer, result: setattr(trainer, "stop", trainer.step == 6)
        trainer.train()
        assert torch.equal(method.head.last_layer.weight_v, before) is (method is frozen)
        assert (method.head.last_layer.weight_v in trainer.optimization.optimizer.state) is (method is moving)


def test_every_parameter_is_clipped_on_its_own_and_lengths_of_prototypes_are_decayed() -> None:
    method = tiny_method("dino", norm_last_layer=False)
    decay, no_decay = method.param_groups()
    assert decay.clip is no_decay.clip is Clip.per_parameter
    assert any(p is method.head.last_layer.weight_g for p in decay.params)
    assert not tiny_method("dino").head.last_layer.weight_g.requires_grad


def test_the_teacher_is_evaluated_and_drops_no_path(batch: Batch) -> None:
    method = build_method(tiny_method("dino").config, replace(TINY_BACKBONE, drop_path=0.5), None, seed=0).train()
    assert method.eval_encoder() is method.teacher_encoder.module and not method.eval_encoder().training
    first, second = (method.teacher_encoder(batch.views["global_0"]) for _ in range(2))
    assert torch.equal(first, second)


def test_an_image_is_represented_by_its_class_token_or_else_by_the_mean_of_its_patches(batch: Batch) -> None:
    config = tiny_method("dino").config
    for backbone in (TINY_BACKBONE, replace(TINY_BACKBONE, class_token=True, positions=Positions.learned)):
        encoder = build_method(config, backbone, None, seed=0).encoder
        tokens = encoder(batch.views["global_0"])
        expected = tokens[:, 0] if backbone.class_token else tokens.mean(1)
        assert torch.equal(encoder.pooled(tokens), expected)


def test_each_crop_has_a_column(method: Method, batch: Batch) -> None:
    columns = method.visualize(batch)["crops"].columns
    assert [column.title for column in columns] == ["global crop 1", "global crop 2", "local crop 1", "local crop 2"]
    assert torch.equal(columns[2].images, batch.pixels("local_0"))


def test_the_default_head_has_as_many_parameters_as_the_references() -> None:
    small = replace(TINY_BACKBONE, embed_dim=384, num_heads=6)
    method = build_method(METHODS.config_of("dino")(), small, None, seed=0, device="meta")
    assert sum(p.numel() for p in method.head.mlp.parameters()) == 5_509_376
    assert method.head.last_layer.weight_v.numel() == 256 * 65_536


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_teacher_temp": 0.0}, "method.warmup_teacher_temp=0.0"),
        ({"freeze_last_layer_epochs": -1.0}, "method.freeze_last_layer_epochs=-1.0"),
        ({"num_prototypes": 0}, "method.num_prototypes=0"),
    ],
)
def test_settings_that_make_no_sense_name_their_keys(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_method("dino", **settings)


def test_parts_that_it_has_no_use_for_are_refused() -> None:
    config = tiny_method("dino").config
    with pytest.raises(ValueError, match="targets=null"):
        build_method(config, TINY_BACKBONE, TeacherConfig(), seed=0)
    biased = replace(TINY_BACKBONE, relative_position_bias=True, positions=Positions.none)
    views = {spec.name: spec for spec in build_views(tiny_views("dino"), TINY_BACKBONE)}
    with pytest.raises(ValueError, match=r"views\.num_local_crops=0"):
        build_method(config, biased, None, seed=0).check_inputs(views, {})
    method = tiny_method("dino")
    method.check_inputs(views, {})
    with pytest.raises(ValueError, match="masks=null"):
        method.check_inputs(views, tiny_batch(tiny_method("ibot"), "ibot").masks)
    with pytest.raises(ValueError, match="views=multi_crop"):
        method.check_inputs({"image": views["global_0"]}, {})
    with pytest.raises(ValueError, match=r"views\.local_size=6: .*4"):
        method.check_inputs({**views, "local_0": replace(views["local_0"], size=(6, 6))}, {})


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_options_of_dinov2_couple_images_and_change_nothing_by_default(tmp_path: Path, name: str) -> None:
    assert not tiny_method(name).couples_images and "koleo" not in tiny_output(name).losses
    for option in ({"sinkhorn_iterations": 3}, {"koleo_weight": 0.1}):
        method = tiny_method(name, **option)
        with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2: the loss of \w+ couples all images"):
            tiny_trainer(tmp_path, method=method, masks=method.default_masks, gradient_accumulation_steps=2)


def tiny_output(name: str, **options: object) -> Output:
    method = tiny_method(name, **options)
    return method(tiny_batch(method, name), step_of(method))


def test_sinkhorn_balances_both_global_crops_together_in_place_of_the_center(batch: Batch) -> None:
    method = tiny_method("dino", sinkhorn_iterations=3)
    method.center.copy_(torch.randn(32))
    student = outputs(method.encoder, method.head, list(batch.views.values()))
    teacher = outputs(method.teacher_encoder, method.teacher_head, batch.group("global"))
    scores = teacher / step_of(method).values["teacher_temp"]
    expected = cross_entropy_across_views(student / 0.1, sinkhorn(scores, World(), 3))
    torch.testing.assert_close(method(batch, step_of(method)).loss, expected)


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_koleo_spreads_the_images_of_each_global_crop(name: str) -> None:
    method = tiny_method(name, koleo_weight=0.1)
    batch, masked = tiny_batch(method, name), {}
    if name == "ibot":
        masked = {"masked": method.masked_patches(batch), "mask_token": method.mask_token}
    features = method.encoder(torch.cat(batch.group("global")), **masked).mean(dim=1)
    expected = 0.1 * (koleo(features[:8], World()) + koleo(features[8:], World()))
    torch.testing.assert_close(method(batch, step_of(method)).losses["koleo"], expected)


def test_progress_decides_the_temperature(method: Method, batch: Batch) -> None:
    early, late = (method(batch, step_of(method, Progress(step, 100, 0))).loss for step in (0, 50))
    assert not torch.equal(early, late)
