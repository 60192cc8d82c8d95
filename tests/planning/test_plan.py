"""The dry run against closed forms."""

import pytest
import torch
from tiny_methods import tiny_method, tiny_views
from torch import nn

from ssl_zoo.engine.build import build_generators, build_views
from ssl_zoo.masks import MASKS
from ssl_zoo.masks.multiblock import ContextLength
from ssl_zoo.method import METHODS, build_method
from ssl_zoo.nn import ViTConfig
from ssl_zoo.planning.plan import count_flops, count_parameters
from ssl_zoo.targets import TeacherConfig


def block_flops(tokens: int, dim: int) -> int:
    """FLOPs of one pre-norm block: four projections of the attention, its two matmuls, and the MLP of ratio 4."""
    return 2 * tokens * 12 * dim * dim + 2 * 2 * tokens * tokens * dim


def test_counted_flops_equal_the_closed_form() -> None:
    dim, depth, narrow, patch = 192, 2, 96, 4
    backbone = ViTConfig(image_size=32, patch_size=patch, embed_dim=dim, depth=depth, num_heads=3)
    config = METHODS.config_of("ijepa")(predictor_dim=narrow, predictor_depth=1)
    method = build_method(config, backbone, TeacherConfig(), seed=0, device="meta")
    views = build_views(tiny_views("ijepa"), backbone)
    masks = MASKS.config_of("multiblock")(
        target_scale=[0.25, 0.25], target_aspect=[1.0, 1.0], min_patches=4, context_fraction=0.25
    )
    counted = count_flops(method, views, build_generators(views, masks, backbone))
    context, target, patches, pixels = 16, 16, 64, 3 * patch * patch
    teacher = depth * block_flops(patches, dim) + 2 * patches * pixels * dim
    student = depth * block_flops(context, dim) + 2 * context * pixels * dim
    known = context + target
    last_block = 2 * known * 2 * narrow**2 + 2 * target * 10 * narrow**2 + 2 * 2 * target * known * narrow
    predictor = 4 * last_block + 2 * context * dim * narrow + 4 * 2 * target * narrow * dim
    assert counted["forward"] == pytest.approx(teacher + student + predictor, rel=0.01)
    # Both factors of every matmul are differentiated, except of the one with the pixels.
    backward = 2 * (student + predictor) - 2 * context * pixels * dim
    assert counted["backward"] == pytest.approx(backward, rel=0.01)


def test_flops_of_contexts_of_the_smallest_size_fall_with_the_batch() -> None:
    backbone = ViTConfig(image_size=32, patch_size=4, embed_dim=48, depth=1, num_heads=3)
    config = METHODS.config_of("ijepa")(predictor_dim=24, predictor_depth=1)
    method = build_method(config, backbone, TeacherConfig(), seed=0, device="meta")
    views = build_views(tiny_views("ijepa"), backbone)
    masks = MASKS.config_of("multiblock")(min_patches=3, context_length=ContextLength.batch_min)
    generators = build_generators(views, masks, backbone)
    few, many = (count_flops(method, views, generators, batch_size=count)["step"] for count in (2, 256))
    assert many < 0.9 * few


def test_a_method_on_the_meta_device_takes_no_memory() -> None:
    giant = ViTConfig(embed_dim=1408, depth=40, num_heads=16)
    method = build_method(METHODS.config_of("ijepa")(), giant, TeacherConfig(), seed=0, device="meta")
    assert all(p.device == torch.device("meta") for p in method.parameters())


def test_parameters_are_counted_with_and_without_ema_weights() -> None:
    method = tiny_method("ijepa")
    total, trainable = count_parameters(method)
    frozen = sum(p.numel() for p in method.target.parameters())
    positions = method.encoder.pos_embed.numel() + method.predictor.pos_embed.numel()
    assert total - trainable == frozen + positions
    assert count_parameters(nn.Linear(3, 2)) == (8, 8)
