"""Every recipe and every option in configs/."""

import importlib.resources
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssl_zoo.config import compose, load_config
from ssl_zoo.config.schema import sections
from ssl_zoo.engine.build import build_generators, build_views
from ssl_zoo.engine.optim import RateSchedules
from ssl_zoo.masks import MASKS
from ssl_zoo.method import METHODS, build_method
from ssl_zoo.nn import Initialization
from ssl_zoo.planning.plan import Plan, count_flops
from ssl_zoo.registry import REGISTRIES
from ssl_zoo.targets import PixelsConfig, TeacherConfig

ROOT = Path(str(importlib.resources.files("ssl_zoo.configs")))
RECIPES = sorted(path for path in ROOT.glob("*/*.yaml") if path.parent.name not in (*sections(), "studies", "decoder"))
OPTIONS = [
    f"{group}={option}"
    for group, options in compose(ROOT / "ijepa" / "demo.yaml").options.items()
    for option in options
    if group in REGISTRIES
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_builds_the_encoder_that_its_header_counts(recipe):
    config = load_config(recipe)
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    header = " ".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    counted = re.search(r"Encoder: ([\d,]+) trainable parameters", header)
    trainable = sum(p.numel() for p in method.encoder.parameters() if p.requires_grad)
    assert counted and int(counted[1].replace(",", "")) == trainable


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_operations_of_a_recipe_are_counted_without_weights(recipe: Path) -> None:
    config = load_config(recipe)
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    views = build_views(config.views, config.backbone)
    flops = count_flops(method, views, build_generators(views, config.masks, config.backbone))
    assert flops["step"] == flops["forward"] + flops["backward"] and flops["backward"] > 0


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_makes_a_config(option):
    group, name = option.split("=")
    section = getattr(load_config(ROOT / "ijepa" / "vitb16.yaml", [option]), group)
    assert isinstance(section, sections()[group])
    if name in REGISTRIES[group].names():
        assert type(section) is REGISTRIES[group].config_of(name)


def test_the_reference_recipe_has_the_reference_values():
    config = load_config(ROOT / "ijepa" / "vith14.yaml")
    optim, masks = config.optim, config.masks
    assert (config.backbone.patch_size, config.backbone.embed_dim, config.backbone.depth) == (14, 1280, 32)
    assert (config.method.predictor_dim, config.method.predictor_depth) == (384, 12)
    assert config.views.crop_scale == [0.3, 1.0]
    assert (masks.target_scale, masks.target_aspect, masks.context_scale) == ([0.15, 0.2], [0.75, 1.5], [0.85, 1.0])
    assert (masks.num_targets, masks.num_contexts, masks.min_patches) == (4, 1, 10)
    assert (optim.warmup_lr, optim.lr, optim.min_lr) == (2e-4, 1e-3, 1e-6)
    assert (optim.warmup_epochs, optim.weight_decay, optim.final_weight_decay) == (40, 0.04, 0.4)
    assert (config.targets.ema.momentum, config.targets.ema.final_momentum) == (0.996, 1.0)
    assert (config.trainer.batch_size, config.trainer.epochs) == (2048, 300)


@pytest.mark.parametrize(
    ("name", "dim", "patch_size"), [("vitb16", 768, 16), ("vitl16", 1024, 16), ("vith14", 1280, 14)]
)
def test_mae_recipes_have_the_reference_values(name: str, dim: int, patch_size: int) -> None:
    config = load_config(ROOT / "mae" / f"{name}.yaml")
    optim, method, backbone = config.optim, config.method, config.backbone
    assert (backbone.embed_dim, backbone.patch_size, backbone.class_token) == (dim, patch_size, True)
    assert backbone.initialization is Initialization.xavier_uniform
    assert (method.decoder_dim, method.decoder_depth, method.decoder_heads) == (512, 8, 16)
    view = config.views
    assert (view.crop_scale, view.interpolation, view.horizontal_flip) == ([0.2, 1.0], "bicubic", 0.5)
    assert (config.masks.mask_ratio, config.targets.normalize) == (0.75, True)
    assert (config.trainer.batch_size, config.trainer.epochs) == (4096, 800)
    assert (optim.weight_decay, optim.final_weight_decay) == (0.05, None)  # constant
    assert (optim.betas, optim.clip_grad_norm) == ([0.9, 0.95], None)
    # The reference's schedule: half way up, peak, half way down, end.
    schedules = RateSchedules(optim, num_steps=800 * 10, steps_per_epoch=10)
    rates = [schedules(10 * epoch).lr for epoch in (0, 20, 40, 420, 800)]
    assert rates == pytest.approx([0, 1.2e-3, 2.4e-3, 1.2e-3, 0], abs=1e-12)


@pytest.mark.parametrize(
    "other", ["cae", "mae", "data2vec", "data2vec2", "simmim", "dino", "ibot", "simclr", "msn", "lejepa"]
)
@pytest.mark.parametrize("name", ["cifar10_vitt4", "demo"])
def test_methods_are_compared_on_one_backbone_view_optimizer_and_budget(name: str, other: str) -> None:
    ijepa, other = (load_config(ROOT / method / f"{name}.yaml") for method in ("ijepa", other))
    for section in ("seed", "backbone", "data", "loader", "trainer", "monitor", "probe"):
        assert getattr(ijepa, section) == getattr(other, section), section
    # A learning rate is each method's own (configs/studies/tuning.yaml).
    assert replace(other.optim, lr=ijepa.optim.lr) == ijepa.optim
    if type(other.views) is type(ijepa.views):  # methods that compare crops have views of their own
        assert ijepa.views == other.views


def test_another_method_on_a_recipe_brings_its_masks_and_targets_and_keeps_the_view(caplog) -> None:
    recipe = ROOT / "ijepa" / "cifar10_vitt4.yaml"
    config = load_config(recipe, ["method=mae"])
    assert isinstance(config.masks, MASKS.config_of("random")) and isinstance(config.targets, PixelsConfig)
    assert config.views.crop_scale == [0.35, 1.0]
    [message] = [record.getMessage() for record in caplog.records if "another method" in record.getMessage()]
    assert message.endswith(
        "ignored, since another method was chosen: method.predictor_dim=96, method.predictor_depth=2"
    )
    other = load_config(recipe, ["method=mae", "targets=teacher"])
    assert isinstance(other.targets, TeacherConfig)


def test_another_method_lists_also_the_keys_that_the_recipe_sets_to_their_defaults(caplog) -> None:
    load_config(ROOT / "data2vec2" / "vitb16.yaml", ["method=mae"])
    [message] = [record.getMessage() for record in caplog.records if "another method" in record.getMessage()]
    left_out = ["decoder_dim=768", "decoder_depth=6", "decoder_kernel=3", "class_loss_weight=2.56"]
    assert message.endswith(", ".join(f"method.{key}" for key in left_out))


@pytest.mark.parametrize("number", range(len(METHODS.names())))
@pytest.mark.parametrize("name", ["demo", "cifar10_vitt4"])
def test_each_small_recipe_serves_the_other_methods_too(number: int, name: str) -> None:
    recipe, names = METHODS.names()[number], METHODS.names()
    for shift in (1, 3, 4) if name == "demo" else (2, 5, 7):  # each recipe with six methods, each method on six recipes
        method = names[(number + shift) % len(names)]
        # The reference's least target of I-JEPA is larger than a block on these grids.
        overrides = ["masks.min_patches=3"] if method == "ijepa" else []
        Plan.of(load_config(ROOT / recipe / f"{name}.yaml", [f"method={method}", *overrides]))


def test_the_simmim_recipe_has_the_reference_values_and_sizes() -> None:
    config = load_config(ROOT / "simmim" / "vitb16.yaml")
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 86_256_720
    assert sum(p.numel() for p in method.head.parameters()) == 590_592
    view = config.views
    assert (view.crop_scale, view.interpolation, view.horizontal_flip) == ([0.67, 1.0], "bilinear", 0.5)
    masks = MASKS.build(config.masks, config.backbone.grid)(8, torch.Generator().manual_seed(0))
    assert masks.masked.sum(1).tolist() == [120] * 8 and not config.targets.normalize
    assert (config.optim.weight_decay, config.optim.final_weight_decay) == (0.05, None)
    assert config.optim.clip_grad_norm == 5.0
    assert (config.trainer.batch_size, config.trainer.epochs) == (2048, 800)
    # Start, half way up, peak, before and after the milestone; each a step later than its epoch begins.
    schedules = RateSchedules(config.optim, num_steps=800 * 10, steps_per_epoch=10)
    rates = [schedules(step).lr for step in (0, 1, 51, 101, 7000, 7001, 7999)]
    assert rates == pytest.approx([2e-6, 2e-6, 2.01e-4, 4e-4, 4e-4, 4e-5, 4e-5])


@pytest.mark.parametrize(
    ("name", "epochs", "prototypes", "local_crops", "large", "small"),
    [("dino", 300, 65536, 8, [0.4, 1.0], [0.05, 0.4]), ("ibot", 800, 8192, 10, [0.25, 1.0], [0.05, 0.25])],
)
def test_recipes_of_crops_have_the_reference_values(
    name: str, epochs: int, prototypes: int, local_crops: int, large: list[float], small: list[float]
) -> None:
    config = load_config(ROOT / name / "vits16.yaml")
    method, optim = config.method, config.optim
    views = config.views
    assert (method.num_prototypes, method.head_dim, method.bottleneck_dim) == (prototypes, 2048, 256)
    assert (views.num_local_crops, views.local_size, method.norm_last_layer) == (local_crops, 96, False)
    assert views.global_crop.crop_scale == views.second_global_crop.crop_scale == large
    assert views.local_crop.crop_scale == small
    blurs = (views.global_crop.blur, views.second_global_crop.blur, views.local_crop.blur)
    assert blurs == (1.0, 0.1, 0.5) and views.second_global_crop.solarize == 0.2
    assert (method.teacher_temp_warmup_epochs, method.freeze_last_layer_epochs) == (30, 1)
    assert (config.trainer.batch_size, config.trainer.epochs, optim.clip_grad_norm) == (1024, epochs, 3.0)
    schedules = RateSchedules(optim, num_steps=epochs * 10, steps_per_epoch=10)
    rates = [schedules(step) for step in (0, 50, 100, epochs * 10)]
    assert [rate.lr for rate in rates] == pytest.approx([0, 1e-3, 2e-3, 1e-6], abs=1e-12)
    assert (rates[0].weight_decay, rates[-1].weight_decay) == pytest.approx((0.04, 0.4))


@pytest.mark.parametrize(("name", "dim"), [("vits16", 384), ("vitb16", 768)])
def test_simclr_recipes_have_the_values_of_moco_v3(name: str, dim: int) -> None:
    config = load_config(ROOT / "simclr" / f"{name}.yaml")
    method, backbone, optim, views = config.method, config.backbone, config.optim, config.views
    assert (backbone.embed_dim, backbone.num_heads, backbone.class_token) == (dim, 12, True)
    assert (method.head_dim, method.head_layers, method.projection_dim) == (4096, 3, 256)
    assert (method.temperature, method.freeze_patch_embed) == (0.2, True)
    first, second = views.global_crop, views.second_global_crop
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    assert first.crop_scale == second.crop_scale == [0.08, 1.0]
    assert (config.trainer.batch_size, config.trainer.epochs, optim.clip_grad_norm) == (4096, 300, None)
    schedules = RateSchedules(optim, num_steps=300 * 10, steps_per_epoch=10)
    rates = [schedules(10 * epoch) for epoch in (0, 20, 40, 170, 300)]
    assert [rate.lr for rate in rates] == pytest.approx([0, 1.2e-3, 2.4e-3, 1.2e-3, 0], abs=1e-12)
    assert {rate.weight_decay for rate in rates} == {0.1}


def test_the_released_recipe_of_msn_ends_with_the_values_of_the_reference() -> None:
    config = load_config(ROOT / "msn" / "vits16_release.yaml")
    method, optim, views = config.method, config.optim, config.views
    assert (method.num_prototypes, method.head_dim, method.projection_dim, method.head_batch_norm) == (
        1024,
        2048,
        256,
        True,
    )
    assert (method.sinkhorn_iterations, method.me_max_weight, method.entropy_weight) == (3, 1.0, 0.0)
    assert (method.anchor_temp, method.warmup_target_temp, method.target_temp) == (0.1, 0.025, 0.025)
    assert (views.num_local_crops, views.local_size, config.masks.mask_ratio) == (10, 96, 0.15)
    assert (config.trainer.batch_size, config.trainer.epochs, optim.clip_grad_norm) == (1024, 800, 3.0)
    num_steps = 800 * 1251
    schedules = RateSchedules(optim, num_steps=num_steps, steps_per_epoch=1251)
    assert schedules(15 * 1251 - 1).lr == pytest.approx(1e-3)
    last = schedules(num_steps)
    assert (last.lr, last.weight_decay) == pytest.approx((9.9224e-5, 0.36562), rel=1e-4)
    assert [method.ema.momentum_at(fraction) for fraction in (0.0, 0.5, 1.0)] == pytest.approx([0.996, 0.9976, 0.9992])


def test_the_msn_recipe_that_reproduces_has_its_published_values() -> None:
    config = load_config(ROOT / "msn" / "vits16.yaml")
    method, optim, views = config.method, config.optim, config.views
    assert (method.num_prototypes, method.head_dim, method.projection_dim, method.head_layers) == (4096, 1024, 256, 3)
    assert (method.head_batch_norm, method.sinkhorn_iterations, method.me_max_weight) == (False, 0, 4.0)
    temperatures = (method.warmup_target_temp, method.target_temp, method.target_temp_warmup_epochs)
    assert temperatures == (0.05, 0.025, 30)
    assert (config.masks.mask_ratio, views.local_crop.crop_scale, config.backbone.drop_path) == (0.2, [0.08, 0.25], 0.1)
    assert (optim.lr, optim.warmup_epochs, optim.clip_grad_norm) == (2e-3, 20, 1.0)
    assert (optim.weight_decay, optim.final_weight_decay) == (0.04, 0.4)
    assert (method.ema.momentum, method.ema.final_momentum, method.ema.schedule.value) == (0.996, 1.0, "cosine")


def test_data2vec_recipes_have_the_reference_values_and_sizes() -> None:
    config = load_config(ROOT / "data2vec" / "vitb16.yaml")
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 86_256_720
    assert (config.targets.average_top_k_layers, config.targets.ema.momentum, config.targets.ema.final_momentum) == (
        6,
        0.9998,
        0.9998,
    )
    assert config.method.smooth_l1_beta == 2.0
    masks = MASKS.build(config.masks, config.backbone.grid)(64, torch.Generator().manual_seed(0))
    counts = masks.masked.sum(1)
    assert counts.max() <= 120 and counts.min() >= 105 and counts.unique().numel() > 1


@pytest.mark.parametrize(("name", "seen", "blocks"), [("vitb16", 39, 10), ("vitl16", 49, 18), ("vith14", 64, 24)])
def test_data2vec2_recipes_see_as_many_patches_as_the_reference(name: str, seen: int, blocks: int) -> None:
    config = load_config(ROOT / "data2vec2" / f"{name}.yaml")
    masks = MASKS.build(config.masks, config.backbone.grid)(2, torch.Generator().manual_seed(0))
    assert masks.context.shape == (2, 16, seen)
    assert config.targets.average_top_k_layers == blocks
    [average] = build_method(config.method, config.backbone, config.targets, seed=0, device="meta").emas()
    assert average.momentum(0.0) == pytest.approx(0.9998)
    assert (
        average.momentum(config.targets.ema.anneal_fraction)
        == average.momentum(1.0)
        == config.targets.ema.final_momentum
    )


@pytest.mark.parametrize(
    ("name", "epochs", "warmup", "layer_scale", "encoder", "rest"),
    [
        ("vitb16", 800, 20, 0.1, 85_807_872, 28_368_384 + 34_655_744 + 768),
        # Regressor and decoder as those of ViT-B, behind a projection from 1024 to 768.
        ("vitl16", 1600, 40, 1e-5, 303_326_208, 28_368_384 + 34_655_744 + 768 + (1024 + 1 + 2) * 768),
    ],
)
def test_cae_recipes_have_the_reference_values_and_sizes(
    name: str, epochs: int, warmup: int, layer_scale: float, encoder: int, rest: int
) -> None:
    config = load_config(ROOT / "cae" / f"{name}.yaml")
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    assert sum(p.numel() for p in method.encoder.parameters()) == encoder
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert trained == encoder - method.encoder.pos_embed.numel() + rest
    backbone, method, optim, view = config.backbone, config.method, config.optim, config.views
    assert (backbone.layer_scale, backbone.drop_path, method.layer_scale) == (layer_scale, 0.1, 0.1)
    assert (method.alignment_weight, config.targets.num_tokens) == (2.0, 8192)
    assert (view.crop_scale, view.interpolation, view.horizontal_flip) == ([0.08, 1.0], "bicubic", 0.5)
    masks = MASKS.build(config.masks, backbone.grid)(8, torch.Generator().manual_seed(0))
    assert masks.context.shape == masks.targets.shape == (8, 1, 98)
    assert (config.trainer.batch_size, config.trainer.epochs, optim.clip_grad_norm) == (2048, epochs, 3.0)
    assert (optim.betas, optim.weight_decay, optim.final_weight_decay) == ([0.9, 0.999], 0.05, None)
    schedules = RateSchedules(optim, num_steps=epochs * 10, steps_per_epoch=10)
    rates = [schedules(10 * epoch).lr for epoch in (0, warmup / 2, warmup, epochs)]
    assert rates == pytest.approx([0, 7.5e-4, 1.5e-3, 1e-5], abs=1e-12)


def test_cae_sees_the_crop_of_its_reference_again_at_112_pixels_for_dalles_tokenizer() -> None:
    tokenizer = ["views=cae_dalle", "targets.tokenizer=dalle", "targets.weights=encoder.safetensors"]
    config = load_config(ROOT / "cae" / "vitb16.yaml", tokenizer)
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    views = {spec.name: spec for spec in build_views(config.views, config.backbone)}
    assert (views["image"].size, views["tokenizer"].size) == ((224, 224), (112, 112))
    assert views["image"].config.crop_scale == views["tokenizer"].config.crop_scale == [0.08, 1.0]
    generators = build_generators(list(views.values()), config.masks, config.backbone)
    method.check_inputs(views, {name: masks(1, torch.Generator()) for name, masks in generators.items()})
