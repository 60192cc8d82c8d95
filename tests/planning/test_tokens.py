"""FLOPs by formula against counted ones, at published sizes."""

import pytest
from tiny_methods import tiny_views

from ssl_zoo.engine.build import build_generators, build_views
from ssl_zoo.masks import MASKS
from ssl_zoo.method import METHODS, build_method
from ssl_zoo.nn import ViTConfig
from ssl_zoo.planning.plan import count_flops, plan_batch
from ssl_zoo.planning.tokens import stacks
from ssl_zoo.targets import TARGETS


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("ijepa", ViTConfig(patch_size=14, embed_dim=1280, depth=32, num_heads=16)),
        ("mae", ViTConfig(embed_dim=1024, depth=24, num_heads=16, class_token=True)),
        ("data2vec", ViTConfig()),
    ],
)
def test_tokens_times_weights_plus_attention_give_the_counted_flops_within_3_percent(
    name: str, backbone: ViTConfig
) -> None:
    method_class, config = METHODS.get(name), METHODS.config_of(name)()
    masks = MASKS.config_of(method_class.default_masks)()
    target = TARGETS.config_of(method_class.default_targets)()
    method = build_method(config, backbone, target, seed=0, device="meta")
    views = build_views(tiny_views(name), backbone)
    generators = build_generators(views, masks, backbone)
    counted = count_flops(method, views, generators)["step"]
    formula = sum(stack.step_flops for stack in stacks(method, plan_batch(views, generators)))
    assert formula == pytest.approx(counted, rel=0.03)


def test_tokens_of_a_masked_method_are_those_of_its_masks() -> None:
    backbone = ViTConfig(image_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3)
    config = METHODS.config_of("ijepa")(predictor_dim=24, predictor_depth=1)
    method = build_method(config, backbone, TARGETS.config_of("teacher")(), seed=0, device="meta")
    masks = MASKS.config_of("multiblock")(
        target_scale=[0.25, 0.25], target_aspect=[1.0, 1.0], min_patches=4, context_fraction=0.25
    )
    views = build_views(tiny_views("ijepa"), backbone)
    batch = plan_batch(views, build_generators(views, masks, backbone))
    found = {stack.name: stack for stack in stacks(method, batch)}
    assert {name: stack.tokens for name, stack in found.items()} == {
        "target.encoder.module": 64,
        "encoder": 16,
        "predictor": 4 * (16 + 16),
    }
    assert found["predictor"].pairs == 4 * 32**2
    assert not found["target.encoder.module"].is_trained and found["encoder"].is_trained
