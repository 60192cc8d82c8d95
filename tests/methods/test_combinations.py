"""Any masked method with any target and any masks: it learns, or the build says why not."""

import dataclasses

import pytest
import torch
from tiny_methods import TINY_BACKBONE, TINY_MASKS, TINY_METHOD, TINY_TARGETS, step_of, tiny_method, tiny_views
from tiny_runs import ALONE, tiny_data

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import build_views
from ssl_zoo.engine.optim import AdamWConfig, Optimization, RateSchedules
from ssl_zoo.masks import MASKS, Masks
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.seeding import generator_for
from ssl_zoo.targets import TARGETS, MaskTeacher

NAMES = [name for name in METHODS.names() if METHODS.get(name).default_targets is not None]
CATEGORICAL = [name for name in TARGETS.names() if TARGETS.get(name).is_categorical]
REPLACING = ("data2vec", "simmim")  # the encoder sees mask tokens in place of masked patches
VIEWS = {spec.name: spec for spec in build_views(tiny_views("ijepa"), TINY_BACKBONE)}
IMAGES = torch.randn(8, 3, 16, 16, generator=generator_for("combinations"))


def masks_of(name: str) -> Masks:
    settings = {"cells": {"mask_patch_size": 2}, **TINY_MASKS}
    return MASKS.build(MASKS.config_of(name)(**settings.get(name, {})), (4, 4))(8, generator_for("combinations", name))


def built(name: str, target: str, **settings: object) -> Method:
    config = METHODS.config_of(name)(**TINY_METHOD.get(name, {}))
    target_config = TARGETS.config_of(target)(**{**TINY_TARGETS.get(target, {}), **settings})
    return build_method(config, TINY_BACKBONE, target_config, seed=0)


def losses(method: Method, masks: Masks, num_steps: int = 15) -> list[float]:
    config = AdamWConfig(warmup_epochs=0, lr=6e-3)
    schedules = RateSchedules(config, num_steps=num_steps, steps_per_epoch=num_steps)
    optimization = Optimization(config, method.param_groups(), schedules)
    values = []
    for step in range(num_steps):
        optimization.set_rates(step)
        loss = method(Batch({"image": IMAGES}, {"image": masks}), step_of(method)).loss
        loss.backward()
        optimization.optimizer.step()
        optimization.optimizer.zero_grad(set_to_none=True)
        values.append(loss.item())
    return values


@pytest.mark.parametrize("generator", MASKS.names())
@pytest.mark.parametrize("target", TARGETS.names())
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_learns_or_is_refused_before_the_first_step(name: str, target: str, generator: str) -> None:
    if target in CATEGORICAL and METHODS.get(name).default_targets not in CATEGORICAL:
        with pytest.raises(ValueError, match="choose targets=teacher or targets=pixels, or method=cae"):
            built(name, target)
        return
    method, masks = built(name, target), masks_of(generator)
    if generator == "random_ratio":
        with pytest.raises(ValueError, match=f"some images without any; .*masks={method.default_masks}"):
            method.check_inputs(VIEWS, {"image": masks})
        return
    if name in REPLACING and generator == "inverse_block":
        with pytest.raises(ValueError, match=r"set masks\.num_masks=1 or choose other masks"):
            method.check_inputs(VIEWS, {"image": masks})
        return
    method.check_inputs(VIEWS, {"image": masks})
    values = losses(method, masks)
    assert values[-1] < 0.97 * values[0]


@pytest.mark.parametrize("target", ["teacher", "topk_teacher"])
@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_sees_target_blocks_alone_serves_where_no_full_image_is_needed(name: str, target: str) -> None:
    if name in REPLACING or METHODS.get(name).default_targets == "topk_teacher":
        with pytest.raises(ValueError, match=r"targets\.mask=output"):
            built(name, target, mask=MaskTeacher.input)
    else:
        values = losses(built(name, target, mask=MaskTeacher.input), masks_of("multiblock"))
        assert values[-1] < 0.97 * values[0]


@pytest.mark.parametrize("name", NAMES)
def test_without_masks_or_targets_the_build_says_what_to_choose(name: str) -> None:
    method = built(name, "pixels")
    with pytest.raises(ValueError, match=f"choose masks, e.g. masks={method.default_masks}"):
        method.check_inputs(VIEWS, {})
    with pytest.raises(ValueError, match="choose targets="):
        build_method(method.config, TINY_BACKBONE, None, seed=0)


@pytest.mark.parametrize("embed_dim", [48, 64])  # as wide as the 48 numbers of a patch, and not
def test_a_class_loss_without_target_features_is_refused(embed_dim: int) -> None:
    config = METHODS.config_of("data2vec2")(decoder_dim=32, decoder_groups=4, class_loss_weight=0.5)
    backbone = dataclasses.replace(TINY_BACKBONE, embed_dim=embed_dim, class_token=True)
    with pytest.raises(ValueError, match=r"choose targets=topk_teacher, or set method\.class_loss_weight=0"):
        build_method(config, backbone, TARGETS.config_of("pixels")(), seed=0)


def test_methods_that_are_compared_see_the_same_samples_and_masks() -> None:
    seen = {name: tiny_data(tiny_method(name), ALONE, 8).fingerprint(3) for name in NAMES}
    assert len(seen) >= 4 and len(set(seen.values())) == 1


@pytest.mark.parametrize("name", METHODS.names())
def test_views_of_another_kind_are_refused_with_one_to_choose(name: str) -> None:
    kinds = dict.fromkeys(["dino", "ibot", "msn", "lejepa"], "multi_crop") | {"simclr": "two_crops"}
    own, others = tiny_views("mae" if name in kinds else "dino"), kinds.get(name, "single_crop")
    views = {spec.name: spec for spec in build_views(own, TINY_BACKBONE)}
    with pytest.raises(ValueError, match=f"views={others}"):
        tiny_method(name).check_inputs(views, {})
